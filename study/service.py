"""Running a study from its spec to its end: open or continue, teachers first, then the runs, then what remains."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console

from search_spaces.spaces import MethodSpace
from study import launcher, logits, record, sharing, teachers, tracking
from study.driver import SAME_FAILURES, Driver
from study.errors import DONE as EXIT_DONE
from study.errors import INTERRUPTED, RUNS_FAILED, RequestError, one_line
from study.home import Home, open_home, probe_storage
from study.lock import hold, is_driven, whoami
from study.plan import TEACHER, PairPlan, Plan
from study.progress import Display, Progress
from study.spec import Spec, difference, parse_spec
from study.store import DONE, FAILED, PRUNED, RunRow, Store
from trainables import data, splits
from trainables.teachers import Teacher, publish
from trainables.text.corpora import TextDataset

log = logging.getLogger("kdstudy.service")

TEACHERS_DONE = "the teachers are trained"


@dataclass(frozen=True)
class Summary:
    """How a study stands after `run`.

    `state` is `finished`, `failed` (finished, with failed runs) or `stopped` (resumable); `stopped_by` says why.
    """

    study: str
    state: str
    asked: int
    done: int
    failed: int
    pruned: int
    taken_over: int
    wall_seconds: float
    stopped_by: str | None = None
    reasons: dict[str, int] = field(default_factory=dict)  # why runs failed, and how many
    warnings: tuple[str, ...] = ()
    untracked: str = ""  # why MLflow does not have all of it; empty: it has

    @property
    def exit_code(self) -> int:
        """0 done, 1 ended with failed runs, 130 stopped and resumable."""
        return {"finished": EXIT_DONE, "failed": RUNS_FAILED, "stopped": INTERRUPTED}[self.state]


def run(
    spec: Spec,
    *,
    console: Console | None = None,
    device: str | None = None,
    concurrency: int | None = None,
    track_later: bool = False,
    teachers_only: bool = False,
    execution: str | None = None,
    address: str | None = None,
    max_devices: int | None = None,
    runs_a_gpu: int | None = None,
    devices_a_run: int = 1,
) -> Summary:
    """Run a study, or go on with it where it exists.

    Args:
        spec: what is asked, as `load_spec` gives it.
        console: where progress is shown; none is shown without one.
        device: `cpu` or `cuda`; by default what the machine has.
        concurrency: runs at a time; by default one a core, or as many a GPU as fit into its memory.
        track_later: do not ask MLflow to be there; `kdstudy sync` fills it in.
        teachers_only: stop when the teachers are trained.
        execution: how steps are run, one of `trainables.engine.EXECUTIONS`; by default what suits the device.
        address: of a Ray cluster to join (`auto`: the one that this process is a part of); None: this machine alone.
        max_devices: on a cluster, how many GPUs, or cores where there are none, the study may have at once.
        runs_a_gpu: on a cluster, how many runs share a GPU; by default as many as fit into its memory.
        devices_a_run: GPUs, or cores where there are none, that share the batches of a run, of text.

    Raises:
        RequestError: the request cannot be carried out; nothing was written.
    """
    home = open_home()
    if not track_later:
        tracking.probe(home.tracking_uri)
    probe_storage(home)
    plan = Plan(spec, home)
    if devices_a_run > 1 and any(pair.task != "text" for pair in plan.pairs.values()):
        raise RequestError("--devices-a-run: is for studies of text; runs on images share devices instead")
    found = teachers.find(plan)
    shown = console or Console(quiet=True)

    def fits_a_gpu() -> int:
        if devices_a_run > 1:
            return 1
        with shown.status("measuring the memory of a run …"):
            return sharing.runs_a_gpu(plan, None if address is None else sharing.measured_on_a_node)

    with contextlib.ExitStack() as stack:
        if address is None:
            machine = launcher.this_machine(device, concurrency, fits_a_gpu)
        else:
            stack.enter_context(launcher.joined(address))
            machine = launcher.joined_machine(device, max_devices, runs_a_gpu, fits_a_gpu)
        machine = launcher.spread(machine, devices_a_run)
        machine = replace(machine, execution=execution, joined=address is not None)
        logits.require_room(plan, machine.device)
        store = stack.enter_context(Store(home.store_url).opened())
        held = stack.enter_context(hold(home, store, spec.name))
        open_study(store, spec)
        return _Running(plan, store, shown, teachers_only, held).run(machine, found, track_later)


def open_study(store: Store, spec: Spec) -> None:
    """Create the study, or let the spec grow the one that has its name.

    Raises:
        RequestError: the stored study differs in what would change its results.
    """
    stored = store.spec(spec.name)
    if stored is None:
        store.create_study(spec.name, spec.model_dump(mode="json"))
        return
    old = parse_spec(stored, f"study {spec.name}")
    if changes := difference(old, spec):
        raise RequestError(
            f"study {spec.name} exists and differs: {'; '.join(changes)}. Undo that to go on with it (seeds, budget, "
            "list values, methods and pairs may be added), or give the new study another name with --set name=…"
        )
    store.update_spec(spec.name, spec.model_dump(mode="json"))


class _Running:
    """One study being run by this process."""

    def __init__(
        self, plan: Plan, store: Store, console: Console, teachers_only: bool, held: Callable[[], bool]
    ) -> None:
        self.plan = plan
        self.held = held
        self.teachers_only = teachers_only
        self.store = store
        self.console = console
        self.home = plan.home
        self.name = plan.spec.name
        first = next(iter(plan.pairs.values()))
        self.progress = Progress(store, self.name, first.valued_by, self._expected_runs())

    def run(self, machine: launcher.Machine, found: dict[str, Teacher], track_later: bool) -> Summary:
        _log_to(self.home, self.name)
        launcher.quiet()
        self.driver = driver = Driver(
            self.plan,
            self.store,
            device=machine.device,
            threads=machine.threads,
            workers=machine.workers,
            execution=machine.execution,
            owner_alive=lambda study: is_driven(self.home, self.store, study),
            held=self.held,
            announce=self._announce,
            adopt=lambda pairs: self._adopt(pairs, found),
        )
        progress = self.progress
        tracker = tracking.Tracker(self.home, self.store, self.name)

        def on_tracker(up: bool) -> None:
            progress.note = "" if up else "MLflow does not answer; results wait in the store"

        background = tracking.BackgroundTracker(tracker, on_state=on_tracker)
        self._record()
        if not track_later:
            try:
                tracker.connect()
            except Exception as error:
                log.warning("MLflow does not take results (%s); they stay in the store", one_line(error))
        with (
            _interruptible(driver),
            contextlib.nullcontext() if track_later else background,
            Display(progress, self.console),
        ):
            driver.open()
            if not driver.finished:
                with contextlib.nullcontext() if machine.joined else launcher.cluster(machine):
                    launcher.train(driver, machine, self.home)
            if not driver.stopping:
                progress.expected = None
        self.store.update_info(self.name, ended=time.time())
        return self._summary(driver, "it was told to wait" if track_later else self._sync(tracker))

    def _adopt(self, pairs: list[str], found: dict[str, Teacher]) -> str | None:
        """Keep the teachers that were trained and measure all of them; why the study ends here, if it does."""
        before = self.store.info(self.name).get("teachers", [])
        self.progress.note = "measuring the teachers"
        try:
            for pair in pairs:
                teacher = teachers.adopt(self.plan, self.store, pair)
                if teacher is None:
                    return f"the teacher of {pair} could not be trained"
                found[pair] = teacher
            for teacher in found.values():
                publish(self.home.root, teacher.record.hash, self.home.storage)
            entries = [teachers.overview(self.plan, pair, teacher, before) for pair, teacher in found.items()]
        except (RequestError, OSError) as error:
            return str(error)
        notes = [note for entry in entries for note in teachers.warnings(self.plan, entry)]
        notes += [note for pair in self.plan.pairs.values() for note in teachers.remarks(self.plan, self.store, pair)]
        self.store.update_info(self.name, teachers=entries, warnings=notes)
        self.progress.note = ""
        return TEACHERS_DONE if self.teachers_only else None

    def _announce(self) -> None:
        """Let others see that this driver lives, and the nodes that it has."""
        about = {"nodes": launcher.nodes(), "in_flight": self.driver.in_flight}
        self.store.set_driver(self.name, whoami(), socket.gethostname(), about)

    def _record(self) -> None:
        """Write down what the study is made of, for MLflow and the report."""
        self.store.update_info(
            self.name,
            **describe(self.plan),
            versions=record.versions(),
            hardware=record.hardware(),
            code_version=record.code_version(),
            tracking_uri_hint=self.home.tracking_uri if self.home.own_tracking else "",
        )

    def _expected_runs(self) -> int:
        trained = [pair for pair in self.plan.pairs.values() if self.plan.spec.trains_teacher_of(pair.spec)]
        of_teachers = {run.run_id for pair in trained for run in self.plan.teacher_runs(pair.name)}
        return expected_runs(self.plan.spec) + len(of_teachers)

    def _sync(self, tracker: tracking.Tracker) -> str:
        """The last pass, with everything in it; why MLflow does not take it now, if it does not."""
        reason = ""
        for attempt in range(2):
            try:
                tracker.sync(live=False)
                return ""
            except Exception as error:
                reason = one_line(error)
                log.warning("MLflow, pass %d", attempt, exc_info=True)
        return reason

    def _summary(self, driver: Driver, untracked: str) -> Summary:
        info = self.store.info(self.name)
        return summarise(
            self.name,
            self.store.runs(self.name),
            wall_seconds=info["wall_seconds"],
            stopped_by=driver.stopping,
            students=bool(self.plan.spec.methods),
            warnings=tuple(info.get("warnings", ())),
            untracked=untracked,
        )


def summarise(
    study: str,
    runs: list[RunRow],
    *,
    wall_seconds: float,
    stopped_by: str | None,
    students: bool = True,
    warnings: tuple[str, ...] = (),
    untracked: str = "",
) -> Summary:
    """Count a study's runs; a run that several points share counts once. `students`: whether it trains any."""
    unique = list({(run.stage, run.run_id): run for run in runs}.values())
    states = [run.state_here for run in unique]
    reasons: dict[str, int] = {}
    for run in unique:
        if run.state == FAILED:
            reasons[run.reason or "no reason known"] = reasons.get(run.reason or "no reason known", 0) + 1
    failed = states.count(FAILED)
    waiting = len(states) - failed - states.count(DONE) - states.count(PRUNED)
    begun = not students or any(run.stage != TEACHER for run in unique)
    gave_up = stopped_by is not None and stopped_by.startswith(SAME_FAILURES)
    stopped = not gave_up and (waiting > 0 or ((stopped_by is not None or not begun) and not failed))
    return Summary(
        study=study,
        state="stopped" if stopped else "failed" if failed else "finished",
        asked=len(unique),
        done=states.count(DONE),
        failed=failed,
        pruned=states.count(PRUNED),
        taken_over=sum(run.taken_over for run in unique),
        wall_seconds=wall_seconds,
        stopped_by=stopped_by,
        reasons=reasons,
        warnings=warnings,
        untracked=untracked,
    )


