"""What runs next, and what to do with what came back: a study's logic, apart from where its runs are trained.

A driver knows the store and the searches, and nothing of Ray. Whoever trains the runs asks `next_request`, hands every
report to `on_report` and every lost worker to `on_lost`. So the whole logic is tested without a cluster.

The store holds the truth; a driver follows it by the rows that changed (`Standing`), whoever changed them, so that an
event costs the same in a study of ten runs and of ten thousand.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import zip_longest
from statistics import fmean
from typing import Any

from search_spaces.spaces import MethodSpace, Value
from study import runlog
from study.plan import CONFIRM, FINAL, SEARCH, TEACHER, Plan, RunPlan
from study.search import PointSearch, open_storage
from study.standing import Point, Standing
from study.store import COMPLETE, DONE, FAILED, OPEN, PRUNED, RUNNING, NewRun, PointRow, RunRow, Store
from trainables import engine
from trainables.runner import forget

log = logging.getLogger("kdstudy.driver")

# A run whose worker dies so often has something the matter with it.
MAX_LOSSES = 3
# How often requests of other commands are looked for.
POLL_SECONDS = 1.0
ANNOUNCE_SECONDS = 10.0
SAME_FAILURES = "budget.same_failures"
"""How the reason begins why a study stopped whose runs failed alike."""
# Seed-major order: the first seed of all points, then the second, so that a whole curve shows early.
_SEED_STRIDE = 100_000
_STAGE_OFFSETS = {FINAL: _SEED_STRIDE**2, CONFIRM: 2 * _SEED_STRIDE**2}


class Driver:
    """Drives one study. Its caller holds the study's lock.

    Args:
        plan: the study's plan.
        store: the store.
        device: what runs are trained on (`cpu`, `cuda`).
        threads: CPU threads a run.
        workers: processes of a run that decode its images.
        execution: how steps are run, one of `engine.EXECUTIONS`; None: what suits the device.
        held: whether this process still is the study's driver.
        announce: called now and then, so that others see that this driver lives and where its runs are.
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
        execution: str | None = None,
        held: Callable[[], bool] = lambda: True,
        announce: Callable[[], None] = lambda: None,
        owner_alive: Callable[[str], bool] = lambda study: False,
        adopt: Callable[[list[str]], str | None] = lambda pairs: None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.study = plan.spec.name
        self.stopping: str | None = None  # why no further run starts
        # Asked when a run ran out of a GPU's memory: whether it will have more if it is tried again.
        self.make_room: Callable[[], bool] = lambda: False
        self._device = device
        self._threads = threads
        self._workers = workers
        self._execution = execution
        self._held = held
        self._announce = announce
        self._announced = -ANNOUNCE_SECONDS
        self._owner_alive = owner_alive
        self._adopt = adopt
        self._flight: dict[str, RunRow] = {}  # by run id, as claimed
        self._heard: dict[str, float] = {}  # by run id: when it began, or reported last
        self._alike: list[str] = []  # why the last runs failed, where they failed alike
        self._searches: dict[tuple[str, str], PointSearch] = {}
        self._proposed: dict[tuple[str, str], set[str]] = {}  # ids of the points of a sampled search
        self._turns: deque[tuple[str, str]] = deque()
        self._tried_first: dict[tuple[str, str], deque[tuple[dict[str, Value], str]]] = {}  # values, who proposed them
        self._started = time.monotonic()
        self._wall_before = store.info(self.study)["wall_seconds"]
        self._wall_saved = self._started
        self._polled = 0.0
        self._teacher_pairs: list[str] | None = None  # while teachers are trained: whose
        self._teacher_runs: set[str] = set()
        store.requeue_owned(self.study)
        # A stop that was left here was meant for the driver before.
        self._obey(kind for kind in store.take_requests(self.study) if kind == "retry")
        runs = store.runs(self.study)
        mine = {run.run_id: run for run in runs if not run.taken_over}.values()
        self._device_seconds = sum(run.device_seconds for run in mine)
        self._runs_started = sum(run.attempt > 0 and run.stage != TEACHER for run in mine)
        self._standing = Standing(self.study)
        # Points whose runs have ended and which have not; of those that are there, only the open ones are looked at.
        self._over = self._standing.take(runs)
        self._over &= {(point.stage, point.point_id) for point in store.points(self.study) if point.state == OPEN}
        self._searched = 0  # points of the search stage, in all searches
        # The study's revision when points were chosen for the final stage, and for the confirmation.
        self._chosen_at = {FINAL: -1, CONFIRM: -1}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles whatever its searcher holds into a snapshot that nothing reads: the store is the memory.
        return {}

    # Stages

    def open(self) -> None:
        """Begin: with the runs that train the teachers which the study needs and does not name, or with its points."""
        self._teacher_pairs = []
        for name, pair in self.plan.pairs.items():
            if self.plan.spec.trains_teacher_of(pair.spec):
                points, runs = [], []
                for fold in pair.folds:
                    point = self._new_point(TEACHER, name, "ce", {} if fold is None else {"fold": fold})
                    points.append(point)
                    runs.append(self._new_run(point, self.plan.teacher_run(name, fold), position=fold or 0))
                self.store.add_points(points)
                self.store.add_runs(self.study, runs)
                self._teacher_runs |= {run.run_id for run in runs}
                self._teacher_pairs.append(name)
        self._follow()
        self._advance()

    def _advance(self) -> None:
        """Go over to the points when no teacher is left to train."""
        if self._teacher_pairs is None or self._teacher_runs & self._standing.left(TEACHER):
            return
        reason = self._adopt(self._teacher_pairs)
        if reason is not None:
            self.stop(reason)
            return
        self._teacher_pairs = None
        self._open_points()

    def _open_points(self) -> None:
        """Open the searches, mend what an earlier driver left, and ask for the runs of the listed points."""
        storage = open_storage(self.store)
        stage = self.plan.first_stage
        points = self.store.points(self.study, stage)
        listed: list[list[tuple[str, MethodSpace, dict[str, Value]]]] = []
        for pair_name, pair in self.plan.pairs.items():
            of_pair = []
            for method, space in self.plan.spec.spaces().items():
                search = PointSearch(
                    storage, f"{self.study}/{pair_name}/{method}", space, self.plan.spec.search, pair.protocol
                )
                mine = [p for p in points if (p.pair, p.method) == (pair_name, method)]
                for point, trial in search.reconcile(mine):
                    self.store.set_trial(self.study, stage, point.point_id, trial)
                self._searches[pair_name, method] = search
                if space.sampled:
                    self._turns.append((pair_name, method))
                    self._proposed[pair_name, method] = {point.point_id for point in mine}
                    self._tried_first[pair_name, method] = self._first_points(pair_name, space, mine)
                else:
                    of_pair += [(pair_name, space, values) for values in space.grid()]
            listed.append(of_pair)
        wanted: dict[str, PointRow] = {}
        for turn in zip_longest(*listed):  # one point of each pair, then the next of each
            for pair_name, space, values in filter(None, turn):
                parameters = self.plan.pairs[pair_name].resolve(space, values)
                point = self._new_point(stage, pair_name, space.method, parameters, origin="the spec's list")
                wanted.setdefault(point.point_id, point)
        self.store.add_points(wanted.values())
        survived: set[str] = set()
        if self.plan.spec.search.pruner != "none":
            survived = {run.point_id for run in self.store.runs(self.study, SEARCH) if _survived(run)}
        for opened in (stage, FINAL, CONFIRM):
            there = self.store.points(self.study, opened)
            self._ask_runs(enumerate(there), survived)
            if opened == SEARCH:
                self._searched = len(there)
        self._follow()

    def _new_point(
        self,
        stage: str,
        pair: str,
        method: str,
        parameters: dict[str, Value],
        *,
        trial: int | None = None,
        origin: str = "",
    ) -> PointRow:
        return PointRow(
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

    def _seeds(self, point: PointRow) -> list[int]:
        if point.stage == CONFIRM:
            return self.plan.confirm_seeds
        return self.plan.final_seeds if point.stage == FINAL else list(self.plan.spec.seeds)

    def _screens(self, point: PointRow) -> bool:
        """Whether a point's first seed only decides if it gets the others."""
        return point.stage == SEARCH and self.plan.spec.search.pruner != "none"

    def _ask_runs(self, points: Iterable[tuple[int, PointRow]], survived: Collection[str] = ()) -> None:
        """Ask for the runs of points, as many as each is entitled to by now; what is there already stays.

        Args:
            points: of the searches or the final stage, each with its number in the stage.
            survived: ids of those that got through their screening.
        """
        asked: list[NewRun] = []
        complete: set[Point] = set()
        for number, point in points:
            screens, seeds = self._screens(point), self._seeds(point)
            if screens and point.point_id not in survived:
                seeds = seeds[:1]
            if point.state == COMPLETE:
                complete.add((point.stage, point.point_id))
            stage_offset = _STAGE_OFFSETS.get(point.stage, 0)
            for index, seed in enumerate(seeds):
                run = self.plan.student_run(point.pair, point.stage, point.method, point.parameters, seed)
                position = stage_offset + index * _SEED_STRIDE + number
                asked.append(self._new_run(point, run, position=position, screening=screens and index == 0))
        added = {(run.stage, run.point_id) for run in self.store.add_runs(self.study, asked)}
        for stage, point_id in added & complete:
            self.store.reopen_point(self.study, stage, point_id)

    def _new_run(self, point: PointRow, run: RunPlan, *, position: int, screening: bool = False) -> NewRun:
        return NewRun(
            stage=point.stage,
            point_id=point.point_id,
            run_id=run.run_id,
            seed=run.seed,
            identity=run.identity,
            epochs=run.epochs,
            position=position,
            screening=screening,
        )

    # Following the store

    def _follow(self) -> None:
        """Take in what changed in the store, by this driver or another, and end the points that are over."""
        while True:
            changed = self.store.runs(self.study, since=self._standing.revision)
            self._over |= self._standing.take(changed)
            if not self._take_up() and not self._settle():
                return

    def _take_up(self) -> bool:
        """Let the runs wait that another study's driver will not end; whether there were any."""
        standing = self._standing
        owners = {run.owner for run in standing.elsewhere.values()}
        dead = {owner for owner in owners if not self._owner_alive(str(owner))}
        orphans = [run for run in standing.elsewhere.values() if run.owner in dead]
        for run in orphans:
            self.store.requeue(run.run_id, run.attempt, lost=False)
        dropped = list(standing.dropped)
        for run_id in dropped:
            self.store.resume_pruned(run_id)
        return bool(orphans or dropped)

    def _settle(self) -> bool:
        """End the points whose runs have ended, and give a survivor of the screening its other seeds."""
        # While teachers are trained the searches are closed, and what their points are valued by may not be known.
        ready = {(stage, point_id) for stage, point_id in self._over if stage == TEACHER or self._teacher_pairs is None}
        self._over -= ready
        for stage, point_id in sorted(ready):
            point = self.store.point(self.study, stage, point_id)
            mine = self.store.runs(self.study, stage, point_id)
            if point.state != OPEN or not all(run.ended_here for run in mine):
                continue
            if self._screens(point) and len(mine) < len(self._seeds(point)) and mine[0].state == DONE:
                self._ask_runs([(mine[0].position % _SEED_STRIDE, point)], {point_id})
            else:
                self._end_point(point, mine)
        return bool(ready)

    def _end_point(self, point: PointRow, runs: list[RunRow]) -> None:
        if any(run.pruned for run in runs):
            state, value = PRUNED, None
        elif any(run.state == FAILED for run in runs):
            state, value = FAILED, None
        else:
            state, value = COMPLETE, self.value(point, runs)
        self.store.end_point(self.study, point.stage, point.point_id, state, value)
        search = self._searches.get((point.pair, point.method)) if point.stage == self.plan.first_stage else None
        if search is not None:
            self._tell(search, replace(point, state=state, value=value))

    def _tell(self, search: PointSearch, point: PointRow) -> None:
        trial = search.tell(point)
        if trial is not None and trial != point.trial:
            self.store.set_trial(self.study, point.stage, point.point_id, trial)

    def value(self, point: PointRow, runs: Iterable[RunRow]) -> float | None:
        """A point's value: the mean over its seeds. The seed that screened it counts only where it is the only one."""
        if point.stage == TEACHER:
            return None
        runs = list(runs)
        pair = self.plan.pairs[point.pair]
        metric = pair.valued_by if point.stage == SEARCH else f"test_{pair.score}_last"
        counted = [run for run in runs if not run.screening] or runs
        return fmean((run.summary or {})[metric] for run in counted)

    # What next

    def next_request(self) -> dict[str, Any] | None:
        """Claim the next run and say how to train it; None where there is none at this moment."""
        self.poll()
        if self.stopping:
            return None
        self._follow()
        self._advance()
        while not self.stopping:
            run = self._next()
            if run is None and self._propose():
                run = self._next()
            if run is None or self._exhausted(run):
                return None
            attempt = self.store.claim(run.run_id, self.study)
            if attempt is None:
                found = self.store.run(self.study, run.run_id)
                if found.state == RUNNING and found.owner == self.study:
                    # Ours: an outage took the answer to a claim that was made.
                    self.store.requeue(run.run_id, found.attempt, lost=False)
                self._follow()
                continue  # else another study's driver was faster; its result will be taken over
            # As it is now: what another driver did with it may be newer than what was followed.
            run = self.store.run(self.study, run.run_id)
            self._flight[run.run_id] = run
            self._heard[run.run_id] = time.monotonic()
            self._runs_started += attempt == 1 and run.stage != TEACHER
            search = self._searches.get((run.pair, run.method)) if run.screening else None
            log.info("run %s attempt %d: %s %s seed %d", run.run_id, attempt, run.method, run.parameters, run.seed)
            begun = f"{run.method} {run.parameters} seed {run.seed}, from {run.checkpoint or 'the beginning'}"
            runlog.write(self.plan.home, run.run_id, attempt, begun)
            return self.plan.request(
                run,
                attempt,
                device=self._device,
                threads=self._threads,
                workers=self._workers,
                execution=self._execution,
                rungs=search.rungs if search else (),
            )
        return None

    @property
    def in_flight(self) -> int:
        """How many runs are being trained, or about to be."""
        return len(self._flight)

    def _next(self) -> RunRow | None:
        return self._standing.next(teachers=self._teacher_pairs is not None)

    @property
    def finished(self) -> bool:
        """Whether nothing is being trained and nothing will be: the stage is over, or the study is stopping."""
        if self._flight:
            return False
        self._follow()
        self._advance()
        if self.stopping:
            return True
        if self._next() is not None or self._standing.elsewhere:
            return False
        return not self._propose()

    def _propose(self) -> bool:
        """Ask a search for a new point, in fair turns; then, when all has ended, choose points for the stages after."""
        if self._teacher_pairs is not None:
            return False
        for _ in range(len(self._turns)):
            key = self._turns[0]
            self._turns.rotate(-1)
            if len(self._proposed[key]) < (self.plan.spec.search.points or 0) and not self._search_is_over():
                self._sample(*key)
                return True
        first = self.plan.first_stage
        if self._flight or not self._standing.is_over(first):
            return False
        if self.plan.has_final and self._choose(FINAL, self._best_of_methods):
            return True
        confirms = self.plan.spec.confirm is not None and self._standing.is_over(FINAL)
        return confirms and self._choose(CONFIRM, self._best_and_baselines)

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
        trial = None
        if first:
            values, origin = first.popleft()
        else:
            (trial, values), origin = search.sample(), self.plan.spec.search.sampler
        parameters = self.plan.pairs[pair].resolve(search.space, values)
        point = self._new_point(SEARCH, pair, method, parameters, trial=trial, origin=origin)
        proposed = self._proposed[pair, method]
        if point.point_id in proposed:
            if trial is not None:
                search.discard(trial)  # drawn twice: possible where lists are sampled
            return
        if trial is None:
            point = replace(point, trial=search.add(point.point_id, values))
        self.store.add_points([point])
        proposed.add(point.point_id)
        self._ask_runs([(self._searched, point)])
        self._searched += 1
        self._follow()

    def _choose(self, stage: str, choose: Callable[[list[PointRow]], list[PointRow]]) -> bool:
        """Ask for runs of the points that a later stage trains again; True if there are new ones."""
        if self._chosen_at[stage] == self._standing.revision:
            return False  # nothing has changed since
        complete = [p for p in self.store.points(self.study, self.plan.first_stage) if p.state == COMPLETE]
        best = choose(sorted(complete, key=lambda point: point.value or 0.0, reverse=True))
        chosen = [self._new_point(stage, p.pair, p.method, p.parameters, origin="chosen") for p in best]
        self.store.add_points(chosen)
        self._ask_runs(enumerate(chosen))
        self._chosen_at[stage] = self._standing.revision
        self._follow()
        return self._standing.revision > self._chosen_at[stage]

    def _best_of_methods(self, ranked: list[PointRow]) -> list[PointRow]:
        """The best points of each pair and method."""
        of_method: dict[tuple[str, str], list[PointRow]] = {key: [] for key in self._searches}
        for point in ranked:
            of_method[point.pair, point.method].append(point)
        return [point for points in of_method.values() for point in points[: self.plan.spec.search.final_top]]

    def _best_and_baselines(self, ranked: list[PointRow]) -> list[PointRow]:
        """The best points of each pair, and of each what it is held against."""
        from analysis.points import BASELINE, agree, baselines_of

        assert self.plan.spec.confirm is not None
        chosen: dict[str, PointRow] = {}
        for pair in self.plan.pairs:
            own = [point for point in ranked if point.pair == pair]
            # Those that the report's answer is about: with an alpha, else whatever is no baseline, else all.
            calibrated = [point for point in own if "alpha" in point.parameters]
            candidates = calibrated or [point for point in own if point.method != BASELINE] or own
            best = candidates[: self.plan.spec.confirm.top]
            chosen |= {point.point_id: point for point in best}
            for point in best:
                for method in baselines_of(point.method):
                    held = [other for other in own if other.method == method]
                    same = [other for other in held if agree(point.parameters, other.parameters)]
                    if held:
                        baseline = (same or held)[0]
                        chosen.setdefault(baseline.point_id, baseline)
                        break
        return list(chosen.values())

    # Budget

    def _search_is_over(self) -> bool:
        """Whether the budget leaves no further sampled point; the final stage is then still trained."""
        limit = self.plan.spec.budget.runs
        committed = self._runs_started + self._standing.waiting + self.final_runs()
        return (limit is not None and committed + len(self.plan.spec.seeds) > limit) or self._time_is_up()

    def final_runs(self) -> int:
        """Runs that a budget keeps for the final stage."""
        if not self.plan.has_final:
            return 0
        return len(self._searches) * self.plan.spec.search.final_top * len(self.plan.spec.seeds)

    def _exhausted(self, run: RunRow) -> bool:
        """Whether the budget forbids to start a run of a listed point. Stages that were opened in full go on."""
        if run.stage in (FINAL, CONFIRM, TEACHER) or (run.pair, run.method) in self._turns:
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
        if run is None or run.attempt != attempt:
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
            del self._flight[run_id]
            return True
        runlog.write(self.plan.home, run_id, attempt, runlog.of_report(report))
        self._device_seconds += report["device_seconds"]
        self._heard[run_id] = time.monotonic()
        if report.get("out_of_memory") and self.make_room():
            log.warning("run %s attempt %d waits for more memory: %s", run_id, attempt, report["failed"])
            self.store.requeue(run_id, attempt, lost=False)
            del self._flight[run_id]
            return True
        if report.get("warning"):
            log.warning("run %s attempt %d: %s", run_id, attempt, report["warning"])
        if report.get("lost"):
            self.on_lost(run_id, attempt, report["failed"])
            return True
        if report["failed"]:
            log.warning("run %s failed: %s\n%s", run_id, report["failed"], report.get("traceback", ""))
            alone = "; no other run shared its GPU" if report.get("out_of_memory") else ""
            self._end(run, attempt, FAILED, report["failed"] + alone)
            return True
        if report["done"]:
            self._end(run, attempt, DONE)
            return True
        if self._should_prune(run, report["epochs"]):
            self._end(run, attempt, PRUNED)
            return True
        limit = self.plan.spec.budget.run_hours
        if limit is not None and self.store.run(self.study, run_id).device_seconds > 3600 * limit:
            self._end(run, attempt, FAILED, f"budget.run_hours: it was not done after {limit:g} hours on its device")
            return True
        return False

    def _should_prune(self, run: RunRow, epochs: list[dict[str, float]]) -> bool:
        search = self._searches[run.pair, run.method] if run.screening else None
        reached = [metrics for metrics in epochs if search is not None and metrics["epoch"] in search.rungs]
        if search is None or not reached:
            return False
        point = self.store.point(self.study, run.stage, run.point_id)
        trial = point.trial
        if trial is None:  # of a list, or told as failed before: Optuna does not know of it yet
            values = search.space.point_of(point.parameters)
            if values is None:
                return False
            trial = search.add(point.point_id, values)
            self.store.set_trial(self.study, point.stage, point.point_id, trial)
        metric = self.plan.pairs[run.pair].valued_by.removesuffix("_last")
        return any(search.report(trial, int(metrics["epoch"]), metrics[metric]) for metrics in reached)

    def _end(self, run: RunRow, attempt: int, state: str, reason: str | None = None) -> None:
        history = self.store.history(run.run_id)
        summary = engine.summary(history) if history else {}
        self.store.end_run(run.run_id, attempt, state, reason=reason, summary=summary, study=self.study)
        del self._flight[run.run_id]
        try:
            forget(self.plan.home.checkpoints(run.run_id), self.store.run(self.study, run.run_id).checkpoint)
        except OSError as error:
            log.warning("run %s: its old checkpoints stay: %s", run.run_id, error)
        self._count_failures(state, reason)
        self._follow()

    def _count_failures(self, state: str, reason: str | None) -> None:
        """Stop where one run after the other fails alike: whatever it is, the next would fail too."""
        # A loss that diverges is what a point comes to, and no fault of the machine's.
        if state != FAILED or reason is None or reason.startswith(engine.NOT_FINITE):
            self._alike.clear()
            return
        alike = re.sub(r"\d+", "#", reason)
        if self._alike and self._alike[-1] != alike:
            self._alike.clear()
        self._alike.append(alike)
        if len(self._alike) >= self.plan.spec.budget.same_failures:
            self.stop(f"{SAME_FAILURES}: the last {len(self._alike)} runs failed alike: {reason}")

    def on_lost(self, run_id: str, attempt: int, reason: str) -> None:
        """A worker died, or its node failed it: its run waits again, from its last checkpoint, but not too often."""
        run = self._flight.get(run_id)
        if run is None or run.attempt != attempt:
            return
        minutes = self.plan.spec.budget.epoch_minutes
        if time.monotonic() - self._heard[run_id] >= 60 * minutes:
            reason = f"no epoch in {minutes:g} minutes (budget.epoch_minutes)"
        losses = self.store.run(self.study, run_id).losses + 1
        log.warning("run %s attempt %d was lost: %s", run_id, attempt, reason)
        runlog.write(self.plan.home, run_id, attempt, f"lost: {reason}")
        if losses >= MAX_LOSSES:
            self._end(run, attempt, FAILED, f"lost {losses} times; the last time: {reason}")
            return
        self.store.requeue(run_id, attempt, lost=True)
        del self._flight[run_id]

    def release(self) -> None:
        """Let all runs in flight wait again: nobody trains them any more."""
        for run_id, run in self._flight.items():
            self.store.requeue(run_id, run.attempt, lost=False)
        self._flight.clear()

    # Requests of other commands

    def poll(self) -> None:
        """Obey the requests that other commands left, and count the time."""
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        if not self._held():
            self.stop("another driver has taken the study over")
            return
        if now - self._announced >= ANNOUNCE_SECONDS:
            self._announced = now
            self._announce()
        self.store.add_wall_seconds(self.study, now - self._wall_saved)
        self._wall_saved = now
        self._obey(self.store.take_requests(self.study))

    def _obey(self, requests: Iterable[str]) -> None:
        for kind in requests:
            if kind == "stop":
                self.stop("a stop was requested")
            elif kind == "retry":
                log.info("retry: %d failed runs begin again", self.store.retry_failed(self.study))

    def stop(self, reason: str) -> None:
        """Start no further run."""
        log.info("stopping: %s", reason)
        self.stopping = reason


def _survived(run: RunRow) -> bool:
    """Whether a run screened its point and let it through."""
    return run.screening and run.state == DONE and not run.pruned
