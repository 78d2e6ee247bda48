"""The database below the store: SQLite in one file, or PostgreSQL, and what differs between them.

Writers are serialised on both, by the file's lock or by an advisory lock of the transaction: whoever follows a study by
its revisions then never sees a later one before an earlier one. A server that is restarted delays its clients and fails
none of them.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from study.errors import RequestError, one_line

log = logging.getLogger("kdstudy.database")

_BUSY_SECONDS = 60  # a writer's patience with the others
OUTAGE_SECONDS = 900.0
"""How long a server may be away before its clients give up."""

_POSTGRES = ("postgresql", "postgres")
_NETWORK_MOUNTS = ("afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "smb")

P = ParamSpec("P")
T = TypeVar("T")


def is_sqlite(url: str) -> bool:
    """Whether an address names a file rather than a server."""
    return url.startswith("sqlite:///")


def sqlite_file(url: str) -> Path:
    """The file of an SQLite address."""
    return Path(url.removeprefix("sqlite:///"))


def without_password(url: str) -> str:
    """An address as it may be shown, logged or sent: what stands in for its password is not the password."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return url.partition(":")[0] + ":…"
    return parsed._replace(password=None).render_as_string()


def check_url(variable: str, url: str) -> str:
    """A store's address in the form that SQLAlchemy takes.

    Raises:
        RequestError: it is neither an SQLite file on a disk of this host nor a PostgreSQL server.
    """
    kind = url.partition(":")[0].partition("+")[0]
    if is_sqlite(url):
        _require_local(variable, sqlite_file(url))
        return url
    if kind not in _POSTGRES:
        raise RequestError(
            f"{variable}: stores of kind {kind!r} are not supported; use sqlite:///PATH or "
            "postgresql://USER@HOST/DATABASE"
        )
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise RequestError(f"{variable}: no address; use postgresql://USER@HOST:PORT/DATABASE") from None
    if not parsed.database:
        raise RequestError(f"{variable}: {without_password(url)} names no database; …/DATABASE is missing")
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _require_local(variable: str, file: Path) -> None:
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    mount = next((str(parent) for parent in (folder, *folder.parents) if str(parent) in mounts), "/")
    kind = mounts.get(mount, "")
    if any(kind == network or kind.startswith(f"{network}.") or kind == f"{network}4" for network in _NETWORK_MOUNTS):
        raise RequestError(
            f"{variable}: {file} lies on a network mount ({kind}), whose locks SQLite cannot trust; put it on a local "
            "disk, or use postgresql://USER@HOST/DATABASE"
        )


def password() -> str | None:
    """The server's password where a file has it (`KDSTUDY_STORE_PASSWORD_FILE`).

    Without one the driver's own ways hold: `PGPASSWORD`, `PGPASSFILE`, `~/.pgpass`.

    Raises:
        RequestError: the file cannot be read.
    """
    name = os.environ.get("KDSTUDY_STORE_PASSWORD_FILE")
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RequestError(f"KDSTUDY_STORE_PASSWORD_FILE: {name} cannot be read ({error.strerror})") from None


