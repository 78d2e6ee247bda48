"""What kdstudy itself costs for each run and each reported epoch, with runs that do nothing.

    python -m benchmarks.overhead [--json FILE] [--quick]

Against Ray Tune with its defaults: a function for each trial, in a fresh process, that reports each epoch, Tune's
loggers, and its MLflowLoggerCallback on SQLite. kdstudy's runs are those of `benchmarks.nothing`: two images of one
pixel and a network of one parameter, so they also draw views, step an optimiser, evaluate and write a checkpoint. Every
run is a point of its own, which ends with it. MLflow is on SQLite too, filled in the background.

One run at a time. A run's cost is the time from the end of one to the end of the next, in the mean, when workers are
warm; an epoch's is what so many more epochs add. The two take turns, each time in processes of their own.

Limits. Plain Tune cannot start a process in less than the time that Python takes to import Ray. kdstudy's runs need at
least what Tune takes to hand over a trial and a result, and what SQLite takes to commit. To reach: 0.2 s a run, 10 ms a
reported epoch.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.measuring import Ratio, Table, arguments, environment, ratio, show

PARTS = (
    "driver: the next run",
    "driver: reports",
    "of which the store's writes",
    "of which Optuna",
    "worker: training and evaluation",
    "worker: set-up and checkpoint, and Tune",
    "beside all that: MLflow, in the background",
)


@dataclass(frozen=True)
class Taken:
    """Seconds between the ends of runs, and what parts of them were.

    Attributes:
        runs: from the end of each run to the end of the next, the first of a process left out.
        parts: seconds a run, by part; none for plain Tune.
        tracked: seconds a run until MLflow has everything.
    """

    runs: list[float]
    parts: dict[str, float]
    tracked: float


def plain(runs: int, epochs: int) -> Taken:
    """Ray Tune with its defaults and its MLflow callback."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def nothing(config: dict[str, Any]) -> None:
        for epoch in range(1, epochs + 1):
            tune.report({"epoch": epoch, "test_top1": 50.0, "test_top5": 100.0, "train_loss": 0.7, "lr": 0.1})

    ends: list[float] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        tracker = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="nothing")
        began = time.perf_counter()
        tuner = tune.Tuner(
            nothing,
            param_space={"number": tune.grid_search([float(number) for number in range(runs)])},
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[tracker, Ends()]),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()
        whole = time.perf_counter() - began
        ray.shutdown()
        os.chdir("/")
    return Taken(_between(ends), {}, whole / runs)


def ours(runs: int, epochs: int) -> Taken:
    """kdstudy: its driver, its launcher, its tracker in the background."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDSTUDY_HOME"] = folder
        from study import launcher, tracking
        from study.driver import Driver
        from study.home import open_home
        from study.plan import Plan
        from study.service import describe, open_study
        from study.spec import parse_spec
        from study.store import Store

        raw = {
            "name": "nothing",
            "protocol": {"base": "digits-quick", "epochs": epochs},
            "data": {"name": "benchmarks.nothing:images"},
            "pairs": ["benchmarks.nothing:network-benchmarks.nothing:network"],
            "methods": {"benchmarks.nothing:loss": {"number": [float(number) for number in range(runs)]}},
            "seeds": 1,
        }
        spec = parse_spec(raw, "benchmark")
        home = open_home()
        plan = Plan(spec, home)
        machine = launcher.Machine("cpu", 1, cpus=1.0, gpus=0.0)
        clock = _Parts()
        with Store(home.store_url).opened() as store:
            open_study(store, spec)
            store.update_info(spec.name, **describe(plan), teachers=[])
            driver = Driver(plan, store)
            tracker = tracking.Tracker(home, store, spec.name)
            clock.watch(tracker, "sync", PARTS[6])
            began = time.perf_counter()
            with launcher.cluster(machine), tracking.BackgroundTracker(tracker):
                driver.open()
                (search,) = driver._searches.values()
                clock.watch(driver, "next_request", PARTS[0])
                clock.watch(driver, "on_report", PARTS[1])
                for name in ("record", "end_run", "end_point", "set_trial"):
                    clock.watch(store, name, PARTS[2])
                clock.watch(search, "tell", PARTS[3])
                launcher.train(driver, machine, home)
            tracker.sync(live=False)
            whole = time.perf_counter() - began
            rows = store.runs(spec.name)
        assert [row.state for row in rows] == ["DONE"] * runs
        between = _between(sorted(row.ended for row in rows if row.ended is not None))
        parts = {name: clock.seconds.get(name, 0.0) / runs for name in (*PARTS[:4], PARTS[6])}
        parts[PARTS[4]] = mean(row.device_seconds for row in rows[1:])
        parts[PARTS[5]] = max(0.0, mean(between) - parts[PARTS[0]] - parts[PARTS[1]] - parts[PARTS[4]])
        return Taken(between, parts, whole / runs)


class _Parts:
    """Counts the seconds that methods take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

        setattr(owner, name, timed)


