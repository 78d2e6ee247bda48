"""The store of a teacher's logits: what is read is what was written, or is not there."""

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables import data
from trainables.logits import Key, LogitStore, drop, key_of, open_store, stored
from trainables.protocol import resolve

KEY = Key("t" * 64, "d" * 64, 40, 7, 1, True, None, "float32", "float32", "cpu", "digits")


def some(key=KEY, n=30, seed=0):
    """Indices, views and logits of n rows, none twice."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randperm(key.images * key.views.count, generator=draw)[:n]
    return places // key.views.count, places % key.views.count, torch.randn(n, key.classes, generator=draw) * 9


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("classes", [2, 7, 100, 32_000])
def test_what_was_written_comes_back_and_nothing_else_is_there(tmp_path, dtype, classes):
    key = dataclasses.replace(KEY, dtype=dtype, classes=classes)
    store = LogitStore(tmp_path, key)
    indices, views, logits = some(key)
    logits = store.rounded(logits)
    store.write(indices[:20], views[:20], logits[:20])
    for reader in (store, LogitStore(tmp_path, key)):  # another one has opened the same file
        found, there = reader.read(indices, views)
        assert there.tolist() == [True] * 20 + [False] * 10
        assert torch.equal(found[:20], logits[:20])
        assert found.dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3e38, 1e-45])
def test_any_number_is_kept_to_the_last_bit(tmp_path, value):
    """A row of zeros is a row, not a hole."""
    store, logits = LogitStore(tmp_path, KEY), torch.full((1, 7), value)
    store.write(torch.tensor([3]), torch.tensor([5]), logits)
    found, there = store.read(torch.tensor([3]), torch.tensor([5]))
    assert bool(there)
    assert torch.equal(found.view(torch.int32), logits.view(torch.int32))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, KEY.row_bytes - 1), st.integers(1, 255))
def test_a_row_of_which_any_byte_differs_is_not_there(tmp_path_factory, byte, flipped):
    store = LogitStore(tmp_path_factory.mktemp("store"), KEY)
    index, view, logits = some(n=1)
    store.write(index, view, logits)
    assert bool(store.read(index, view)[1])
    with (store.folder / "rows.bin").open("r+b") as file:
        file.seek(int(index * KEY.views.count + view) * KEY.row_bytes + byte)
        old = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([old ^ flipped]))
    assert not bool(store.read(index, view)[1])


def test_a_torn_row_and_a_row_in_anothers_place_are_not_there(tmp_path):
    store = LogitStore(tmp_path, KEY)
    indices, views, logits = some(n=2)
    store.write(indices, views, logits)
    places = (indices * KEY.views.count + views).tolist()
    content = (store.folder / "rows.bin").read_bytes()
    row = [content[place * KEY.row_bytes :][: KEY.row_bytes] for place in places]
    with (store.folder / "rows.bin").open("r+b") as file:
        for at, wrong in ((places[0], row[0][:16] + bytes(KEY.row_bytes - 16)), (places[1], row[0])):
            file.seek(at * KEY.row_bytes)
            file.write(wrong)
    assert store.read(indices, views)[1].tolist() == [False, False]
    store.write(indices, views, logits)
    assert store.read(indices, views)[1].all()


def test_a_sparse_store_takes_only_what_is_filled_and_says_so(tmp_path):
    key = dataclasses.replace(KEY, images=50_000, classes=100, pad=4)
    assert key.full_bytes == 50_000 * 162 * 404 == pytest.approx(3.27e9, rel=1e-2)
    store = LogitStore(tmp_path, key)
    (before,) = stored(tmp_path)
    assert before.bytes < 100_000
    indices, views, logits = some(key, 500)
    store.write(indices, views, logits)
    os.sync()
    (after,) = stored(tmp_path)
    assert 500 * 404 <= after.bytes <= before.bytes + 500 * (404 + 2 * 4096)
    assert after.key == key


def test_the_bytes_that_are_foretold_bound_what_is_taken(tmp_path):
    key = dataclasses.replace(KEY, images=2_000, classes=100, pad=4)
    store, indices = LogitStore(tmp_path, key), torch.arange(2_000)
    for draws in range(1, 4):
        views = key.views.view_ids(0, draws, indices)
        store.write(indices, views, torch.randn(2_000, 100))
        os.sync()
        assert stored(tmp_path)[0].bytes <= 1.1 * key.bytes_for(2_000, draws)
    assert key.bytes_for(2_000, 10**6) == key.full_bytes


def test_a_store_belongs_to_its_teacher_data_views_and_precision():
    dataset, protocol = data.load("digits"), resolve("digits-quick")
    key = key_of("a" * 64, dataset, protocol, "float32", "cpu")
    others = [
        key_of("b" * 64, dataset, protocol, "float32", "cpu"),
        key_of("a" * 64, dataclasses.replace(dataset, hash="other"), protocol, "float32", "cpu"),
        key_of("a" * 64, dataset, protocol, "float16", "cpu"),
        key_of("a" * 64, dataset, protocol, "float32", "cuda"),
        *(
            key_of("a" * 64, dataset, resolve("digits-quick", **{field: value}), "float32", "cpu")
            for field, value in (("pad", 2), ("flip", True), ("precision", "bf16"), ("image_size", 16))
        ),
    ]
    assert len({key.name, *(other.name for other in others)}) == 1 + len(others)
    # Labels, batches and the learning rate do not matter to a teacher.
    noisy = data.restrict(dataset, label_noise=0.3)
    same = key_of("a" * 64, noisy, resolve("digits-quick", epochs=3, batch_size=8, lr=0.3), "float32", "cpu")
    assert same.name == key.name


def test_views_that_cannot_be_enumerated_have_no_store():
    protocol = resolve("digits-quick", views="random_resized_crop", image_size=8, eval_resize=9)
    assert key_of("a", data.load("digits"), protocol, "float32", "cpu") is None


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    store = LogitStore(tmp_path, dataclasses.replace(KEY, dtype="float16"))
    assert torch.equal(store.rounded(torch.tensor([1.0001, 65504.0])), torch.tensor([1.0, 65504.0]))
    with pytest.raises(ValueError, match="float16 cannot hold this teacher's logits; use float32"):
        store.rounded(torch.tensor([70000.0]))


def test_a_full_disk_ends_the_writing_and_nothing_else(tmp_path, monkeypatch, caplog):
    store = LogitStore(tmp_path, KEY)
    indices, views, logits = some()
    store.write(indices[:3], views[:3], logits[:3])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        store.write(indices, views, logits)
        store.write(indices, views, logits)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert store.read(indices, views)[1].sum() == 3


def test_a_disk_that_takes_no_store_is_no_reason_to_fail(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert open_store(tmp_path / "file" / "logits", KEY) is None
    assert "asked each time" in caplog.text


def test_a_file_of_another_size_is_refused_in_one_line(tmp_path):
    folder = LogitStore(tmp_path, KEY).folder
    with (folder / "rows.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"rows\.bin: 100 bytes, not .*: drop this store"):
        open_store(tmp_path, KEY)


def test_a_dropped_store_is_gone_for_the_next_and_still_there_for_whoever_has_it(tmp_path):
    store = LogitStore(tmp_path, KEY)
    indices, views, logits = some()
    store.write(indices, views, logits)
    drop(stored(tmp_path)[0])
    assert stored(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert store.read(indices, views)[1].all()
    store.write(indices, views, logits)
    assert not LogitStore(tmp_path, KEY).read(indices, views)[1].any()


def test_what_is_damaged_is_not_listed(tmp_path):
    folder = LogitStore(tmp_path, KEY).folder
    (folder / "key.json").write_text(json.dumps({"teacher": 1}))
    (tmp_path / "else").mkdir()
    assert stored(tmp_path) == []


def _writes(root, ready):
    store = LogitStore(root, KEY)
    ready.wait()
    while True:
        for number in range(20):
            indices, views, logits = some(n=60, seed=number)
            store.write(indices, views, logits)


@pytest.mark.slow
def test_writers_that_are_killed_at_any_moment_leave_whole_rows_only(tmp_path):
    context = multiprocessing.get_context("spawn")
    for attempt in range(3):
        ready = context.Barrier(3)
        writers = [context.Process(target=_writes, args=(tmp_path, ready)) for _ in range(2)]
        for writer in writers:
            writer.start()
        ready.wait(60)
        time.sleep(0.02 * (attempt + 1))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        # Rows that two draws share hold the logits of either.
        wanted = {}
        for number in range(20):
            for index, view, logits in zip(*some(n=60, seed=number), strict=True):
                wanted.setdefault((int(index), int(view)), []).append(logits)
        store, found = LogitStore(tmp_path, KEY), 0
        for (index, view), choices in wanted.items():
            logits, there = store.read(torch.tensor([index]), torch.tensor([view]))
            found += bool(there)
            assert not bool(there) or any(torch.equal(logits[0], choice) for choice in choices)
        assert found


def _claims(root, answers, numbers):
    store = LogitStore(root, KEY)
    answers.put([store.claim(number) for number in numbers])
    time.sleep(60)


@pytest.mark.slow
def test_a_claim_is_one_processs_until_it_gives_it_back_or_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    store, answers = LogitStore(tmp_path, KEY), context.Queue()
    assert store.claim(1)
    other = context.Process(target=_claims, args=(tmp_path, answers, (1, 2)))
    other.start()
    assert answers.get(timeout=60) == [False, True]
    assert not store.claim(2)
    other.kill()
    other.join()
    assert store.claim(2)
    store.release(2)


def test_the_check_is_never_that_of_a_hole():
    """A row of zeros with the check 0 is what a sparse file shows where nothing was written."""
    store = LogitStore.__new__(LogitStore)
    store.key = KEY
    rows = np.zeros((KEY.images * KEY.views.count, KEY.row_bytes), np.uint8)
    assert store._check(rows, np.arange(len(rows))).min() > 0
