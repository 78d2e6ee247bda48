"""The LoCa paper's tables in its own layout, from a user's runs, with the printed numbers beside them.

A cell is what this study measured: mean ± SD (n) over seeds of the last epoch. The printed number follows it where the
protocol is the paper's, uncut, and is marked where it lies outside the measured interval. What was not measured stays
empty. Pairs that the paper does not have get the same layout without printed numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.frames import section
from analysis.papers import load_published, network, not_comparable
from analysis.points import Point, number
from analysis.statistics import Estimate, estimate
from analysis.tables import Column, Table, fixed, with_seeds

OUTSIDE = "‡"
# What the paper contradicts itself or its sources in.
_WRN, _R32, _R18 = ("wrn_40_2", "wrn_40_1"), ("resnet32x4", "resnet8x4"), ("resnet34", "resnet18")
CONTRADICTIONS: Mapping[int, tuple[tuple[tuple[str, str] | None, str], ...]] = {
    1: ((_WRN, "The paper prints 70.50 for the WRN-40-1 student here and 71.36 in its Table 2."),),
    2: (
        (_WRN, "The paper prints 71.36 for the WRN-40-1 student here and 70.50 in its Table 1."),
        (
            None,
            "The paper's KD row is a last-epoch figure of earlier work, while the code that it builds on reports the "
            "best test epoch, about 0.3 higher.",
        ),
        (_R32, "The paper's text calls α 0.95 best for ResNet32x4 → ResNet8x4, while its table has 0.98 higher."),
    ),
    3: ((_R18, "The paper prints 70.66 for ResNet34 → ResNet18 with KD here and 71.03 in its Table 6."),),
    6: ((_R18, "The paper prints 71.03 for ResNet34 → ResNet18 with KD here and 70.66 in its Table 3."),),
    7: (
        (
            None,
            "The paper prints 25.32 s for an epoch here and speaks of about 28 s in its text; it counts 781 steps "
            "where 50,000 images in batches of 64 make 782.",
        ),
    ),
    8: ((None, "The paper's DKD base lines are 73.92 and 76.88; DKD itself published 74.11 and 77.07."),),
}
"""By table: the teacher and student that it concerns (None: the whole table), and the note."""
_TITLES = {
    1: "what dropping mis-instructed views does",
    2: "accuracy by pair",
    3: "ImageNet, ResNet34 → ResNet18",
    4: "ImageNet, ResNet50 → MobileNet",
    6: "alpha beside the tie",
    8: "LoCa on DKD",
}
_METHODS = {
    1: ("teacher", "ce", "kd", "kd_drop"),
    2: ("teacher", "ce", "kd", "loca"),
    3: ("teacher", "ce", "kd", "loca"),
    4: ("teacher", "ce", "kd", "loca"),
    6: ("kd", "loca"),
    8: ("dkd", "loca_dkd"),
}
_NEEDED = {1: "kd_drop", 2: "loca", 3: "loca", 4: "loca", 6: "loca", 8: "loca_dkd"}
_CALLED = {"teacher": "Teacher", "ce": "Student", "kd": "KD", "kd_drop": "KD, dropping", "dkd": "DKD"}
_LOCA = {"loca": "LoCa", "loca_dkd": "LoCa on DKD"}
_TOP5 = (3, 4)  # tables that print both metrics, on one pair
_METRICS = {"top1": "top-1", "top5": "top-5"}
_NEAR_TIE = 0.0101  # how far from 1 the alphas of Table 6 are at most, with room for rounding


@dataclass(frozen=True)
class _Cell:
    """One measured number, or none, with what the paper prints for it."""

    measured: Estimate | None
    printed: float | None

    @property
    def outside(self) -> bool:
        """Whether the printed number lies outside the measured interval."""
        around = self.measured
        return (
            self.printed is not None
            and around is not None
            and around.low is not None
            and around.high is not None
            and not around.low <= self.printed <= around.high
        )

    @property
    def text(self) -> str:
        """As a reader sees it: measured mean ± SD (n), then what is printed, marked where that lies outside."""
        if self.measured is None or not self.measured.n:
            return ""
        text = with_seeds(self.measured)
        return text if self.printed is None else f"{text} | {fixed(self.printed)}{OUTSIDE if self.outside else ''}"


@dataclass(frozen=True)
class _Row:
    """A method with its alpha, and its cell for each pair; of the teacher, ce and so on the alpha is nan."""

    method: str
    alpha: float
    metric: str
    cells: Mapping[str, _Cell]

    @property
    def label(self) -> str:
        """As the paper calls it."""
        if self.method in _LOCA:
            return f"{_LOCA[self.method]} (α = {number(self.alpha)})"
        return _CALLED[self.method]


def paper_tables(
    found: Sequence[Point], studies: Sequence[Mapping[str, Any]], history: pd.DataFrame, prefix: str = "paper-table"
) -> list[Table]:
    """Those of Tables 1, 2, 3, 4, 6, 7 and 8 for which something was measured.

    Where a pair was run under several protocols the table is split, one for each, and says so.

    Args:
        found: points of the result stages, of one study or several.
        studies: their records.
        history: as `load_history` returns it, for the seconds of an epoch.
        prefix: how the tables' file names begin.
    """
    tables = []
    for which in (1, 2, 3, 4, 6, 8):
        mine = [each for each in found if _belongs(which, each)]
        if not any(each.method == _NEEDED[which] and each.last.n for each in mine):
            continue
        splits = _splits(mine)
        for index, part in enumerate(splits):
            name = f"{prefix}-{which}" + (f"-{index + 1}" if len(splits) > 1 else "")
            tables.append(_table(which, part, studies, name, index, len(splits)))
    times = _time_table(found, history, studies, f"{prefix}-7")
    return sorted([*tables, *([times] if times is not None else [])], key=lambda table: table.name)


def _belongs(which: int, point: Point) -> bool:
    """Whether a point may stand in a table: its method, its network and data set where the table is of one pair."""
    if point.method not in _METHODS[which] or not _at_defaults(point):
        return False
    names = point.dataset, network(point.teacher), network(point.student)
    if which == 3:
        return names == ("imagenet", "resnet34", "resnet18")
    if which == 4:
        return names == ("imagenet", "resnet50", "mobilenet_v1")
    if which == 2:
        return names[0] != "imagenet"
    if which == 6:
        return math.isnan(point.alpha) or abs(1 - point.alpha) <= _NEAR_TIE
    return True


def _at_defaults(point: Point) -> bool:
    """Whether a point has no named choices of its own: the paper's tables show each method as it is defined."""
    return not any(isinstance(value, str) for value in point.parameters.values())


