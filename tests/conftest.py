"""Servers that several suites use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study import tracking
from study.errors import RequestError
from tests.servers import Bucket, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of a process; skips where it is not installed."""
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def buckets() -> Iterator[Bucket]:
    """A server of buckets for all tests of a process."""
    pytest.importorskip("moto")
    server = Bucket()
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """An MLflow server that a test can kill and start again, on one port and one database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
        command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1"]
        log = (tmp_path / "server.log").open("ab")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        uri = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                tracking.probe(uri)
                return uri
            except RequestError:
                if processes[-1].poll() is not None:
                    pytest.fail((tmp_path / "server.log").read_text())
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def kill() -> None:
        process = processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    yield start, kill
    while processes:
        kill()
