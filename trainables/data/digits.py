"""scikit-learn's 8x8 digits: real data that is always there."""

from pathlib import Path

import numpy as np
import torch

from trainables.data.entry import DatasetEntry, RawData
from trainables.splits import stratified


def _read(files: tuple[Path, ...]) -> RawData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:, None]  # 0..16 to 0..240
    labels = digits.target.astype(np.int64)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[stratified(torch.from_numpy(labels), 1000, seed=0).numpy()] = True
    return RawData(images[chosen], labels[chosen], images[~chosen], labels[~chosen], tuple("0123456789"))


ENTRIES = [
    DatasetEntry(
        name="digits",
        num_classes=10,
        shape=(1, 8, 8),
        sizes=(1000, 797),
        mean=(0.2863,),
        std=(0.3535,),
        summary="1,797 handwritten digits of 8x8 grey pixels, cut into 1,000 for training and 797 for the test",
        source="comes with scikit-learn",
        loader=_read,
        hash="bb32971664a92bed63ca981ba9f806505d0fd458c46b4fb0d1683fefdef7d5e9",
    ),
]