def _splits(found: Sequence[Point]) -> list[list[Point]]:
    """Points such that in each part a pair has one protocol and one setting of everything but alpha."""
    settings: dict[str, list[tuple[Any, ...]]] = {}
    for each in found:
        known = settings.setdefault(each.pair, [])
        setting = _setting(each)
        if each.method != "ce" and setting not in known:
            known.append(setting)
    count = max((len(known) for known in settings.values()), default=0)
    parts = []
    for index in range(count):
        part = []
        for each in found:
            known = settings[each.pair]
            if index >= len(known):
                continue
            if _setting(each) == known[index] or (each.method == "ce" and each.protocol_hash == known[index][0]):
                part.append(each)
        parts.append(part)
    return parts


def _setting(point: Point) -> tuple[Any, ...]:
    """What has to be the same in one table: the protocol, and every number of the method's but alpha."""
    shared = sorted((name, value) for name, value in point.parameters.items() if name in ("tau", "beta", "gamma"))
    return (point.protocol_hash, *shared)


def _table(
    which: int, found: Sequence[Point], studies: Sequence[Mapping[str, Any]], name: str, part: int, parts: int
) -> Table:
    by_name = {study["study"]: study for study in studies}
    names = list(dict.fromkeys(each.pair for each in found))
    first = {pair: next(each for each in found if each.pair == pair) for pair in names}
    comparable = {
        pair: not not_comparable(section(by_name[each.study], pair), each.dataset) for pair, each in first.items()
    }
    rows = []
    for metric in _METRICS if which in _TOP5 else ("top1",):
        for method in _METHODS[which]:
            alphas = sorted({each.alpha for each in found if each.method == method and not math.isnan(each.alpha)})
            for alpha in alphas or [math.nan]:
                cells = {
                    pair: _cell(first[pair], method, alpha, metric, found, by_name, which if comparable[pair] else None)
                    for pair in names
                }
                if any(cell.text for cell in cells.values()):
                    rows.append(_Row(method, alpha, metric, cells))
    columns = [
        Column(
            "",
            lambda row: row.label + (f", {_METRICS[row.metric]}" if which in _TOP5 else ""),
            {"method": lambda row: row.method, "alpha": lambda row: row.alpha, "metric": lambda row: row.metric},
            numeric=False,
        ),
        *(_column(pair, _heading(first[pair])) for pair in names),
    ]
    notes = _notes(which, found, comparable, part, parts)
    return Table(name, f"The paper's Table {which}: {_TITLES[which]}", columns, rows, notes)


def _notes(which: int, found: Sequence[Point], comparable: Mapping[str, bool], part: int, parts: int) -> list[str]:
    measure = "Accuracy" if which in _TOP5 else "Top-1"
    notes = [f"{measure} of the last epoch on the test set in percent, mean ± SD (seeds)."]
    if any(comparable.values()):
        notes[0] += (
            f" After the bar: what the paper prints; {OUTSIDE} marks a printed value outside of the measured 95 % "
            "interval."
        )
        shown = {(network(each.teacher), network(each.student)) for each in found}
        notes += [note for of_pair, note in CONTRADICTIONS.get(which, ()) if of_pair is None or of_pair in shown]
    others = [pair for pair, same in comparable.items() if not same]
    if others:
        notes.append(f"No printed numbers beside {', '.join(others)}: the paper has no such pair, or another protocol.")
    if parts > 1:
        shared = next((_setting(each)[1:] for each in found if each.method != "ce"), ())
        settings = ", ".join(f"{key} {number(value)}" for key, value in shared)
        notes.append(
            f"Runs of several protocols or settings are never averaged: this is part {part + 1} of {parts}"
            + (f", with {settings}." if settings else ".")
        )
    return notes


