"""How many runs share a machine, and what becomes of one that finds no memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from study import launcher
from study.launcher import Machine, this_machine
from study.store import DONE, FAILED, WAITING
from tests.study.simulation import Simulation, spec_of

OUT_OF_MEMORY = {
    "failed": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "out_of_memory": True,
    "done": True,
    "checkpoint": None,
}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that there are so many GPUs and cores."""

    def pretend(devices: int, cores: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(launcher.os, "sched_getaffinity", lambda _: set(range(cores)))

    return pretend


def never() -> int:
    raise AssertionError("the memory of a run was measured where it does not matter")


@pytest.mark.parametrize(
    ("devices", "cores", "fit", "concurrency", "gpus_each"),
    [
        (1, 64, 1, 1, 1.0),
        (1, 64, 4, 4, 0.25),
        (2, 64, 4, 8, 0.25),
        (1, 64, 6, 6, 0.1666),  # rounded up, the sixth would not fit
        (1, 64, 100, 16, 0.0625),
        (1, 8, 16, 8, 0.125),  # one core a run
        (4, 6, 16, 4, 1.0),
        (4, 2, 16, 4, 1.0),
    ],
)
def test_runs_share_a_gpu_as_memory_and_cores_allow(
    gpus: Any, devices: int, cores: int, fit: int, concurrency: int, gpus_each: float
) -> None:
    gpus(devices, cores)
    machine = this_machine(runs_a_gpu=lambda: fit)
    assert (machine.device, machine.concurrency, machine.gpus) == ("cuda", concurrency, gpus_each)
    assert machine.devices == devices
    assert machine.cpus * machine.concurrency <= max(cores, 1)


@pytest.mark.parametrize(
    ("devices", "asked", "runs_a_gpu", "used"), [(1, 3, 3, 1), (2, 3, 2, 2), (4, 5, 2, 4), (4, 1, 1, 1)]
)
def test_who_says_how_many_runs_gets_them_and_nothing_is_measured(
    gpus: Any, devices: int, asked: int, runs_a_gpu: int, used: int
) -> None:
    gpus(devices, 64)
    machine = this_machine(concurrency=asked, runs_a_gpu=never)
    assert (machine.concurrency, machine.runs_a_gpu, machine.devices) == (asked, runs_a_gpu, used)
    assert machine.gpus * machine.runs_a_gpu <= 1


@pytest.mark.parametrize("devices", [0, 1])
def test_on_a_cpu_nothing_is_measured(gpus: Any, devices: int) -> None:
    gpus(devices, 4)
    assert this_machine("cpu", runs_a_gpu=never) == Machine("cpu", 4, cpus=1.0, gpus=0.0)


@pytest.mark.parametrize(
    ("there", "given", "fit", "share"),
    [
        ({"GPU": 4.0, "CPU": 32.0}, None, 5, 5),
        ({"GPU": 4.0, "CPU": 32.0}, None, 100, 8),  # one core a run
        ({"GPU": 4.0, "CPU": 400.0}, None, 100, launcher.MOST_RUNS_A_GPU),
        ({"GPU": 4.0, "CPU": 32.0}, 3, None, 3),  # who says how many gets them, and nothing is measured
        ({"GPU": 4.0, "CPU": 4.0}, None, None, 1),
    ],
)
def test_runs_share_a_clusters_gpus_as_memory_and_cores_allow(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, float], given: int | None, fit: int | None, share: int
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    machine = launcher.joined_machine(None, 2, given, never if fit is None else lambda: fit)
    assert (machine.device, machine.runs_a_gpu, machine.concurrency) == ("cuda", share, 2 * share)


def test_on_a_cluster_without_gpus_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert launcher.joined_machine(None, None, None, never).device == "cpu"


def test_halving_ends_with_a_gpu_for_each_run() -> None:
    machine: Machine | None = Machine("cuda", 14, cpus=1.0, gpus=0.1428, devices=2)
    seen = []
    while machine is not None:
        seen.append((machine.concurrency, machine.gpus))
        machine = machine.halved()
    assert seen == [(14, 0.1428), (6, 0.3333), (2, 1.0)]
    assert Machine("cpu", 4, cpus=1.0, gpus=0.0).halved() is None


def test_a_run_without_memory_waits_from_its_checkpoint_and_loses_nothing() -> None:
    simulation = Simulation(spec_of())
    simulation.driver.make_room = lambda: True
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 2))
    assert simulation.driver.on_report(simulation.report(request, 3, 3, **OUT_OF_MEMORY))
    assert simulation.states()[request["run_id"]] == WAITING
    assert not simulation.driver.finished
    simulation.finish()
    (again,) = [asked for asked in simulation.requests if asked["attempt"] == 2]
    assert again["run_id"] == request["run_id"]
    assert again["resume_from"].endswith("attempt-1/epoch-0002.pt")
    run = next(run for run in simulation.store.runs("sim") if run.run_id == request["run_id"])
    assert (run.state, run.losses) == (DONE, 0)


def test_a_run_that_had_a_gpu_to_itself_fails_with_the_reason() -> None:
    simulation = Simulation(spec_of(seeds=1))
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 1, **OUT_OF_MEMORY))
    (run,) = simulation.store.runs("sim")
    assert run.state == FAILED
    assert run.reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB; no other run shared its GPU"


