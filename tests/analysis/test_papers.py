"""Published numbers: faithful to their source, and shown only where they may be compared."""

import math
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.papers import load_published, not_comparable, published, published_curve

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published"
PAPER = {
    "protocol": {"base": "crd-240"},
    "protocol_changes": [],
    "cuts": [],
    "data": {"train_images": 50000, "full_train_images": 50000, "test_images": 10000, "full_test_images": 10000},
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of published numbers is not beside this checkout")
def test_the_shipped_numbers_are_the_collected_ones() -> None:
    shipped = Path(analysis.__file__).parent / "published"
    assert {each.name: each.read_bytes() for each in shipped.glob("*.csv")} == {
        each.name: each.read_bytes() for each in SHARED.glob("*.csv")
    }


def test_every_accuracy_is_a_percentage_with_a_source() -> None:
    frame = load_published()
    assert frame["value"].between(60, 100).all()
    assert frame["source"].notna().all()
    assert len(frame) == 8 + 40 + 20 + 5 + 8 + 54  # Tables 1, 2, 3 and 4, 6, 8 and the related work
    assert "student" not in set(frame["method"])


def test_a_point_is_found_by_its_alpha() -> None:
    found = published("cifar100", "resnet56", "resnet20", "loca", 0.95)
    assert [(each.value, each.where) for each in found] == [(71.08, "LoCa, Table 2")]
    assert published("cifar100", "resnet56", "resnet20", "loca", 0.9) == []
    assert published("cifar100", "resnet56", "resnet20", "loca") == []
    assert published("digits", "cnn32", "cnn3", "kd") == []


def test_the_student_alone_is_ce() -> None:
    assert [each.value for each in published("cifar100", "resnet56", "resnet20", "ce")] == [69.06]


def test_contradictions_are_shown_side_by_side() -> None:
    found = published("imagenet", "resnet34", "resnet18", "kd")
    assert [(each.value, each.where) for each in found] == [(70.66, "LoCa, Table 3"), (71.03, "LoCa, Table 6")]
    assert [each.value for each in published("cifar100", "wrn_40_2", "wrn_40_1", "ce")] == [70.50, 71.36]
    assert [each.value for each in published("cifar100", "resnet56", "resnet20", "kd")] == [70.66]  # four tables agree


def test_the_curve_joins_the_tables_by_alpha() -> None:
    curve = [(alpha, each.value) for alpha, each in published_curve("imagenet", "resnet34", "resnet18")]
    assert curve == [(0.95, 71.08), (0.99, 71.15), (0.995, 71.36), (0.999, 71.12), (1.0, 71.01), (1.01, 70.94)]


def test_the_papers_own_protocol_is_comparable() -> None:
    assert not_comparable(PAPER, "cifar100") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": {"base": "digits-quick"}}, "the papers' protocol is crd-240, this study's digits-quick"),
        ({"protocol_changes": [{"field": "lr", "base": 0.05, "value": 0.1}]}, "lr is 0.1, the papers' is 0.05"),
        ({"protocol_changes": [{"field": "epochs", "base": 240, "value": 80}]}, "epochs is 80, the papers' is 240"),
        ({"cuts": ["epochs 240 -> 1"]}, "cut: epochs 240 -> 1"),
        ({"data": {**PAPER["data"], "train_images": 25000}}, "25000 of 50000 training images"),
        ({"data": {**PAPER["data"], "test_images": 100}}, "100 of 10000 test images"),
    ],
)
def test_any_deviation_keeps_published_numbers_away(change: dict, told: str) -> None:
    assert not_comparable(PAPER | change, "cifar100") == [told]


def test_the_final_stage_of_a_search_trains_on_the_validation_part_too() -> None:
    data = {**PAPER["data"], "train_images": 45000, "validation_images": 5000}
    study = PAPER | {"data": data, "mode": "search", "selection": "validation"}
    assert not_comparable(study, "cifar100") == []
    assert not_comparable(study | {"selection": "paper"}, "cifar100") == ["45000 of 50000 training images"]


def test_a_cut_is_told_once() -> None:
    changes = [{"field": "epochs", "base": 240, "value": 1}]
    data = {**PAPER["data"], "train_images": 2000}
    cuts = ["epochs 240 -> 1", "training images 50,000 -> 2,000"]
    study = PAPER | {"protocol_changes": changes, "cuts": cuts, "data": data}
    assert not_comparable(study, "cifar100") == [f"cut: {cut}" for cut in cuts]


def test_alpha_of_methods_without_one_is_missing_not_zero() -> None:
    frame: pd.DataFrame = load_published()
    assert frame.loc[frame["method"] == "kd", "alpha"].map(math.isnan).all()
