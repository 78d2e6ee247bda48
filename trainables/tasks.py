"""The kinds of data that there are, by the names of their data sets; what differs in a run is in `lessons.py`."""

from __future__ import annotations

from typing import TypeAlias

from trainables import data
from trainables.data import ImageDataset
from trainables.naming import unknown
from trainables.text import corpora
from trainables.text.corpora import TextDataset

Dataset: TypeAlias = ImageDataset | TextDataset

SCORES = {"images": "top1", "text": "rouge_l"}
"""What a student is valued by, as the metrics are called: `val_…`, `test_…`."""


def of_data(name: str) -> str:
    """The task of a data set.

    Raises:
        ValueError: there is none of that name; it gives the nearest ones.
    """
    if name in corpora.names():
        return "text"
    try:
        data.get(name)
    except ValueError:
        if ":" in name:
            raise
        raise ValueError(unknown("data set", name, [*data.names(), *corpora.names()])) from None
    return "images"


def of(dataset: Dataset) -> str:
    """The task of a data set that was loaded."""
    return "text" if isinstance(dataset, TextDataset) else "images"
