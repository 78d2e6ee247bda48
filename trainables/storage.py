"""Where what must last is kept: a folder, which several hosts may share, or a bucket (`s3://BUCKET/PREFIX`).

A name is written whole or not at all, and read as it was written last. Needs boto3 for buckets alone.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from trainables.files import write_atomic

ARTIFACTS = "artifacts"
"""The folder, in a run's own, of files that are kept with it when it has ended."""

# How long a server that refuses or does not answer is waited for.
PATIENCE_SECONDS = 120.0
_TRANSIENT = {"500", "502", "503", "504", "429", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"}

T = TypeVar("T")


class StorageError(OSError):
    """A storage does not take or give what it is asked for; one line, without secrets."""


class Storage(Protocol):
    """Bytes by name; a name is a relative path with `/`."""

    address: str

    def read(self, name: str) -> bytes:
        """What was written last under a name.

        Raises:
            FileNotFoundError: nothing was.
            OSError: it cannot be read.
        """

    def write(self, name: str, content: bytes, patience: float = PATIENCE_SECONDS) -> None:
        """Write a name, whole or not at all.

        Args:
            name: its name.
            content: all of it.
            patience: seconds to wait for a server that is away.

        Raises:
            OSError: it cannot be written.
        """

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with this folder, sorted."""

    def delete(self, name: str) -> None:
        """Remove a name; one that is not there is no error."""


def is_bucket(address: str) -> bool:
    """Whether an address names a bucket rather than a folder."""
    return address.startswith("s3://")


@lru_cache(maxsize=64)
def open_storage(address: str) -> Storage:
    """The storage at a folder's path or `s3://BUCKET/PREFIX`.

    Raises:
        ValueError: another kind of address, or no bucket in it.
        StorageError: boto3 is missing, which buckets need.
    """
    if is_bucket(address):
        return _Bucket(address)
    if "://" in address:
        raise ValueError(f"{address}: storages of this kind are not supported; use a folder or s3://BUCKET/PREFIX")
    return _Folder(address)


def below(address: str, *names: str) -> str:
    """The address of a folder within a storage."""
    return "/".join([address.rstrip("/"), *names])


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no name within a storage")
    return name


class _Folder:
    def __init__(self, address: str) -> None:
        self.address = address
        self._root = Path(address)

    def read(self, name: str) -> bytes:
        return (self._root / _checked(name)).read_bytes()

    def write(self, name: str, content: bytes, patience: float = PATIENCE_SECONDS) -> None:
        write_atomic(self._root / _checked(name), content)

    def names(self, prefix: str = "") -> list[str]:
        folder = self._root / _checked(prefix) if prefix else self._root
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".tmp-"))
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def delete(self, name: str) -> None:
        path = self._root / _checked(name)
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self._root:
                break
            try:
                parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                    raise
                # A writer that was killed leaves its temporary file: the last of them takes the folder along.
                if any(not left.name.startswith(".tmp-") for left in parent.glob("*")):
                    break
                shutil.rmtree(parent, ignore_errors=True)


class _Bucket:
    def __init__(self, address: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise StorageError(f"{address}: buckets need boto3, which is not installed") from None
        self.address = address
        self._bucket, _, prefix = address.removeprefix("s3://").partition("/")
        if not self._bucket:
            raise ValueError(f"{address}: names no bucket; use s3://BUCKET/PREFIX")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        # Our own patience decides how long in all; path style, since a server's own name may have no subdomains.
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client = boto3.client("s3", config=config)

    def read(self, name: str) -> bytes:
        def get() -> bytes:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"].read()
            return content

        return self._asked(get, name, PATIENCE_SECONDS)

    def write(self, name: str, content: bytes, patience: float = PATIENCE_SECONDS) -> None:
        key = self._key(name)
        self._asked(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=content), name, patience)

    def names(self, prefix: str = "") -> list[str]:
        start = self._key(prefix).rstrip("/") + "/" if prefix else self._prefix
        pages = self._client.get_paginator("list_objects_v2")

        def listed() -> list[str]:
            found = pages.paginate(Bucket=self._bucket, Prefix=start)
            keys: list[str] = [entry["Key"] for page in found for entry in page.get("Contents", [])]
            return keys

        return sorted(key.removeprefix(self._prefix) for key in self._asked(listed, prefix, PATIENCE_SECONDS))

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._asked(lambda: self._client.delete_object(Bucket=self._bucket, Key=key), name, PATIENCE_SECONDS)

    def _key(self, name: str) -> str:
        return self._prefix + _checked(name)

    def _asked(self, call: Callable[[], T], name: str, patience: float) -> T:
        """The answer to a call, once the server gives one."""
        from botocore.exceptions import BotoCoreError, ClientError

        give_up, wait = time.monotonic() + patience, 0.2
        while True:
            try:
                return call()
            except ClientError as error:
                code = _code(error)
                if code in ("NoSuchKey", "404"):
                    raise FileNotFoundError(errno.ENOENT, "there is nothing of this name", self._where(name)) from None
                reason, transient = f"{code}: {error.response.get('Error', {}).get('Message', '')}", code in _TRANSIENT
            except BotoCoreError as error:
                reason = str(error).splitlines()[0]
                transient = "credentials" not in reason.lower()
            if not transient or time.monotonic() + wait > give_up:
                raise StorageError(f"{self._where(name)}: {reason}")
            time.sleep(wait)
            wait = min(2 * wait, 10.0)

    def _where(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"


def _code(error: Any) -> str:
    found = str(error.response.get("Error", {}).get("Code", ""))
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return status if status in _TRANSIENT else found
