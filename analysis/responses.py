"""What students of text responded: the scores by evaluation set, their comparison, and cases drawn by a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.papers import text_data
from analysis.points import Point
from analysis.statistics import Estimate, estimate, holm
from analysis.tables import NOTHING, Column, Table, fixed, mean_sd, p_value, signed

TEACHER = "teacher"
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class OnSet:
    """A point's ROUGE-L on one evaluation set: by seed, and their mean and spread."""

    point: Point
    name: str
    by_seed: Mapping[int, float]
    score: Estimate


def by_set(found: Sequence[Point], runs: pd.DataFrame, sets: Sequence[str]) -> list[OnSet]:
    """What each point's runs came to on each evaluation set.

    Args:
        found: points of one pair.
        runs: as `load_runs` returns it.
        sets: the evaluation sets, the data set's own first.
    """
    known = runs.drop_duplicates("run_id").set_index("run_id")
    result = []
    for point in found:
        for place, name in enumerate(sets):
            column = "test_rouge_l_last" if place == 0 else f"test_rouge_l.{name}_last"
            if column not in known:
                continue
            own = known.loc[list(point.run_ids)]
            values = {int(s): float(v) for s, v in zip(own["seed"], own[column], strict=True) if math.isfinite(v)}
            if values:
                result.append(OnSet(point, name, values, estimate(list(values.values()))))
    return result


@dataclass(frozen=True)
class Comparison:
    """One method's ROUGE-L on a set against the best of those with an alpha.

    difference: the latter minus the former, mean over the seeds that both have. unpaired: the p-value of Welch's test,
    which takes the seeds of both as independent. paired: of the paired t test; corrected: by Holm's method over all of
    a set. None where two seeds are not there, or do not differ.
    """

    on: OnSet
    best: OnSet
    difference: float
    unpaired: float | None
    paired: float | None
    corrected: float | None = None


def comparisons(scored: Sequence[OnSet]) -> list[Comparison]:
    """Every point against the best with an alpha, set by set."""
    result = []
    for name in dict.fromkeys(each.name for each in scored):
        own = [each for each in scored if each.name == name]
        swept = [each for each in own if not math.isnan(each.point.alpha)]
        if not swept:
            continue
        best = max(swept, key=lambda each: each.score.mean)
        found = [_compared(each, best) for each in own if each is not best]
        tested = [index for index, each in enumerate(found) if each.paired is not None]
        corrected = dict(zip(tested, holm([found[index].paired or 0.0 for index in tested]), strict=True))
        result += [
            Comparison(each.on, each.best, each.difference, each.unpaired, each.paired, corrected.get(index))
            for index, each in enumerate(found)
        ]
    return result


def _compared(on: OnSet, best: OnSet) -> Comparison:
    shared = sorted(on.by_seed.keys() & best.by_seed.keys())
    a, b = np.array([best.by_seed[s] for s in shared]), np.array([on.by_seed[s] for s in shared])
    difference = float((a - b).mean()) if shared else best.score.mean - on.score.mean
    unpaired = paired = None
    one, other = list(best.by_seed.values()), list(on.by_seed.values())
    if min(len(one), len(other)) > 1 and (np.std(one) > 0 or np.std(other) > 0):
        unpaired = float(stats.ttest_ind(one, other, equal_var=False).pvalue)
    if len(shared) > 1 and np.std(a - b) > 0:
        paired = float(stats.ttest_rel(a, b).pvalue)
    return Comparison(on, best, difference, unpaired, paired)


@dataclass(frozen=True)
class Case:
    """One instruction, and what each method's student responded with its first seed.

    rule: why it is shown. said: (who, response, ROUGE-L), the teacher first.
    """

    rule: str
    instruction: str
    given: str
    reference: str
    said: tuple[tuple[str, str, float], ...]


