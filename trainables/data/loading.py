"""Reading a data set by its name."""

from __future__ import annotations

from pathlib import Path

from trainables.data import cache as caching
from trainables.data.entry import DatasetEntry, ImageDataset
from trainables.data.images import DataError
from trainables.data.registry import get
from trainables.data.settling import Settled, settle

VERSION = 1  # raised when a fix changes what a loader returns

BAD_IMAGES = ("fail", "skip")


def load(
    name: str, root: Path | str | None = None, cache: Path | str | None = None, bad_images: str = "fail"
) -> ImageDataset:
    """Read a data set.

    Images of one size whose pixels fit into `settling.RESIDENT_BYTES` are decoded now and are resident; others stay
    encoded, and are decoded whenever they are shown.

    Args:
        name: of an entry.
        root: the folder that holds its files; see the entry's `source`. Not needed for `digits`.
        cache: a folder for decoded arrays. The first load writes them there, in one rename, so several processes may do
            so at once; later loads map them into memory, so a machine holds one copy however many processes read it.
            The copy is of one state of the source files (names, sizes, times of change) and is not used for another.
        bad_images: what becomes of an image that does not decode. `fail`: a DataError names the first and counts them;
            `skip`: its label becomes -1. Encoded images fail, or are left out, when they are shown.

    Raises:
        ValueError: unknown name.
        DataError: the folder or a file in it is missing, damaged, or not this data set.
    """
    entry = get(name)
    if bad_images not in BAD_IMAGES:
        raise ValueError(f"bad_images: {bad_images!r} is none of {', '.join(BAD_IMAGES)}")
    files: tuple[Path, ...] = ()
    if entry.finder is not None:
        if root is None:
            raise DataError(f"data set {name}: no folder given; wanted: {entry.source}")
        if not Path(root).is_dir():
            raise DataError(f"data set {name}: there is no folder {root}; wanted: {entry.source}")
        files = entry.finder(Path(root))
    if cache is None:
        return _dataset(entry, settle(entry, entry.loader(files), bad_images, None), bad_images, None)
    kept = Path(cache) / f"{_file_name(name)}-{caching.fingerprint(entry, files, bad_images, VERSION)}"
    if not kept.is_dir():
        raw = entry.loader(files)  # outside of what follows, whose failures are the cache's
        caching.keep(kept, lambda folder: caching.write(folder, settle(entry, raw, bad_images, folder)))
    return _dataset(entry, caching.read(kept), bad_images, Path(cache))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)


def _dataset(entry: DatasetEntry, settled: Settled, bad_images: str, cache: Path | None) -> ImageDataset:
    return ImageDataset(
        name=entry.name,
        num_classes=len(settled.class_names),
        class_names=settled.class_names,
        train_images=settled.train_images,
        train_labels=settled.train_labels,
        test_images=settled.test_images,
        test_labels=settled.test_labels,
        mean=entry.mean,
        std=entry.std,
        hash=settled.hash,
        skipped=settled.skipped,
        bad_images=bad_images,
        cache=cache,
    )
