"""A run from a request in plain data to reports in plain data, without Ray."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import data, models, protocol, runner, splits, teachers
from trainables.files import CheckpointError, read_checkpoint
from trainables.storage import open_storage

SPLIT = {
    "split_seed": 0,
    "validation_fraction": 0.1,
    "teacher_fraction": None,
    "train_limit": 100,
    "keep_validation_in_train": False,
}


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    chosen = protocol.resolve("digits-quick", epochs=4)
    made = {
        "run_id": "r1",
        "attempt": 1,
        "model": "cnn3",
        "method": "ce",
        "parameters": {},
        "protocol": chosen.identity() | {"base": chosen.base},
        "seed": 0,
        "data": {
            "name": "digits",
            "root": None,
            "cache": None,
            "classes": None,
            "label_noise": 0.0,
            "noise_seed": 0,
            "bad_images": "fail",
        },
        "data_hash": data.load("digits").hash,
        "split": SPLIT,
        "teaches": None,
        "stop_at": None,
        "test_limit": 50,
        "evaluate_test": True,
        "teacher": None,
        "logits": None,
        "checkpoints": str(folder / "r1"),
        "resume_from": None,
        "rungs": [],
        "device": "cpu",
        "threads": 1,
        "workers": 0,
        "execution": None,
        **changes,
    }
    # It crosses a process boundary as JSON.
    return json.loads(json.dumps(made))


def train(asked: dict[str, Any], seconds: float = 0.0) -> list[dict[str, Any]]:
    running, reports = runner.Runner(asked), []
    while not reports or not reports[-1]["done"]:
        reports.append(running.advance(seconds))
    return reports


def metrics(reports: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "epoch_seconds"} for report in reports for row in report["epochs"]]


def test_every_epoch_is_reported_once_and_the_last_report_is_done(tmp_path: Path) -> None:
    reports = train(request(tmp_path))
    assert [row["epoch"] for row in metrics(reports)] == [1, 2, 3, 4]
    assert [report["done"] for report in reports] == [False, False, False, True]
    assert all(report["failed"] is None for report in reports)


def test_epochs_are_gathered_until_the_time_has_passed(tmp_path: Path) -> None:
    assert len(train(request(tmp_path), seconds=1e9)) == 1


def test_a_rung_is_reported_at_once_with_a_checkpoint(tmp_path: Path) -> None:
    reports = train(request(tmp_path, rungs=[1, 3]), seconds=1e9)
    assert [[row["epoch"] for row in report["epochs"]] for report in reports] == [[1], [2, 3], [4]]
    assert (tmp_path / "r1" / reports[-1]["checkpoint"]).is_file()
    assert [Path(report["checkpoint"]).name for report in reports] == [
        "epoch-0001.pt",
        "epoch-0003.pt",
        "epoch-0004.pt",
    ]


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_second_attempt_goes_on_from_the_firsts_checkpoint_to_the_same_end(
    tmp_path: Path, stopped_after: int
) -> None:
    whole = train(request(tmp_path / "whole"))
    first = runner.Runner(request(tmp_path / "parts", rungs=[1, 2, 3]))
    begun = [first.advance(0.0) for _ in range(stopped_after)]
    again = train(request(tmp_path / "parts", attempt=2, resume_from=begun[-1]["checkpoint"]))
    assert metrics(begun) + metrics(again) == metrics(whole)
    ends = [
        read_checkpoint(tmp_path / part / "r1" / reports[-1]["checkpoint"])["model"]
        for part, reports in (("whole", whole), ("parts", again))
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_at_most_two_checkpoints_of_an_attempt_stay(tmp_path: Path) -> None:
    train(request(tmp_path, rungs=[1, 2, 3]))
    assert sorted(path.name for path in (tmp_path / "r1" / "attempt-1").iterdir()) == [
        "epoch-0003.pt",
        "epoch-0004.pt",
    ]


def test_forget_keeps_only_the_named_checkpoint(tmp_path: Path) -> None:
    train(request(tmp_path, rungs=[1, 2, 3]))
    train(request(tmp_path, attempt=2))
    keep = tmp_path / "r1" / "attempt-2" / "epoch-0004.pt"
    runner.forget(str(tmp_path / "r1"), "attempt-2/epoch-0004.pt")
    assert list((tmp_path / "r1").rglob("*.pt")) == [keep]
    assert not (tmp_path / "r1" / "attempt-1").exists()


def test_a_loss_that_is_not_finite_is_a_report_with_a_reason(tmp_path: Path) -> None:
    wild = protocol.resolve("digits-quick", epochs=4, lr=1e30)
    reports = train(request(tmp_path, protocol=wild.identity() | {"base": wild.base}))
    assert reports[-1]["failed"] == f"loss is not finite at epoch {len(metrics(reports)) + 1}"
    assert reports[-1]["done"]
    assert reports[-1]["checkpoint"] is None


def test_data_that_differ_from_the_studys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="differ from the study's"):
        runner.Runner(request(tmp_path, data_hash="0" * 64))


def test_a_teacher_is_trained_on_its_own_part(tmp_path: Path) -> None:
    split = {**SPLIT, "teacher_fraction": 0.06, "keep_validation_in_train": True}
    asked = request(tmp_path, model="cnn32", teaches={"regime": "held_out"}, split=split)
    running = runner.Runner(asked)
    labels = data.load("digits").train_labels
    assert torch.equal(running._trainer._train, splits.make_split(labels, **split).teacher)


def test_a_cross_fitted_teacher_never_sees_its_fold_and_a_limit_leaves_a_sample(tmp_path: Path) -> None:
    split = {**SPLIT, "keep_validation_in_train": True}
    labels = data.load("digits").train_labels
    teaches = {"regime": "cross_fitted", "folds": 3, "fold": 1}
    for limit in (None, 90):
        asked = request(tmp_path, model="cnn32", teaches={**teaches, "limit": limit}, split=split)
        images = runner.Runner(asked)._trainer._train
        assert not (splits.make_folds(labels, 3, 0)[images] == 1).any()
        assert limit is None or len(images) == limit


def test_an_early_stopped_teacher_is_done_at_the_first_epoch_that_reaches_its_accuracy(tmp_path: Path) -> None:
    asked = request(tmp_path, model="cnn32", teaches={"regime": "seen"}, test_limit=None)
    whole = metrics(train(asked))
    wanted = whole[1]["train_top1"]
    assert wanted > whole[0]["train_top1"]
    reports = train({**asked, "attempt": 2, "stop_at": wanted})
    assert metrics(reports) == whole[:2]
    assert reports[-1]["done"]
    assert reports[-1]["checkpoint"] == "attempt-2/epoch-0002.pt"
    again = runner.Runner({**asked, "attempt": 3, "stop_at": wanted, "resume_from": reports[-1]["checkpoint"]})
    assert again.advance(0.0)["epochs"] == []  # it was done


def test_classes_and_label_noise_are_the_workers_as_they_are_the_drivers(tmp_path: Path) -> None:
    source = {**request(tmp_path)["data"], "classes": [3, 5], "label_noise": 0.25}
    dataset = runner.load_data(source)
    assert dataset.num_classes == 2
    running = runner.Runner(request(tmp_path, data=source))
    assert set(dataset.train_labels[running._trainer._train].tolist()) == {0, 1}
    assert running.advance(0.0)["epochs"][0]["test_top1"] >= 0


def full_disk(monkeypatch: pytest.MonkeyPatch, which: set[str]) -> None:
    """Let the writing of checkpoints of these names fail."""
    folder = type(open_storage("/"))
    write = folder.write

    def written(self: Any, name: str, *arguments: Any) -> None:
        if Path(name).name in which:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, name, *arguments)

    monkeypatch.setattr(folder, "write", written)


def test_a_checkpoint_on_the_way_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHECKPOINT_SHARE", 1e9)  # one after each epoch
    whole = train(request(tmp_path / "whole"))
    full_disk(monkeypatch, {"epoch-0002.pt"})
    reports = train(request(tmp_path / "full"))
    assert metrics(reports) == metrics(whole)
    assert [bool(report["checkpoint"]) for report in reports] == [True, False, True, True]
    says = "its checkpoint cannot be written: No space left on device"
    assert [report["warning"] for report in reports] == [None, says, None, None]
    assert not any(report["failed"] or report["lost"] for report in reports)


@pytest.mark.parametrize(("name", "rungs"), [("epoch-0004.pt", []), ("epoch-0003.pt", [3])])
def test_a_checkpoint_that_is_needed_and_cannot_be_written_loses_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rungs: list[int]
) -> None:
    whole = train(request(tmp_path / "whole"))
    with monkeypatch.context() as full:
        full_disk(full, {name})
        reports = train(request(tmp_path / "full", rungs=[2, *rungs]))
    assert reports[-1]["failed"] == "its checkpoint cannot be written: No space left on device"
    assert (reports[-1]["lost"], reports[-1]["done"], reports[-1]["checkpoint"]) == (True, True, None)
    last = next(report["checkpoint"] for report in reversed(reports) if report["checkpoint"])
    again = train(request(tmp_path / "full", attempt=2, resume_from=last))
    begun = int(Path(last).stem.removeprefix("epoch-"))
    assert metrics(reports)[:begun] + metrics(again) == metrics(whole)


def test_a_worker_without_the_teacher_has_it_from_the_storage(tmp_path: Path) -> None:
    dataset = data.load("digits")
    state = models.build("cnn32", 10).state_dict()
    record = teachers.unmeasured_record("cnn32", dataset, state, trained_on="none", origin="test")
    teachers.save(tmp_path / "driver", record, state, torch.arange(3))
    storage = str(tmp_path / "storage")
    for _ in range(2):
        teachers.publish(tmp_path / "driver", record.hash, storage)
    source = {"hash": record.hash, "storage": storage}
    parameters = {"tau": 4.0, "beta": 0.9, "gamma": 0.1}
    asked = [
        request(tmp_path / home, method="kd", parameters=parameters, teacher=source | {"home": str(tmp_path / home)})
        for home in ("driver", "node")
    ]
    here, there = (metrics(train(one)) for one in asked)
    assert here == there
    assert teachers.find(tmp_path / "node", record.name) == teachers.find(tmp_path / "driver", record.name)
    indices = teachers.trained_indices(tmp_path / "node", record.hash)
    assert indices is not None
    assert indices.tolist() == [0, 1, 2]


def test_a_teacher_that_is_damaged_on_the_storage_is_refused(tmp_path: Path) -> None:
    dataset = data.load("digits")
    state = models.build("cnn32", 10).state_dict()
    record = teachers.unmeasured_record("cnn32", dataset, state, trained_on="none", origin="test")
    teachers.save(tmp_path / "driver", record, state)
    teachers.publish(tmp_path / "driver", record.hash, str(tmp_path / "storage"))
    (weights,) = (tmp_path / "storage").rglob("weights.pt")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated, or not a checkpoint"):
        teachers.fetch(tmp_path / "node", record.hash, str(tmp_path / "storage"))
    assert teachers.list_records(tmp_path / "node") == []
