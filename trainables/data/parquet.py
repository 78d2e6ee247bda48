"""Tables of encoded images: parquet files with a column of images and one of labels, as data hubs offer them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.entry import IMAGENET_MEAN, IMAGENET_STD, DatasetEntry, RawData
from trainables.data.images import DataError, row_place

_IMAGE_COLUMNS = ("image", "img")


class Column:
    """The encoded images of one column, in the order of the files; they can only be read one after the other.

    Args:
        files: (file, how many rows it has), in order.
        name: of the column: bytes, or a struct with a field `bytes`.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], name: str) -> None:
        self._files = list(files)
        self._name = name
        self.files = [(str(file), rows) for file, rows in files]

    def __len__(self) -> int:
        return sum(rows for _, rows in self._files)

    def stream(self) -> Iterator[bytes | None]:
        """The rows, a few hundred of which are in memory at a time."""
        import pyarrow
        import pyarrow.parquet

        for file, _ in self._files:
            try:
                with pyarrow.parquet.ParquetFile(file) as table:
                    for batch in table.iter_batches(batch_size=256, columns=[self._name]):
                        for value in batch.column(0).to_pylist():
                            yield value["bytes"] if isinstance(value, dict) else value
            except (pyarrow.ArrowException, OSError) as error:
                raise _unreadable(file, error) from None

    def place(self, i: int) -> str:
        """The file and the row in it."""
        return row_place(self.files, i)


def find(name: str, source: str, test: Sequence[str] = ("test", "val")) -> Callable[[Path], tuple[Path, ...]]:
    """A finder of *train*.parquet and the first of `test` that there is, in the root or in its folder `data`."""

    def finder(root: Path) -> tuple[Path, ...]:
        for folder in (root, root / "data"):
            parts = [sorted(folder.glob(f"*{part}*.parquet")) for part in ("train", *test)]
            held_out = next((files for files in parts[1:] if files), [])
            if parts[0] and held_out:
                return (*parts[0], *held_out)
        raise DataError(f"data set {name}: nothing of it in {root}; wanted: {source}")

    return finder


def read(files: tuple[Path, ...], label: str = "label") -> RawData:
    """The labels (from the column `label`, else one called label) and the still encoded images of both parts.

    Files with `train` in their names are the training part, the others the test part.
    """
    import pyarrow
    import pyarrow.parquet

    class_names: tuple[str, ...] = ()
    parts: dict[str, list[tuple[Path, int, np.ndarray]]] = {"train": [], "test": []}
    image = _IMAGE_COLUMNS[0]
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
            image = next((column for column in _IMAGE_COLUMNS if column in schema.names), "")
            column = label if label in schema.names else "label"
            if not image or column not in schema.names:
                either = label if label == "label" else f"{label} (or label)"
                raise DataError(f"{file}: wanted: columns image and {either}, found: {', '.join(schema.names)}")
            values = pyarrow.parquet.read_table(file, columns=[column])[column]
            if not pyarrow.types.is_integer(values.type) or values.null_count:
                raise DataError(f"{file}: column {column}: wanted: whole numbers, from 0 (-1: no label)")
            labels = values.to_numpy().astype(np.int64)
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(file, error) from None
        parts["train" if "train" in file.name else "test"].append((file, len(labels), labels))
        class_names = _class_names(schema.metadata or {}, column) or class_names
    read_parts: dict[str, Any] = {}
    for part, found in parts.items():
        read_parts[f"{part}_images"] = Column([(file, rows) for file, rows, _ in found], image)
        read_parts[f"{part}_labels"] = np.concatenate([labels for _, _, labels in found])
    return RawData(**read_parts, class_names=class_names)


def _class_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...]:
    """The classes' names from a schema's metadata: a list under COLUMN_names or names, or a data hub's description."""
    try:
        for key in (f"{column}_names", "names"):
            if key.encode() in metadata:
                return tuple(map(str, json.loads(metadata[key.encode()])))
        hub = json.loads(metadata.get(b"huggingface", b"{}"))
        return tuple(map(str, hub["info"]["features"][column]["names"]))
    except (ValueError, KeyError, TypeError):
        return ()


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}")


_SOURCE = (
    "a folder with *train*.parquet and *test*.parquet or *val*.parquet (columns image: encoded bytes, and label: "
    "whole numbers)"
)

ENTRIES = [
    DatasetEntry(
        name="parquet",
        num_classes=None,
        shape=None,
        sizes=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        summary="any images in parquet files",
        source=_SOURCE,
        loader=read,
        finder=find("parquet", _SOURCE),
    ),
]
