"""Runs grouped into points: the unit of every table and figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import FLAGS, PARAMETERS, RESULTS, TEXT
from analysis.scores import TOP1, Score, is_score, score_of
from analysis.statistics import (
    LEVEL,
    Difference,
    Estimate,
    estimate,
    holm,
    paired_difference,
    pooled_sd,
    resolvable_difference,
)

BASELINE = "kd"
CONFIRM = "confirm"  # the stage whose seeds chose nothing
SYMBOLS = {"alpha": "α", "tau": "τ", "beta": "β", "gamma": "γ"}
# What a method is held against: what it would be without its calibration.
_BASELINES = {"loca_dkd": "dkd", "loca_ls": "kd_ls", "loca_dkd_ls": "dkd_ls"}
BASELINE_ORDER = (
    "ce",
    "sft",
    "seqkd",
    "label_smoothing",
    "tf_kd",
    "kd",
    "kd_drop",
    "kd_swap",
    "kd_one_hot",
    "dkd",
    "nkd",
    "ctkd",
    "mlkd",
    "kd_ls",
    "dkd_ls",
    "ctkd_ls",
    "mlkd_ls",
)


def agree(parameters: Mapping[str, float | str], baseline: Mapping[str, float | str]) -> bool:
    """Whether a point and one that it is held against differ in no parameter that both have."""
    return all(parameters.get(name, value) == value for name, value in baseline.items())


def baselines_of(method: str) -> tuple[str, ...]:
    """What a method is held against, the first of these that a study has: itself without calibration, then KD."""
    return tuple(dict.fromkeys((_BASELINES.get(method, BASELINE), BASELINE)))


_NOT_PARAMETERS = {*TEXT, *FLAGS, *RESULTS, "seed", "started", "mis_instruction_ratio", "capped_ratio"}


@dataclass(frozen=True)
class Point:
    """One setting of one pair and method, and what its seeds gave.

    `last` and `best` are the score (top-1 in percent, ROUGE-L of text) on the test set, of the last epoch and of the
    best test epoch, `top5` is top-5 of the last. `difference`
    is to `baseline` (KD, or what the method would be without its calibration), paired by seed, None where there is none
    to compare with. Ratios are means over epochs and seeds, nan
    without a teacher. `asked` counts every run that the point was given, `failed` and `pruned` among them.
    """

    study: str
    pair: str
    dataset: str
    teacher: str
    student: str
    method: str
    parameters: Mapping[str, float | str]
    protocol_hash: str
    asked: int
    failed: int
    pruned: int
    taken_over: int
    run_ids: tuple[str, ...]
    by_seed: Mapping[int, float]
    best_by_seed: Mapping[int, float]
    last: Estimate
    top5: Estimate
    best: Estimate
    difference: Difference | None
    mis_instruction_ratio: float
    capped_ratio: float
    baseline: str = BASELINE
    score: Score = TOP1

    @property
    def alpha(self) -> float:
        """LoCa's alpha, nan for methods without one."""
        return float(self.parameters.get("alpha", math.nan))

    @property
    def setting(self) -> tuple[Any, ...]:
        """Pair, method and parameters: what is the same of a point that is trained again at another stage."""
        return self.pair, self.method, tuple(sorted(self.parameters.items()))

    @property
    def label(self) -> str:
        """Method, alpha and named choices, as figures and sentences name the point."""
        words = [] if math.isnan(self.alpha) else [f"α {number(self.alpha)}"]
        words += [f"{name} {value}" for name, value in self.parameters.items() if isinstance(value, str)]
        return " ".join([self.method, ", ".join(words)]).strip()


def number(value: float | str) -> str:
    """A parameter as readers see it, in four digits (0.95, 4, 1.047); only 1 itself reads as 1, the tie."""
    if isinstance(value, str):
        return value
    text = f"{value:.4g}"
    return f"{value:.6g}" if text == "1" else text


def result_stage(study: Mapping[str, Any]) -> str:
    """The stage whose runs are a study's result: the ablation itself, or a search's final stage.

    A search that chooses by test accuracy, as the papers do, has no final stage: its own runs are the result.
    """
    if study["mode"] == "ablation":
        return "ablation"
    return "search" if study["selection"] == "paper" else "final"


def points(
    runs: pd.DataFrame, history: pd.DataFrame, study: Mapping[str, Any], stage: str | None = None
) -> list[Point]:
    """The points of one study's result stage, pair by pair as they were asked: baselines first, then by alpha.

    `stage` names another: the points of `confirm` were trained again on fresh seeds, since they did best.

    Screening runs are left out: a point that survived the pruner was chosen by them. Runs of different protocols are
    never averaged together.
    """
    stage = stage or result_stage(study)
    mine = runs[(runs["study"] == study["study"]) & (runs["stage"] == stage) & ~runs["screening"]]
    if mine.empty:
        return []
    ratios = _ratios(history[(history["study"] == study["study"]) & (history["stage"] == stage)])
    # Runs of `ce` have no teacher, their pair has.
    mine = mine.assign(teacher=mine["teacher"].mask(mine["teacher"] == "").groupby(mine["pair"]).transform("first"))
    mine["teacher"] = mine["teacher"].fillna("")
    names = [
        *PARAMETERS,
        *sorted(name for name in set(runs.columns) - _NOT_PARAMETERS - set(PARAMETERS) if not is_score(name)),
    ]
    keys = ["pair", "method", *names, "protocol_hash"]
    found = [_point(group, names, ratios, score_of(study)) for _, group in mine.groupby(keys, dropna=False, sort=False)]
    found = _corrected([_held_against(each, found) for each in found])
    asked = {pair: place for place, pair in enumerate(study.get("pairs", {}))}
    return sorted(found, key=lambda point: (asked.get(point.pair, len(asked)), *_order(point)))


