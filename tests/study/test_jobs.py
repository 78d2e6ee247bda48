"""What a launched study sends to a cluster: the code, the spec and addresses, and nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study import jobs
from study.errors import RequestError
from study.home import open_home
from tests.study.given import Command, keep_teacher
from tests.study.simulation import spec_of
from trainables import teachers

ADDRESS = "http://head:8265"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*jobs._ADDRESSES, "KDSTUDY_JOB"):
        monkeypatch.delenv(name, raising=False)


def test_the_code_and_the_spec_travel_and_nothing_compiled() -> None:
    job = jobs.prepare(spec_of(), ADDRESS)
    assert {"kdstudy.py", "study/cli.py", "trainables/tune_adapter.py", "spec.json"} <= set(job.files)
    assert {"analysis/published/table2_cifar100.csv", "search_spaces/studies/quickstart.yaml"} <= set(job.files)
    assert not [name for name in job.files if "__pycache__" in name or name.endswith(".pyc")]
    assert sum(job.files.values()) < 5_000_000
    with jobs._folder(job) as folder:
        assert json.loads((folder / "spec.json").read_text()) == spec_of().model_dump(mode="json")


def test_the_driver_runs_the_spec_that_was_sent_and_knows_its_job() -> None:
    job = jobs.prepare(spec_of(), ADDRESS, options=["--max-devices", "2"], on="worker")
    assert job.command == "python -m kdstudy run spec.json --address auto --max-devices 2"
    assert job.environment == {"KDSTUDY_JOB": job.submission}
    assert job.submission.startswith("kdstudy-sim-")
    assert job.resources == {"worker": 0.001}
    assert jobs.prepare(spec_of(), ADDRESS).submission != job.submission


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        ("KDSTUDY_STORE", "postgresql://me:hidden@db:5432/kdstudy", "postgresql://me@db:5432/kdstudy"),
        ("KDSTUDY_STORE", "postgresql://me@db/kdstudy", "postgresql://me@db/kdstudy"),
        ("MLFLOW_TRACKING_URI", "http://me:hidden@mlflow:5000", "http://mlflow:5000"),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example/base", "https://mlflow.example/base"),
        ("KDSTUDY_STORAGE", "s3://bucket/studies", "s3://bucket/studies"),
        ("KDSTUDY_STORAGE", "/mnt/shared", "/mnt/shared"),
        ("AWS_ENDPOINT_URL", "http://objects:9000", "http://objects:9000"),
    ],
)
def test_an_address_travels_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sent: str
) -> None:
    monkeypatch.setenv(name, value)
    job = jobs.prepare(spec_of(), ADDRESS)
    assert job.environment[name] == sent
    assert "hidden" not in repr(job)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KDSTUDY_STORE", "postgresql://me@localhost:5432/kdstudy"),
        ("KDSTUDY_STORE", "sqlite:////home/me/store.db"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"),
        ("AWS_ENDPOINT_URL", "http://[::1]:9000"),
    ],
)
def test_an_address_of_this_host_alone_stays_here_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    job = jobs.prepare(spec_of(), ADDRESS)
    assert name not in job.environment
    assert "of this host" in job.left[name]
    given = jobs.prepare(spec_of(), ADDRESS, variables={name: "postgresql://me@db/kdstudy"})
    assert given.environment[name] == "postgresql://me@db/kdstudy"
    assert name not in given.left


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGPASSWORD", "hidden"),
        ("MLFLOW_TRACKING_PASSWORD", "hidden"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("RAY_AUTH_TOKEN", "hidden"),
        ("KDSTUDY_STORE", "postgresql://me:hidden@db/kdstudy"),
    ],
)
def test_a_secret_is_not_sent(name: str, value: str) -> None:
    with pytest.raises(RequestError, match=f"--env: {name} holds a secret") as caught:
        jobs.prepare(spec_of(), ADDRESS, variables={name: value})
    assert "hidden" not in str(caught.value)


def test_a_secrets_file_may_be_named() -> None:
    named = {"KDSTUDY_STORE_PASSWORD_FILE": "/run/secrets/store"}
    assert jobs.prepare(spec_of(), ADDRESS, variables=named).environment.items() >= named.items()


def test_code_of_the_users_own_travels_too(tmp_path: Path) -> None:
    package = tmp_path / "my_losses"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("mine = 1\n")
    (package / "__pycache__" / "old.pyc").write_bytes(b"")
    job = jobs.prepare(spec_of(), ADDRESS, extra=[package])
    assert job.files["my_losses/__init__.py"] == 9
    assert not [name for name in job.files if name.startswith("my_losses/__pycache__")]


@pytest.mark.parametrize("name", ["study", "kdstudy.py"])
def test_code_that_would_stand_in_for_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(RequestError, match=f"--with: {name} is a name of kdstudy's own"):
        jobs.prepare(spec_of(), ADDRESS, extra=[tmp_path / name])
    with pytest.raises(RequestError, match=r"--with: .* does not exist"):
        jobs.prepare(spec_of(), ADDRESS, extra=[tmp_path / "nothing"])


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "http://me:hidden@head:8265"])
def test_an_address_that_is_no_dashboards_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="--address: ") as caught:
        jobs.prepare(spec_of(), address)
    assert "hidden" not in str(caught.value)


def test_a_dry_run_shows_what_would_be_sent(kdstudy: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSTUDY_STORE", "postgresql://me:hidden@db/kdstudy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    kdstudy("init", "mine")
    answer = kdstudy("launch", "mine.yaml", "--address", ADDRESS, "--dry-run", "--env", "A=1", "--set", "seeds=2")
    assert answer.code == 0, answer.err
    for line in (
        f"to        {ADDRESS}",
        "command   python -m kdstudy run spec.json --address auto",
        "variable  KDSTUDY_STORE=postgresql://me@db/kdstudy",
        "variable  A=1",
        "not sent  MLFLOW_TRACKING_URI: an address of this host alone",
        "study/cli.py",
        '"name": "mine"',
    ):
        assert line in answer.out, line
    assert "hidden" not in answer.out


def test_teachers_that_this_home_has_are_put_where_the_nodes_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = keep_teacher()
    here = spec_of(methods={"kd": {}}, teacher={"checkpoint": "given"})
    assert jobs.publish_teachers(here, open_home()) == []  # no storage that others see
    monkeypatch.setenv("KDSTUDY_STORAGE", str(tmp_path / "shared"))
    assert jobs.publish_teachers(here, open_home()) == ["given"]
    assert jobs.publish_teachers(spec_of(methods={"kd": {}}, teacher={"checkpoint": "other"}), open_home()) == []
    assert jobs.publish_teachers(spec_of(), open_home()) == []
    for reference in ("gi", "given"):  # the first is the beginning of a name, and no name
        teachers.fetch(tmp_path / "node", reference, str(tmp_path / "shared"))
        assert len(teachers.list_records(tmp_path / "node")) == (reference == "given")
    assert teachers.find(tmp_path / "node", record.hash) == record


def test_nobody_at_the_address_is_one_line(kdstudy: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    answer = kdstudy("launch", "quickstart", "--address", "http://127.0.0.1:9")
    assert answer.code == 2
    assert answer.err.startswith("kdstudy: --address: no Ray cluster answers at http://127.0.0.1:9: ")
    assert answer.err.count("\n") == 1


def test_a_token_is_asked_for_before_the_cluster_is(
    kdstudy: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    answer = kdstudy("launch", "quickstart", "--address", ADDRESS)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "RAY_AUTH_TOKEN_PATH: name the file with the cluster's token" in answer.err
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    assert "is no file" in kdstudy("launch", "quickstart", "--address", ADDRESS).err
