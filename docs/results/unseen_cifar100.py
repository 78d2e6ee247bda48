"""Cuts CIFAR-100's test images into a data set that no published teacher has seen: 7,000 to train on, 3,000 to test.

    python docs/results/unseen_cifar100.py CIFAR100-TEST.parquet FOLDER

A teacher that was trained on CIFAR-100's training images is wrong on more than a quarter of these, so there is
something to repair; students are compared among themselves, on 3,000 images that they do not train on. Every class
gives its first 70 images, in the order of the file, to the training part.
"""

import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

TRAIN_PER_CLASS = 70


def main(source: Path, folder: Path) -> None:
    """Write FOLDER/cifar100-unseen-{train,test}.parquet."""
    table = pq.read_table(source)
    seen: Counter[int] = Counter()
    rows: dict[str, list[int]] = {"train": [], "test": []}
    for row, label in enumerate(table["fine_label"].to_pylist()):
        rows["train" if seen[label] < TRAIN_PER_CLASS else "test"].append(row)
        seen[label] += 1
    folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in rows.items():
        taken = table.take(chosen).rename_columns(
            ["label" if name == "fine_label" else name for name in table.column_names]
        )
        pq.write_table(taken, folder / f"cifar100-unseen-{part}.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
