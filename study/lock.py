"""One driver a study: a file's lock beside an SQLite store, a session's advisory lock on PostgreSQL.

Both are the operating system's or the server's, so that a driver that died has none.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from study.database import SessionLock, is_sqlite, patient
from study.errors import RequestError
from study.home import Home
from study.store import Store

# A driver of an SQLite store that was heard of so lately is taken to be alive, on whichever host.
ALIVE_SECONDS = 60.0
# How long a driver that is being killed may keep its lock: the next one waits for it.
_PATIENCE = 2.0


@contextlib.contextmanager
def hold(home: Home, store: Store, study: str) -> Iterator[Callable[[], bool]]:
    """Be the study's only driver while the block lasts.

    Yields:
        Asks whether it still is: a database's server that was restarted has forgotten the lock.

    Raises:
        RequestError: another driver is at work; says which.
    """
    with _file_lock(home, store, study) if is_sqlite(store.url) else _session_lock(store, study) as keep:
        store.set_driver(study, whoami(), socket.gethostname(), {})
        try:
            yield keep
        finally:
            store.remove_driver(study)


def whoami() -> str:
    """This process, as others are told of it."""
    job = os.environ.get("KDSTUDY_JOB")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")


@contextlib.contextmanager
def _file_lock(home: Home, store: Store, study: str) -> Iterator[Callable[[], bool]]:
    _require_one_host(store)
    home.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.locks / f"{study}.lock")
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=0.05)  # whoever only asks `is_driven` holds it for an instant
    except Timeout:
        raise _refusal(store, study) from None
    try:
        yield lambda: True
    finally:
        lock.release()


def _require_one_host(store: Store) -> None:
    here = socket.gethostname()
    for driver in store.drivers():
        if driver.host != here and abs(time.time() - driver.seen) < ALIVE_SECONDS:
            raise RequestError(
                f"the store is an SQLite file and {driver.who} writes to it now; SQLite cannot be shared between "
                f"hosts: set KDSTUDY_STORE to postgresql://USER@HOST/DATABASE, or wait until that driver has ended"
            )


@contextlib.contextmanager
def _session_lock(store: Store, study: str) -> Iterator[Callable[[], bool]]:
    lock = SessionLock(store.engine, study)
    acquire, give_up = patient(lock.acquire), time.monotonic() + _PATIENCE
    while not acquire():
        if time.monotonic() > give_up:
            raise _refusal(store, study)
        time.sleep(0.1)
    try:
        yield lock.keep
    finally:
        lock.release()


def _refusal(store: Store, study: str) -> RequestError:
    driver = store.driver(study)
    who = driver.who if driver else "another process"
    return RequestError(f"study {study} is being run already, by {who}; `kdstudy status {study} --watch` follows it")


def is_driven(home: Home, store: Store, study: str) -> bool:
    """Whether a living driver holds the study."""
    if not is_sqlite(store.url):
        return patient(SessionLock(store.engine, study).is_taken)()
    if not home.locks.exists():
        return False
    try:
        with FileLock(home.locks / f"{study}.lock").acquire(blocking=False):
            return False
    except Timeout:
        return True
