"""Decoded data sets in a folder, written once and mapped into memory by every process that reads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.data.entry import DatasetEntry
from trainables.data.images import DataError, EncodedImages, Files, Images, Readable, ResidentImages, Rows
from trainables.data.settling import PARTS, Settled


def fingerprint(entry: DatasetEntry, files: tuple[Path, ...], bad_images: str, data_version: int) -> str:
    """Of one state of the source: names, sizes and times of change of its files, and of those in its folders."""
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    key: list[Any] = [data_version, entry.name, version("scikit-learn") if not files else stats]
    if entry.version != 1:
        key.append(entry.version)
    if bad_images != "fail":
        key.append(bad_images)
    sha = hashlib.sha256(json.dumps(key).encode())
    for folder in files:
        if folder.is_dir():
            for line in _listing(str(folder.resolve())):
                sha.update(line.encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:16]


def _listing(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.is_dir():
            yield from _listing(entry.path)
        elif entry.is_file():  # not a link to nowhere
            stat = entry.stat()
            yield f"{entry.path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"


def keep(kept: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which then appears as `kept` in one rename, so several processes may do so at once."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=kept.parent))
    except OSError as error:
        raise DataError(f"the cache {kept.parent} cannot be written: {error.strerror}") from None
    try:
        write(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, kept)
    except OSError as error:
        # Another process was first: its copy is as good.
        if not kept.is_dir():
            raise DataError(f"the cache {kept.parent} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(folder: Path, settled: Settled) -> None:
    """Keep a data set in a folder."""
    meta: dict[str, Any] = {"hash": settled.hash, "class_names": settled.class_names, "skipped": settled.skipped}
    for part in PARTS:
        images = getattr(settled, f"{part}_images")
        np.save(folder / f"{part}_labels.npy", getattr(settled, f"{part}_labels").numpy())
        if isinstance(images, ResidentImages):
            np.save(folder / f"{part}_images.npy", images.pixels.numpy())
        elif isinstance(images.source, Files):
            np.save(folder / f"{part}_sizes.npy", images.source.sizes)
            (folder / f"{part}_names.json").write_text(json.dumps(images.source.relative))
            meta[f"{part}_root"] = str(images.source.root.absolute())
        else:
            # The rows themselves were written here when they were read.
            np.save(folder / f"{part}_offsets.npy", images.source.offsets)
            meta[f"{part}_files"] = images.source.files
        if isinstance(images, EncodedImages):
            meta[f"{part}_shape"] = images.shape
    (folder / "meta.json").write_text(json.dumps(meta))


def read(kept: Path) -> Settled:
    """A data set that is kept in a folder.

    Raises:
        DataError: the folder is damaged.
    """
    try:
        meta = json.loads((kept / "meta.json").read_text())
        parts: dict[str, Any] = {}
        for part in PARTS:
            parts[f"{part}_images"] = _images(kept, part, meta)
            parts[f"{part}_labels"] = torch.from_numpy(np.load(kept / f"{part}_labels.npy", mmap_mode="c"))
        names, skipped = tuple(meta["class_names"]), meta.get("skipped", 0)
        return Settled(**parts, class_names=names, hash=meta["hash"], skipped=skipped)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"the cached copy {kept} is damaged ({error}): remove that folder") from None


def _images(kept: Path, part: str, meta: dict[str, Any]) -> Images:
    if (kept / f"{part}_images.npy").is_file():
        return ResidentImages.mapped(kept / f"{part}_images.npy")
    source: Readable
    if f"{part}_root" in meta:
        relative = json.loads((kept / f"{part}_names.json").read_text())
        source = Files(Path(meta[f"{part}_root"]), relative, np.load(kept / f"{part}_sizes.npy"))
    else:
        source = Rows.mapped(kept / f"{part}_rows.bin", np.load(kept / f"{part}_offsets.npy"), meta[f"{part}_files"])
    shape = meta[f"{part}_shape"]
    return EncodedImages(source, None if shape is None else tuple(shape))
