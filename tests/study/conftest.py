"""Every test of the service has a home of its own."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

from study import cli
from study.database import check_url
from tests.servers import Postgres
from tests.study.given import Answer, Command


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("KDSTUDY_HOME", str(folder))
    for name in ("KDSTUDY_STORE", "KDSTUDY_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The address, password included, of a database that no other test uses."""
    return check_url("KDSTUDY_STORE", postgres.create(f"test-{uuid.uuid4().hex}"))


@pytest.fixture
def kdstudy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The real command line, in this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["kdstudy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return Answer(int(ended.value.code or 0), shown.out, shown.err)

    return call
