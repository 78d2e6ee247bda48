"""What runs next, and what to do with what came back: a study's logic, apart from where its runs are trained.

A driver knows the store and the searches, and nothing of Ray. Whoever trains the runs asks `next_request`, hands every
report to `on_report` and every lost worker to `on_lost`. So the whole logic is tested without a cluster.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import zip_longest
from statistics import fmean
from typing import Any

from search_spaces.spaces import MethodSpace, Value
from study.plan import ABLATION, FINAL, SEARCH, TEACHER, Plan, RunPlan
from study.search import PointSearch, open_storage
from study.store import COMPLETE, DONE, FAILED, OPEN, PRUNED, RUNNING, WAITING, PointRow, RunRow, Store
from trainables import engine
from trainables.runner import forget

log = logging.getLogger("kdstudy.driver")

# A run whose worker dies so often has something the matter with it.
MAX_LOSSES = 3
# How often requests of other commands are looked for.
POLL_SECONDS = 1.0
# Seed-major order: the first seed of all points, then the second, so that a whole curve shows early.
_SEED_STRIDE = 100_000


class Driver:
    """Drives one study. Its caller holds the study's lock.

    Args:
        plan: the study's plan.
        store: the store.
        device: what runs are trained on (`cpu`, `cuda`).
        threads: CPU threads a run.
        workers: processes of a run that decode its images.
        owner_alive: whether another study's driver, which owns a run that this study waits for, is still there.
        adopt: called once when the runs that train teachers have ended, with the names of their pairs; puts the hashes
            into the plan, or says why the study ends here.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        device: str = "cpu",
        threads: int = 1,
        workers: int = 0,
        owner_alive: Callable[[str], bool] = lambda study: False,
        adopt: Callable[[list[str]], str | None] = lambda pairs: None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.study = plan.spec.name
        self.stopping: str | None = None  # why no further run starts
        self._device = device
        self._threads = threads
        self._workers = workers
        self._owner_alive = owner_alive
        self._adopt = adopt
        self._queue: deque[RunRow] = deque()
        self._flight: dict[str, RunRow] = {}  # by run id, as claimed
        self._attempts: dict[str, int] = {}
        self._searches: dict[tuple[str, str], PointSearch] = {}
        self._turns: deque[tuple[str, str]] = deque()
        self._tried_first: dict[tuple[str, str], deque[tuple[dict[str, Value], str]]] = {}  # values, who proposed them
        self._started = time.monotonic()
        self._wall_before = store.info(self.study)["wall_seconds"]
        self._wall_saved = self._started
        mine = [run for run in store.runs(self.study) if not run.taken_over]
        self._device_seconds = sum(run.device_seconds for run in mine)
        self._runs_started = sum(run.attempt > 0 and run.stage != TEACHER for run in mine)
        self._polled = 0.0
        self._teacher_pairs: list[str] | None = None  # while teachers are trained: whose
        store.requeue_owned(self.study)
        # A stop that was left here was meant for the driver before.
        self._obey(kind for kind in store.take_requests(self.study) if kind == "retry")

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles whatever its searcher holds into a snapshot that nothing reads: the store is the memory.
        return {}

    # Stages

    def open(self) -> None:
        """Begin: with the runs that train the teachers which the study needs and does not name, or with its points."""
        self._teacher_pairs = []
        for name, pair in self.plan.pairs.items():
            if self.plan.spec.trains_teacher_of(pair.spec):
                for fold in pair.folds:
                    point = self._add_point(TEACHER, name, "ce", {} if fold is None else {"fold": fold})
                    self._add_run(point, self.plan.teacher_run(name, fold), position=fold or 0, screening=False)
                self._teacher_pairs.append(name)
        self._refill()
        self._advance()

    def _advance(self) -> None:
        """Go over to the points when no teacher is left to train."""
        if self._teacher_pairs is None or any(run.state in (WAITING, RUNNING) for run in self._teacher_runs()):
            return
        reason = self._adopt(self._teacher_pairs)
        if reason is not None:
            self.stop(reason)
            return
        self._teacher_pairs = None
        self._open_points()

    def _teacher_runs(self) -> list[RunRow]:
        planned = {run.run_id for pair in self._teacher_pairs or () for run in self.plan.teacher_runs(pair)}
        return [run for run in self.store.runs(self.study, TEACHER) if run.run_id in planned]

    def _open_points(self) -> None:
        """Open the searches, mend what an earlier driver left, and ask for the runs of the listed points."""
        storage = open_storage(self.store.url)
        stage = self.plan.first_stage
        points = self.store.points(self.study, stage)
        listed: list[list[tuple[str, MethodSpace, dict[str, Value]]]] = []
        for pair_name, pair in self.plan.pairs.items():
            of_pair = []
            for method, space in self.plan.spec.spaces().items():
                search = PointSearch(
                    storage, f"{self.study}/{pair_name}/{method}", space, self.plan.spec.search, pair.protocol.epochs
                )
                mine = [p for p in points if (p.pair, p.method) == (pair_name, method)]
                search.reconcile(mine)
                self._searches[pair_name, method] = search
                if space.sampled:
                    self._turns.append((pair_name, method))
                    self._tried_first[pair_name, method] = self._first_points(pair_name, space, mine)
                else:
                    of_pair += [(pair_name, space, values) for values in space.grid()]
            listed.append(of_pair)
        known = {point.point_id for point in points}
        for turn in zip_longest(*listed):  # one point of each pair, then the next of each
            for pair_name, space, values in filter(None, turn):
                parameters = self.plan.pairs[pair_name].resolve(space, values)
                if self.plan.point_id(pair_name, space.method, parameters) not in known:
                    trial = self._searches[pair_name, space.method].add(values)
                    self._add_point(stage, pair_name, space.method, parameters, trial, "the spec's list")
        for opened in (stage, FINAL):
            for number, point in enumerate(self.store.points(self.study, opened)):
                self._add_runs(point, number)
        self._settle()
        self._refill()

    def _add_point(
        self,
        stage: str,
        pair: str,
        method: str,
        parameters: dict[str, Value],
        trial: int | None = None,
        origin: str = "",
    ) -> PointRow:
        point = PointRow(
            study=self.study,
            stage=stage,
            point_id=self.plan.point_id(pair, method, parameters),
            pair=pair,
            method=method,
            parameters=parameters,
            trial=trial,
            state=OPEN,
            value=None,
            origin=origin,
        )
        self.store.add_point(point)
        return point

    def _seeds(self, point: PointRow) -> list[int]:
        return self.plan.final_seeds if point.stage == FINAL else list(self.plan.spec.seeds)

    def _screens(self, point: PointRow) -> bool:
        """Whether a point's first seed only decides if it gets the others."""
        return point.stage == SEARCH and self.plan.spec.search.pruner != "none"

    def _add_runs(self, point: PointRow, number: int) -> None:
        """Ask for the runs of a stage's point, as many as it is entitled to by now; what is there already stays."""
        seeds = self._seeds(point)
        if self._screens(point):
            screening = self._runs_of(point)
            survived = any(run.screening and run.state == DONE and not run.pruned for run in screening)
            seeds = seeds if survived else seeds[:1]
        reopened = False
        for index, seed in enumerate(seeds):
            run = self.plan.student_run(point.pair, point.stage, point.method, point.parameters, seed)
            stage_offset = _SEED_STRIDE**2 if point.stage == FINAL else 0
            added = self._add_run(
                point,
                run,
                position=stage_offset + index * _SEED_STRIDE + number,
                screening=self._screens(point) and index == 0,
            )
            reopened = reopened or added
        if reopened and point.state == COMPLETE:
            self.store.reopen_point(self.study, point.stage, point.point_id)

    def _add_run(self, point: PointRow, run: RunPlan, *, position: int, screening: bool) -> bool:
        return self.store.add_run(
            self.study,
            point.stage,
            point.point_id,
            run.run_id,
            seed=run.seed,
            identity=run.identity,
            epochs=run.epochs,
            position=position,
            screening=screening,
        )

    def _runs_of(self, point: PointRow) -> list[RunRow]:
        return [run for run in self.store.runs(self.study, point.stage) if run.point_id == point.point_id]

    # What next

    def next_request(self) -> dict[str, Any] | None:
        """Claim the next run and say how to train it; None where there is none at this moment."""
        self.poll()
        if self.stopping:
            return None
        self._advance()
        while not self.stopping:
            if not self._queue:
                self._refill()
            if not self._queue and not self._propose():
                return None
            if not self._queue:
                return None
            if self._exhausted(self._queue[0]):
                return None
            run = self._queue.popleft()
            attempt = self.store.claim(run.run_id, self.study)
            if attempt is None:
                continue  # another study's driver was faster; its result will be taken over
            self._flight[run.run_id] = run
            self._attempts[run.run_id] = attempt
            self._runs_started += attempt == 1 and run.stage != TEACHER
            search = self._searches.get((run.pair, run.method)) if run.screening else None
            log.info("run %s attempt %d: %s %s seed %d", run.run_id, attempt, run.method, run.parameters, run.seed)
            return self.plan.request(
                run,
                attempt,
                device=self._device,
                threads=self._threads,
                workers=self._workers,
                rungs=search.rungs if search else (),
            )
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing is being trained and nothing will be: the stage is over, or the study is stopping."""
        if self._flight:
            return False
        self._advance()
        if self.stopping:
            return True
        if self._queue or self._waiting_elsewhere():
            return False
        return not self._propose()

    def _refill(self) -> None:
        """Take up the runs that wait. A run that several points share is trained once."""
        self._release_orphans()
        seen = set(self._flight)
        self._queue.clear()
        for run in self.store.runs(self.study):
            wanted = (run.stage == TEACHER) == (self._teacher_pairs is not None)
            if run.state == WAITING and wanted and not run.pruned and run.run_id not in seen:
                seen.add(run.run_id)
                self._queue.append(run)

    def _waiting_elsewhere(self) -> bool:
        """Whether another living driver trains a run that this study waits for."""
        self._refill()
        return bool(self._queue) or any(
            run.state == RUNNING and run.run_id not in self._flight for run in self.store.runs(self.study)
        )

    def _release_orphans(self) -> None:
        for run in self.store.runs(self.study):
            if run.state == RUNNING and run.owner not in (None, self.study) and not self._owner_alive(str(run.owner)):
                self.store.requeue(run.run_id, run.attempt, lost=False)
        self._settle()

    def _propose(self) -> bool:
        """Ask a search for a new point, in fair turns; then, when all has ended, open the final stage."""
        if self._teacher_pairs is not None:
            return False
        points = self.store.points(self.study)
        for _ in range(len(self._turns)):
            key = self._turns[0]
            self._turns.rotate(-1)
            asked = [point for point in points if point.stage == SEARCH and (point.pair, point.method) == key]
            if len(asked) < (self.plan.spec.search.points or 0) and not self._search_is_over():
                self._sample(*key)
                self._refill()
                return True
        if self.plan.has_final and not self._flight and all(p.state != OPEN for p in points if p.stage == SEARCH):
            return self._open_final(points)
        return False

    def _first_points(self, pair: str, space: MethodSpace, mine: list[PointRow]) -> deque[tuple[dict[str, Value], str]]:
        """What is tried before a sampler is asked: the defaults, then the best points of pairs searched before."""
        plan, search = self.plan.pairs[pair], self.plan.spec.search
        wanted = [(plan.resolve(space, {}), "the protocol's own values")] if search.defaults_first else []
        if search.warm_start:
            wanted += self._best_elsewhere(pair, space.method, search.warm_start)
        first: dict[str, tuple[dict[str, Value], str]] = {}
        for parameters, origin in wanted:
            values = space.point_of(parameters)
            if values is not None:
                first.setdefault(self.plan.point_id(pair, space.method, plan.resolve(space, values)), (values, origin))
        # A search that has begun has had its first points; what other pairs found since then comes too late.
        begun = {point.point_id for point in mine}
        return deque(given for point_id, given in first.items() if point_id not in begun and len(begun) < len(first))

    def _best_elsewhere(self, pair: str, method: str, count: int) -> list[tuple[dict[str, Value], str]]:
        """The best points of each other pair that was searched with this method, in this study or another."""
        found: list[tuple[dict[str, Value], str]] = []
        for study in self.store.study_names():
            complete: dict[str, list[PointRow]] = {}
            for point in self.store.points(study, SEARCH):
                if point.method == method and point.pair != pair and point.state == COMPLETE:
                    complete.setdefault(point.pair, []).append(point)
            for other, points in complete.items():
                best = sorted(points, key=lambda point: point.value or 0.0, reverse=True)[:count]
                found += [(point.parameters, f"warm start from {other} in {study}") for point in best]
        return found

    def _sample(self, pair: str, method: str) -> None:
        search, first = self._searches[pair, method], self._tried_first[pair, method]
        if first:
            values, origin = first.popleft()
            trial = search.add(values)
        else:
            (trial, values), origin = search.sample(), self.plan.spec.search.sampler
        parameters = self.plan.pairs[pair].resolve(search.space, values)
        point_id = self.plan.point_id(pair, method, parameters)
        known = self.store.points(self.study, SEARCH)
        if any(point.point_id == point_id for point in known):
            search.tell(trial, FAILED, None)  # drawn twice: possible where lists are sampled
            return
        self._add_runs(self._add_point(SEARCH, pair, method, parameters, trial, origin), len(known))

    def _open_final(self, points: list[PointRow]) -> bool:
        """Ask for the final runs of the best points of each pair and method; True if there are new ones."""
        before = len(self.store.runs(self.study, FINAL))
        for pair, method in self._searches:
            complete = [p for p in points if (p.stage, p.pair, p.method, p.state) == (SEARCH, pair, method, COMPLETE)]
            best = sorted(complete, key=lambda p: p.value or 0.0, reverse=True)[: self.plan.spec.search.final_top]
            for rank, point in enumerate(best):
                self._add_runs(self._add_point(FINAL, pair, method, point.parameters, origin="chosen"), rank)
        self._settle()
        self._refill()
        return len(self.store.runs(self.study, FINAL)) > before

    # Budget

    def _search_is_over(self) -> bool:
        """Whether the budget leaves no further sampled point; the final stage is then still trained."""
        limit = self.plan.spec.budget.runs
        committed = self._runs_started + len(self._queue) + self.final_runs()
        return (limit is not None and committed + len(self.plan.spec.seeds) > limit) or self._time_is_up()

    def final_runs(self) -> int:
        """Runs that a budget keeps for the final stage."""
        if not self.plan.has_final:
            return 0
        return len(self._searches) * self.plan.spec.search.final_top * len(self.plan.spec.seeds)

    def _exhausted(self, run: RunRow) -> bool:
        """Whether the budget forbids to start a run of a listed point. Stages that were opened in full go on."""
        if run.stage in (FINAL, TEACHER) or (run.pair, run.method) in self._turns:
            return False
        limit = self.plan.spec.budget.runs
        if limit is not None and self._runs_started + self.final_runs() >= limit:
            self.stop(f"budget.runs: {limit} runs were started")
        elif self._time_is_up():
            self.stop("budget: the hours are used up")
        return self.stopping is not None

    def _time_is_up(self) -> bool:
        budget = self.plan.spec.budget
        wall = self._wall_before + time.monotonic() - self._started
        return (budget.hours is not None and wall >= budget.hours * 3600) or (
            budget.device_hours is not None and self._device_seconds >= budget.device_hours * 3600
        )

    # What came back

    def on_report(self, report: dict[str, Any]) -> bool:
        """Record a worker's report; True if its run should stop now. Reports of outdated attempts change nothing."""
        run_id, attempt = report["run_id"], report["attempt"]
        run = self._flight.get(run_id)
        if run is None or self._attempts[run_id] != attempt:
            return True
        recorded = self.store.record(
            run_id,
            attempt,
            report["epochs"],
            checkpoint=report["checkpoint"],
            device=report["device"],
            device_seconds=report["device_seconds"],
        )
        if not recorded:
            self._land(run_id)
            return True
        self._device_seconds += report["device_seconds"]
        if report["failed"]:
            log.warning("run %s failed: %s\n%s", run_id, report["failed"], report.get("traceback", ""))
            self._end(run, attempt, FAILED, report["failed"])
            return True
        if report["done"]:
            self._end(run, attempt, DONE)
            return True
        if self._should_prune(run, report["epochs"]):
            self._end(run, attempt, PRUNED)
            return True
        return False

    def _should_prune(self, run: RunRow, epochs: list[dict[str, float]]) -> bool:
        if not run.screening:
            return False
        search = self._searches[run.pair, run.method]
        point = next(p for p in self.store.points(self.study, run.stage) if p.point_id == run.point_id)
        metric = self.plan.pairs[run.pair].valued_by.removesuffix("_last")
        return any(
            search.report(point.trial, int(metrics["epoch"]), metrics[metric])
            for metrics in epochs
            if point.trial is not None and metrics["epoch"] in search.rungs
        )

    def _end(self, run: RunRow, attempt: int, state: str, reason: str | None = None) -> None:
        history = self.store.history(run.run_id)
        summary = engine.summary(history) if history else {}
        self.store.end_run(run.run_id, attempt, state, reason=reason, summary=summary, study=self.study)
        self._land(run.run_id)
        checkpoint = next(row.checkpoint for _, row in self.store.find_runs(run.run_id))
        forget(self.plan.home.checkpoints / run.run_id, checkpoint)
        self._settle()

    def on_lost(self, run_id: str, attempt: int, reason: str) -> None:
        """A worker died: its run waits again, from its last checkpoint, unless that has happened too often."""
        run = self._flight.get(run_id)
        if run is None or self._attempts[run_id] != attempt:
            return
        row = next(row for _, row in self.store.find_runs(run_id))
        log.warning("run %s attempt %d was lost: %s", run_id, attempt, reason)
        if row.losses + 1 >= MAX_LOSSES:
            self._end(run, attempt, FAILED, f"its worker died {row.losses + 1} times; the last time: {reason}")
            return
        self.store.requeue(run_id, attempt, lost=True)
        self._land(run_id)

    def release(self) -> None:
        """Let all runs in flight wait again: nobody trains them any more."""
        for run_id in list(self._flight):
            self.store.requeue(run_id, self._attempts[run_id], lost=False)
            self._land(run_id)

    def _land(self, run_id: str) -> None:
        self._flight.pop(run_id, None)
        self._attempts.pop(run_id, None)

    def _settle(self) -> None:
        """End the points whose runs have ended, tell Optuna, and give a survivor of the screening its other seeds."""
        runs = self.store.runs(self.study)
        for point in self.store.points(self.study):
            if point.state != OPEN:
                continue
            mine = [run for run in runs if (run.stage, run.point_id) == (point.stage, point.point_id)]
            if not mine or not all(run.ended_here for run in mine):
                continue
            if self._screens(point) and len(mine) < len(self._seeds(point)) and mine[0].state == DONE:
                self._add_runs(point, mine[0].position % _SEED_STRIDE)
                self._refill()
                continue
            self._end_point(point, mine)

    def _end_point(self, point: PointRow, runs: list[RunRow]) -> None:
        if any(run.pruned for run in runs):
            state, value = PRUNED, None
        elif any(run.state == FAILED for run in runs):
            state, value = FAILED, None
        else:
            state, value = COMPLETE, self.value(point, runs)
        self.store.end_point(self.study, point.stage, point.point_id, state, value)
        if point.trial is not None and (point.pair, point.method) in self._searches:
            self._searches[point.pair, point.method].tell(point.trial, state, value)

    def value(self, point: PointRow, runs: Iterable[RunRow]) -> float | None:
        """A point's value: the mean over its seeds. The seed that screened it counts only where it is the only one."""
        if point.stage == TEACHER:
            return None
        runs = list(runs)
        metric = "test_top1_last" if point.stage in (FINAL, ABLATION) else self.plan.pairs[point.pair].valued_by
        counted = [run for run in runs if not run.screening] or runs
        return fmean((run.summary or {})[metric] for run in counted)

    # Requests of other commands

    def poll(self) -> None:
        """Obey the requests that other commands left, and count the time."""
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        self.store.add_wall_seconds(self.study, now - self._wall_saved)
        self._wall_saved = now
        self._obey(self.store.take_requests(self.study))

    def _obey(self, requests: Iterable[str]) -> None:
        for kind in requests:
            if kind == "stop":
                self.stop("a stop was requested")
            elif kind == "retry":
                log.info("retry: %d failed runs begin again", self.store.retry_failed(self.study))
                self._queue.clear()  # it is filled anew when the next run is asked for

    def stop(self, reason: str) -> None:
        """Start no further run."""
        log.info("stopping: %s", reason)
        self.stopping = reason
