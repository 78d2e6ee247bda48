"""What is not needed goes, and only when asked; what a study may still use stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from study import gc
from study.lock import hold
from tests.study.given import Command
from tests.study.simulation import Simulation, spec_of


def put(path: Path, size: int = 100, *, days: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - 86400 * days
    os.utime(path, (then, then))
    return path


@pytest.fixture
def simulation() -> Simulation:
    """A study of three seeds: one done, one failed, one that waits after an epoch."""
    simulation = Simulation(spec_of(seeds=3))
    done, failed, waiting = (simulation.claim() for _ in range(3))
    assert done is not None
    assert failed is not None
    assert waiting is not None
    simulation.train(done)
    simulation.driver.on_report(simulation.report(failed, 1, 2, failed="broken"))
    simulation.driver.on_report(simulation.report(waiting, 1, 1))
    simulation.driver.release()
    return simulation


def checkpoint(simulation: Simulation, number: int, name: str | None = None) -> Path:
    request = simulation.requests[number]
    (run,) = [run for run in simulation.store.runs("sim") if run.run_id == request["run_id"]]
    return put(Path(simulation.home.checkpoints(run.run_id)) / (name or run.checkpoint or "attempt-1/epoch-0002.pt"))


def found(simulation: Simulation, **options: bool) -> dict[str, int]:
    return {kind.what: kind.count for kind in gc.find(simulation.home, simulation.store, **options)}


def free(simulation: Simulation, **options: bool) -> None:
    for kind in gc.find(simulation.home, simulation.store, **options):
        kind.remove()


def test_the_last_checkpoint_of_each_run_stays(simulation: Simulation) -> None:
    kept = [checkpoint(simulation, number) for number in range(3)]
    old = [checkpoint(simulation, 2, "attempt-0/epoch-0001.pt"), checkpoint(simulation, 0, "attempt-9/epoch-0001.pt")]
    unused = put(Path(simulation.home.checkpoints("0123456789abcdef")) / "attempt-1" / "epoch-0001.pt")
    assert found(simulation) == {
        "checkpoints of runs that no study has": 1,
        "checkpoints that a later one replaced": 2,
    }
    assert all(path.exists() for path in [*kept, *old, unused])  # so far it was only said
    free(simulation)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in [*old, unused])
    assert found(simulation) == {}


def test_failed_and_finished_runs_give_theirs_when_asked(simulation: Simulation) -> None:
    done, failed, waiting = (checkpoint(simulation, number) for number in range(3))
    free(simulation, failed=True)
    assert (done.exists(), failed.exists(), waiting.exists()) == (True, False, True)
    free(simulation, finished=True)
    assert (done.exists(), waiting.exists()) == (False, True)


def test_what_a_living_driver_is_at_stays(simulation: Simulation) -> None:
    other = checkpoint(simulation, 2, "attempt-1/epoch-0009.pt")
    scratch = put(simulation.home.root / "tune" / "sim" / "state")
    simulation.driver.next_request()
    with hold(simulation.home, simulation.store, "sim"):
        assert found(simulation) == {}
    simulation.driver.release()
    free(simulation)
    assert not other.exists()
    assert not scratch.exists()


def test_what_killed_writers_left_goes_when_it_is_old(simulation: Simulation) -> None:
    folder = Path(simulation.home.storage) / "checkpoints" / "r" / "attempt-1"
    young, old = put(folder / ".tmp-young"), put(folder / ".tmp-old", days=2)
    log = put(simulation.home.logs / "gone.log")
    free(simulation)
    assert (young.exists(), old.exists(), log.exists()) == (True, False, False)


def test_the_command_says_it_first(simulation: Simulation, kdstudy: Command) -> None:
    unused = put(Path(simulation.home.checkpoints("0123456789abcdef")) / "attempt-1" / "epoch-0001.pt", 2_000_000)
    said = kdstudy("gc")
    assert (said.code, unused.exists()) == (0, True)
    assert "checkpoints of runs that no study has" in said.out
    assert "2.0" in said.out
    assert "gc --yes" in said.out
    assert "All of it is gone." in kdstudy("gc", "--yes").out
    assert not unused.exists()
    assert "nothing that is not needed" in kdstudy("gc").out
