"""What kdstudy's own work costs in a study of about 100, 1,000 and 10,000 stored runs, and how that grows.

    python -m benchmarks.scale [--json FILE] [--quick]

The runs are made, not trained: three seeds of each point, ten epochs a run, all of them ended, beside a few points
that are left to start (`benchmarks.stored`). A study of lists has MLflow filled with all of it; a study that TPE
searches has Optuna's trials. Each group of rows is done by a process of its own; megabytes are what its memory grew by
at its peak until then.

Limits. What happens while runs are trained is to cost the same in a study of any size: a ratio of 1. The exception is a
proposal of TPE's, which looks at all trials: Optuna's own part is in a row of its own. What is done once (open a study,
show it, load it for a report) has to read everything once and may grow with it: a ratio of 100 at most, and of less
where a fixed cost is part of it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import stored
from benchmarks.measuring import Table, arguments, environment, show
from study import tracking
from study.database import sqlite_file
from study.driver import Driver
from study.home import open_home
from study.progress import Progress
from study.store import Store

SIZES = (34, 334, 3334)  # points
EVENTS = 20  # of each kind; the median counts

ALWAYS = (
    "next run (a list's)",
    "report within a run",
    "last report of a run",
    "whether all is over",
    "next run (TPE's proposal)",
    "of which Optuna's ask",
    "live table, again",
    "MLflow, a pass with nothing new",
    "MLflow, a pass after one report",
)
ONCE = (
    "resume a study of lists",
    "resume a search",
    "kdstudy status",
    "MLflow, what it has (at the start)",
    "MLflow, first pass",
    "analysis.load_runs",
    "analysis.load_history",
    "analysis.load_studies",
    "analysis.write_report",
)


class Clock:
    """Seconds and megabytes of what one process did, by name."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float | None]] = {}
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now
        self._before = psutil.Process().memory_info().rss

    @contextlib.contextmanager
    def once(self, name: str) -> Iterator[None]:
        """Time a block; and the memory that this process has taken at its most so far."""
        began = time.perf_counter()
        yield
        self.found[name] = time.perf_counter() - began, (_peak() - self._before) / 2**20

    def each(self, name: str, event: Callable[[], Any], times: int = EVENTS) -> list[Any]:
        """Time an event that happens again and again; what it returned."""
        seconds, results = [], []
        for _ in range(times):
            began = time.perf_counter()
            results.append(event())
            seconds.append(time.perf_counter() - began)
        self.found[name] = median(seconds), None
        return results


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _opened(points: int, sampled: bool) -> Driver:
    """A driver in the middle of the study's work."""
    plan = stored.plan_of(stored.spec_of(points, sampled))
    driver = Driver(plan, Store(plan.home.store_url))
    driver.open()
    return driver


