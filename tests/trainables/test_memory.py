"""The memory of a run, measured in processes of their own: on a CPU, with a made-up GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.test_runner import request
from trainables import memory, out_of_memory
from trainables.memory import Memory, ProbeError

KD = {"tau": 4.0, "beta": 0.9, "gamma": 0.1}


def taught(folder: Path, folds: int = 0) -> dict[str, Any]:
    return request(folder, method="kd", parameters=KD, teacher={"model": "cnn32", "folds": folds})


@pytest.mark.parametrize(
    ("need", "free", "runs"), [(10, 100, 9), (10, 99, 8), (30, 100, 3), (100, 100, 1), (1000, 100, 1)]
)
def test_as_many_runs_as_fit_into_what_the_margin_leaves_and_one_at_least(need: int, free: int, runs: int) -> None:
    assert Memory(need, free).runs(0.1) == runs


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_each_librarys_way_of_running_out_of_memory_is_known(error: Exception) -> None:
    assert out_of_memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), MemoryError(), ValueError("CUDA error: out of memory")]
)
def test_other_failures_are_not_the_gpus_memory(error: Exception) -> None:
    assert not out_of_memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 7}, True),
        ({"parameters": {}}, True),
        ({"split": {}}, True),
        ({"model": "cnn32"}, False),
        ({"teacher": {"model": "cnn32", "folds": 0}}, False),
        ({"data_hash": "other"}, False),
    ],
)
def test_runs_that_need_the_same_memory_are_measured_once(tmp_path: Path, change: dict[str, Any], same: bool) -> None:
    asked = request(tmp_path)
    assert (memory.same_need(asked) == memory.same_need(asked | change)) is same
    for field in ("batch_size", "precision", "image_size"):
        other = asked | {"protocol": asked["protocol"] | {field: "other"}}
        assert memory.same_need(asked) != memory.same_need(other)


@pytest.mark.parametrize("folds", [0, 2])
def test_a_rehearsal_trains_a_few_steps_with_a_random_teacher_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    seen: list[tuple[int, int | None]] = []

    class Watched(memory.Runner):
        def advance(self, seconds: float) -> dict[str, Any]:
            report = super().advance(seconds)
            teaching = self._trainer.lessons.teaching
            seen.append((len(self._trainer._train), teaching and len(teaching.teacher.modules)))
            assert len(report["epochs"]) == 1
            return report

    monkeypatch.setattr(memory, "Runner", Watched)
    asked = taught(tmp_path, folds)
    asked["split"]["train_limit"] = None
    before = list(tmp_path.iterdir())
    assert memory.rehearse(asked) == 0  # torch's CUDA allocator was not used
    assert seen == [(8 * asked["protocol"]["batch_size"], max(1, folds))] * 2
    assert list(tmp_path.iterdir()) == before


def test_a_run_with_the_publications_schedule_can_be_rehearsed(tmp_path: Path) -> None:
    from trainables import protocol

    chosen = protocol.resolve("crd-240")
    memory.rehearse(request(tmp_path, protocol=chosen.identity() | {"base": chosen.base}, test_limit=None))


def test_the_run_that_trains_a_teacher_can_be_rehearsed(tmp_path: Path) -> None:
    teaches = {"regime": "cross_fitted", "folds": 3, "fold": 0, "limit": None}
    memory.rehearse(request(tmp_path, model="cnn32", teaches=teaches, stop_at=90.0))


@pytest.mark.slow
def test_what_a_run_takes_is_what_others_can_no_longer_have_while_it_lives(tmp_path: Path) -> None:
    answers = iter([1000, 700])
    assert memory.measure(taught(tmp_path), lambda: next(answers)) == Memory(need=300, free=1000)


@pytest.mark.slow
def test_a_run_that_fails_while_it_is_measured_says_why(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="DataError: digits: the data on this node differ"):
        memory.measure(request(tmp_path, data_hash="other"), lambda: 0)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_where_there_is_no_gpu_the_probe_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProbeError) as failure:
        memory.probe(request(tmp_path))
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_small_run_takes_some_hundred_megabytes_of_a_gpu(tmp_path: Path) -> None:
    found = memory.probe(taught(tmp_path) | {"device": "cuda"})
    assert 1e8 < found.need < found.free