def _between(ends: list[float]) -> list[float]:
    """From each end to the next; the first comes with the start of a process, the second with its first warm steps."""
    return [b - a for a, b in pairwise(ends[1:])]


def _apart(way: Callable[[int, int], Taken], runs: int, epochs: int) -> Taken:
    """One way, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(way, (runs, epochs))


def measure(quick: bool) -> list[Table]:
    """Seconds a run and milliseconds an epoch of both, and where kdstudy's go."""
    rounds, epochs = (1, 3) if quick else (3, 21)
    counts: dict[Callable[[int, int], Taken], int] = {ours: 5, plain: 4} if quick else {ours: 120, plain: 8}
    one: dict[str, list[Taken]] = {"ours": [], "plain": []}
    many: dict[str, list[Taken]] = {"ours": [], "plain": []}
    # So that workers find `benchmarks.nothing`, wherever they start.
    root = str(Path(__file__).resolve().parent.parent)
    with environment(PYTHONPATH=os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))):
        for _ in range(rounds):
            for way, runs in counts.items():
                one[way.__name__].append(_apart(way, runs, 1))
                many[way.__name__].append(_apart(way, runs, epochs))
    run = {name: [mean(taken.runs) for taken in found] for name, found in one.items()}
    epoch = {
        name: [
            (mean(more.runs) - mean(taken.runs)) / (epochs - 1)
            for taken, more in zip(one[name], many[name], strict=True)
        ]
        for name in one
    }
    tracked = {name: [taken.tracked for taken in found] for name, found in one.items()}
    rows = [
        ("a run of one epoch, s", median(run["ours"]), 0.2, median(run["plain"]), ratio(run["plain"], run["ours"])),
        (
            "each further epoch, ms",
            1000 * median(epoch["ours"]),
            10.0,
            1000 * median(epoch["plain"]),
            _ratio_of_differences(epoch),
        ),
        (
            "a run of one epoch, with the start of the cluster and all of MLflow, s",
            median(tracked["ours"]),
            None,
            median(tracked["plain"]),
            None,
        ),
    ]
    parts = [
        (name, *(1000 * median(taken.parts[name] for taken in found) for found in (one["ours"], many["ours"])))
        for name in PARTS
    ]
    return [
        Table(
            "A run that does nothing",
            ("what", "kdstudy", "to reach, at most", "Ray Tune's defaults", "as many times as kdstudy"),
            tuple(rows),
            f"One run at a time, {counts[ours]} runs of kdstudy and {counts[plain]} of plain Tune, {rounds} rounds. "
            "Limit: what Tune takes to hand a trial to a warm worker and a result back, a part of the table below. The "
            "last row here is divided by the number of runs, so it says nothing of a longer study.",
        ),
        Table(
            "Where kdstudy's go",
            ("milliseconds a run", "1 epoch", f"{epochs} epochs"),
            tuple(parts),
            "Limit: the two rows of the worker are Tune's, torch's and the file system's. `of which` rows are parts of "
            "the driver's. MLflow's time is spent in a thread beside the driver, while runs are trained.",
        ),
    ]


def _ratio_of_differences(epoch: dict[str, list[float]]) -> Ratio | None:
    """None where a difference is lost in the noise."""
    return ratio(epoch["plain"], epoch["ours"]) if min(epoch["ours"]) > 0 else None


def main() -> None:
    options = arguments(__doc__).parse_args()
    show("overhead", measure(options.quick), options)


if __name__ == "__main__":
    main()
