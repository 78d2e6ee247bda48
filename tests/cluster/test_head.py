"""The head dies in the middle of a study: with Redis the job goes on, without it the same command does."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.database import check_url
from study.store import DONE
from tests.cluster.conftest import Nodes, Study
from tests.cluster.test_faults import in_the_middle
from tests.servers import Postgres, free_port

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Redis server that keeps Ray's head; what the head must be told of it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    (tmp_path / "redis.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nappendonly yes\n")
    process = subprocess.Popen([program, str(tmp_path / "redis.conf")], stdout=subprocess.DEVNULL)
    time.sleep(1)
    yield {
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{port}",
        "RAY_external_storage_namespace": "faults",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    }
    process.kill()
    process.wait()


def test_without_redis_the_same_command_goes_on(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    url = check_url("KDSTUDY_STORE", postgres.create(f"head-{uuid.uuid4().hex}"))
    (tmp_path / "ray").mkdir()
    nodes = Nodes(tmp_path / "ray", 2)
    try:
        study = Study(tmp_path, nodes, url, postgres.password_file)
        process = study.start("--set", "protocol.epochs=120")
        study.wait_until(in_the_middle, process)
        nodes.kill(nodes.head)
        process.wait(120)
        assert process.returncode != 0
        for node in nodes.nodes:
            node.wait(120)  # nodes do not outlive their head
        nodes.start_head()
        nodes.add()
        nodes.add()
        study.finish(study.start("--set", "protocol.epochs=120"))
        study.require_whole()
        assert any(run.attempt > 1 for run in study.runs())
    finally:
        nodes.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="a head with processes of its own needs root (unshare)")
def test_with_redis_the_job_goes_on(
    tmp_path: Path, postgres: Postgres, redis: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    url = check_url("KDSTUDY_STORE", postgres.create(f"head-{uuid.uuid4().hex}"))
    (tmp_path / "ray").mkdir()
    places = {
        "KDSTUDY_HOME": str(tmp_path / "node-home"),
        "KDSTUDY_STORE": f"{postgres.server}/{url.rpartition('/')[2]}",
        "KDSTUDY_STORE_PASSWORD_FILE": str(postgres.password_file),
        "KDSTUDY_STORAGE": str(tmp_path / "storage"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
    }
    nodes = Nodes(tmp_path / "ray", 2, dashboard=True, apart=True, **redis, **places)
    try:
        study = Study(tmp_path, nodes, url, postgres.password_file)
        study.environment |= places | {"KDSTUDY_HOME": str(tmp_path / "home")}
        address = f"http://127.0.0.1:{nodes.dashboard}"
        changes = ["--on", "worker", "--set", "protocol.epochs=200"]
        launched = study.call("launch", "faults.yaml", "--address", address, *changes)
        assert launched.returncode == 0, launched.stderr
        study.wait_until(in_the_middle)
        nodes.kill(nodes.head)
        time.sleep(5)
        nodes.start_head()
        study.wait_until(lambda runs: bool(runs) and all(run.state == DONE for run in runs))
        give_up = time.monotonic() + 60
        while study.driven() and time.monotonic() < give_up:
            time.sleep(0.5)
        study.require_whole()
        assert "succeeded" in study.call("jobs", "--address", address).stdout
    finally:
        nodes.remove()
