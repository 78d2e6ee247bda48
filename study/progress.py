"""The live table of a running study: one row a pair and method, drawn from the store while the runs go on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search_spaces.spaces import Value, written
from study.plan import CONFIRM, FINAL, TEACHER
from study.store import DONE, FAILED, PRUNED, RUNNING, RunRow, Store

_REASONS = 3  # that are shown
_RATE_SECONDS = 10  # before which a rate says nothing
_TITLES = {
    "test_top1_last": "test %",
    "val_top1_last": "val %",
    "test_rouge_l_last": "ROUGE-L",
    "val_rouge_l_last": "val ROUGE-L",
}


@dataclass(frozen=True)
class Line:
    """What the table says of one pair and method at one stage."""

    label: str
    asked: int
    done: int
    running: int
    failed: int
    pruned: int
    best: float | None
    best_at: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What counts of a run, as it was seen last."""

    point: str
    state: str
    ended: bool
    epoch: int
    epochs: int
    value: float | None  # of a run that is done
    reason: str | None  # of one that failed


class _Group:
    """The runs of one pair and method at one stage: how many are in which state, and the mean of each point."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self._means: dict[str, tuple[float, int]] = {}  # sum and number of values
        self._parameters: dict[str, dict[str, Value]] = {}
        self._best: tuple[float | None, str] | None = None  # None: to be looked for

    def count(self, seen: _Seen, sign: int) -> None:
        """Count a run in, or out again."""
        self.states[seen.state] += sign
        if seen.value is not None:
            total, number = self._means.get(seen.point, (0.0, 0))
            self._means[seen.point] = total + sign * seen.value, number + sign
            self._best = None

    def name(self, point: str, parameters: dict[str, Value]) -> None:
        """Say what a point is."""
        self._parameters[point] = parameters

    @property
    def best(self) -> tuple[float | None, str]:
        """The best mean over the seeds that are done, and the parameters that have it."""
        if self._best is None:
            means = {point: (total / number, number) for point, (total, number) in self._means.items() if number}
            self._best = None, ""
            if means:
                point = max(means, key=lambda point: means[point][0])
                given = self._parameters[point].items()
                shown = [f"{name} {written(value)}" for name, value in given if name not in ("tau", "beta", "gamma")]
                self._best = means[point][0], " ".join([*shown, f"(n {means[point][1]})"])
        return self._best


class Progress:
    """What a study has done and how long the rest will take.

    It follows the store by the rows that changed, since it is drawn twice a second beside the driver.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        metric: str,
        expected_runs: int | None = None,
        driven: Callable[[], bool] = lambda: True,
        where: Callable[[], RenderableType | None] = lambda: None,
    ) -> None:
        self._store = store
        self._study = study
        self._metric = metric
        self.expected = expected_runs  # None when all runs are known: a pruner may have saved some
        self._driven = driven  # without a driver nothing runs, whatever a driver that was killed left in the store
        self._where = where  # who drives it, and on what, to be shown below the table
        self._reasons: Counter[str] = Counter()  # why runs failed
        self._ended_before: int | None = None
        self._began = time.monotonic()
        self._epochs_before: int | None = None
        self.note = ""
        self._revision = -1
        self._seen: dict[tuple[str, str, str], _Seen] = {}
        self._groups: dict[tuple[str, str, str], _Group] = {}  # by stage, pair and method, in the order of beginning
        self._ended = self._trained = self._total = self._longest = 0  # runs, and epochs

    def _look(self) -> None:
        """Take in the rows that changed."""
        for run in self._store.runs(self._study, since=self._revision):
            self._revision = max(self._revision, run.revision)
            group = self._groups.setdefault((run.stage, run.pair, run.method), _Group())
            group.name(run.point_id, run.parameters)
            key = run.stage, run.point_id, run.run_id
            if key in self._seen:
                self._count(group, self._seen[key], -1)
            value = self._value(run) if run.state == DONE and run.summary else None
            reason = (run.reason or "no reason known") if run.state == FAILED else None
            seen = _Seen(run.point_id, run.state_here, run.ended_here, run.epoch, run.epochs, value, reason)
            self._seen[key] = seen
            self._count(group, seen, 1)

    def _count(self, group: _Group, seen: _Seen, sign: int) -> None:
        group.count(seen, sign)
        self._ended += sign * seen.ended
        if seen.reason is not None:
            self._reasons[seen.reason] += sign
        self._trained += sign * min(seen.epoch, seen.epochs)
        self._total += sign * (seen.epoch if seen.ended else seen.epochs)
        self._longest = max(self._longest, seen.epochs)

    def _value(self, run: RunRow) -> float | None:
        summary = run.summary or {}
        return summary.get(self._metric, summary.get(self._metric.replace("val_", "test_", 1)))

    def lines(self) -> list[Line]:
        """One line for each pair, method and stage, in the order in which they begin."""
        driven = self._driven()
        pairs = {pair for _, pair, _ in self._groups}
        lines = []
        for (stage, pair, method), group in self._groups.items():
            name = "teacher" if stage == TEACHER else method
            later = [f"({stage})"] if stage in (FINAL, CONFIRM) else []
            label = " ".join([*([pair] if len(pairs) > 1 else []), name, *later])
            states = group.states
            lines.append(
                Line(
                    label,
                    states.total(),
                    states[DONE],
                    states[RUNNING] if driven else 0,
                    states[FAILED],
                    states[PRUNED],
                    *group.best,
                )
            )
        return lines

    def render(self) -> RenderableType:
        """The table and the line below it, as they are now."""
        self._look()
        lines = self.lines()
        prunes = any(line.pruned for line in lines)
        table = Table(title=f"study {self._study}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("method", no_wrap=True)
        for name in ("runs", "done", "running", "failed", *(["pruned"] if prunes else [])):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(_TITLES.get(self._metric, self._metric), justify="right", no_wrap=True)
        table.add_column("best at")
        for line in lines:
            table.add_row(
                line.label,
                str(line.asked),
                str(line.done),
                Text(str(line.running), style="bold cyan" if line.running else "dim"),
                Text(str(line.failed), style="bold red" if line.failed else "dim"),
                *([str(line.pruned)] if prunes else []),
                "" if line.best is None else f"{line.best:.2f}",
                line.best_at,
            )
        ended = ProgressBar(total=max(1, self._asked), completed=self._ended, width=72)
        below = Table.grid()
        below.add_row(ended)
        below.add_row(Text(self._line()))
        for reason, count in self._reasons.most_common(_REASONS):
            if count:
                below.add_row(Text(f"failed ({count}): {reason}", style="red"))
        where = self._where()
        return Group(table, below, *([] if where is None else [where]))

    @property
    def _asked(self) -> int:
        return max(len(self._seen), self.expected or 0)

    def text(self) -> str:
        """The line below the table, as it is now: runs ended of those asked, time left, what else there is to know."""
        self._look()
        return self._line()

    def _line(self) -> str:
        left = self._seconds_left()
        seconds = time.monotonic() - self._began
        if self._ended_before is None:
            self._ended_before = self._ended
        parts = [f"{self._ended} of {self._asked} runs ended", f"{_duration(seconds)} so far"]
        ended = self._ended - self._ended_before
        if ended and seconds > _RATE_SECONDS:
            parts.append(f"{3600 * ended / seconds:,.0f} runs an hour")
        if left is not None and self._ended < self._asked:
            parts.append(f"about {_duration(left)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def _seconds_left(self) -> float | None:
        if self._epochs_before is None:
            self._epochs_before = self._trained
        trained = self._trained - self._epochs_before
        if trained < 1:
            return None
        total = self._total + (self._asked - len(self._seen)) * self._longest
        return (time.monotonic() - self._began) * (total - self._trained) / trained


class Display:
    """Shows progress while a block runs: a live table on a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress, console: Console, line_seconds: float = 15.0) -> None:
        self._progress = progress
        self._console = console
        self._line_seconds = line_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True)
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._progress.render, console=self._console, refresh_per_second=2, transient=False
            )
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            return
        self._end.set()
        self._thread.join(timeout=5)
        self._console.print(self._progress.render())

    def _print_lines(self) -> None:
        while not self._end.wait(self._line_seconds):
            self._console.print(self._progress.text(), highlight=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