def points_of(spec: Spec, space: MethodSpace) -> int:
    """How many points a pair has of a method."""
    return (spec.search.points or 0) if space.sampled else len(list(space.grid()))


def expected_runs(spec: Spec) -> int:
    """Runs of students that a spec asks for, if nothing is pruned."""
    seeds = len(spec.seeds)
    points = sum(points_of(spec, space) for space in spec.spaces().values())
    final = len(spec.methods) * spec.search.final_top if spec.chosen_by == "validation" else 0
    # The points that are confirmed, and one that they are held against.
    confirmed = 0 if spec.confirm is None else (min(spec.confirm.top, points) + 1) * spec.confirm.seeds
    return ((points + final) * seeds + confirmed) * len(spec.pairs)


def describe(plan: Plan) -> dict[str, Any]:
    """What a study's record says of its question, and for each pair of its protocol and data, and of what was cut.

    What the first pair has stands for the study too, where a reader wants one line.
    """
    sections = {name: _describe_pair(plan, pair) for name, pair in plan.pairs.items()}
    first = next(iter(plan.pairs.values()))
    return {
        "question": plan.spec.question,
        "mode": plan.spec.mode,
        "selection": plan.spec.chosen_by,
        **({} if first.score == "top1" else {"score": first.score}),
        "pairs": sections,
        **next(iter(sections.values())),
        "cuts": list(dict.fromkeys(cut for section in sections.values() for cut in section["cuts"])),
    }


