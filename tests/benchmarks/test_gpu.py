"""The GPU's benchmark on a CPU: its ways of sharing train what a run alone trains, and it goes on where it ended."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, setting
from benchmarks.gpu import MPS, PROCESSES, STREAMS, Configuration, Size, State

SMALL = Size(train=128, test=50, epochs=1)
EAGER = Configuration("resnet8", "eager")


def test_what_has_a_target_is_measured_first_and_nothing_twice() -> None:
    asked = gpu.configurations()
    assert asked[0] == Configuration("resnet20", "graphs", "float32", PROCESSES, 1)
    assert len({each.key for each in asked}) == len(asked)
    shared = {(each.way, each.runs) for each in asked if each.student == "resnet20"}
    assert shared == {(way, runs) for way in gpu.WAYS for runs in gpu.RUNS}


def test_what_was_not_measured_is_an_empty_cell() -> None:
    alone, shared = gpu.tables({}, gpu.configurations(), Size())
    assert len(alone.rows) == 4 * 3 * 3
    assert len(shared.rows) == 4 * 3 * 4
    assert all(set(row[3:7]) == {None} for row in alone.rows)
    assert all(set(row[3:6]) == {None} for row in shared.rows)


def test_figures_follow_from_the_seconds_an_epoch_takes() -> None:
    one, four = Configuration("resnet20"), Configuration("resnet20", runs=4)
    results = {one.key: {"epoch": 0.5, "step": 0.001}, four.key: {"epoch": 1.0}}
    alone, shared = gpu.tables(results, [one, four], Size())
    assert alone.rows[0][3:7] == (1.0, 0.5, 2.0, 30.0)  # 240 epochs of half a second
    assert [row[3:6] for row in shared.rows] == [(0.5, 30.0, 1.0), (1.0, 60.0, 2.0)]


def test_a_state_is_kept_by_device_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    State(path, "one GPU").keep(EAGER, {"epoch": 1.0})
    assert State(path, "one GPU").results == {EAGER.key: {"epoch": 1.0}}
    assert State(path, "another GPU").results == {}


def test_without_its_daemon_mps_is_not_measured_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    found = gpu.run(dataclasses.replace(EAGER, way=MPS), SMALL, tmp_path, "cpu")
    assert found == {"failed": "nvidia-cuda-mps-control is not on the path"}


def test_mps_has_a_daemon_of_its_own_that_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = tmp_path / "nvidia-cuda-mps-control"
    daemon.write_text(f'#!/bin/sh\necho "$1 $(cat) $CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/calls\n')
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    with gpu.mps():
        folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(folder).is_dir()
    assert (tmp_path / "calls").read_text().split() == ["-d", folder, "quit", folder]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == "benchmarks.gpu: skipped, there is no GPU here\n"


@pytest.mark.slow
def test_it_works_where_the_rest_of_the_stack_is_absent() -> None:
    absent = ("ray", "optuna", "mlflow", "pydantic", "rich", "sqlalchemy", "typer", "yaml", "scipy", "pyarrow")
    hide = f"import sys; sys.modules |= dict.fromkeys({absent}); import benchmarks.gpu as gpu; gpu.main()"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_runs_that_are_packed_end_as_runs_alone(tmp_path: Path) -> None:
    dataset = setting.images(None, train=SMALL.train, test=SMALL.test)
    gpu._fill(tmp_path, SMALL, "cpu")
    alone = gpu.make_trainer(EAGER, SMALL, tmp_path, dataset, "cpu")
    packed = gpu.Packed([gpu.make_trainer(EAGER, SMALL, tmp_path, dataset, "cpu") for _ in range(2)], "cpu")
    for _ in range(2):
        wanted = {name: value for name, value in alone.train_epoch().items() if name in ("train_loss", "test_top1")}
        for found in packed.train_epoch():
            assert found == pytest.approx(wanted, rel=1e-6)
    for trainer in packed._trainers:
        for name, value in alone.student_state().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(value, trainer.student_state()[name])


@pytest.mark.slow
def test_each_way_is_measured_once_and_a_second_call_measures_only_what_is_new(tmp_path: Path) -> None:
    asked = [
        dataclasses.replace(EAGER, way=way, runs=runs) for way, runs in ((PROCESSES, 1), (PROCESSES, 2), (STREAMS, 2))
    ]
    path = tmp_path / "state.json"
    first = State(path, "cpu")
    gpu.measure(True, first, "cpu", asked[:1], size=SMALL)
    before = dict(first.results)
    second = State(path, "cpu")
    alone, _ = gpu.measure(True, second, "cpu", asked, size=SMALL)
    assert set(second.results) == {each.key for each in asked}
    assert {key: second.results[key] for key in before} == before
    assert all(found["epoch"] > 0 and "failed" not in found for found in second.results.values())
    assert alone.rows[0][3] > 0
    nothing = gpu.measure(True, State(path, "cpu"), "cpu", [*asked, EAGER], minutes=-1, size=SMALL)
    assert nothing[0].rows[0] == alone.rows[0]


@pytest.mark.slow
def test_a_configuration_that_fails_says_why_and_the_others_are_measured(tmp_path: Path) -> None:
    wrong = Configuration("no_such_network", "eager", runs=2)
    state = State(tmp_path / "state.json", "cpu")
    gpu.measure(True, state, "cpu", [wrong, EAGER], size=SMALL)
    assert "no_such_network" in state.results[wrong.key]["failed"]
    assert state.results[EAGER.key]["epoch"] > 0
