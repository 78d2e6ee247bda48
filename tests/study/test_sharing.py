"""Which runs of a study are measured, and how many of them a GPU takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study import launcher, sharing
from study.home import open_home
from study.plan import Plan
from tests.study.simulation import spec_of
from trainables import memory
from trainables.memory import Memory, ProbeError


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_measured", {})


def plan(**changes: Any) -> Plan:
    return Plan(spec_of(**changes), open_home())


TAUGHT: dict[str, Any] = {"methods": {"ce": {}, "kd": {}, "loca": {"alpha": [0.9, 1.0]}}}
GIVEN = {"regime": "seen", "checkpoint": "given"}


def asked(found: Plan) -> list[tuple[str, str, Any, bool]]:
    return [(r["model"], r["method"], r["teacher"], r["teaches"] is None) for r in sharing.requests(found)]


def test_a_pairs_largest_run_is_measured_before_its_teacher_is_there() -> None:
    teacher = {"model": "cnn32", "folds": 0}
    assert asked(plan(**TAUGHT, teacher=GIVEN)) == [("cnn3", "kd", teacher, True)]
    assert asked(plan(**TAUGHT)) == [("cnn3", "kd", teacher, True), ("cnn32", "ce", None, False)]


def test_a_method_with_more_views_needs_more() -> None:
    methods = {"ce": {}, "mlkd": {}, "kd": {}}
    assert [method for _, method, *_ in asked(plan(methods=methods, teacher=GIVEN))] == ["mlkd"]


def test_a_cross_fitted_teacher_is_all_its_networks() -> None:
    found = asked(plan(**TAUGHT, teacher={"regime": "cross_fitted", "folds": 3}))
    assert found == [("cnn3", "kd", {"model": "cnn32", "folds": 3}, True), ("cnn32", "ce", None, False)]


def test_no_teacher_is_measured_where_no_method_asks_one_and_no_student_where_there_is_no_method() -> None:
    assert asked(plan()) == [("cnn3", "ce", None, True)]
    only = plan(methods={}, teacher={"regime": "held_out", "fraction": 0.1})
    assert asked(only) == [("cnn32", "ce", None, False)]


def test_every_request_can_be_rehearsed() -> None:
    for request in sharing.requests(plan(**TAUGHT, teacher={"regime": "cross_fitted", "folds": 2})):
        memory.rehearse(request | {"device": "cpu"})


def test_the_largest_run_decides_and_is_measured_once_a_session() -> None:
    needs = {"cnn3": 10, "cnn32": 20}
    measured: list[str] = []

    def measure(request: dict[str, Any]) -> Memory:
        measured.append(request["model"])
        return Memory(needs[request["model"]], free=100)

    pairs = [{"pair": "cnn32-cnn3"}, {"pair": "cnn32-cnn3", "label": "half", "data": {"train_limit": 500}}]
    found = plan(**TAUGHT, pairs=pairs)
    assert sharing.runs_a_gpu(found, measure) == 4  # 90 of 100, by 20
    assert sharing.runs_a_gpu(found, measure) == 4
    assert measured == ["cnn3", "cnn32"]


@pytest.mark.slow
def test_on_a_cluster_the_memory_is_measured_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Ray that believes to have a GPU: the probe is run there as a task, and its error is what is reported."""
    where = tmp_path / "where"

    def probed(request: dict[str, Any]) -> Memory:
        import os

        where.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        if request["model"] == "too large":
            raise ProbeError("CUDA out of memory")
        return Memory(10, free=100)

    monkeypatch.setattr(sharing, "probe", probed)
    with launcher.cluster(launcher.Machine("cuda", 1, cpus=1.0, gpus=1.0, devices=1)):
        assert sharing.measured_on_a_node({"model": "small"}) == Memory(10, free=100)
        assert where.read_text() == "0"
        with pytest.raises(ProbeError, match="out of memory"):
            sharing.measured_on_a_node({"model": "too large"})


def test_what_cannot_be_measured_has_a_gpu_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    def measure(request: dict[str, Any]) -> Memory:
        raise ProbeError("no kernel image is available")

    assert sharing.runs_a_gpu(plan(), measure) == 1
    assert "one run a GPU: no kernel image is available" in caplog.text
