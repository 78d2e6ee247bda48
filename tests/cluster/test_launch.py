"""A study launched as a job: the laptop sends it, follows it, stops it, and may be closed."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.database import check_url
from study.store import RUNNING
from tests.cluster.conftest import EPOCHS, Nodes, Study, epochs
from tests.servers import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[tuple[Nodes, str]]:
    """Nodes with a dashboard, which know where their stores are; and the store's address."""
    folder = tmp_path_factory.mktemp("jobs")
    url = check_url("KDSTUDY_STORE", postgres.create(f"jobs-{uuid.uuid4().hex}"))
    nodes = Nodes(
        folder,
        2,
        dashboard=True,
        KDSTUDY_HOME=str(folder / "node-home"),
        KDSTUDY_STORE=f"{postgres.server}/{url.rpartition('/')[2]}",
        KDSTUDY_STORE_PASSWORD_FILE=str(postgres.password_file),
        KDSTUDY_STORAGE=str(folder / "storage"),
        MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
    )
    yield nodes, url
    nodes.remove()


@pytest.fixture
def laptop(place: tuple[Nodes, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A home of its own, from which the same stores are reached."""
    nodes, url = place
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    study = Study(tmp_path, nodes, url, Path(nodes.environment["KDSTUDY_STORE_PASSWORD_FILE"]))
    study.environment |= {
        name: nodes.environment[name] for name in ("KDSTUDY_STORAGE", "MLFLOW_TRACKING_URI", "RAY_AUTH_TOKEN_PATH")
    }
    return study


def launch(study: Study, *options: str) -> list[str]:
    address = f"http://127.0.0.1:{study.nodes.dashboard}"
    return study.command("launch", "faults.yaml", "--address", address, "--on", "worker", *options)


def test_a_launched_study_outlives_the_terminal_is_stopped_from_there_and_goes_on(laptop: Study) -> None:
    process = subprocess.Popen(
        launch(laptop, "--follow", "--set", "protocol.epochs=240"),
        cwd=laptop.folder,
        env=laptop.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    laptop.wait_until(lambda runs: epochs(runs) >= EPOCHS, process)
    os.killpg(process.pid, signal.SIGKILL)  # the laptop is closed
    process.wait()
    before = epochs(laptop.runs())
    laptop.wait_until(lambda runs: epochs(runs) > before + 10)

    status = laptop.call("status", "faults")
    assert status.returncode == 0, status.stderr
    assert ", job kdstudy-faults-" in status.stdout
    assert "faults" in laptop.call("list").stdout

    again = subprocess.run(launch(laptop), cwd=laptop.folder, env=laptop.environment, capture_output=True, text=True)
    assert again.returncode == 2
    assert "study faults is being run already, by process" in again.stderr

    assert laptop.call("stop", "faults").returncode == 0
    laptop.wait_until(lambda runs: not any(run.state == RUNNING for run in runs))

    done = subprocess.run(
        launch(laptop, "--follow", "--set", "protocol.epochs=240"),
        cwd=laptop.folder,
        env=laptop.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 9 of 9 runs done" in done.stdout
    laptop.require_whole()

    jobs = laptop.call("jobs", "--address", f"http://127.0.0.1:{laptop.nodes.dashboard}")
    assert jobs.stdout.count("succeeded") == 1, jobs.stdout


def test_nothing_secret_is_shown_by_the_cluster_or_by_ps(laptop: Study) -> None:
    from ray.job_submission import JobSubmissionClient

    password = Path(laptop.environment["KDSTUDY_STORE_PASSWORD_FILE"]).read_text()
    token = laptop.nodes.token.read_text()
    client = JobSubmissionClient(
        f"http://127.0.0.1:{laptop.nodes.dashboard}", headers={"Authorization": f"Bearer {token}"}
    )
    shown = repr(client.list_jobs()) + subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "kdstudy-faults-" in shown
    assert password not in shown
    assert token not in shown


def test_without_the_token_nobody_is_let_in(laptop: Study, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("0" * 64)
    laptop.environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "wrong")
    refused = subprocess.run(launch(laptop), cwd=laptop.folder, env=laptop.environment, capture_output=True, text=True)
    assert refused.returncode == 2, refused.stdout
    assert refused.stderr.startswith("kdstudy: --address: "), refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr
