"""A study as a job on a Ray cluster: what is sent, sending it, and following it.

A job carries the code and the spec; what is secret it does not carry. The nodes have the passwords in their own
environment or in files, since whatever a job brings along can be read on the cluster's pages.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import logging
import math
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from study.database import is_sqlite, without_password
from study.errors import RequestError
from study.home import Home
from study.launcher import quiet, require_token
from study.spec import Spec

SPEC_FILE = "spec.json"
_OURS = ("study", "trainables", "search_spaces", "analysis", "kdstudy.py")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".git", ".venv")
# Addresses that a job is told, where they are set here and mean something elsewhere.
_ADDRESSES = ("KDSTUDY_STORE", "MLFLOW_TRACKING_URI", "KDSTUDY_STORAGE", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
_METADATA = "kdstudy.study"
# How long a cluster that was there is waited for by those who follow a job.
AWAY_SECONDS = 120.0
# They set levels of their own.
_CHATTER = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


@dataclass(frozen=True)
class Job:
    """What is sent to a cluster.

    Attributes:
        study: its name.
        address: of the cluster's dashboard, http://HOST:8265.
        submission: the job's id on the cluster.
        command: what the job runs.
        environment: variables that it is given; none of them is secret.
        left: variables that are set here and not sent, with the reason.
        resources: what the driver's node must have.
        spec: the study, resolved.
        extra: files and folders of the user's own that travel too.
    """

    study: str
    address: str
    submission: str
    command: str
    environment: dict[str, str]
    left: dict[str, str]
    resources: dict[str, float]
    spec: dict[str, Any]
    extra: tuple[Path, ...] = ()
    files: dict[str, int] = field(default_factory=dict)


def prepare(
    spec: Spec,
    address: str,
    *,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    on: str | None = None,
    extra: Sequence[Path] = (),
) -> Job:
    """Say what would be sent.

    Args:
        spec: the study.
        address: of the cluster's dashboard.
        options: further arguments of `kdstudy run`.
        variables: environment of the job, beside the addresses that are set here.
        on: name of a resource that the driver's node must have, to keep it off the head.
        extra: files and folders with methods, models or data sets of the user's own.

    Raises:
        RequestError: an address that is no dashboard's, a secret among what would be sent, or a missing file.
    """
    _check_address(address)
    for path in extra:
        if not path.exists():
            raise RequestError(f"--with: {path} does not exist")
        if path.name in _OURS:
            raise RequestError(f"--with: {path.name} is a name of kdstudy's own; call it otherwise")
    given = dict(variables or {})
    for name, value in given.items():
        _require_harmless("--env", name, value)
    environment, left = _addresses()
    environment |= given
    submission = f"kdstudy-{spec.name}-{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}"
    arguments = ["python", "-m", "kdstudy", "run", SPEC_FILE, "--address", "auto", *options]
    resolved = spec.model_dump(mode="json")
    job = Job(
        study=spec.name,
        address=address,
        submission=submission,
        command=shlex.join(arguments),
        environment={**environment, "KDSTUDY_JOB": submission},
        left={name: why for name, why in left.items() if name not in given},
        resources={on: 0.001} if on else {},
        spec=resolved,
        extra=tuple(extra),
    )
    with _folder(job) as folder:
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
        }
    job.files.update(sizes)
    return job


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(f"--address: {address} is no dashboard's address; give http://HOST:8265")
    if parts.password or parts.username:
        raise RequestError("--address: no password belongs into it; the token is read from RAY_AUTH_TOKEN_PATH")


def _addresses() -> tuple[dict[str, str], dict[str, str]]:
    """The addresses that a job is told, and those that it is not, with the reason."""
    sent, left = {}, {}
    for name in _ADDRESSES:
        value = os.environ.get(name)
        if not value:
            continue
        if is_sqlite(value) or value.startswith("file:"):
            left[name] = "a file of this host; the cluster's own holds"
        elif _is_here_only(value):
            left[name] = "an address of this host alone; the cluster's own holds"
        elif name == "MLFLOW_TRACKING_URI" and urlsplit(value).scheme in ("http", "https"):
            parts = urlsplit(value)
            sent[name] = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        elif "://" in value:
            sent[name] = without_password(value) if name in ("KDSTUDY_STORE", "MLFLOW_TRACKING_URI") else value
        else:
            sent[name] = str(Path(value).expanduser().absolute())
    return sent, left


def _is_here_only(address: str) -> bool:
    host = urlsplit(address).hostname if "://" in address else None
    if not host:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_harmless(option: str, name: str, value: str) -> None:
    """Refuse what would show a secret on the cluster's pages."""
    words = name.upper().split("_")
    is_file = words[-1] in ("FILE", "PATH")
    secret = {"PASSWORD", "SECRET", "TOKEN", "PASS", "PGPASSWORD", "KEY", "CREDENTIALS"} & set(words)
    if (secret and not is_file) or ("://" in value and urlsplit(value).password):
        raise RequestError(
            f"{option}: {name} holds a secret, which the cluster's pages would show; give it to the nodes as a file "
            f"and name that"
        )


