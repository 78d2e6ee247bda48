"""The live table of a running study: one row a pair and method, drawn from the store while the runs go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search_spaces.spaces import written
from study.plan import FINAL, TEACHER
from study.store import DONE, FAILED, PRUNED, RUNNING, RunRow, Store

_TITLES = {"test_top1_last": "test %", "val_top1_last": "val %"}


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


class Progress:
    """What a study has done and how long the rest will take, from the rows of the store."""

    def __init__(
        self,
        store: Store,
        study: str,
        metric: str,
        expected_runs: int | None = None,
        driven: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._study = study
        self._metric = metric
        self.expected = expected_runs  # None when all runs are known: a pruner may have saved some
        self._driven = driven  # without a driver nothing runs, whatever a driver that was killed left in the store
        self._began = time.monotonic()
        self._epochs_before: int | None = None
        self.note = ""

    def lines(self, runs: Sequence[RunRow]) -> list[Line]:
        """One line for each pair, method and stage, in the order in which they begin."""
        driven = self._driven()
        groups: dict[tuple[str, str, str], list[RunRow]] = {}
        for run in runs:
            groups.setdefault((run.stage, run.pair, run.method), []).append(run)
        pairs = {run.pair for run in runs}
        lines = []
        for (stage, pair, method), members in groups.items():
            name = "teacher" if stage == TEACHER else method
            label = " ".join(([pair] if len(pairs) > 1 else []) + [name] + (["(final)"] if stage == FINAL else []))
            states = [run.state_here for run in members]
            best, best_at = self._best(members)
            lines.append(
                Line(
                    label,
                    len(members),
                    states.count(DONE),
                    states.count(RUNNING) if driven else 0,
                    states.count(FAILED),
                    states.count(PRUNED),
                    best,
                    best_at,
                )
            )
        return lines

    def _best(self, runs: Sequence[RunRow]) -> tuple[float | None, str]:
        """The best mean over the seeds that are done, and the parameters that have it."""
        points: dict[str, list[RunRow]] = {}
        for run in runs:
            if run.state == DONE and run.summary:
                points.setdefault(run.point_id, []).append(run)
        best: tuple[float | None, str] = None, ""
        for members in points.values():
            values = [v for run in members if (v := self._value(run)) is not None]
            if values and (best[0] is None or sum(values) / len(values) > best[0]):
                given = members[0].parameters.items()
                shown = [f"{name} {written(value)}" for name, value in given if name not in ("tau", "beta", "gamma")]
                best = sum(values) / len(values), " ".join([*shown, f"(n {len(values)})"])
        return best

    def _value(self, run: RunRow) -> float | None:
        summary = run.summary or {}
        return summary.get(self._metric, summary.get("test_top1_last"))

    def render(self) -> RenderableType:
        """The table and the line below it, as they are now."""
        runs = self._store.runs(self._study)
        lines = self.lines(runs)
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
        ended = ProgressBar(total=max(1, self._asked(runs)), completed=sum(run.ended_here for run in runs), width=72)
        below = Table.grid()
        below.add_row(ended)
        below.add_row(Text(self.line(runs)))
        return Group(table, below)

    def _asked(self, runs: Sequence[RunRow]) -> int:
        return max(len(runs), self.expected or 0)

    def text(self) -> str:
        """The line below the table, as it is now."""
        return self.line(self._store.runs(self._study))

    def line(self, runs: Sequence[RunRow]) -> str:
        """One line: runs ended of those asked, time left, and what else there is to know."""
        ended = sum(run.ended_here for run in runs)
        asked = self._asked(runs)
        left = self._seconds_left(runs, asked)
        parts = [f"{ended} of {asked} runs ended", f"{_duration(time.monotonic() - self._began)} so far"]
        if left is not None and ended < asked:
            parts.append(f"about {_duration(left)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def _seconds_left(self, runs: Sequence[RunRow], asked: int) -> float | None:
        epochs = sum(min(run.epoch, run.epochs) for run in runs)
        if self._epochs_before is None:
            self._epochs_before = epochs
        trained = epochs - self._epochs_before
        total = sum(run.epoch if run.ended_here else run.epochs for run in runs)
        if runs:
            total += (asked - len(runs)) * max(run.epochs for run in runs)
        if trained < 1:
            return None
        return (time.monotonic() - self._began) * (total - epochs) / trained


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
