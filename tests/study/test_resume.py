"""A study ends as if nothing had happened, whatever is killed on the way: the real command, real processes, Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from study.store import DONE, RUNNING, Store

pytestmark = pytest.mark.slow

SPEC = """
name: resume
protocol: {base: digits-quick, epochs: 60}
data: {name: digits}
teacher: {regime: held_out, fraction: 0.06, protocol: {epochs: 10}}
pairs: [cnn32-cnn3]
methods:
  ce: {}
  kd: {}
  loca: {alpha: [0.8, 1.0]}
seeds: 1
"""


class Command:
    """`kdstudy run` in a folder and a home of its own."""

    def __init__(self, folder: Path, *, epochs: int = 60, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.home = folder / "home"
        self.environment = {**os.environ, "KDSTUDY_HOME": str(self.home), **(environment or {})}
        (folder / "resume.yaml").write_text(SPEC)
        self.arguments = ["run", "resume.yaml", "--set", f"protocol.epochs={epochs}", "--concurrency", "2"]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "kdstudy"), *self.arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    def wait_until(self, process: subprocess.Popen[str], condition: Callable[[Store], bool]) -> None:
        """Poll the store of the running study."""
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if process.poll() is not None:
                output = process.stdout.read() if process.stdout else ""
                raise AssertionError(f"the study ended before it could be disturbed: {output}")
            if (self.home / "store.db").exists() and condition(Store(f"sqlite:///{self.home}/store.db")):
                return
            time.sleep(0.1)
        raise AssertionError("the condition was never met")

    def outcome(self) -> dict[str, Any]:
        """States and histories by run, without what depends on the clock."""
        store = Store(f"sqlite:///{self.home}/store.db")
        return {
            run.run_id: (
                run.state,
                run.method,
                run.parameters,
                [
                    {name: value for name, value in row.items() if name not in ("time", "epoch_seconds")}
                    for row in store.history(run.run_id)
                ],
                run.summary,
            )
            for run in store.runs("resume")
        }


def student_epochs(store: Store) -> int:
    return sum(run.epoch for run in store.runs("resume") if run.stage != "teacher")


def mlflow_states(home: Path) -> list[str]:
    from study import tracking

    tracking.configure()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("resume")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = Command(tmp_path_factory.mktemp("undisturbed"))
    command.finish()
    outcome = command.outcome()
    assert len(outcome) == 5
    assert {state for state, *_ in outcome.values()} == {DONE}
    assert sorted(len(history) for _, _, _, history, _ in outcome.values()) == [10, 60, 60, 60, 60]
    return outcome


def test_a_driver_killed_twice_ends_with_the_runs_and_histories_of_an_undisturbed_study(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    command = Command(tmp_path / "killed")
    for epochs in (1, 80):  # in the first students; in the middle of the study
        process = command.start()
        command.wait_until(process, lambda store, least=epochs: student_epochs(store) >= least)
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = Store(f"sqlite:///{command.home}/store.db")
    assert any(run.state == RUNNING for run in store.runs("resume")), "nothing was in flight when the driver died"
    command.finish()
    assert command.outcome() == undisturbed
    assert any(run.attempt > 1 for run in store.runs("resume"))
    assert set(mlflow_states(command.home)) == {"FINISHED"}


def test_a_killed_worker_costs_its_run_an_attempt_and_nothing_else(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    command = Command(tmp_path / "worker")
    process = command.start()
    command.wait_until(process, lambda store: student_epochs(store) >= 1)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name().startswith("ray::") and "train" in " ".join(child.cmdline()).lower()
    ]
    assert workers, "no worker was found to kill"
    workers[0].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert command.outcome() == undisturbed
    store = Store(f"sqlite:///{command.home}/store.db")
    assert sorted(run.attempt for run in store.runs("resume")) == [1, 1, 1, 1, 2]


def test_ctrl_c_stops_a_study_that_the_next_command_finishes(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    command = Command(tmp_path / "interrupted")
    process = command.start()
    command.wait_until(process, lambda store: student_epochs(store) >= 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Go on with: kdstudy run resume" in output
    assert "Traceback" not in output
    assert RUNNING not in {run.state for run in Store(f"sqlite:///{command.home}/store.db").runs("resume")}
    assert "RUNNING" not in mlflow_states(command.home)
    command.finish()
    assert command.outcome() == undisturbed


def test_a_users_own_study_and_analysis_folders_shadow_nothing_in_driver_or_worker(tmp_path: Path) -> None:
    folder = tmp_path / "user"
    for package in ("study", "analysis", "trainables", "search_spaces"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('the user folder was imported')")
    command = Command(folder, epochs=2, environment={"PYTHONPATH": "."})
    output = command.finish()
    assert "5 of 5 runs done" in output


def test_a_run_beside_another_ends_as_it_does_alone(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    alone = Command(tmp_path / "alone")
    alone.arguments[-1] = "1"  # run at a time, rather than two
    alone.finish()
    assert alone.outcome() == undisturbed
