"""Whatever breaks in the middle of a study, it ends with exactly the asked runs, each once and whole.

Every test really does it: processes are killed, nodes are lost, servers restarted. `pytest -m cluster` runs them all.
"""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from study.store import DONE, RUNNING, RunRow
from tests.cluster.conftest import ASKED, EPOCHS, Nodes, Study, epochs
from tests.servers import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


def running(runs: list[RunRow]) -> int:
    return sum(run.state == RUNNING for run in runs if run.stage != "teacher")


def in_the_middle(runs: list[RunRow]) -> bool:
    """Students are being trained, and have been for a while."""
    return epochs(runs) >= EPOCHS and running(runs) >= 1


def a_worker(nodes: Nodes) -> int:
    return next(worker.pid for node in nodes.nodes for worker in nodes.workers(node))


def test_an_undisturbed_study_is_whole(study: Study) -> None:
    output = study.finish(study.start())
    study.require_whole()
    assert all(run.attempt == 1 for run in study.runs())
    assert "Traceback" not in output


def test_a_killed_worker(study: Study, nodes: Nodes) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    os.kill(a_worker(nodes), signal.SIGKILL)
    study.finish(process)
    study.require_whole()
    assert sum(run.losses for run in study.runs()) == 1


def test_a_node_that_is_lost_and_one_that_joins(study: Study, nodes: Nodes) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    nodes.kill(nodes.nodes[0])
    study.wait_until(lambda runs: sum(run.losses for run in runs) >= 1, process)
    nodes.add()
    study.wait_until(lambda runs: running(runs) == 2, process)
    study.finish(process)
    study.require_whole()


def test_a_killed_driver_goes_on_at_once(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert any(run.state == RUNNING for run in study.runs())
    study.finish(study.start())
    study.require_whole()


def test_a_second_driver_is_refused_and_told_whose_the_study_is(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    second = study.start()
    said = study.finish(second, code=2)
    assert f"study faults is being run already, by process {process.pid} on" in said
    assert said.count("\n") == 1, said
    study.finish(process)
    study.require_whole()
    assert all(run.attempt == 1 for run in study.runs())


def test_a_store_that_is_restarted(study: Study, postgres: Postgres) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    postgres.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)  # it waits too
    postgres.start()
    study.finish(process)
    study.require_whole()
    assert {run.state for run in study.runs()} == {DONE}


def test_a_stop_from_elsewhere_and_the_same_command_again(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    status = study.call("status", "faults")
    assert f"driven by process {process.pid}" in status.stdout
    assert study.call("stop", "faults").returncode == 0
    study.finish(process, code=130)
    assert len(study.runs()) == ASKED
    study.finish(study.start())
    study.require_whole()
