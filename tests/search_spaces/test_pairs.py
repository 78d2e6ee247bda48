"""Pairs by name."""

from __future__ import annotations

import pytest

from search_spaces import pairs
from trainables import models, objectives
from trainables.text import models as text_models


@pytest.mark.parametrize("name", list(pairs.PAIRS))
def test_a_named_pair_has_registered_models_that_see_the_same_images(name: str) -> None:
    pair = pairs.get(name)
    assert pair.name == name
    if text_models.parse(pair.teacher):
        assert text_models.parse(pair.student)
        return
    assert models.get(pair.teacher).input_shape == models.get(pair.student).input_shape


@pytest.mark.parametrize("name", list(pairs.PAIRS))
def test_a_pairs_own_values_are_parameters_of_methods(name: str) -> None:
    known = {p.name: p for method in objectives.names() for p in objectives.get(method).parameters}
    assert all(known[key].contains(value) for key, value in pairs.get(name).defaults.items())


@pytest.mark.parametrize(
    ("name", "beta"),
    [("resnet56-resnet20", 2), ("resnet110-resnet32", 2), ("wrn_40_2-wrn_16_2", 6), ("vgg13-mobilenet_v2", 6)],
)
def test_dkds_beta_of_a_pair_is_that_of_its_paper(name: str, beta: float) -> None:
    assert pairs.get(name).defaults == {"beta_dkd": beta}
    assert pairs.get("resnet32x4-resnet8x4").defaults == {}  # the method's own 8


def test_the_papers_eight_pairs_of_table_2_are_named() -> None:
    assert sum("Table 2" in pair.remark or "Tables 2" in pair.remark or "1 and 2" in pair.remark
               for pair in pairs.PAIRS.values()) == 8  # fmt: skip


def test_any_two_models_with_the_same_input_are_a_pair() -> None:
    pair = pairs.get("resnet44-resnet8")
    assert (pair.teacher, pair.student, pair.name) == ("resnet44", "resnet8", "resnet44-resnet8")


def test_a_network_may_be_its_own_teacher() -> None:
    assert pairs.get("cnn3-cnn3") == pairs.Pair("cnn3", "cnn3")


def test_two_models_of_different_images_are_no_pair() -> None:
    with pytest.raises(ValueError, match=r"pair cnn32-resnet20: cnn32 sees images of \(1, 8, 8\), resnet20 of"):
        pairs.get("cnn32-resnet20")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cnn32-cnn4", "cnn32-cnn3"),
        ("resnet56-resnet2O", "resnet56-resnet20"),
        ("resnet56_resnet20", "resnet56-resnet20"),
        ("resnet5-resnet20", "resnet56-resnet20"),
    ],
)
def test_an_unknown_pair_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown pair '{name}': did you mean .*{nearest}") as caught:
        pairs.get(name)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_like_no_pair_still_says_where_to_look() -> None:
    with pytest.raises(ValueError, match="kdstudy models"):
        pairs.get("llama")


def test_a_pairs_models_may_be_told_apart_by_one_hyphen_alone() -> None:
    with pytest.raises(ValueError, match="unknown pair"):
        pairs.get("resnet56-resnet20-resnet8")
