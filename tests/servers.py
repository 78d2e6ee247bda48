"""Servers that tests start for themselves, where their programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest


def note_recovery(what: str, seconds: float) -> None:
    """Keep how long it took, in the file that `KDSTUDY_RECOVERY` names, for docs/reliability.md."""
    if name := os.environ.get("KDSTUDY_RECOVERY"):
        with Path(name).open("a", encoding="utf-8") as stream:
            stream.write(f"{what}: {seconds:.1f} s\n")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Postgres:
    """A PostgreSQL server with a cluster of its own, on a port of 127.0.0.1; nobody else can log in."""

    def __init__(self) -> None:
        self._programs = _postgres_programs()
        # Not below pytest's own folder, which only root may enter: the server refuses to be root.
        self.folder = Path(tempfile.mkdtemp(prefix="kdstudy-postgres-"))
        self.port = free_port()
        self._user = _unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(self.folder, self._user, pwd.getpwnam(self._user).pw_gid)
        secret = self.folder / "password"
        secret.write_text("a password of the tests")
        if self._user:
            shutil.chown(secret, self._user)
        arguments = ["-D", str(self.folder / "data"), "-U", "kdstudy", "--pwfile", str(secret)]
        arguments += ["--auth", "scram-sha-256", "--no-sync", "--encoding", "UTF8", "--locale", "C"]
        self._call("initdb", *arguments)
        self.start()

    @property
    def server(self) -> str:
        """Its address, without a database and without a password (`PGPASSFILE` has that)."""
        return f"postgresql://kdstudy@127.0.0.1:{self.port}"

    @property
    def password_file(self) -> Path:
        """The password in a file of its own."""
        return self.folder / "password"

    def create(self, database: str) -> str:
        """A new database; its address with the password."""
        import psycopg

        password = self.password_file.read_text()
        with psycopg.connect(f"{self.server}/postgres", password=password, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[call-overload]
        return f"postgresql://kdstudy:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        options = ["-k", "", "-c", "listen_addresses=127.0.0.1", "-p", str(self.port), "-c", "fsync=off"]
        options += ["-c", "max_connections=200"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", str(self.folder / "data"), *options],
            user=self._user,
            stdout=log,
            stderr=log,
            cwd="/",
        )
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            ready = subprocess.run(
                [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)], capture_output=True
            )
            if ready.returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Shut it down at once: the sessions of its clients are cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)
        self._process = None

    def remove(self) -> None:
        """Stop it and remove its files."""
        if self._process is not None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run([self._programs / program, *arguments], user=self._user, capture_output=True, cwd="/")
        assert done.returncode == 0, done.stderr.decode()


def _postgres_programs() -> Path:
    """The folder of PostgreSQL's programs; Debian keeps them off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready")):
            return folder
    pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")


def _unprivileged() -> str | None:
    """A user that a server may run as, where the tests are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


class Bucket:
    """A server of buckets (moto) on a port of 127.0.0.1; what it holds is gone when it stops."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """What its clients are told."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "a secret of the tests",
        }

    def start(self) -> None:
        """Start it, empty, with the bucket `kdstudy`."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 60
        while True:
            try:
                made = urllib.request.Request(f"http://127.0.0.1:{self.port}/kdstudy", method="PUT")
                urllib.request.urlopen(made, timeout=5).close()
                return
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def pause(self) -> None:
        """Answer nobody; what it holds stays."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
