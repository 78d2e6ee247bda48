"""Which teachers a regime allows, and what of the data decides a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from study import teachers as study_teachers
from study.errors import RequestError
from study.home import open_home
from study.plan import Plan
from study.service import describe
from tests.study.given import DIGITS, keep_teacher
from tests.study.simulation import Simulation, spec_of
from trainables import models, teachers
from trainables.files import checkpoint_bytes, write_atomic

CROSS_FITTED = {"regime": "cross_fitted", "folds": 2, "checkpoint": "given"}


def find(**changes: Any) -> dict[str, teachers.Teacher]:
    return study_teachers.find(Plan(spec_of(methods={"kd": {}}, **changes), open_home()))


def refused(**changes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        find(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a teacher may have seen


def test_a_teacher_that_was_trained_elsewhere_is_held_out_by_nature() -> None:
    keep_teacher("none")
    teacher = {"regime": "held_out", "fraction": 0, "checkpoint": "given"}
    assert list(find(teacher=teacher)) == ["digits/cnn32-cnn3"]
    plan = Plan(spec_of(methods={"kd": {}}, teacher=teacher), open_home())
    assert len(plan.pairs["digits/cnn32-cnn3"].split("ablation").train) == 1000


@pytest.mark.parametrize("trained_on", ["unknown", "all"])
def test_a_teacher_that_may_know_the_students_images_is_no_held_out_one(trained_on: str) -> None:
    keep_teacher(trained_on)
    assert f"was trained on: {trained_on}" in refused(teacher={"regime": "held_out", "checkpoint": "given"})
    assert find(teacher={"regime": "seen", "checkpoint": "given"})


def test_what_a_teacher_was_trained_on_counts_for_its_own_data_alone() -> None:
    keep_teacher("part", torch.arange(10), dataset_hash="f" * 64)
    assert "was trained on: other data" in refused(teacher={"regime": "held_out", "checkpoint": "given"})


def test_a_teacher_that_was_trained_on_a_students_image_is_refused_by_name() -> None:
    keep_teacher("part", torch.arange(1000))
    assert "some of the students' images" in refused(teacher={"regime": "held_out", "checkpoint": "given"})


def test_a_single_teacher_is_no_cross_fitted_set() -> None:
    keep_teacher("part", torch.arange(10))
    assert "is not a set that was cross-fitted on these data" in refused(teacher=CROSS_FITTED)


def test_a_cross_fitted_set_serves_an_ablation_but_not_a_search_on_a_validation_part_that_it_saw() -> None:
    keep_teacher("folds", torch.arange(1000), folds=2)
    assert find(teacher=CROSS_FITTED)["digits/cnn32-cnn3"].record.folds == 2
    search = {
        "methods": {"kd": {"tau": {"range": [1, 8]}}},
        "search": {"sampler": "random", "points": 2},
        "teacher": CROSS_FITTED,
    }
    with pytest.raises(RequestError, match="trained on some of the validation part"):
        study_teachers.find(Plan(spec_of(**search), open_home()))


def test_a_teacher_that_tells_other_classes_apart_is_refused() -> None:
    keep_teacher("none")
    says = refused(teacher={"checkpoint": "given"}, data={"name": "digits", "classes": 4})
    assert "given is a cnn32 of 10 classes" in says
    assert "needs a cnn32 of 4" in says


# Sets that a study trains


def test_the_networks_of_a_cross_fitted_teacher_become_one_teacher_with_their_accuracies(home: Path) -> None:
    simulation = Simulation(
        spec_of(methods={"kd": {}}, teacher={"regime": "cross_fitted", "folds": 3}, data={"name": "digits"}, seeds=1),
        adopt=lambda pairs: None,
    )
    for seed in range(3):
        request = simulation.claim()
        assert request is not None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = models.build("cnn32", 10).state_dict()
        report = simulation.report(request, 1, 4)
        folder = Path(simulation.home.checkpoints(request["run_id"]))
        write_atomic(folder / report["checkpoint"], checkpoint_bytes({"model": weights}))
        for metrics in report["epochs"]:
            metrics["test_top1"], metrics["test_top5"] = 50.0 + seed, 90.0
        simulation.driver.on_report(report)
    teacher = study_teachers.adopt(simulation.plan, simulation.store, "digits/cnn32-cnn3")
    assert teacher is not None
    record = teacher.record
    assert (record.folds, record.fold_top1, record.test_top1) == (3, (50.0, 51.0, 52.0), 51.0)
    assert (record.trained_on, simulation.plan.teacher_hashes["digits/cnn32-cnn3"]) == ("folds", record.hash)
    pair = simulation.plan.pairs["digits/cnn32-cnn3"]
    folds = teachers.load(home, record.hash).folds
    assert folds is not None
    for fold in range(3):
        assert not torch.isin(pair.teacher_images(fold), torch.nonzero(folds == fold).flatten()).any()
    # Kept once: a study that needs the same set finds it.
    again = study_teachers.adopt(simulation.plan, simulation.store, "digits/cnn32-cnn3")
    assert again is not None
    assert again.record == record


# What decides a run


def ids(**changes: Any) -> str:
    plan = Plan(spec_of(**changes), open_home())
    return plan.student_run("digits/cnn32-cnn3", "ablation", "ce", {}, 0).run_id


def test_classes_and_label_noise_make_other_runs_and_their_absence_changes_no_id() -> None:
    variants = [
        {"name": "digits"},
        {"name": "digits", "classes": 9},
        {"name": "digits", "label_noise": 0.1},
        {"name": "digits", "label_noise": 0.1, "noise_seed": 1},
    ]
    found = [ids(data=variant) for variant in variants]
    assert len(set(found)) == 4
    identity = Plan(spec_of(), open_home()).student_run("digits/cnn32-cnn3", "ablation", "ce", {}, 0).identity
    assert not {"variant", "entries", "skipped"} & identity.keys()
    assert found[0] == ids(data={"name": "digits", "bad_images": "skip"})


def test_a_teacher_that_is_stopped_early_is_another_than_one_that_is_not() -> None:
    runs = {
        Plan(spec_of(teacher={"stop_at": stop_at}), open_home()).teacher_run("digits/cnn32-cnn3", None).run_id
        for stop_at in (None, 50, 60)
    }
    assert len(runs) == 3


def test_each_pair_of_a_study_is_described_with_its_own_data_and_cuts() -> None:
    noisy = {"pair": "cnn32-cnn3", "label": "cut", "data": {"train_limit": 100, "label_noise": 0.25, "classes": 5}}
    found = describe(Plan(spec_of(pairs=["cnn32-cnn3", noisy]), open_home()))
    whole, cut = found["pairs"].values()
    assert (whole["data"]["train_images"], cut["data"]["train_images"]) == (1000, 100)
    assert (cut["data"]["label_noise"], cut["data"]["num_classes"], cut["data"]["classes_of"]) == (0.25, 5, 10)
    of_five = int((DIGITS.train_labels < 5).sum())
    assert f"training images {of_five} → 100" in cut["cuts"]
    assert found["data"] == whole["data"]


# Images that do not decode, and ones that a network cannot take


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of grey squares; one training image is no image."""
    draw = np.random.default_rng(0)
    for part, n in (("train", 8), ("test", 4)):
        for label in ("dark", "light"):
            place = tmp_path / "images" / part / label
            place.mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8) + (120 if label == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    (tmp_path / "images" / "train" / "dark" / "3.png").write_bytes(b"not an image")
    return tmp_path / "images"


def of_folder(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"name": "image_folder", "root": str(folder), **changes},
        "pairs": ["resnet14-resnet8"],
        "protocol": {"base": "cifar-quick", "epochs": 1},
    }