def test_all_runs_that_started_with_too_small_a_share_wait_for_one_doubling() -> None:
    room = launcher._Room(Machine("cuda", 4, cpus=1.0, gpus=0.25, devices=1))
    assert [room.make() for _ in range(4)] == [True] * 4
    assert room.next.runs_a_gpu == 2
    last = launcher._Room(Machine("cuda", 2, cpus=1.0, gpus=1.0, devices=2))
    assert not last.make()
    assert not last.changes


GREEDY = '''
"""Cross-entropy that runs out of memory as long as fewer than `FAILURES` runs have."""
import os
from pathlib import Path

import torch

from trainables import objectives


class Greedy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ce = objectives.build("ce")
        self.begun = False

    def forward(self, student_logits, teacher_logits, target, epoch=1):
        tokens = list(Path(os.environ["GREEDY"]).iterdir())
        if tokens and epoch == 2:
            tokens[0].unlink()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.ce(student_logits, teacher_logits, target, epoch)


greedy = objectives.Method(
    name="greedy", summary="-", formula="-", source="-", parameters=(), needs_teacher=False, factory=Greedy
)
'''


@pytest.mark.slow
def test_through_ray_runs_without_memory_end_on_larger_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four runs share a GPU that is only a number to Ray; the first of them finds no memory."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "greedy_parts.py").write_text(GREEDY)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "one").touch()
    monkeypatch.syspath_prepend(tmp_path / "parts")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "parts"))
    monkeypatch.setenv("GREEDY", str(tmp_path / "tokens"))
    experiments: list[Machine] = []
    run_one = launcher._experiment

    def watched(driver: Any, room: launcher._Room, scratch: Path) -> None:
        experiments.append(room.machine)
        run_one(driver, room, scratch)

    monkeypatch.setattr(launcher, "_experiment", watched)
    simulation = Simulation(spec_of(methods={"greedy_parts:greedy": {}}, seeds=4, data={"name": "digits"}))
    machine = Machine("cpu", 4, cpus=0.25, gpus=0.25, devices=1)
    with caplog.at_level(logging.WARNING, "kdstudy"), launcher.cluster(machine):
        launcher.train(simulation.driver, machine, simulation.home)
    assert [each.runs_a_gpu for each in experiments] == [4, 2]
    assert "out of memory: from now on 2 runs a GPU, not 4" in caplog.text
    runs = simulation.store.runs("sim")
    assert {run.state for run in runs} == {DONE}
    assert sorted(run.attempt for run in runs) == [1, 1, 1, 2]
    assert all(run.losses == 0 for run in runs)
    assert all([row["epoch"] for row in simulation.store.history(run.run_id)] == [1, 2, 3, 4] for run in runs)


def test_an_experiment_is_stuck_where_a_run_waits_though_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    there, clock = {"CPU": 0.0}, [1000.0]
    monkeypatch.setattr(ray, "available_resources", lambda: there)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(launcher.time, "monotonic", lambda: clock[0])

    def looks(room: launcher._Room, seconds: float) -> bool:
        found = []
        for _ in range(int(seconds)):
            clock[0] += 1.0
            found.append(room.stuck())
        return any(found)

    room = launcher._Room(Machine("cpu", 100, cpus=1.0, gpus=0.0, joined=True))
    assert room.slots() == 2
    assert not looks(room, 300)  # nothing waits
    room.waiting["a"] = clock[0]
    assert not looks(room, 300)  # the cluster is full
    there["CPU"] = 1.0
    assert looks(room, 10)
    there["CPU"] = 0.0
    assert not looks(room, 10)
    room.waiting["b"] = clock[0]
    del room.waiting["a"]
    there["CPU"] = 2.0
    assert not looks(room, launcher.STUCK_SECONDS - 2)  # a worker may take a while to start
    alone = launcher._Room(Machine("cpu", 2, cpus=1.0, gpus=0.0))
    alone.waiting["a"] = clock[0]
    assert not looks(alone, 300)  # a Ray of this process's own is not lost without it


@pytest.mark.parametrize(
    ("machine", "resources", "runs"),
    [
        (Machine("cpu", 10_000, cpus=1.0, gpus=0.0, joined=True), {"CPU": 5.0}, 5),
        (Machine("cpu", 3, cpus=1.0, gpus=0.0, joined=True), {"CPU": 5.0}, 3),
        (Machine("cpu", 10_000, cpus=1.0, gpus=0.0, joined=True), {}, 1),
        (Machine("cuda", 10_000, cpus=1.0, gpus=1.0, joined=True), {"CPU": 32.0, "GPU": 4.0}, 4),
        (Machine("cuda", 10_000, cpus=1.0, gpus=0.25, joined=True), {"CPU": 32.0, "GPU": 2.0}, 8),
        (Machine("cuda", 10_000, cpus=1.0, gpus=0.25, joined=True), {"CPU": 3.0, "GPU": 2.0}, 3),
        (Machine("cuda", 4, cpus=1.0, gpus=0.25, joined=True), {"CPU": 32.0, "GPU": 2.0}, 4),
    ],
)
def test_a_cluster_has_room_for_as_many_runs_as_it_has_devices_and_the_study_may_have(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, resources: dict[str, float], runs: int
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert launcher._Room(machine).slots() == runs
