"""Several Ray nodes on this machine, a PostgreSQL store, and a study that runs on them until something breaks."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest

from study.database import check_url
from study.lock import is_driven
from study.store import DONE, RunRow, Store
from tests.servers import Bucket, Postgres, free_port

SPEC = """
name: faults
protocol: {base: digits-quick, epochs: 40}
data: {name: digits, train_limit: 300}
teacher: {regime: held_out, fraction: 0.06, protocol: {epochs: 4}}
pairs: [cnn32-cnn3]
methods:
  ce: {}
  kd: {}
  loca: {alpha: [0.8, 1.0]}
seeds: 2
"""
ASKED = 9  # four points of two seeds, and the teacher
EPOCHS = 40


class Nodes:
    """Ray nodes, each with one core, and a head with none; the token is this test's own."""

    def __init__(self, folder: Path, count: int, *, dashboard: bool = False, **environment: str) -> None:
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.folder = folder
        self.port, self.dashboard = free_port(), free_port()
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            # How long a driver waits for a head that is gone; a minute otherwise.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self._dashboard = dashboard
        self._temporary = tempfile.mkdtemp(prefix="kds-")
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.start_head()
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_head(self) -> None:
        """The head: no runs, no dashboard unless it is asked for."""
        arguments = ["--head", "--port", str(self.port), "--num-cpus", "0", "--node-ip-address", "127.0.0.1"]
        arguments += ["--dashboard-agent-listen-port", str(free_port())]
        arguments += ["--include-dashboard", str(self._dashboard).lower(), "--dashboard-port", str(self.dashboard)]
        self.head = self._start("head", arguments)

    def add(self, **environment: str) -> subprocess.Popen[bytes]:
        """A node with one core; `environment` is its own."""
        name = f"node-{len(self._nodes)}"
        arguments = ["--address", self.address, "--num-cpus", "1", "--resources", '{"worker": 1}']
        # Nodes on one host would fight for the default.
        arguments += ["--dashboard-agent-listen-port", str(free_port())]
        node = self._start(name, arguments, environment)
        self._nodes.append(node)
        return node

    def _start(
        self, name: str, arguments: list[str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
        # Short, since sockets lie in it.
        temporary = ["--temp-dir", self._temporary] if name == "head" else []
        process = subprocess.Popen(
            [
                *command,
                "--object-store-memory",
                "80000000",
                *arguments,
                *temporary,
            ],
            env={**self.environment, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=self.folder,
        )
        begun = log.tell()
        give_up = time.monotonic() + 90
        while time.monotonic() < give_up:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()
            if b"Ray runtime started" in (self.folder / f"{name}.log").read_bytes()[begun:]:
                return process
            time.sleep(0.2)
        raise AssertionError(f"{name} does not start: {(self.folder / f'{name}.log').read_text()}")

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """A power cut: all processes of a node at once."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.wait()

    @staticmethod
    def workers(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The processes on a node that train a run."""
        found = []
        for process in psutil.Process(node.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "Trainable." in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def nodes(self) -> list[subprocess.Popen[bytes]]:
        return [node for node in self._nodes if node.poll() is None]

    def remove(self) -> None:
        for process in [*self.nodes, self.head]:
            if process.poll() is None:
                self.kill(process)
        shutil.rmtree(self._temporary, ignore_errors=True)


class Study:
    """`kdstudy run` on the nodes, with its stores."""

    def __init__(self, folder: Path, nodes: Nodes, store_url: str, password_file: Path) -> None:
        self.folder, self.nodes, self.store_url = folder, nodes, store_url
        self.environment = {
            **nodes.environment,
            "KDSTUDY_HOME": str(folder / "home"),
            "KDSTUDY_STORE": store_url.replace(store_url.partition("//")[2].partition("@")[0], "kdstudy"),
            "KDSTUDY_STORE_PASSWORD_FILE": str(password_file),
            "KDSTUDY_STORAGE": str(folder / "storage"),
        }
        (folder / "faults.yaml").write_text(SPEC)

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "kdstudy"), *arguments]

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A driver on the nodes."""
        return subprocess.Popen(
            self.command("run", "faults.yaml", "--address", self.nodes.address, *options),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Another command, to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == code, output
        return output

    @contextmanager
    def store(self) -> Iterator[Store]:
        with Store(self.store_url).opened() as store:
            yield store

    def runs(self, name: str = "faults") -> list[RunRow]:
        with self.store() as store:
            return store.runs(name) if name in store.study_names() else []

    def driven(self) -> bool:
        from study.home import open_home

        with self.store() as store:
            return is_driven(open_home(create=False), store, "faults")

    def wait_until(
        self, condition: Callable[[list[RunRow]], bool], process: subprocess.Popen[str] | None = None
    ) -> float:
        """Wait until the study's runs are so; how many seconds that took."""
        began = time.monotonic()
        while time.monotonic() - began < 240:
            if condition(self.runs()):
                return time.monotonic() - began
            if process is not None and process.poll() is not None:
                raise AssertionError(process.stdout.read() if process.stdout else "")
            time.sleep(0.2)
        raise AssertionError(f"never so: {[(run.run_id, run.state, run.epoch) for run in self.runs()]}")

    def require_whole(self, asked: int = ASKED) -> None:
        """Exactly the asked runs, each done once and with every epoch, and MLflow as the store is."""
        with self.store() as store:
            runs = store.runs("faults")
            assert len({run.run_id for run in runs}) == asked
            assert {run.state for run in runs} == {DONE}, [(run.run_id, run.state, run.reason) for run in runs]
            for run in runs:
                epochs = [row["epoch"] for row in store.history(run.run_id)]
                assert epochs == list(range(1, run.epochs + 1)), (run.run_id, epochs)
            by_id = {run.run_id: run for run in runs}
        self.require_mlflow(by_id)

    def require_mlflow(self, by_id: dict[str, RunRow]) -> None:
        from study import tracking

        tracking.configure()
        from mlflow.tracking import MlflowClient

        uri = self.environment.get("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / 'home' / 'mlflow.db'}")
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("faults")
        shown = client.search_runs([experiment.experiment_id], max_results=1000)
        assert {run.info.status for run in shown} == {"FINISHED"}
        students = [run for run in shown if run.data.tags["kdstudy.kind"] == "run"]
        ids = [run.data.tags["kdstudy.run_id"] for run in students]
        assert sorted(ids) == sorted(run_id for run_id, run in by_id.items() if run.stage != "teacher")
        for run in students:
            mine = by_id[run.data.tags["kdstudy.run_id"]]
            assert run.data.metrics["test_top1_last"] == (mine.summary or {})["test_top1_last"]
            points = client.get_metric_history(run.info.run_id, "test_top1")
            assert sorted(point.step for point in points) == list(range(1, mine.epochs + 1))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, buckets: Bucket) -> Iterator[Nodes]:
    """Two nodes, which know how to reach the buckets."""
    made = Nodes(tmp_path_factory.mktemp("ray"), 2, **buckets.environment)
    yield made
    made.remove()


@pytest.fixture
def study(tmp_path: Path, nodes: Nodes, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    url = check_url("KDSTUDY_STORE", postgres.create(f"faults-{uuid.uuid4().hex}"))
    return Study(tmp_path, nodes, url, postgres.password_file)


def begun_again(runs: list[RunRow]) -> bool:
    """Some run is at its second attempt."""
    return any(run.attempt > 1 for run in runs)


def epochs(runs: list[RunRow]) -> int:
    """Epochs that the students have been trained."""
    return sum(run.epoch for run in runs if run.stage != "teacher")