def pairs(found: Sequence[Point]) -> list[str]:
    """The pairs among points, in order."""
    return list(dict.fromkeys(each.pair for each in found))


def varying(found: Sequence[Point]) -> list[str]:
    """Parameters other than alpha that take several values among points, or that only some methods own."""
    names = dict.fromkeys(name for each in found for name in each.parameters if name != "alpha")
    values = {name: {each.parameters[name] for each in found if name in each.parameters} for name in names}
    return [name for name in names if len(values[name]) > 1 or name not in PARAMETERS]


def distinguishing(found: Sequence[Point]) -> list[str]:
    """Parameters other than alpha that take several values among the points of one method: what tells those apart."""
    names = dict.fromkeys(name for each in found for name in each.parameters if name != "alpha")
    values: dict[tuple[str, str], set[Any]] = {}
    for each in found:
        for name in names:
            values.setdefault((each.method, name), set()).add(each.parameters.get(name))
    return [name for name in names if any(len(seen) > 1 for (_, other), seen in values.items() if other == name)]


def resolved(found: Sequence[Point], comparisons: int = 1, seeds: int | None = None) -> float | None:
    """The smallest gain over KD that the seeds of these points resolve, from the pooled SD of paired differences.

    `comparisons`: for that many points at once, as Holm's method needs it of the first of them. `seeds`: with so many
    seeds instead of those that there are.
    """
    differences = [each.difference for each in found if each.difference is not None]
    sd = pooled_sd(differences)
    if not sd:
        return None
    level = LEVEL / max(comparisons, 1)
    n = max(each.n for each in differences) if seeds is None else seeds
    return resolvable_difference(sd, n, paired=True, level=level)


def compared(found: Sequence[Point]) -> int:
    """How many points are compared with a baseline by a test, which is what p-values are corrected for."""
    return sum(each.difference is not None and each.difference.p is not None for each in found)


def _ratios(history: pd.DataFrame) -> pd.DataFrame:
    return history.groupby("run_id")[["mis_instruction_ratio", "capped_ratio"]].mean()


def _point(group: pd.DataFrame, names: Sequence[str], ratios: pd.DataFrame, score: Score) -> Point:
    first = group.iloc[0]
    last, best = score.column("test", "last"), score.column("test", "best")
    done = group[(group["state"] == "DONE") & np.isfinite(group[last])]
    by_seed = _by_seed(done, last)
    best_by_seed = _by_seed(done[np.isfinite(done[best])], best)
    seen = ratios.reindex(done["run_id"])
    return Point(
        study=first["study"],
        pair=first["pair"],
        dataset=first["dataset"],
        teacher=first["teacher"],
        student=first["student"],
        method=first["method"],
        parameters={name: first[name] for name in names if not pd.isna(first[name]) and first[name] != ""},
        protocol_hash=first["protocol_hash"],
        asked=len(group),
        failed=int((group["state"] == "FAILED").sum()),
        pruned=int((group["state"] == "PRUNED").sum()),
        taken_over=int(done["taken_over"].sum()),
        run_ids=tuple(done["run_id"]),
        by_seed=by_seed,
        best_by_seed=best_by_seed,
        last=estimate(list(by_seed.values())),
        top5=estimate(list(_by_seed(done[np.isfinite(done["test_top5_last"])], "test_top5_last").values())),
        best=estimate(list(best_by_seed.values())),
        difference=None,
        score=score,
        mis_instruction_ratio=float(seen["mis_instruction_ratio"].mean()),
        capped_ratio=float(seen["capped_ratio"].mean()),
    )


def _by_seed(done: pd.DataFrame, column: str) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in zip(done["seed"], done[column], strict=True)}


def _held_against(point: Point, found: Sequence[Point]) -> Point:
    """The point with its difference to its baseline, or to KD where the study has no such baseline."""
    for baseline in baselines_of(point.method):
        difference = _difference(point, baseline, found)
        if difference is not None:
            return replace(point, baseline=baseline, difference=difference)
    return point


def _corrected(found: list[Point]) -> list[Point]:
    """The points with their p-values corrected, by Holm's method over all comparisons of a pair and protocol."""
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for index, each in enumerate(found):
        if each.difference is not None and each.difference.p is not None:
            groups.setdefault((each.pair, each.protocol_hash), {})[index] = each.difference.p
    corrected = {index: p for ps in groups.values() for index, p in zip(ps, holm(list(ps.values())), strict=True)}
    return [
        replace(each, difference=replace(each.difference, corrected=corrected[index]))
        if each.difference is not None and index in corrected
        else each
        for index, each in enumerate(found)
    ]


def _difference(point: Point, baseline: str, found: Sequence[Point]) -> Difference | None:
    """To the baseline with the point's own parameters, or to the best one where there is none of these."""
    if point.method == baseline:
        return None
    candidates = [
        each
        for each in found
        if each.method == baseline and each.pair == point.pair and each.protocol_hash == point.protocol_hash
    ]
    same = [each for each in candidates if agree(point.parameters, each.parameters)]
    finished = [each for each in same or candidates if each.last.n]
    if not finished:
        return None
    return paired_difference(point.by_seed, max(finished, key=lambda each: each.last.mean).by_seed)


def _order(point: Point) -> tuple[Any, ...]:
    known = point.method in BASELINE_ORDER
    rank = BASELINE_ORDER.index(point.method) if known else len(BASELINE_ORDER)
    has_alpha = not math.isnan(point.alpha)
    return (
        point.pair,
        has_alpha,
        rank,
        point.method,
        point.alpha if has_alpha else 0.0,
        sorted(point.parameters.items()),
    )
