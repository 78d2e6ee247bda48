"""The studies that ship with kdstudy."""

from __future__ import annotations

import pytest

from search_spaces import shipped
from study.service import expected_runs
from study.spec import load_spec


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_study_is_valid_and_called_as_its_file(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert (expected_runs(spec) > 0) == bool(spec.methods)


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_study_says_in_its_first_lines_which_question_it_answers(name: str) -> None:
    question = shipped.question(name)
    assert question.partition("?")[1] == "?"
    assert load_spec(name).question == question


def test_there_is_no_shipped_study_of_another_name() -> None:
    assert shipped.path("quickstart") is not None
    assert shipped.path("quickstar") is None
    assert shipped.path("../studies/quickstart") is None


def test_the_quick_start_is_the_study_that_was_promised() -> None:
    spec = load_spec("quickstart")
    assert spec.mode == "ablation"
    assert spec.teacher.regime == "held_out"
    assert len(spec.seeds) == 3
    assert set(spec.methods) == {"ce", "kd", "kd_drop", "kd_one_hot", "loca"}
    alphas = [point["alpha"] for point in spec.spaces()["loca"].grid()]
    assert alphas == [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0, 1.01, 1.05]
    # Ten alphas, ce, kd, kd_drop and kd_one_hot, three seeds each.
    assert expected_runs(spec) == 42