def test_an_image_that_does_not_decode_is_named_and_counted(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"data.root: .*3\.png") as caught:
        Plan(spec_of(**of_folder(folder)), open_home())
    assert "\n" not in str(caught.value)


def test_an_image_that_may_be_skipped_is_left_out_counted_and_said(folder: Path) -> None:
    plan = Plan(spec_of(**of_folder(folder, bad_images="skip")), open_home())
    pair = plan.pairs["image_folder/resnet14-resnet8"]
    assert (pair.dataset.skipped, len(pair.split("ablation").train)) == (1, 15)
    simulation = Simulation(spec_of(**of_folder(folder, bad_images="skip")))
    assert study_teachers.remarks(simulation.plan, simulation.store, pair) == [
        "image_folder/resnet14-resnet8: images left out because they do not decode (bad_images: skip): 1"
    ]


def test_a_size_that_a_network_cannot_take_is_refused_with_what_it_can(folder: Path) -> None:
    raw = {**of_folder(folder, bad_images="skip"), "pairs": ["vgg13-vgg8"]}
    raw["protocol"] = {**raw["protocol"], "image_size": 4}
    with pytest.raises(RequestError, match="vgg13 takes images of 3 channels and at least 8x8 pixels; given: 3x4x4"):
        Plan(spec_of(**raw), open_home())


def test_runs_keep_the_ids_that_they_have_always_had() -> None:
    # As the first version of kdstudy computed them: a study that it began goes on, and trains nothing twice.
    plan = Plan(
        spec_of(methods={"ce": {}, "loca": {"alpha": [0.9]}}, teacher={"regime": "held_out", "fraction": 0.1}),
        open_home(),
    )
    name = "digits/cnn32-cnn3"
    plan.teacher_hashes = {name: "0" * 64}
    space = plan.spec.spaces()["loca"]
    parameters = plan.pairs[name].resolve(space, next(space.grid()))
    assert plan.student_run(name, "ablation", "ce", {}, 0).run_id == "034de388c08627ff"
    assert plan.student_run(name, "ablation", "loca", parameters, 1).run_id == "5a104dc06e845dcc"
    assert plan.teacher_run(name, None).run_id == "156e6c447dc5b2d8"
    assert plan.point_id(name, "loca", parameters) == "f60ed5f46bde"