def _describe_pair(plan: Plan, pair: PairPlan) -> dict[str, Any]:
    split, test = pair.split(plan.first_stage), pair.test_indices()
    full_train, full_test = (
        len(splits.members(labels)) for labels in (pair.dataset.train_labels, pair.dataset.test_labels)
    )
    cuts = []
    changes = pair.protocol.changes(pair.pair.student)
    for name, base, value in changes:
        if name == "epochs" and value < base:
            cuts.append(f"epochs {base} → {value}")
    uncut = pair.uncut_images(plan.first_stage)
    if len(split.train) < uncut:
        cuts.append(f"training {pair.items} {uncut:,} → {len(split.train):,}")
    if len(test) < full_test:
        cuts.append(f"test {pair.items} {full_test:,} → {len(test):,}")
    return {
        "protocol": {"base": pair.protocol.base, **pair.protocol.identity()},
        "protocol_changes": [{"field": name, "base": base, "value": value} for name, base, value in changes],
        "cuts": cuts,
        "data": {
            "name": pair.data.name,
            "hash": pair.dataset.hash,
            "num_classes": pair.num_classes,
            "mean": list(pair.dataset.mean),
            "std": list(pair.dataset.std),
            "train_images": len(split.train),
            "validation_images": len(split.validation),
            "test_images": len(test),
            "full_train_images": full_train,
            "full_test_images": full_test,
            "label_noise": pair.data.label_noise,
            "classes_of": data.get(pair.data.name).num_classes if pair.data.classes is not None else None,
            **_of_text(pair),
            "skipped_images": pair.dataset.skipped,
        },
    }


def _of_text(pair: PairPlan) -> dict[str, Any]:
    """What else is said of text: how many there are of each evaluation set."""
    if not isinstance(pair.dataset, TextDataset):
        return {}
    most = len(pair.test_indices())
    return {
        "task": "text",
        "evaluated": {name: min(most, len(examples)) for name, examples in pair.dataset.tests.items()},
        "top_k": pair.teacher.top_k if pair.teacher.logits != "online" else None,
    }


@contextlib.contextmanager
def _interruptible(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the study, resumable; a second Ctrl-C ends the process."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _frame: object) -> None:
        if driver.stopping:
            os._exit(INTERRUPTED)
        driver.stop(f"stopped by {signal.Signals(signum).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to(home: Home, study: str) -> None:
    """Write what the driver does to the study's log file."""
    home.logs.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("kdstudy")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(home.logs / f"{study}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
