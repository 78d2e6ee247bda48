"""`docker compose up`, then `kdstudy launch`: the whole story on containers, and what breaks in the middle of it.

`make test-docker` sets up an engine and runs this; where images cannot be pulled, Debian's packages stand in.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import BIN, PROJECT, Engine, Unavailable
from tests.servers import note_recovery

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.full, pytest.mark.timeout(3000)]

SECRETS = PROJECT / "docker" / "secrets"
RAY = "http://127.0.0.1:8265"
SPEC = """
name: {name}
protocol: {{base: digits-quick, epochs: {epochs}}}
data: {{name: digits, train_limit: 300}}
teacher: {{regime: held_out, fraction: 0.06, protocol: {{epochs: 4}}}}
pairs: [cnn32-cnn3]
methods:
  kd: {{}}
  loca: {{alpha: [0.8, 1.0]}}
seeds: 2
"""
ASKED = 7  # three points of two seeds, and the teacher
# What the store says of a study, asked within the cluster: the store is not published.
RUNS = """
import json, sys
from study.home import open_home
from study.store import Store
home = open_home(create=False)
with Store(home.store_url).opened() as store:
    runs = store.runs(sys.argv[1]) if sys.argv[1] in store.study_names() else []
    keys = ("run_id", "state", "stage", "epoch", "epochs", "attempt", "losses")
    print(json.dumps([{**{k: getattr(r, k) for k in keys}, "written": len(store.history(r.run_id))} for r in runs]))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    try:
        made = Engine(tmp_path_factory.mktemp("docker"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def cluster(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """What `docker compose up` starts, with two workers of one core."""
    print("stand-ins:", ", ".join(engine.provide_images()) or "none")
    subprocess.run([PROJECT / "docker" / "make-secrets"], check=True, capture_output=True)
    data = tmp_path_factory.mktemp("data")
    engine.environment |= {"KDSTUDY_DATA": str(data), "WORKER_CPUS": "1", "WORKER_MEMORY": "3g"}
    try:
        engine.compose("up", "--detach", "--no-build", "--wait", "--scale", "worker=2")
        yield engine
    finally:
        if name := os.environ.get("KDSTUDY_DOCKER_LOGS"):
            Path(name).write_text(engine.compose("logs", "--no-color", check=False).stdout)
        engine.compose("down", "--volumes", "--timeout", "5", check=False)


class Laptop:
    """Where studies are launched from: the project's own command, with no store of its own."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self._folder, self._engine = folder, engine
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("KDSTUDY_", "MLFLOW_"))}
        self._environment = {**outside, "KDSTUDY_HOME": str(folder), "RAY_AUTH_TOKEN_PATH": str(SECRETS / "ray_token")}

    def launch(self, name: str, epochs: int, *options: str) -> str:
        """Launch a study; what the command said."""
        (self._folder / f"{name}.yaml").write_text(SPEC.format(name=name, epochs=epochs))
        command = [str(BIN / "kdstudy"), "launch", f"{name}.yaml", "--address", RAY, "--on", "worker", *options]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def within(self, *command: str) -> str:
        """A command in the first worker, or in the second where the first is down."""
        for index in ("1", "2"):
            done = self._engine.compose("exec", "-T", "--index", index, "worker", *command, check=False)
            if done.returncode == 0:
                return done.stdout
        raise AssertionError(done.stdout + done.stderr)

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The study's runs, as the store has them."""
        return json.loads(self.within("python", "-c", RUNS, name).splitlines()[-1])

    def wait_until(self, name: str, condition: Callable[[list[dict[str, Any]]], bool], seconds: float = 300) -> float:
        """Wait until a study's runs are so; how many seconds that took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                if condition(self.runs(name)):
                    return time.monotonic() - began
            except (AssertionError, IndexError):
                pass  # the store is just being restarted
            time.sleep(1)
        raise AssertionError(f"never so: {self.runs(name)}")

    def require_whole(self, name: str) -> None:
        """Exactly the asked runs, each done once and with every epoch."""
        self.wait_until(name, lambda runs: len(runs) == ASKED and all(run["state"] == "DONE" for run in runs))
        runs = self.runs(name)
        assert len({run["run_id"] for run in runs}) == ASKED
        assert all(run["written"] == run["epochs"] for run in runs), runs


@pytest.fixture
def laptop(cluster: Engine, tmp_path: Path) -> Laptop:
    return Laptop(tmp_path, cluster)


def secret(name: str) -> str:
    return (SECRETS / name).read_text().strip()


def status_of(address: str, user: str = "", password: str = "", token: str = "") -> int:
    request = urllib.request.Request(address)
    if user:
        given = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {given}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def in_the_middle(runs: list[dict[str, Any]]) -> bool:
    students = [run for run in runs if run["stage"] != "teacher"]
    return sum(run["epoch"] for run in students) >= 30 and any(run["state"] == "RUNNING" for run in students)


def trained(runs: list[dict[str, Any]]) -> int:
    return sum(run["epoch"] for run in runs)


def test_every_service_is_healthy_and_none_is_reached_from_outside(cluster: Engine) -> None:
    shown = [json.loads(line) for line in cluster.compose("ps", "--all", "--format", "json").stdout.splitlines()]
    health = {(one["Service"], one["State"], one["Health"]) for one in shown}
    assert ("buckets", "exited", "") in health
    for name in ("postgres", "objects", "mlflow", "redis", "head", "worker", "optuna", "pages"):
        assert (name, "running", "healthy") in health, health
    published = {(port["PublishedPort"], port["URL"]) for one in shown for port in one["Publishers"] or ()}
    assert {port for port, _ in published if port} == {5000, 8265, 8081}
    assert {host for port, host in published if port} == {"127.0.0.1"}


def test_every_door_asks_who_one_is(cluster: Engine) -> None:
    experiments = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1"
    assert status_of(experiments) == 401
    assert status_of(experiments, "kdstudy", "wrong") == 401
    assert status_of(experiments, "kdstudy", secret("mlflow_password")) == 200
    assert status_of("http://127.0.0.1:8081/dashboard/") == 401
    assert status_of("http://127.0.0.1:8081/dashboard/", "kdstudy", secret("pages_password")) == 200
    assert status_of(f"{RAY}/api/jobs/") in (401, 403)
    assert status_of(f"{RAY}/api/jobs/", token=secret("ray_token")) == 200


def test_a_study_is_launched_and_followed_to_its_end(laptop: Laptop) -> None:
    said = laptop.launch("followed", 20, "--follow")
    assert f"followed: {ASKED} of {ASKED} runs done" in said
    laptop.require_whole("followed")
    assert "finished" in laptop.within("kdstudy", "status", "followed")
    assert "followed" in laptop.within("kdstudy", "list")
    answer = base64.b64encode(f"kdstudy:{secret('mlflow_password')}".encode()).decode()
    request = urllib.request.Request(
        "http://127.0.0.1:5000/api/2.0/mlflow/experiments/get-by-name?experiment_name=followed",
        headers={"Authorization": f"Basic {answer}"},
    )
    experiment = json.loads(urllib.request.urlopen(request, timeout=30).read())["experiment"]
    request = urllib.request.Request(
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": [experiment["experiment_id"]], "max_results": 100}).encode(),
        headers={"Authorization": f"Basic {answer}", "Content-Type": "application/json"},
    )
    shown = json.loads(urllib.request.urlopen(request, timeout=30).read())["runs"]
    kinds = [next(tag["value"] for tag in run["data"]["tags"] if tag["key"] == "kdstudy.kind") for run in shown]
    assert kinds.count("run") == ASKED - 1
    assert {run["info"]["status"] for run in shown} == {"FINISHED"}


def test_the_head_is_killed_and_comes_back_and_the_job_goes_on(laptop: Laptop, cluster: Engine) -> None:
    laptop.launch("headless", 250)
    laptop.wait_until("headless", in_the_middle)
    cluster.compose("kill", "head")
    time.sleep(5)
    cluster.compose("start", "head")
    started = sum(run["attempt"] > 0 for run in laptop.runs("headless"))
    note_recovery(
        "compose, the head is killed for five seconds, until a further run began",
        laptop.wait_until("headless", lambda runs: sum(run["attempt"] > 0 for run in runs) > started),
    )
    laptop.require_whole("headless")


def test_a_worker_is_lost_and_another_comes(laptop: Laptop, cluster: Engine) -> None:
    laptop.launch("workers", 150)
    laptop.wait_until("workers", in_the_middle)
    # Not the one with the driver: a driver that is lost with its node needs another `launch`.
    names = cluster.compose("ps", "--format", "{{.Name}}", "worker").stdout.split()
    drives = [name for name in names if "kdstudy run" in cluster.docker("top", name, "-eo", "pid,args").stdout]
    (other,) = set(names) - set(drives)
    cluster.docker("kill", other)
    note_recovery(
        "compose, a worker is lost, until its run began again",
        laptop.wait_until("workers", lambda runs: any(run["losses"] for run in runs)),
    )
    cluster.compose("up", "--detach", "--no-build", "--wait", "--scale", "worker=2")
    laptop.require_whole("workers")


def test_the_store_and_the_bucket_are_restarted(laptop: Laptop, cluster: Engine) -> None:
    laptop.launch("stores", 170)
    laptop.wait_until("stores", in_the_middle)
    cluster.compose("restart", "--timeout", "1", "postgres")
    before = trained(laptop.runs("stores"))
    note_recovery(
        "compose, PostgreSQL is restarted, until an epoch was recorded",
        laptop.wait_until("stores", lambda runs: trained(runs) > before),
    )
    laptop.require_whole("stores")


def test_no_process_and_no_container_shows_a_secret(cluster: Engine) -> None:
    names = cluster.compose("ps", "--format", "{{.Name}}").stdout.split()
    shown = "".join(cluster.docker("inspect", name).stdout for name in names)
    shown += cluster.compose("logs", "--no-color").stdout
    processes = "".join(cluster.docker("top", name, "-eo", "pid,args").stdout for name in names)
    for path in SECRETS.iterdir():
        said = path.read_text().strip()
        if "\n" in said or path.name in ("s3_identities.json", "pages_users"):
            continue
        assert said not in shown, path.name
        # Ray's head hands Redis' password to its own processes as an argument (SECURITY.md).
        if path.name != "redis_password":
            assert said not in processes, path.name
