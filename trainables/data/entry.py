"""What a data set is: the entry that names it, what its loader returns, and the loaded set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from trainables.data.images import Encoded, Images, Shape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageDataset:
    """A data set.

    Labels are int64 (N,); -1: the image is not part of the data set (it does not decode, or is of no chosen class).
    `mean` and `std` are by channel, for pixels in [0, 1]. `skipped`: how many images did not decode when it was loaded;
    `bad_images`: what becomes of one that does not decode when it is shown. `cache`: where decoded images are kept.

    `hash` is a SHA-256 (hex) of both parts: of pixels and labels where the pixels are resident, of the images' relative
    names (of rows: their numbers), sizes in bytes and labels where they are encoded.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hash: str
    skipped: int = 0
    bad_images: str = "fail"
    cache: Path | None = None


@dataclass(frozen=True)
class RawData:
    """What a loader returns, of both parts.

    Images are uint8 (N, C, H, W), or encoded ones (which come out as RGB); labels are int64 (N,), where -1 means: not
    part of the data set. `class_names` may be empty: the classes are then called by their numbers.
    """

    train_images: np.ndarray | Encoded
    train_labels: np.ndarray
    test_images: np.ndarray | Encoded
    test_labels: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class DatasetEntry:
    """A data set that can be named.

    `shape` is (C, H, W), `sizes` the number of training and test images; these and `num_classes` are None where they
    are known only when the data are loaded, and are checked where they are given. `hash` is the original's
    `content_hash`, where that is known. `loader` takes what `finder` found under the user's root (files or folders; no
    `finder`: it needs none). `version` is raised when a fix changes what the loader returns.
    """

    name: str
    num_classes: int | None
    shape: Shape | None
    sizes: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    summary: str
    source: str
    loader: Callable[[tuple[Path, ...]], RawData]
    finder: Callable[[Path], tuple[Path, ...]] | None = None
    hash: str | None = None
    version: int = 1
