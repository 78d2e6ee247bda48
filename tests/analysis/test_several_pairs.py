"""Studies of several pairs, of methods with named choices, and of teachers alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis import load_history, load_runs, load_studies, report, verdicts
from analysis.frames import section
from analysis.points import Point, pairs, points
from analysis.tables import ablation, conditions, gains, teachers

Write = Callable[[Mapping[str, Any], Sequence[Any]], None]
FIXED = {"tau": 4.0, "beta": 0.9, "gamma": 0.1}


def read(store: str, study: str) -> tuple[list[Point], dict[str, Any]]:
    (record,) = load_studies(store, study)
    return points(load_runs(store, study), load_history(store, study), record), record


@pytest.fixture(scope="module")
def choices(store: str, write: Write, made: SimpleNamespace) -> list[Point]:
    runs = [
        *made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (72.0, 73.0)}, epochs=2),
        *made.sweep({("loca", 0.9): (69.0, 70.0)}, epochs=2, parameters={**FIXED, "apply_to": "right"}),
        *made.sweep({("dkd", None): (74.0, 75.0), ("loca_dkd", 0.9): (75.0, 76.0)}, epochs=2, parameters={}),
    ]
    write(made.study_record("choices"), runs)
    return read(store, "choices")[0]


def test_points_that_differ_in_a_named_choice_are_never_averaged_together(choices: list[Point]) -> None:
    means = {each.label: each.last.mean for each in choices}
    assert means["loca α 0.9"] == 72.5
    assert means["loca α 0.9, apply_to right"] == 69.5


def test_a_calibrated_method_is_held_against_what_it_would_be_without(choices: list[Point]) -> None:
    found = {each.label: each for each in choices}
    gain = found["loca_dkd α 0.9"].difference
    assert gain is not None
    assert (found["loca_dkd α 0.9"].baseline, gain.mean) == ("dkd", 1.0)
    other = found["dkd"].difference
    assert other is not None
    assert (found["dkd"].baseline, other.mean) == ("kd", 4.0)


def test_where_its_own_baseline_is_missing_a_method_is_held_against_kd(
    store: str, write: Write, made: SimpleNamespace
) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0), ("loca_dkd", 0.9): (75.0, 76.0)}, epochs=2, parameters={})
    write(made.study_record("no-dkd"), runs)
    (point,) = [each for each in read(store, "no-dkd")[0] if each.method == "loca_dkd"]
    assert point.baseline == "kd"
    assert point.difference is not None
    assert point.difference.mean == 5.0


def test_the_table_shows_choices_and_says_what_differences_are_to(choices: list[Point], made: SimpleNamespace) -> None:
    text = ablation(choices, made.study_record("choices"), "ablation").markdown()
    assert "apply\\_to" in text
    assert "right" in text
    assert "Δ to baseline" in text
    assert "Δ is to kd, dkd" in text


@pytest.fixture(scope="module")
def several(store: str, write: Write, made: SimpleNamespace) -> tuple[list[Point], dict[str, Any]]:
    names = ["digits/cnn32-cnn3@weak", "digits/cnn32-cnn3@strong"]
    record = made.study_record("several")
    as_it_is = {**record["data"], "label_noise": 0.0, "classes_of": None}
    changed = [{"field": "lr", "base": 0.05, "value": 0.1}]
    common = {"protocol": record["protocol"], "protocol_changes": []}
    record["pairs"] = {
        names[0]: {"cuts": ["training images 900 → 100"], "data": {**as_it_is, "test_images": 100}, **common},
        names[1]: {"cuts": [], "data": {**as_it_is, "label_noise": 0.25}, **common, "protocol_changes": changed},
    }
    runs = []
    for name, gain, ratio in zip(names, (3.0, 0.5), (0.4, 0.1), strict=True):
        runs += made.sweep(
            {("kd", None): (70.0, 71.0), ("loca", 0.9): (70.0 + gain, 71.0 + gain)}, epochs=2, pair=name, ratio=ratio
        )
    write(record, runs)
    return read(store, "several")


def test_gains_stand_side_by_side_with_how_often_each_teacher_is_wrong(several: Any) -> None:
    table = gains(several[0], "gains")
    assert table is not None
    rows = {row[0]: row[1:] for row in table.cells()}
    assert rows["digits/cnn32-cnn3@weak"] == ["40.0 %", "+3.00"]
    assert rows["digits/cnn32-cnn3@strong"] == ["10.0 %", "+0.50"]


def test_one_pair_needs_no_table_of_gains(choices: list[Point]) -> None:
    assert gains(choices, "gains") is None


def test_each_pair_has_its_own_part_of_the_record(several: Any) -> None:
    _, record = several
    assert section(record, "digits/cnn32-cnn3@weak")["data"]["test_images"] == 100
    assert section(record, "digits/cnn32-cnn3@strong")["data"]["test_images"] == 797


def test_data_and_protocol_are_told_pair_by_pair(several: Any, store: str, tmp_path: Path) -> None:
    table = conditions(several[1], "conditions")
    assert table is not None
    assert table.cells() == [
        ["digits/cnn32-cnn3@weak", "10", "900", "0.0 %", "100", "digits-quick", "nothing"],
        ["digits/cnn32-cnn3@strong", "10", "900", "25.0 %", "797", "digits-quick", "lr 0.1"],
    ]
    assert "Data and protocol of each pair" in report(store, "several", tmp_path / "out").read_text(encoding="utf-8")


def test_pairs_stand_in_the_order_in_which_they_were_asked(several: Any) -> None:
    assert pairs(several[0]) == ["digits/cnn32-cnn3@weak", "digits/cnn32-cnn3@strong"]


def test_what_is_true_of_all_pairs_is_said_once_and_the_rest_of_each(
    store: str, write: Write, made: SimpleNamespace
) -> None:
    runs = []
    for name, ratio in (("digits/cnn32-cnn3@weak", 0.4), ("digits/cnn32-cnn3@strong", 0.001)):
        runs += made.sweep({("kd", None): (70.0,), ("loca", 0.9): (71.0,)}, epochs=2, pair=name, ratio=ratio)
    record = made.study_record("twice-one-seed")
    write(record, runs)
    said = verdicts(load_runs(store, record["study"]), load_history(store, record["study"]), [record])
    assert [each for each in said if each.lower().startswith("one seed a point")] == [
        "One seed a point, so there are no intervals and no difference can be told from chance."
    ]
    (low,) = [each for each in said if "too few for LoCa to change much" in each]
    assert low.startswith("digits/cnn32-cnn3@strong: ")


def test_a_teacher_is_shown_with_how_many_images_it_saw_and_a_set_with_its_networks(made: SimpleNamespace) -> None:
    record = made.study_record("x")
    single = {**record["teachers"][0], "trained_images": 1500}
    cross_fitted = {**single, "regime": "cross_fitted", "fold_top1": [72.0, 74.4]}
    table = teachers({**record, "teachers": [single, cross_fitted, record["teachers"][0]]}, "teachers")
    assert table is not None
    cells = table.cells()
    assert [row[4] for row in cells] == ["1,500", "1,500", "–"]
    assert [row[5] for row in cells] == ["73.20", "73.20 (2 networks: 72.00 to 74.40)", "73.20"]


@pytest.mark.slow
def test_many_pairs_are_answered_in_a_list_with_their_gains_beside_it(
    store: str, write: Write, made: SimpleNamespace, tmp_path: Path
) -> None:
    runs = []
    for i in range(6):
        accuracies = {("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0 + i, 73.0)}
        runs += made.sweep(accuracies, epochs=2, pair=f"digits/cnn32-cnn3@p{i}")
    write(made.study_record("many-pairs"), runs)
    page = report(store, "many-pairs", tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "6 pairs, each with its own answer" in text
    assert text.index("Gain by pair") < text.index("What to keep in mind")
    assert all(f"@p{i}" in text for i in range(6))
    assert text.count("test images place an accuracy") == 1


def test_a_study_without_methods_reports_its_teachers(
    store: str, write: Write, made: SimpleNamespace, tmp_path: Path
) -> None:
    record = made.study_record("teachers-alone", spec={"name": "teachers-alone", "methods": {}, "seeds": 1})
    record["teachers"] = [{**record["teachers"][0], "name": "small"}]
    write(record, [])
    said = verdicts(load_runs(store, "teachers-alone"), load_history(store, "teachers-alone"), [record])
    assert said[0] == (
        "digits/cnn32-cnn3: the teacher small (73.20 % on the test set, held out) is mis-instructing on 21.0 % of "
        "900 images, 1 view each."
    )
    page = report(store, "teachers-alone", tmp_path / "out")
    assert "is mis-instructing on 21.0 %" in page.read_text(encoding="utf-8")
    assert (page.parent / "figures" / "mis-instruction.svg").is_file()
    assert "is mis-instructing" in (page.parent / "report.md").read_text(encoding="utf-8")
