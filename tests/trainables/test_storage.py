"""Folders and buckets keep bytes alike: the same checks on both."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Bucket
from trainables import storage as storages
from trainables.storage import Storage, StorageError, below, open_storage


@pytest.fixture
def bucket(buckets: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in buckets.environment.items():
        monkeypatch.setenv(name, value)
    open_storage.cache_clear()
    yield buckets
    open_storage.cache_clear()


@pytest.fixture(params=["folder", "bucket"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "storage")
    request.getfixturevalue("bucket")
    return f"s3://kdstudy/{uuid.uuid4().hex}"


@pytest.fixture
def storage(address: str) -> Storage:
    return open_storage(address)


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, os.urandom(3_000_000)], ids=len)
def test_what_was_written_is_read(storage: Storage, content: bytes) -> None:
    storage.write("a/b.pt", content)
    assert storage.read("a/b.pt") == content


def test_the_last_one_written_is_read(storage: Storage) -> None:
    storage.write("a", b"old")
    storage.write("a", b"new")
    assert storage.read("a") == b"new"
    assert storage.names() == ["a"]


def test_what_was_not_written_is_not_there(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a/b")
    assert storage.names() == []
    assert storage.names("a") == []


def test_names_are_those_of_a_folder_and_not_of_one_that_begins_alike(storage: Storage) -> None:
    for name in ("run/attempt-1/b", "run/attempt-1/a", "run/attempt-10/a", "runs/a"):
        storage.write(name, b"")
    assert storage.names("run/attempt-1") == ["run/attempt-1/a", "run/attempt-1/b"]
    assert storage.names("run") == ["run/attempt-1/a", "run/attempt-1/b", "run/attempt-10/a"]
    assert len(storage.names()) == 4


def test_a_folder_of_a_storage_is_one_too(address: str, storage: Storage) -> None:
    inner = open_storage(below(address, "checkpoints", "run"))
    inner.write("a", b"1")
    assert storage.read("checkpoints/run/a") == b"1"
    assert inner.names() == ["a"]


def test_deleting_twice_is_no_error(storage: Storage) -> None:
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    for _ in range(2):
        storage.delete("a/b/c")
    assert storage.names() == ["a/d"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", ""])
def test_a_name_that_leads_out_is_refused(storage: Storage, name: str) -> None:
    for call in (storage.read, storage.delete, lambda at: storage.write(at, b"")):
        with pytest.raises(ValueError, match="no name within a storage"):
            call(name)


def test_several_writers_of_one_name_leave_one_of_their_contents(storage: Storage) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    writers = [threading.Thread(target=storage.write, args=("a", content)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert storage.read("a") in contents


def test_a_folder_leaves_no_empty_folders_and_no_torn_files(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "s"))
    storage.write("run/attempt-1/a", b"")
    (tmp_path / "s" / "run" / "attempt-1" / ".tmp-killed").write_bytes(b"torn")
    assert storage.names() == ["run/attempt-1/a"]
    storage.delete("run/attempt-1/a")
    assert list((tmp_path / "s").iterdir()) == []


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="use a folder or s3://BUCKET/PREFIX"):
        open_storage("gs://bucket/x")
    with pytest.raises(ValueError, match="names no bucket"):
        open_storage("s3://")


def test_a_bucket_that_is_not_there_is_one_line_at_once(bucket: Bucket) -> None:
    began = time.monotonic()
    with pytest.raises(StorageError, match="s3://absent/x/a: NoSuchBucket: ") as caught:
        open_storage("s3://absent/x").write("a", b"")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5


def test_a_server_that_is_away_for_a_while_delays_a_write(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    away = open_storage("s3://kdstudy/away")
    began = time.monotonic()
    with pytest.raises(StorageError, match="s3://kdstudy/away/a: Could not connect") as caught:
        away.write("a", b"", 1.0)
    assert 0.2 < time.monotonic() - began < 5
    assert bucket.environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_comes_back_gets_what_was_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Bucket()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    open_storage.cache_clear()
    storage = open_storage("s3://kdstudy/x")
    server.stop()
    writer = threading.Thread(target=storage.write, args=("a", b"1"))
    writer.start()
    time.sleep(2)
    assert writer.is_alive()
    server.start()
    writer.join(30)
    assert storage.read("a") == b"1"
    server.stop()
    open_storage.cache_clear()


def test_without_boto3_a_bucket_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    open_storage.cache_clear()
    with pytest.raises(StorageError, match="buckets need boto3, which is not installed"):
        open_storage("s3://kdstudy/none")


def test_a_full_disk_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storages, "write_atomic", full)
    with pytest.raises(OSError, match="No space left on device"):
        open_storage(str(tmp_path)).write("a", b"")