def _heading(point: Point) -> str:
    label = point.pair.partition("@")[2]
    return f"{network(point.teacher)} → {network(point.student)}" + (f" ({label})" if label else "")


def _column(pair: str, heading: str) -> Column:
    def read(name: str) -> Any:
        return lambda row: getattr(row.cells[pair].measured, name, None)

    raw = {f"{pair} {name}": read(name) for name in ("mean", "sd", "n", "low", "high")}
    raw[f"{pair} printed"] = lambda row: row.cells[pair].printed
    return Column(heading, lambda row: row.cells[pair].text, raw)


def _cell(
    pair: Point,
    method: str,
    alpha: float,
    metric: str,
    found: Sequence[Point],
    studies: Mapping[str, Mapping[str, Any]],
    table: int | None,
) -> _Cell:
    printed = None if table is None else _printed(table, pair, method, alpha, metric)
    if method == "teacher":
        record = next((each for each in studies[pair.study]["teachers"] if each["pair"] == pair.pair), None)
        value = None if record is None else record.get(f"test_{metric}")
        return _Cell(None if value is None else estimate([value]), printed)
    own = [
        each
        for each in found
        if each.pair == pair.pair
        and each.method == method
        and (each.alpha == alpha or (math.isnan(alpha) and math.isnan(each.alpha)))
    ]
    if not own:
        return _Cell(None, printed)
    return _Cell(own[0].last if metric == "top1" else own[0].top5, printed)


def _printed(table: int, pair: Point, method: str, alpha: float, metric: str) -> float | None:
    """What the paper prints in this very cell of this very table."""
    frame = load_published()
    match = (frame["source"] == "loca") & (frame["table"] == str(table)) & (frame["dataset"] == pair.dataset)
    match &= (frame["teacher"] == network(pair.teacher)) & (frame["student"] == network(pair.student))
    match &= (frame["method"] == method) & (frame["metric"] == metric)
    match &= frame["alpha"].isna() if math.isnan(alpha) else (frame["alpha"] - alpha).abs() < 1e-9
    values = frame.loc[match, "value"].tolist()
    return float(values[0]) if values else None


def _time_table(
    found: Sequence[Point], history: pd.DataFrame, studies: Sequence[Mapping[str, Any]], name: str
) -> Table | None:
    """Seconds of an epoch with KD and with LoCa, as the runs themselves took them; None without both on one pair."""
    epochs = history.dropna(subset=["epoch_seconds"])
    # The first epoch also warms up: views are made, kernels chosen.
    epochs = epochs[epochs["epoch"] > 1]
    by_run = epochs.groupby("run_id")["epoch_seconds"].median()
    rows = []
    for pair in dict.fromkeys(each.pair for each in found):
        for method in ("kd", "loca"):
            runs = [run for each in found if (each.pair, each.method) == (pair, method) for run in each.run_ids]
            values = by_run.reindex(runs).dropna()
            if len(values):
                first = next(each for each in found if each.pair == pair)
                rows.append({"pair": _heading(first), "method": method, "epoch": estimate(values.tolist())})
    if {row["method"] for row in rows} != {"kd", "loca"}:
        return None
    columns = [
        Column("pair", lambda row: row["pair"], {"pair": lambda row: row["pair"]}, numeric=False),
        Column(
            "", lambda row: {"kd": "KD", "loca": "LoCa"}[row["method"]], {"method": lambda row: row["method"]}, False
        ),
        Column(
            "epoch, s",
            lambda row: with_seeds(row["epoch"]),
            {
                "epoch_seconds_mean": lambda row: row["epoch"].mean,
                "epoch_seconds_sd": lambda row: row["epoch"].sd,
                "n": lambda row: row["epoch"].n,
            },
        ),
    ]
    devices = sorted({str(device) for study in studies for device in study["hardware"].get("devices") or ()})
    notes = [
        "Seconds of an epoch as the runs took them: the median of a run's epochs but its first, mean ± SD over runs"
        + (f", on {', '.join(devices)}" if devices else "")
        + ". Runs that shared the machine slowed each other; `python -m benchmarks.table7` measures the loss, the "
        "batch and the epoch alone. The paper's WRN-40-2 → ShuffleNet-V1 on its GPU: 25.32 s with KD, 25.57 s with "
        "LoCa.",
        *(note for _, note in CONTRADICTIONS[7]),
    ]
    return Table(name, "The paper's Table 7: time", columns, rows, notes)
