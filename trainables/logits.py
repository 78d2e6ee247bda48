"""A store of a teacher's logits by image and view: computed once, shared by all runs of a node, kept across studies.

Where views can be enumerated (`CropFlip`: 162 of an image with padding 4), a teacher in evaluation mode says the same
to a view each time it is shown. A store is one file with a row for each image of the full training set and each view,
so that splits and limits share it; it is sparse: what was never filled takes no room. Its folder is named by what
decides the logits: teacher (with its normalisation), data, views and precision.

A row carries a check of its content and place. A row that was never written, is torn by a kill or a power cut, or is
damaged fails its check and is computed again; it is never used. Several processes may write: they write the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables import views as viewing
from trainables.data import DataError, ImageDataset
from trainables.data.cache import keep
from trainables.protocol import Protocol
from trainables.views import CropFlip

VERSION = 1  # raised when what a row holds, or how, changes

DTYPES = ("float32", "float16")

log = logging.getLogger("kdstudy.logits")

_CHECK_BYTES = 4
_BLOCK = 4096  # what a sparse file takes for any part of it


@dataclass(frozen=True)
class Key:
    """What decides the logits in a store: teacher, images and views.

    `teacher` and `data` are hashes, `images` and `classes` the numbers of training images in the full set and of
    classes. `precision` is that of the teacher's arithmetic, `dtype` that of the stored numbers. `dataset` is a name
    for people and decides nothing.
    """

    teacher: str
    data: str
    images: int
    classes: int
    pad: int
    flip: bool
    image_size: int | None
    precision: str
    dtype: str
    device: str  # logits of a GPU and of a CPU differ in their last bits
    dataset: str

    @property
    def views(self) -> CropFlip:
        """The enumerated views."""
        return CropFlip(self.pad, self.flip)

    @property
    def name(self) -> str:
        """The folder's name."""
        decides = {k: v for k, v in asdict(self).items() if k != "dataset"}
        versions = [VERSION, viewing.VERSION]
        return hashlib.sha256(json.dumps([decides, versions], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: a check and the logits, in whole words."""
        return _CHECK_BYTES + -(-self.classes * np.dtype(self.dtype).itemsize // 4) * 4

    @property
    def full_bytes(self) -> int:
        """Bytes of the file when every view of every image is in it."""
        return self.images * self.views.count * self.row_bytes

    def views_met(self, draws: int) -> float:
        """How many different views of an image so many random draws give, on average."""
        return self.views.count * (1 - (1 - 1 / self.views.count) ** draws)

    def bytes_for(self, images: int, draws: int) -> int:
        """Bytes at most that a store takes for so many images, each shown `draws` times, in views drawn at random."""
        # A view alone takes the blocks that its row touches; together they take no more than they are.
        alone = self.views_met(draws) * (self.row_bytes + _BLOCK)
        return int(images * min(self.views.count * self.row_bytes, alone))


def key_of(teacher: str, dataset: ImageDataset, protocol: Protocol, dtype: str, device: str) -> Key | None:
    """The key of a teacher's logits on the training views of a protocol; None where those cannot be enumerated.

    Args:
        teacher: its hash.
        dataset: whose training images are shown.
        protocol: says how.
        dtype: one of `DTYPES`.
        device: the kind that computes: `cpu` or `cuda`.
    """
    if protocol.views != "crop_flip":
        return None
    return Key(
        teacher=teacher,
        data=dataset.hash,
        images=len(dataset.train_labels),
        classes=dataset.num_classes,
        pad=protocol.pad,
        flip=protocol.flip,
        image_size=protocol.image_size,
        precision=protocol.precision,
        dtype=dtype,
        device=device,
        dataset=dataset.name,
    )


def open_store(root: Path, key: Key) -> LogitStore | None:
    """A store, made where it is not there; None, with a warning in the log, where the disk does not take it.

    Raises:
        ValueError: what lies there is not this store.
    """
    try:
        return LogitStore(root, key)
    except (OSError, DataError) as error:
        log.warning("%s: %s; the teacher is asked each time", root, error)
        return None


class LogitStore:
    """A teacher's logits under a folder.

    Args:
        root: the folder of all stores; this one's is made in it where it is not there.
        key: what decides the logits.

    Raises:
        OSError, DataError: it cannot be made or read.
        ValueError: what lies there is not this store.
    """

    def __init__(self, root: Path, key: Key) -> None:
        self.key = key
        self.folder = root / key.name
        self._values = slice(_CHECK_BYTES, _CHECK_BYTES + key.classes * np.dtype(key.dtype).itemsize)
        if not (self.folder / "key.json").is_file():
            keep(self.folder, self._make)
        file = self.folder / "rows.bin"
        if file.stat().st_size != key.full_bytes:
            raise ValueError(f"{file}: {file.stat().st_size:,} bytes, not {key.full_bytes:,}: drop this store")
        self._rows = np.memmap(file, np.uint8, "r", shape=(key.images * key.views.count, key.row_bytes))
        # Written by pwrite, not through the map: a full disk is then an error, where a map would kill the process.
        self._file = os.open(file, os.O_WRONLY)
        self._claims = os.open(self.folder / "claims", os.O_RDWR | os.O_CREAT, 0o644)
        self._full = False

    def __del__(self) -> None:
        for name in ("_file", "_claims"):
            if hasattr(self, name):
                os.close(getattr(self, name))

    def _make(self, folder: Path) -> None:
        with (folder / "rows.bin").open("wb") as file:
            file.truncate(self.key.full_bytes)
        (folder / "key.json").write_text(json.dumps(asdict(self.key), indent=2), encoding="utf-8")

    @property
    def full(self) -> bool:
        """Whether a write found no room; nothing is written any more."""
        return self._full

    def rounded(self, logits: Tensor) -> Tensor:
        """Logits as they come back from the store, float32.

        Raises:
            ValueError: one is too large for half precision.
        """
        if self.key.dtype == "float32":
            return logits
        half = logits.half()
        if not bool(torch.isfinite(half).eq(torch.isfinite(logits)).all()):
            raise ValueError("teacher.logits: float16 cannot hold this teacher's logits; use float32")
        return half.float()

    def read(self, indices: Tensor, view_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of some views, and which of them are there.

        Args:
            indices: (n,) int64 into the full training set, on the CPU.
            view_ids: (n,) int64, the view of each.

        Returns:
            (n, C) float32, arbitrary where a row is not there, and (n,) bool.
        """
        places = self._places(indices, view_ids)
        rows = self._rows[places]
        there = rows[:, :_CHECK_BYTES].view(np.uint32)[:, 0] == self._check(rows, places)
        logits = rows[:, self._values].view(self.key.dtype).astype(np.float32)
        return torch.from_numpy(logits), torch.from_numpy(there)

    def write(self, indices: Tensor, view_ids: Tensor, logits: Tensor) -> None:
        """Keep the logits of some views. Where there is no room, or the folder is gone, nothing is kept.

        Args:
            indices: (n,) int64 into the full training set, on the CPU.
            view_ids: (n,) int64, the view of each.
            logits: (n, C), such that `rounded` leaves them as they are.
        """
        if self._full:
            return
        places = self._places(indices, view_ids)
        rows = np.zeros((len(places), self.key.row_bytes), np.uint8)
        rows[:, self._values] = logits.cpu().numpy().astype(self.key.dtype).view(np.uint8)
        rows[:, :_CHECK_BYTES] = self._check(rows, places)[:, None].view(np.uint8)
        try:
            for place, row in zip(places.tolist(), rows, strict=True):
                os.pwrite(self._file, row.data, place * self.key.row_bytes)
        except OSError as error:
            self._full = True
            log.warning("%s: %s; the teacher is asked again where its logits are not there", self.folder, error)

    def claim(self, number: int) -> bool:
        """Take a number that no other process has taken, until `release` or this process's end; False if one has."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def release(self, number: int) -> None:
        """Give a number back."""
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, number)

    def touch(self) -> None:
        """Note that the store was used."""
        os.utime(self._claims)

    def _places(self, indices: Tensor, view_ids: Tensor) -> np.ndarray:
        return (indices * self.key.views.count + view_ids).numpy()

    def _check(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(n,) uint32 over content and place, never 0: multilinear hashing (Dietzfelbinger, 1996)."""
        words = rows[:, _CHECK_BYTES:].view(np.uint32).astype(np.uint64)
        weights = self._weights
        sums = words @ weights[2:] + places.astype(np.uint64) * weights[1] + weights[0]
        return (sums >> np.uint64(32)).astype(np.uint32) | np.uint32(1)

    @cached_property
    def _weights(self) -> np.ndarray:
        words = self.key.row_bytes // 4 - 1
        drawn = np.random.Generator(np.random.PCG64(VERSION)).integers(0, 2**64, words + 2, dtype=np.uint64)
        return drawn | np.uint64(1)


@dataclass(frozen=True)
class Stored:
    """A store as it lies in a folder: its key, bytes taken, and when it was used last (seconds since 1970)."""

    folder: Path
    key: Key
    bytes: int
    used: float


def stored(root: Path) -> list[Stored]:
    """All stores under a folder, by data and teacher. What is damaged is left out."""
    return sorted(_stored(root), key=lambda one: (one.key.dataset, one.key.teacher, one.key.name))


def _stored(root: Path) -> Iterator[Stored]:
    for file in root.glob("[!.]*/key.json"):
        try:
            fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            taken = (file.parent / "rows.bin").stat().st_blocks * 512
            used = max(path.stat().st_mtime for path in file.parent.iterdir())
            yield Stored(file.parent, Key(**fields), taken, used)
        except (OSError, ValueError, TypeError):
            continue


def drop(store: Stored) -> None:
    """Remove a store. A run that uses it goes on with what it has mapped."""
    gone = store.folder.with_name(f".dropped-{store.folder.name}-{time.time_ns()}")
    os.rename(store.folder, gone)
    shutil.rmtree(gone)
