"""The data sets that can be named. A new one is a new entry in one of these files, or the user's own."""

from trainables.data import cifar, digits, folder, parquet
from trainables.data.entry import DatasetEntry
from trainables.registry import Registry

DATASETS = Registry(
    "data set",
    "kdstudy.datasets",
    DatasetEntry,
    [*digits.ENTRIES, *cifar.ENTRIES, *folder.ENTRIES, *parquet.ENTRIES],
)


def names() -> list[str]:
    """The data sets that there are, in the order of registration."""
    return DATASETS.names()


def get(name: str) -> DatasetEntry:
    """The entry called `name`.

    Raises:
        ValueError: there is none; the line names the nearest ones.
    """
    return DATASETS.get(name)