def cases(found: Sequence[Point], generations: pd.DataFrame, own_set: str) -> list[Case]:
    """Three instructions of the data set's own evaluation set, drawn by what happened and not by hand.

    Of all instructions, in the order of (mean ROUGE-L over seeds of the best point with an alpha) minus (that of the
    first baseline: SFT where there is one), those where it gains most, gains the median, and loses most.

    Args:
        found: points of one pair.
        generations: as `load_generations` returns it.
        own_set: the evaluation set.
    """
    mine = generations[generations["set"] == own_set]
    swept = [each for each in found if not math.isnan(each.alpha) and each.last.n]
    others = [each for each in found if math.isnan(each.alpha) and each.last.n]
    if mine.empty or not swept or not others:
        return []
    best = max(swept, key=lambda each: each.last.mean)
    base = next((each for each in others if each.method == "sft"), others[0])
    gain = _mean_by_index(mine, best) - _mean_by_index(mine, base)
    ordered = gain.dropna().sort_values(kind="stable")
    if ordered.empty:
        return []
    places = {len(ordered) - 1: "gains most over", len(ordered) // 2: "gains the median over", 0: "loses most to"}
    shown = [*others, best]
    teacher_runs = mine.loc[mine["teacher_of"] == best.pair, "run_id"].drop_duplicates().tolist()
    result = []
    for place, word in places.items():
        index, value = ordered.index[place], float(ordered.iloc[place])
        rows = mine[mine["index"] == index]
        first = rows.iloc[0]
        said = [_first_response(rows, TEACHER, teacher_runs)]
        said += [_first_response(rows, each.label, list(each.run_ids)) for each in shown]
        result.append(
            Case(
                f"{best.label} {word} {base.label} ({signed(value, 1)})",
                _cut(first["instruction"]),
                _cut(first["input"]),
                _cut(first["reference"]),
                tuple(each for each in said if each is not None),
            )
        )
    return result


def compared_table(scored: Sequence[OnSet], name: str) -> Table | None:
    """Every point's ROUGE-L by set, and what tells it from the best with an alpha; None where there is none."""
    found = comparisons(scored)
    if not found:
        return None
    columns = [
        _column("set", "set", lambda row: row.on.name),
        _column("method", "method", lambda row: row.on.point.label),
        Column("n", lambda row: str(row.on.score.n), {"n": lambda row: row.on.score.n}),
        _value("rouge_l", "ROUGE-L", lambda row: row.on.score.mean, lambda row: mean_sd(row.on.score)),
        _column("best", "best with α", lambda row: row.best.point.label),
        _value("difference", "best minus this", lambda row: row.difference, lambda row: signed(row.difference)),
        _value("p_unpaired", "p, seeds independent", lambda row: row.unpaired, lambda row: p_value(row.unpaired)),
        _value("p_paired", "p, paired by seed", lambda row: row.paired, lambda row: p_value(row.paired)),
        _value("p_holm", "p, paired (Holm)", lambda row: row.corrected, lambda row: p_value(row.corrected)),
    ]
    notes = [
        "ROUGE-L of the last epoch, mean ± SD over n seeds. The first p is Welch's two-sample test, as if the seeds of "
        "two methods had nothing in common; the second is the paired t test, which uses that a seed gives both the "
        "same "
        "initial weights and order; in the last it is corrected by Holm's method for all comparisons of a set."
    ]
    return Table(name, "ROUGE-L by evaluation set", columns, found, notes)


def data_table(data: Mapping[str, Any], name: str) -> Table:
    """The data of a study beside those of the paper's Table 5.

    Args:
        data: the `data` of a pair's record.
        name: file name without ending.
    """
    own = [(data["name"], "train", data["train_images"]), (data["name"], "valid", data["validation_images"])]
    own += [(of, "test", count) for of, count in data["evaluated"].items()]
    printed: dict[tuple[str, str], int] = {
        (str(each["dataset"]), str(each["usage"])): int(each["samples"]) for each in text_data().to_dict("records")
    }
    here = {(of, usage): count for of, usage, count in own}
    rows: list[tuple[str, str, int | None, int | None]] = [
        (*of, here.get(of), printed.get(of)) for of in dict.fromkeys([*here, *printed])
    ]
    columns = [
        _column("set", "set", lambda row: row[0]),
        _column("usage", "usage", lambda row: row[1]),
        _value("samples", "examples here", lambda row: row[2], lambda row: _count(row[2])),
        _value("published", "LoCa, Table 5", lambda row: row[3], lambda row: _count(row[3])),
    ]
    return Table(name, "Data, beside the paper's Table 5", columns, rows)


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def case_table(found: Sequence[Case], name: str) -> Table | None:
    """Cases as a table, a row a response; None where there are none."""
    rows = [(case, number, *said) for case in found for number, said in enumerate(case.said)]
    if not rows:
        return None

    def once(text: Callable[[Case], str]) -> Callable[[Any], str]:
        return lambda row: text(row[0]) if row[1] == 0 else ""

    columns = [
        _column("case", "case", once(lambda case: case.rule)),
        _column("instruction", "instruction", once(lambda case: case.instruction)),
        _column("input", "input", once(lambda case: case.given)),
        _column("reference", "reference", once(lambda case: case.reference)),
        _column("who", "who", lambda row: row[2]),
        _column("response", "response", lambda row: row[3]),
        _value("rouge_l", "ROUGE-L", lambda row: row[4], lambda row: fixed(row[4], 1)),
    ]
    notes = [
        "Drawn by a rule, not by hand: of all instructions of the evaluation set in the order of the mean gain over "
        "seeds, the last, the middle and the first. Each response is that of the first seed. Texts are cut at "
        f"{SHOWN_CHARACTERS} characters."
    ]
    return Table(name, "Cases", columns, rows, notes)


def _column(name: str, heading: str, read: Callable[[Any], str]) -> Column:
    return Column(heading, read, {name: read}, False)


def _value(name: str, heading: str, read: Callable[[Any], Any], show: Callable[[Any], str]) -> Column:
    return Column(heading, show, {name: read})


def _mean_by_index(rows: pd.DataFrame, point: Point) -> pd.Series:
    return rows[rows["run_id"].isin(point.run_ids)].groupby("index")["rouge_l"].mean()


def _first_response(rows: pd.DataFrame, who: str, run_ids: list[str]) -> tuple[str, str, float] | None:
    for run_id in run_ids:
        own = rows[rows["run_id"] == run_id].sort_values("decoding_seed", kind="stable")
        if len(own):
            return who, _cut(own.iloc[0]["response"]), float(own.iloc[0]["rouge_l"])
    return None


def _cut(text: str) -> str:
    flat = " ".join(str(text).split())
    return flat if len(flat) <= SHOWN_CHARACTERS else f"{flat[: SHOWN_CHARACTERS - 1]}…"
