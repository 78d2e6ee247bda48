"""CIFAR-10 and CIFAR-100: 60,000 photographs of 32x32 pixels each."""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data import parquet
from trainables.data.entry import DatasetEntry, RawData
from trainables.data.images import DataError

_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


def _finder(name: str, folder: str, md5: Mapping[str, str], source: str) -> Callable[[Path], tuple[Path, ...]]:
    """torchvision's layout in the root or in its own folder there, else parquet files."""

    def finder(root: Path) -> tuple[Path, ...]:
        for place in (root / folder, root):
            files = tuple(place / part for part in md5)
            if all(file.is_file() for file in files):
                return files
        return parquet.find(name, source)(root)

    return finder


def _loader(name: str, md5: Mapping[str, str], labels: str, names: str) -> Callable[[tuple[Path, ...]], RawData]:
    def loader(files: tuple[Path, ...]) -> RawData:
        if files[0].suffix == ".parquet":
            return parquet.read(files, labels.removesuffix("s"))
        # Unpickling runs what the file says, so the files are opened only once they are known to be the originals.
        contents: dict[str, Any] = {}
        for file in files:
            content = file.read_bytes()
            if hashlib.md5(content).hexdigest() != md5[file.name]:
                raise DataError(f"data set {name}: {file} is damaged: its md5 is not {md5[file.name]}")
            contents[file.name] = pickle.loads(content, encoding="latin1")
        *batches, meta = contents
        parts = {"train": batches[:-1], "test": batches[-1:]}
        arrays: dict[str, np.ndarray] = {}
        for part, keys in parts.items():
            pixels = np.concatenate([contents[key]["data"] for key in keys])
            arrays[f"{part}_images"] = pixels.reshape(-1, 3, 32, 32)
            arrays[f"{part}_labels"] = np.concatenate([np.array(contents[key][labels], np.int64) for key in keys])
        return RawData(**arrays, class_names=tuple(contents[meta][names]))

    return loader


_CIFAR10_SOURCE = (
    "a folder with torchvision's cifar-10-batches-py/{data_batch_1 … 5,test_batch,batches.meta}, or one with "
    "*train*.parquet and *test*.parquet (columns image and label, stored without loss)"
)
_CIFAR100_SOURCE = (
    "a folder with torchvision's cifar-100-python/{train,test,meta}, or one with *train*.parquet and *test*.parquet "
    "(columns image and fine_label, stored without loss)"
)

ENTRIES = [
    DatasetEntry(
        name="cifar10",
        num_classes=10,
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        summary="60,000 colour photographs of 32x32 pixels in 10 classes",
        source=_CIFAR10_SOURCE,
        loader=_loader("cifar10", _CIFAR10_MD5, "labels", "label_names"),
        finder=_finder("cifar10", "cifar-10-batches-py", _CIFAR10_MD5, _CIFAR10_SOURCE),
    ),
    DatasetEntry(
        name="cifar100",
        num_classes=100,
        shape=(3, 32, 32),
        sizes=(50_000, 10_000),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        summary="60,000 colour photographs of 32x32 pixels in 100 classes",
        source=_CIFAR100_SOURCE,
        loader=_loader("cifar100", _CIFAR100_MD5, "fine_labels", "fine_label_names"),
        finder=_finder("cifar100", "cifar-100-python", _CIFAR100_MD5, _CIFAR100_SOURCE),
        hash="f3e4dcbf495fb14af87e009cd0e331fffd76dad254fbc9a66ddfe017ea34225c",
    ),
]
