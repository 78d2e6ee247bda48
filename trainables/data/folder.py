"""Folders of image files, one for each class; ImageNet and Tiny-ImageNet among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainables.data import parquet
from trainables.data.entry import IMAGENET_MEAN, IMAGENET_STD, DatasetEntry, RawData
from trainables.data.images import DataError, Files

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")
_TINY_LABELS = "val_annotations.txt"


class _Finder:
    """Finds the folders of the training and the test part under a root.

    Args:
        name: of the data set.
        source: what should be there, for the message.
        test: what the test part's folder may be called; the first that there is.
        tables: whether parquet files will do as well.
    """

    def __init__(self, name: str, source: str, test: Sequence[str], tables: bool = False) -> None:
        self._name, self._source, self._test, self._tables = name, source, test, tables

    def __call__(self, root: Path) -> tuple[Path, ...]:
        train = root / "train"
        for part in self._test:
            test = root / part
            # ImageNet's own test folder has no classes: it is not meant.
            if train.is_dir() and test.is_dir() and (_classes(test) or (test / _TINY_LABELS).is_file()):
                return train, test
        if self._tables:
            return parquet.find(self._name, self._source, self._test)(root)
        raise DataError(f"data set {self._name}: nothing of it in {root}; wanted: {self._source}")


def read(folders: tuple[Path, ...]) -> RawData:
    """Names, sizes and labels of the files in the two parts' folders; no image is read.

    Classes are the training part's folders, in the order of their names.
    """
    if folders[0].suffix == ".parquet":
        return parquet.read(folders)
    train, test = folders
    root = train.parent
    classes = _classes(train)
    labels = {name: label for label, name in enumerate(classes)}
    found = [(file, labels[name]) for name in classes for file in _images(train / name)]
    if lacking := sorted(set(classes) - {classes[label] for _, label in found}):
        raise DataError(f"{train / lacking[0]}: no images; each folder of {train} is a class")
    if (test / _TINY_LABELS).is_file():
        held_out = _annotated(test, labels)
    else:
        if strange := sorted(set(_classes(test)) - set(classes)):
            raise DataError(f"{test / strange[0]}: no class of that name in {train}")
        held_out = [(file, labels[name]) for name in _classes(test) for file in _images(test / name)]
    if not held_out:
        raise DataError(f"{test}: no images in it")
    return RawData(*_part(root, found), *_part(root, held_out), class_names=tuple(classes))


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    """Image files of a folder and the folders in it, in the order of their names."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images(Path(entry.path))
        elif entry.name.lower().endswith(_SUFFIXES):
            yield Path(entry.path)


def _annotated(folder: Path, labels: dict[str, int]) -> list[tuple[Path, int]]:
    """Tiny-ImageNet's validation part: lines of file name, class and a box, with tabs between them."""
    table = folder / _TINY_LABELS
    found = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = labels.get(rest.partition("\t")[0])
        if label is None:
            raise DataError(f"{table}, line {number}: wanted: a file, a tab and a class of the training part")
        found.append((folder / "images" / name, label))
    return found


def _part(root: Path, found: list[tuple[Path, int]]) -> tuple[Files, np.ndarray]:
    start = len(f"{root}{os.sep}")
    relative = [str(file)[start:] for file, _ in found]
    sizes = np.array([_size(file) for file, _ in found], np.int64)
    return Files(root, relative, sizes), np.array([label for _, label in found], np.int64)


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0  # it will be found not to decode


_FOLDERS = "a folder with train/CLASS/*.jpg (or .png …) and {}/CLASS/*.jpg"
_FOLDER_SOURCE = _FOLDERS.format("{test,val,validation}")
_IMAGENET_SOURCE = (
    _FOLDERS.format("{val,validation,test}") + ", 1,000 classes (image_folder takes any number), or one with "
    "*train*.parquet and *val*.parquet (columns image and label)"
)
_TINY_SOURCE = (
    "a folder with train/WNID/images/*.JPEG and val/{images/*.JPEG,val_annotations.txt}, as it is published, or with "
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG; 200 classes"
)

ENTRIES = [
    DatasetEntry(
        name="image_folder",
        num_classes=None,
        shape=None,
        sizes=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary="any images in folders, one for each class",
        source=_FOLDER_SOURCE,
        loader=read,
        finder=_Finder("image_folder", _FOLDER_SOURCE, ("test", "val", "validation")),
    ),
    DatasetEntry(
        name="imagenet",
        num_classes=1000,
        shape=None,
        sizes=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary="ImageNet-1k: 1,281,167 training photographs of all sizes, and its 50,000 of validation as the test",
        source=_IMAGENET_SOURCE,
        loader=read,
        finder=_Finder("imagenet", _IMAGENET_SOURCE, ("val", "validation", "test"), tables=True),
    ),
    DatasetEntry(
        name="tiny_imagenet",
        num_classes=200,
        shape=(3, 64, 64),
        sizes=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary="100,000 photographs of 64x64 pixels in 200 classes, and its 10,000 of validation as the test",
        source=_TINY_SOURCE,
        loader=read,
        finder=_Finder("tiny_imagenet", _TINY_SOURCE, ("val", "validation", "test")),
    ),
]
