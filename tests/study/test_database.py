"""Addresses of stores, outages, and what of an address may be shown."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from study import database
from study.database import check_url, is_outage, make_engine, patient, without_password
from study.errors import RequestError
from study.store import Store
from tests.servers import Postgres

HIDDEN = "p%40ss"


def test_a_servers_address_gets_the_driver_that_we_use() -> None:
    for kind in ("postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg"):
        assert check_url("KDSTUDY_STORE", f"{kind}://me@db:5433/k") == "postgresql+psycopg://me@db:5433/k"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me@db/k", "stores of kind 'mysql' are not supported; use sqlite:///PATH or postgresql://"),
        ("store.db", "stores of kind 'store.db' are not supported"),
        (f"postgresql://me:{HIDDEN}@db", "names no database"),
        (f"postgresql://me:{HIDDEN}@db:port/k", "no address"),
    ],
)
def test_what_cannot_be_a_store_is_one_line_without_the_password(url: str, says: str) -> None:
    with pytest.raises(RequestError, match="KDSTUDY_STORE: ") as caught:
        check_url("KDSTUDY_STORE", url)
    assert says in str(caught.value)
    assert HIDDEN not in str(caught.value)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_sqlite_on_a_network_mount_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    here, there = SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)
    monkeypatch.setattr(database.psutil, "disk_partitions", lambda all: [here, there])
    with pytest.raises(RequestError, match=rf"lies on a network mount \({kind}\), whose locks SQLite cannot trust"):
        check_url("KDSTUDY_STORE", f"sqlite:///{tmp_path}/deep/er/store.db")
    there.fstype = "xfs"
    check_url("KDSTUDY_STORE", f"sqlite:///{tmp_path}/deep/er/store.db")


def test_an_address_is_shown_without_its_password() -> None:
    assert without_password(f"postgresql://me:{HIDDEN}@db/k") == "postgresql://me@db/k"
    assert HIDDEN not in without_password(f"postgresql://me:{HIDDEN}@db:port/k")


def test_a_password_in_a_file(monkeypatch: pytest.MonkeyPatch, postgres: Postgres, postgres_url: str) -> None:
    bare = without_password(postgres_url)
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    with pytest.raises(RequestError, match="cannot be opened as a store") as caught:
        Store(bare)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("KDSTUDY_STORE_PASSWORD_FILE", str(postgres.password_file))
    with Store(bare).opened() as store:
        assert store.study_names() == []
    monkeypatch.setenv("KDSTUDY_STORE_PASSWORD_FILE", str(postgres.folder / "none"))
    with pytest.raises(RequestError, match=r"KDSTUDY_STORE_PASSWORD_FILE: .* cannot be read"):
        Store(bare)


def test_a_wrong_password_is_said_at_once_and_not_waited_for(postgres_url: str) -> None:
    wrong = sa.make_url(postgres_url).set(password="wrong").render_as_string(hide_password=False)
    began = time.monotonic()
    with pytest.raises(RequestError, match="password authentication failed"):
        Store(wrong)
    assert time.monotonic() - began < 5


def failure(orig: Exception, invalidated: bool = False) -> sa.exc.OperationalError:
    return sa.exc.OperationalError("SELECT 1", None, orig, connection_invalidated=invalidated)


class Said(Exception):
    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (failure(Said("server closed the connection unexpectedly")), True),
        (failure(Said("terminating connection due to administrator command", "57P01")), True),
        (failure(Said("the database system is starting up", "57P03")), True),
        (failure(Said("whatever"), invalidated=True), True),
        (failure(Said('connection failed: FATAL: password authentication failed for user "me"')), False),
        (failure(Said('connection failed: FATAL: database "k" does not exist')), False),
        (failure(Said("could not extend file: No space left on device", "53100")), False),
        (failure(Said("deadlock detected", "40P01")), False),
        (ValueError("no"), False),
    ],
)
def test_what_is_an_outage(error: Exception, outage: bool) -> None:
    assert is_outage(error) == outage
    wrapped = RuntimeError("a library's own")
    wrapped.__cause__ = error
    assert is_outage(wrapped) == outage


def test_a_call_waits_for_a_server_that_comes_back_and_gives_up_on_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    calls: list[int] = []

    def call(times: int) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise failure(Said("server closed the connection unexpectedly"))
        return "there"

    assert patient(call)(3) == "there"
    assert len(calls) == 4
    monkeypatch.setattr(database, "OUTAGE_SECONDS", 0.0)
    with pytest.raises(sa.exc.OperationalError):
        patient(call)(10_000)


def test_a_store_outlives_a_restart_of_its_server_and_so_does_the_lock(postgres: Postgres, postgres_url: str) -> None:
    with Store(postgres_url).opened() as store:
        store.create_study("a", {})
        lock = database.SessionLock(store.engine, "a")
        assert lock.acquire()
        found: list[Any] = []
        postgres.stop()
        waiting = threading.Thread(target=lambda: found.append(store.study_names()))
        waiting.start()
        time.sleep(0.5)
        assert found == []
        postgres.start()
        waiting.join(20)
        assert found == [["a"]]
        assert lock.keep()
        other = database.SessionLock(make_engine(postgres_url), "a")
        assert not other.acquire()
        lock.release()
        assert other.acquire()
        assert not lock.keep()
        other.release()


def test_what_other_threads_would_import_in_the_middle_of_a_study_is_there_when_a_store_is_open(tmp_path: Path) -> None:
    # Statements that are built while another thread imports it fail: seen with MLflow's first use.
    opened = f"from study.store import Store; Store('sqlite:///{tmp_path}/s.db')"
    code = f"{opened}; import sys; print('sqlalchemy.orm' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "True\n"