def connect_arguments(url: str) -> dict[str, Any]:
    """What a connection takes beside its address."""
    if is_sqlite(url):
        return {"timeout": _BUSY_SECONDS}
    arguments: dict[str, Any] = {
        "connect_timeout": 10,
        "application_name": "kdstudy",
        # A host that lost its power says no goodbye: its connections, and the locks that they hold, end by these.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }
    if not sa.make_url(url).password and (given := password()):
        arguments["password"] = given
    return arguments


def make_engine(url: str) -> sa.Engine:
    """An engine whose transactions, where they are marked `kdstudy_write`, come one after the other."""
    # MLflow and Optuna import this when they are used first, in a thread of its own and in the middle of a study; a
    # statement that another thread builds at that moment finds it half made and fails.
    import sqlalchemy.orm  # noqa: F401

    engine = sa.create_engine(url, connect_args=connect_arguments(url), pool_pre_ping=not is_sqlite(url))
    if is_sqlite(url):
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        sa.event.listen(engine, "connect", _configure_postgres)
        sa.event.listen(engine, "begin", _begin_postgres)
    return engine


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """An insert that knows ON CONFLICT, which both databases spell alike."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, in `_begin_sqlite`
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={1000 * _BUSY_SECONDS}")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    # Where several processes make a new store at once, SQLite refuses the change of journal without waiting.
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer that reads first must hold the lock from the start: SQLite refuses to upgrade a stale reader.
    writes = connection.get_execution_options().get("kdstudy_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _configure_postgres(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        # A driver that hangs in the middle of a transaction must not hold up the others for ever.
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()


def _begin_postgres(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("kdstudy_write", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock_key('store')})")


def lock_key(*parts: str) -> int:
    """The number of an advisory lock: 63 bits of a hash."""
    return int.from_bytes(hashlib.sha256("\0".join(("kdstudy", *parts)).encode()).digest()[:8], "big") >> 1


def is_outage(error: Exception) -> bool:
    """Whether an error means that the server is away or went away, so that the same call may succeed later."""
    # Optuna wraps what its database says.
    while error.__cause__ is not None and not isinstance(error, sa.exc.DBAPIError):
        if not isinstance(error.__cause__, Exception):
            return False
        error = error.__cause__
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    if error.connection_invalidated:
        return True
    # Class 08: connections; 57P01 to 57P03: shut down, crashed, starting; 53300: too many; none: it never answered.
    state = getattr(error.orig, "sqlstate", None)
    permanent = ("password authentication", "no password supplied", "does not exist")
    if any(words in str(error.orig) for words in permanent):
        return False
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) and (
        state is None or state[:2] == "08" or state in ("57P01", "57P02", "57P03", "53300")
    )


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """Try a call again while the database's server is away, up to `OUTAGE_SECONDS`."""

    @wraps(call)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        give_up, wait = time.monotonic() + OUTAGE_SECONDS, 0.2
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not is_outage(error) or time.monotonic() > give_up:
                    raise
                if wait == 0.2:
                    log.warning("the store does not answer; waiting for it (%s)", one_line(error))
            time.sleep(wait)
            wait = min(2 * wait, 5.0)

    return again


def patient_methods(cls: type[T]) -> type[T]:
    """Make all public methods of a class patient; each is one transaction that may be made again."""
    for name, member in vars(cls).items():
        if (
            not name.startswith("_")
            and inspect.isfunction(member)
            and not inspect.isgeneratorfunction(inspect.unwrap(member))
        ):
            setattr(cls, name, patient(member))
    return cls


class SessionLock:
    """An advisory lock of PostgreSQL: it lives as long as its session, so a dead holder has none."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine, self._key = engine, lock_key("driver", name)
        self._connection: sa.Connection | None = None

    def acquire(self) -> bool:
        """Take it; False where another session has it."""
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.scalar(sa.select(sa.func.pg_try_advisory_lock(self._key))):
            self._connection = connection
            return True
        connection.close()
        return False

    def keep(self) -> bool:
        """Whether it is still ours: after an outage it is taken again, unless another was faster."""
        try:
            if self._connection is not None:
                self._connection.scalar(sa.select(1))
                return True
        except sa.exc.DBAPIError:
            self.release()
        return patient(self.acquire)()

    def release(self) -> None:
        """Give it back."""
        if self._connection is not None:
            # Not into the pool: a session that lives on would keep the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def is_taken(self) -> bool:
        """Whether any session has it."""
        high, low = self._key >> 32, self._key & 0xFFFFFFFF
        query = sa.text(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND classid = :high AND "
            "objid = :low AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        with self._engine.connect() as connection:
            return connection.scalar(query, {"high": high, "low": low}) is not None


@contextmanager
def exclusively(engine: sa.Engine, name: str) -> Iterator[None]:
    """Wait for, and have, an advisory lock of PostgreSQL while a block lasts."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        key = lock_key(name)
        connection.scalar(sa.select(sa.func.pg_advisory_lock(key)))
        try:
            yield
        finally:
            connection.scalar(sa.select(sa.func.pg_advisory_unlock(key)))