def _report(request: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    return {
        "run_id": request["run_id"],
        "attempt": request["attempt"],
        "epochs": [
            {"epoch": epoch, "train_loss": 1.0, "test_top1": 50.0, "test_top5": 90.0}
            for epoch in range(first, last + 1)
        ],
        "checkpoint": None,
        "device_seconds": 1.0,
        "device": "cpu",
        "done": last == stored.EPOCHS,
        "failed": None,
    }


def drive_lists(clock: Clock, points: int) -> None:
    """Resume the study of lists and begin, go on with and end runs of it."""
    with clock.once("resume a study of lists"):
        driver = _opened(points, sampled=False)
    requests = clock.each("next run (a list's)", driver.next_request)
    within, last = iter(requests), iter(requests)
    clock.each("report within a run", lambda: driver.on_report(_report(next(within), 1, 5)))
    clock.each("last report of a run", lambda: driver.on_report(_report(next(last), 6, stored.EPOCHS)))
    clock.each("whether all is over", lambda: driver.finished)


def drive_search(clock: Clock, points: int) -> None:
    """Resume the search and begin runs of points that TPE proposes."""
    with clock.once("resume a search"):
        driver = _opened(points, sampled=True)
    (search,) = driver._searches.values()
    asked: list[float] = []
    sample = search.sample

    def timed() -> Any:
        began = time.perf_counter()
        found = sample()
        asked.append(time.perf_counter() - began)
        return found

    search.sample = timed  # type: ignore[method-assign]
    seconds: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        driver.next_request()
        seconds.append(time.perf_counter() - began)
        for _ in range(stored.SEEDS - 1):  # the point's other seeds wait already
            driver.next_request()
    assert len(asked) == len(seconds)
    clock.found["next run (TPE's proposal)"] = median(seconds), None
    clock.found["of which Optuna's ask"] = median(asked), None


def look(clock: Clock, points: int) -> None:
    """Ask where the study stands, as the command does, and draw the live table."""
    from study.cli import status

    with clock.once("kdstudy status"), contextlib.redirect_stdout(io.StringIO()):
        status(stored.STUDY)
    progress = Progress(Store(open_home().store_url), stored.STUDY, "test_top1_last")
    progress.render()
    clock.each("live table, again", progress.render)


def track(clock: Clock, points: int) -> None:
    """Passes of the tracker beside a driver: the first of a process, one with nothing new, and one after a report."""
    driver = _opened(points, sampled=False)
    tracker = tracking.Tracker(open_home(), driver.store, stored.STUDY)
    with clock.once("MLflow, what it has (at the start)"):
        tracker._connect()
    with clock.once("MLflow, first pass"):
        tracker.sync(live=True)
    clock.each("MLflow, a pass with nothing new", lambda: tracker.sync(live=True))
    request = driver.next_request()
    assert request is not None
    tracker.sync(live=True)
    seconds = []
    for epoch in range(1, 6):
        driver.on_report(_report(request, epoch, epoch))
        began = time.perf_counter()
        tracker.sync(live=True)
        seconds.append(time.perf_counter() - began)
    clock.found["MLflow, a pass after one report"] = median(seconds), None


def load(clock: Clock, points: int) -> None:
    """Load the study for its report, and write it."""
    import analysis

    frames: list[Any] = []
    for name in ("load_runs", "load_history", "load_studies"):
        with clock.once(f"analysis.{name}"):
            frames.append(getattr(analysis, name)(open_home().tracking_uri, stored.STUDY))
    with clock.once("analysis.write_report"):
        runs, history, studies = frames
        analysis.write_report(runs, history, studies, open_home().report(stored.STUDY))


def _fill_lists(clock: Clock, points: int) -> None:
    stored.fill(points, sampled=False)
    stored.track()


def _fill_search(clock: Clock, points: int) -> None:
    stored.fill(points, sampled=True)


def apart(work: Callable[[Clock, int], None], points: int) -> dict[str, tuple[float, float | None]]:
    """Do some work in a process of its own, which has all modules already."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        clock = Clock()
        work(clock, points)
        send.send(clock.found)

    process = context.Process(target=child)
    process.start()
    send.close()
    try:
        found: dict[str, tuple[float, float | None]] = receive.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} failed; its reason is above") from None
    finally:
        process.join()
    return found


def of_size(points: int, folder: Path) -> dict[str, tuple[float, float | None]]:
    """All figures of studies of so many points, made in a folder."""
    found: dict[str, tuple[float, float | None]] = {}
    for sampled, work in ((False, (look, track, load, drive_lists)), (True, (drive_search,))):
        with environment(KDSTUDY_HOME=str(folder / ("search" if sampled else "lists"))):
            # In a process of its own too, or the others would be given what this one has left of its memory.
            apart(_fill_search if sampled else _fill_lists, points)
            if not sampled:
                home = open_home()
                found["store.db"] = 0.0, stored.megabytes(sqlite_file(home.store_url))
                found["mlflow.db"] = 0.0, stored.megabytes(home.root / "mlflow.db")
            for each in work:
                found |= apart(each, points)
    return found


def measure(quick: bool) -> list[Table]:
    """Seconds and megabytes by size, with what the largest takes of the smallest."""
    tracking.configure()
    # So that no figure has the seconds of an import in it.
    import mlflow  # noqa: F401

    import study.cli  # noqa: F401

    sizes = (10, 30) if quick else SIZES
    found = {}
    for points in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[points] = of_size(points, Path(folder))
    smallest, largest = sizes[0], sizes[-1]

    def row(name: str, unit: int) -> tuple[Any, ...]:
        values = [found[points][name][unit] for points in sizes]
        first, last = values[0], values[-1]
        scale = 1000 if unit == 0 and name in ALWAYS else 1
        grown = last / first if first and last and first > 0 else None
        return (name, *(None if value is None else value * scale for value in values), grown)

    columns = tuple(f"{points * stored.SEEDS:,} runs" for points in sizes)
    grown = f"{columns[-1]} / {columns[0]}".replace(" runs", "")
    return [
        Table(
            "While runs are trained",
            ("milliseconds", *columns, grown),
            tuple(row(name, 0) for name in ALWAYS),
            f"Limit: the same in a study of any size, a ratio of 1; the median of {EVENTS}. A proposal looks at all "
            "trials, which is Optuna's and cannot be less; the row below it has its part.",
        ),
        Table(
            "Once a study or a command",
            ("seconds", *columns, grown),
            tuple(row(name, 0) for name in ONCE),
            f"Limit: what there is, read once: a ratio of {largest / smallest:.0f}. MLflow's own reading is most of "
            "what it has at the start, of load_runs and of load_history.",
        ),
        Table(
            "Memory and disk",
            ("megabytes", *columns, grown),
            tuple(row(name, 1) for name in (*ONCE, "store.db", "mlflow.db")),
            f"Limit: what there is, once: a ratio of {largest / smallest:.0f}. Memory is what the process grew by at "
            "its peak, up to the end of this step.",
        ),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    show("scale", measure(options.quick), options)


if __name__ == "__main__":
    main()
