"""What every benchmark needs: variants timed in turns, ratios with their spread, a table and a JSON file.

Imports nothing but torch, so that it works where the rest of the stack is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch


def interleaved(
    variants: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Time variants in turns, so that whatever else the machine does hits all of them.

    Args:
        variants: what to time, by name.
        rounds: how often each has its turn; a first round is not counted.
        calls: of a variant at each turn.
        device: `cuda` makes the clock wait for the device.

    Returns:
        Seconds a call, one number for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            _wait(device)
            began = time.perf_counter()
            for _ in range(calls):
                call()
            _wait(device)
            if number:
                seconds[name].append((time.perf_counter() - began) / calls)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for this process and those that it starts; afterwards they are as they were before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class Ratio:
    """A ratio of two times: the median over the rounds, and the quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def ratio(seconds: Sequence[float], to: Sequence[float]) -> Ratio:
    """How many times as long as `to` something took, round by round."""
    found = [a / b for a, b in zip(seconds, to, strict=True)]
    if len(found) == 1:
        return Ratio(found[0], found[0], found[0])
    low, _, high = quantiles(found, n=4, method="inclusive")
    return Ratio(median(found), low, high)


@dataclass(frozen=True)
class Table:
    """What a benchmark found.

    `limits` says what bounds the figures, and what was to be reached. Cells are text, numbers, `Ratio` or None (not
    measured).
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    limits: str = ""

    def markdown(self) -> str:
        """As a Markdown table with its limits under it."""
        lines = [" | ".join(("", *self.columns, "")).strip(), "|" + " --- |" * len(self.columns)]
        lines += [" | ".join(("", *map(_cell, row), "")).strip() for row in self.rows]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.limits] if self.limits else [])])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where the figures were measured."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return found | ({"device": torch.cuda.get_device_name()} if device == "cuda" else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="too short to be believed: shows that it works")
    return parser


def show(name: str, tables: Sequence[Table], options: argparse.Namespace, device: str = "cpu") -> None:
    """Print tables as Markdown and, where asked for, write them as JSON."""
    where = machine(device)
    print(f"`python -m benchmarks.{name}`, {', '.join(f'{key} {value}' for key, value in where.items())}\n")
    print("\n\n".join(table.markdown() for table in tables))
    if options.json is not None:
        content = {"benchmark": name, "quick": options.quick, "machine": where, "tables": [asdict(t) for t in tables]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
