"""From what a loader returns to a data set: decoded where that is possible, checked, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.data.entry import DatasetEntry, RawData
from trainables.data.images import DataError, Encoded, EncodedImages, Files, Images, ResidentImages, Rows, decode_all

PARTS = ("train", "test")

RESIDENT_BYTES = 4 * 2**30
"""Decoded pixels up to so many bytes are held in memory."""


@dataclass(frozen=True)
class Settled:
    """A data set as it is used and kept: see `ImageDataset`."""

    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    class_names: tuple[str, ...]
    hash: str
    skipped: int


def settle(entry: DatasetEntry, raw: RawData, bad_images: str, folder: Path | None) -> Settled:
    """Decode what can be resident, and make certain that it is the data set of its entry.

    Args:
        entry: what the data set should be.
        raw: what its loader returned.
        bad_images: `fail` or `skip`.
        folder: for encoded images that do not lie in files of their own; None: they stay in memory.

    Raises:
        DataError: it is not that data set, or has images that do not decode and are not to be skipped.
    """
    sizes = {part: len(getattr(raw, f"{part}_images")) for part in PARTS}
    labels = {part: np.array(getattr(raw, f"{part}_labels"), np.int64) for part in PARTS}
    for part, n in sizes.items():
        if len(labels[part]) != n or n == 0:
            raise DataError(f"data set {entry.name}: the {part} part has {n} images and {len(labels[part])} labels")
    classes = _classes(entry, raw, labels)
    decoded = _decoded(entry, raw)
    skipped = 0
    images: dict[str, Images] = {}
    if decoded is None:
        for part in PARTS:
            source = getattr(raw, f"{part}_images")
            readable = source if isinstance(source, Files | Rows) else _packed(source, folder, part)
            images[part] = EncodedImages(readable, entry.shape)
    else:
        bad = [place for _, found in decoded.values() for place in found.values()]
        if bad and bad_images == "fail":
            raise DataError(
                f"data set {entry.name}: {len(bad)} of {sum(sizes.values())} images will not do, the first is {bad[0]};"
                " with bad_images: skip they are left out"
            )
        skipped = len(bad)
        for part, (pixels, found) in decoded.items():
            labels[part][list(found)] = -1
            images[part] = ResidentImages(torch.from_numpy(pixels))
    _verify(entry, images, labels, len(classes))
    digest = _resident_hash(images, labels) if decoded is not None else _encoded_hash(images, labels)
    if entry.hash is not None and digest != entry.hash:
        raise DataError(
            f"data set {entry.name}: pixels or labels differ from the original (hash {digest[:16]}, "
            f"wanted: {entry.hash[:16]}); were the images compressed with loss?"
        )
    return Settled(
        train_images=images["train"],
        train_labels=torch.from_numpy(labels["train"]),
        test_images=images["test"],
        test_labels=torch.from_numpy(labels["test"]),
        class_names=classes,
        hash=digest,
        skipped=skipped,
    )


def content_hash(raw: RawData) -> str:
    """SHA-256 (hex) over shape and bytes of each part of decoded images; labels as little-endian int64."""
    parts = {part: (getattr(raw, f"{part}_images"), getattr(raw, f"{part}_labels")) for part in PARTS}
    return _content_hash(parts)


def _classes(entry: DatasetEntry, raw: RawData, labels: dict[str, np.ndarray]) -> tuple[str, ...]:
    known = entry.num_classes or len(raw.class_names) or 1 + max(int(of_part.max()) for of_part in labels.values())
    names = raw.class_names or tuple(str(label) for label in range(known))
    if len(names) != known:
        raise DataError(f"data set {entry.name}: it has {len(names)} classes; wanted: {known}")
    return names


def _decoded(entry: DatasetEntry, raw: RawData) -> dict[str, tuple[np.ndarray, dict[int, str]]] | None:
    """Pixels and bad images of both parts; None where the images stay encoded."""
    decoded: dict[str, tuple[np.ndarray, dict[int, str]]] = {}
    shape, room = entry.shape, RESIDENT_BYTES
    for part in PARTS:
        images: np.ndarray | Encoded = getattr(raw, f"{part}_images")
        found = (
            (images, {}) if isinstance(images, np.ndarray) else decode_all(images, shape, entry.shape is not None, room)
        )
        if found is None:
            return None
        decoded[part] = found
        shape, room = found[0].shape[1:], room - found[0].nbytes
    return decoded


def _packed(source: Encoded, folder: Path | None, part: str) -> Rows:
    """Encoded images that can only be read in order, in one file (or in memory), from where they are read in any."""
    offsets = np.zeros(len(source) + 1, np.int64)
    files = getattr(source, "files", [(part, len(source))])

    def written() -> Iterator[bytes]:
        for i, encoded in enumerate(source.stream()):
            offsets[i + 1] = offsets[i] + len(encoded or b"")
            yield encoded or b""

    if folder is None:
        return Rows(np.frombuffer(b"".join(written()), np.uint8), offsets, files)
    path = folder / f"{part}_rows.bin"
    with path.open("wb") as file:
        file.writelines(written())
    return Rows.mapped(path, offsets, files)


def _verify(entry: DatasetEntry, images: dict[str, Images], labels: dict[str, np.ndarray], classes: int) -> None:
    wanted = dict(zip(PARTS, entry.sizes or (None, None), strict=True))
    for part in PARTS:
        found, n = images[part].shape, len(images[part])
        if (entry.shape is not None and found != entry.shape) or n != (wanted[part] or n):
            right = (wanted[part] or "any number", *(entry.shape or ("any size",)))
            raise DataError(
                f"data set {entry.name}: the {part} part is {(n, *(found or ('of several sizes',)))} with "
                f"{len(labels[part])} labels; wanted: {right}"
            )
        if labels[part].min() < -1 or labels[part].max() >= classes:
            raise DataError(f"data set {entry.name}: the {part} part has labels outside 0 to {classes - 1}")
        if labels[part].max() < 0:
            raise DataError(f"data set {entry.name}: the {part} part has no image that will do")


def _resident_hash(images: dict[str, Images], labels: dict[str, np.ndarray]) -> str:
    pixels = {part: found.pixels.numpy() for part, found in images.items() if isinstance(found, ResidentImages)}
    return _content_hash({part: (pixels[part], labels[part]) for part in PARTS})


def _content_hash(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    sha = hashlib.sha256()
    for part, (images, labels) in parts.items():
        for name, array in (("images", np.ascontiguousarray(images)), ("labels", labels.astype("<i8"))):
            sha.update(f"{part}_{name}{array.shape}".encode())
            sha.update(array.data)
    return sha.hexdigest()


def _encoded_hash(images: dict[str, Images], labels: dict[str, np.ndarray]) -> str:
    """SHA-256 (hex) over names, sizes in bytes and labels: the images are too many to be read for it."""
    sha = hashlib.sha256()
    for part, found in images.items():
        assert isinstance(found, EncodedImages)
        sha.update(f"{part}_encoded{len(found)}".encode())
        sha.update("\0".join(found.source.names()).encode("utf-8", "surrogateescape"))
        sha.update(found.source.sizes.astype("<i8").tobytes())
        sha.update(labels[part].astype("<i8").tobytes())
    return sha.hexdigest()