@contextmanager
def _folder(job: Job) -> Iterator[Path]:
    """The job's working folder: our packages, the spec, and what else travels."""
    ours = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="kdstudy-job-") as made:
        folder = Path(made)
        for path in (*(ours / name for name in _OURS), *job.extra):
            target = folder / path.resolve().name
            if path.is_dir():
                shutil.copytree(path, target, ignore=_LEFT_OUT)
            else:
                shutil.copy2(path, target)
        (folder / SPEC_FILE).write_text(json.dumps(job.spec, indent=2), encoding="utf-8")
        yield folder


def submit(job: Job) -> None:
    """Send a job.

    Raises:
        RequestError: the cluster does not answer, lets nobody in without its token, or refuses the job.
    """
    client = _client(job.address)
    with _folder(job) as folder:
        try:
            client.submit_job(
                entrypoint=job.command,
                submission_id=job.submission,
                runtime_env={"working_dir": str(folder), "env_vars": job.environment},
                metadata={_METADATA: job.study},
                entrypoint_resources=job.resources or None,
            )
        except RuntimeError as error:
            raise RequestError(f"--address: the cluster refuses the job: {_first_line(error)}") from None


def publish_teachers(spec: Spec, home: Home) -> list[str]:
    """Put the teachers that a spec names and this home has where the nodes find them; their names.

    Raises:
        RequestError: the storage does not take them.
    """
    named = {spec.teacher_of(pair).checkpoint for pair in spec.pairs} - {None}
    if not named or not os.environ.get("KDSTUDY_STORAGE"):
        return []
    from trainables import teachers
    from trainables.files import CheckpointError

    published = []
    for reference in sorted(map(str, named)):
        try:
            teachers.publish(home.root, reference, home.storage)
        except CheckpointError:
            continue  # not ours: the cluster may have it
        except OSError as error:
            raise RequestError(f"KDSTUDY_STORAGE: {error}") from None
        published.append(reference)
    return published


def _client(address: str) -> Any:
    require_token()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    quiet()
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise RequestError(f"--address: no Ray cluster answers at {address}: {_first_line(error)}") from None


@dataclass(frozen=True)
class JobState:
    """A job as the cluster knows it: its id, `PENDING` … `SUCCEEDED`, what it says, when it began and ended."""

    submission: str
    study: str
    status: str
    message: str
    started: float | None
    ended: float | None

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def jobs(address: str) -> list[JobState]:
    """The studies' jobs that a cluster remembers, the oldest first.

    Raises:
        RequestError: the cluster does not answer.
    """
    found = [job for job in _client(address).list_jobs() if _METADATA in (job.metadata or {})]
    return sorted(map(_state, found), key=lambda job: job.started or 0.0)


def _state(job: Any) -> JobState:
    return JobState(
        submission=job.submission_id,
        study=job.metadata[_METADATA],
        status=str(job.status.value if hasattr(job.status, "value") else job.status),
        message=_first_line(job.message or ""),
        started=job.start_time / 1000 if job.start_time else None,
        ended=job.end_time / 1000 if job.end_time else None,
    )


def follow(address: str, submission: str) -> Iterator[str]:
    """What a job prints, until it is over; a connection that breaks is made again.

    Raises:
        RequestError: the cluster does not answer, or does not know the job.
    """
    seen, heard = 0, -math.inf
    while True:
        try:
            client = _client(address)
            known = _state(_info(client, submission))
            heard = time.monotonic()
        except RequestError:
            # A head that is started again is away for a moment; one that was never there is not waited for.
            if time.monotonic() - heard > AWAY_SECONDS:
                raise
            time.sleep(2)
            continue
        position = 0  # each connection begins with the first line
        try:
            for text in _tail(client, submission):
                position += len(text)
                if position > seen:
                    yield text[-(position - seen) :]
                    seen = position
        except (RuntimeError, OSError):
            pass
        if known.over:
            # The stream may end before the last lines are in it.
            try:
                yield client.get_job_logs(submission)[seen:]
            except RuntimeError as error:
                yield f"\n(the rest of what it printed cannot be read: {_first_line(error)})\n"
            return
        time.sleep(1)


def _tail(client: Any, submission: str) -> Iterator[str]:
    """Ray's asynchronous stream as an ordinary one."""
    loop = asyncio.new_event_loop()
    stream = client.tail_job_logs(submission)
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(stream))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


def state(address: str, submission: str) -> JobState:
    """How a job stands.

    Raises:
        RequestError: the cluster does not answer, or does not know the job.
    """
    return _state(_info(_client(address), submission))


def _info(client: Any, submission: str) -> Any:
    try:
        return client.get_job_info(submission)
    except RuntimeError as error:
        raise RequestError(f"job {submission}: {_first_line(error)}; `kdstudy jobs` lists them") from None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
