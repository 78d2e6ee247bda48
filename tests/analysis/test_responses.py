"""Responses in a report: scores by set, both kinds of p-values, and cases that a rule has drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from analysis.figures import rouge_by_set
from analysis.points import Point
from analysis.responses import OnSet, by_set, case_table, cases, compared_table, comparisons, data_table
from analysis.scores import ROUGE_L, TOP1, is_score, score_of
from analysis.statistics import estimate

SETS = ["dolly", "s_ni"]
SCORES = {
    "sft": {0: 10.0, 1: 12.0, 2: 11.0},
    "kd": {0: 13.0, 1: 13.5, 2: 12.0},
    "loca": {0: 14.0, 1: 15.0, 2: 13.8},
}


def point(method: str, alpha: float = math.nan) -> Point:
    values = SCORES[method]
    return Point(
        study="words",
        pair="dolly/a-b",
        dataset="dolly",
        teacher="a",
        student="b",
        method=method,
        parameters={} if math.isnan(alpha) else {"alpha": alpha},
        protocol_hash="p",
        asked=3,
        failed=0,
        pruned=0,
        taken_over=0,
        run_ids=tuple(f"{method}{seed}" for seed in values),
        by_seed=values,
        best_by_seed=values,
        last=estimate(list(values.values())),
        top5=estimate([]),
        best=estimate(list(values.values())),
        difference=None,
        mis_instruction_ratio=0.5,
        capped_ratio=0.0,
        score=ROUGE_L,
    )


@pytest.fixture
def found() -> list[Point]:
    return [point("sft"), point("kd"), point("loca", 0.9)]


@pytest.fixture
def runs() -> pd.DataFrame:
    rows = [
        {"run_id": f"{method}{seed}", "seed": seed, "test_rouge_l_last": value, "test_rouge_l.s_ni_last": value / 2}
        for method, values in SCORES.items()
        for seed, value in values.items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def generations() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for index, gain in enumerate([5.0, -3.0, 1.0, 0.5, 2.0]):
        for method in SCORES:
            for seed in range(3):
                score = 10.0 + (gain if method == "loca" else 0.0) + seed
                rows.append(row(f"{method}{seed}", index, f"{method} says {index}", score))
        rows.append(row("t", index, f"the teacher says {index}", 30.0) | {"teacher_of": "dolly/a-b"})
        rows.append(row("sft0", index, "of another set", 99.0) | {"set": "s_ni"})
    return pd.DataFrame(rows)


def row(run_id: str, index: int, response: str, score: float) -> dict[str, Any]:
    return {
        "study": "words",
        "run_id": run_id,
        "teacher_of": "",
        "set": "dolly",
        "index": index,
        "decoding_seed": 0,
        "instruction": f"instruction {index}",
        "input": "",
        "reference": "right",
        "response": response,
        "rouge_l": score,
    }


def test_each_set_has_its_own_scores(found: list[Point], runs: pd.DataFrame) -> None:
    scored = by_set(found, runs, SETS)
    assert [(each.point.method, each.name) for each in scored[:3]] == [
        ("sft", "dolly"),
        ("sft", "s_ni"),
        ("kd", "dolly"),
    ]
    assert scored[1].by_seed == {0: 5.0, 1: 6.0, 2: 5.5}
    assert scored[0].score.mean == 11.0
    runs.loc[runs["run_id"] == "sft0", "test_rouge_l.s_ni_last"] = math.nan
    assert by_set(found, runs, SETS)[1].by_seed == {1: 6.0, 2: 5.5}


def test_both_kinds_of_p_values_are_scipys(found: list[Point], runs: pd.DataFrame) -> None:
    told = {(each.on.point.method, each.on.name): each for each in comparisons(by_set(found, runs, SETS))}
    assert set(told) == {(method, name) for method in ("sft", "kd") for name in SETS}
    one = told["sft", "dolly"]
    ours, theirs = list(SCORES["loca"].values()), list(SCORES["sft"].values())
    assert one.difference == pytest.approx(sum(ours) / 3 - sum(theirs) / 3)
    assert one.unpaired == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert one.paired == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert one.corrected is not None
    assert one.paired is not None
    # Holm's: the smaller of two p-values twice, the larger at least that.
    assert {one.corrected, told["kd", "dolly"].corrected} >= {2 * min(one.paired, told["kd", "dolly"].paired or 1)}


def test_one_seed_has_no_p_value(found: list[Point]) -> None:
    told = comparisons([OnSet(each, "dolly", {0: each.by_seed[0]}, estimate([each.by_seed[0]])) for each in found])
    assert len(told) == 2
    assert all(each.unpaired is None and each.paired is None and each.corrected is None for each in told)


def test_cases_are_the_extremes_and_the_median_of_the_gain(found: list[Point], generations: pd.DataFrame) -> None:
    best, median, worst = cases(found, generations, "dolly")
    assert (best.instruction, median.instruction, worst.instruction) == (
        "instruction 0",
        "instruction 2",
        "instruction 1",
    )
    assert "gains most over sft (+5.0)" in best.rule
    assert "loses most to sft (−3.0)" in worst.rule
    assert [who for who, _, _ in best.said] == ["teacher", "sft", "kd", "loca α 0.9"]
    assert best.said[1][1:] == ("sft says 0", 10.0)  # the first seed's, of this set
    shuffled = generations.sample(frac=1, random_state=0)
    assert cases(found, shuffled, "dolly") == [best, median, worst]


def test_texts_in_cases_are_cut_and_without_responses_there_are_none(
    found: list[Point], generations: pd.DataFrame
) -> None:
    generations["response"] = "long " * 200
    table = case_table(cases(found, generations, "dolly"), "cases")
    assert table is not None
    assert max(len(cell) for cells in table.cells() for cell in cells) == 400
    assert cases(found, generations[:0], "dolly") == []
    assert case_table([], "cases") is None
    assert cases([replace(each, parameters={}) for each in found], generations, "dolly") == []


def test_the_figure_says_what_it_shows_and_has_the_teachers_line(found: list[Point], runs: pd.DataFrame) -> None:
    drawing = rouge_by_set(by_set(found, runs, SETS), {"dolly": 20.0}, "by-set")
    assert drawing is not None
    assert "dolly: sft 11.0, kd 12.8, loca α 0.9 14.3" in drawing.alt
    assert "teacher 20.0" in drawing.svg.decode()
    assert rouge_by_set([], {}, "by-set") is None
    assert compared_table([], "rouge") is None


def test_a_study_says_what_it_is_valued_by() -> None:
    assert score_of({}) is TOP1
    assert score_of({"score": "rouge_l"}) is ROUGE_L
    assert ROUGE_L.column("val", "best") == "val_rouge_l_best"
    assert (TOP1.axis("test"), ROUGE_L.axis("test")) == ("test top-1 (%)", "test ROUGE-L")
    told = ["test_rouge_l_last", "test_rouge_l.s_ni_last", "val_rouge_l_best", "test_loss_last"]
    assert all(map(is_score, told))
    assert not any(map(is_score, ["test_rouge_l", "test_top1_last", "hp.alpha", "train_loss"]))


def test_the_data_stand_beside_the_papers() -> None:
    data = {"name": "dolly", "train_images": 240, "validation_images": 0, "evaluated": {"dolly": 40, "self_inst": 40}}
    rows = data_table(data, "data").cells()
    assert ["dolly", "train", "240", "14,000"] in rows
    assert ["self_inst", "test", "40", "–"] in rows
    assert ["s_ni", "test", "–", "1,694"] in rows
    assert sum(row[0] == "unni" for row in rows) == 1
