"""Who trains on what: stratified samples, and the parts of a training set.

The split has a seed of its own, apart from the seeds of the runs, so every run of a study sees the same parts. An image
whose label is negative is not part of the data (see `trainables.data.restrict`) and belongs to nobody.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.streams import generator, stream_seed


@dataclass(frozen=True)
class Split:
    """The parts of a training set, each as sorted int64 indices into it.

    `train` is the student's part, `validation` values its points, `teacher` is what a held-out teacher is trained on.
    `digest` is the SHA-256 of `train` and `validation`: what decides a run.
    """

    train: Tensor
    validation: Tensor
    teacher: Tensor
    digest: str


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """A sample of `n` images in which every class has its share, rounded up or down.

    Args:
        labels: (N,) int64 class of each image; negative for images that are not part of the data.
        n: size of the sample; as many as there are, or more, gives all images.
        seed: of the sample. Where not every class can be rounded up, it also decides which ones are.

    Returns:
        (at most n,) sorted int64 indices into `labels`.
    """
    total = int((labels >= 0).sum())
    if n >= total:
        return members(labels)
    draw = generator(seed, "stratified")
    classes, counts = torch.unique(labels[labels >= 0], return_counts=True)
    quota = counts * n // total
    remainder = counts * n % total
    # Largest remainders first; a random order before the stable sort settles ties without favouring low classes.
    shuffled = torch.randperm(len(classes), generator=draw)
    by_remainder = shuffled[torch.argsort(remainder[shuffled], descending=True, stable=True)]
    quota[by_remainder[: n - int(quota.sum())]] += 1
    chosen = []
    for label, count, take in zip(classes.tolist(), counts.tolist(), quota.tolist(), strict=True):
        of_class = torch.nonzero(labels == label).flatten()
        chosen.append(of_class[torch.randperm(count, generator=draw)[:take]])
    return torch.cat(chosen).sort().values


def members(labels: Tensor) -> Tensor:
    """Sorted int64 indices of the images that are part of the data, from (N,) int64 labels."""
    return torch.nonzero(labels >= 0).flatten()


def make_split(
    labels: Tensor,
    *,
    split_seed: int,
    validation_fraction: float = 0.0,
    teacher_fraction: float | None = None,
    train_limit: int | None = None,
    keep_validation_in_train: bool = False,
) -> Split:
    """Cut a training set into the parts of a study, all of them stratified.

    The validation part is taken first, the teacher's part from the rest, and what is left is the student's. So neither
    of the first two depends on `train_limit`, a sample of the student's part that is taken last.

    Args:
        labels: (N,) int64 class of each training image; negative for images that are not part of the data.
        split_seed: of the split.
        validation_fraction: of all images, in [0, 1).
        teacher_fraction: of the images outside the validation part, in (0, 1); None: no part is held out.
        train_limit: at most so many images for the student.
        keep_validation_in_train: the `final` stage of a search: the validation images go to the student after all.
    """
    everything = members(labels)

    def part(pool: Tensor, n: int, name: str) -> Tensor:
        return pool[stratified(labels[pool], n, stream_seed(split_seed, "split", name))]

    validation = part(everything, round(len(everything) * validation_fraction), "validation")
    pool = _without(everything, validation)
    teacher = part(pool, round(len(pool) * (teacher_fraction or 0.0)), "teacher")
    train = _without(pool, teacher)
    if keep_validation_in_train:
        train = torch.cat([train, validation]).sort().values
        validation = validation[:0]
    if train_limit is not None:
        train = part(train, train_limit, "limit")
    return Split(train, validation, teacher, digest(train, validation))


def make_folds(labels: Tensor, k: int, split_seed: int) -> Tensor:
    """Cut a training set into k folds of one size (to one image) in which every class has its share (to one image).

    Args:
        labels: (N,) int64 class of each training image; negative for images that are not part of the data.
        k: how many folds.
        split_seed: of the split.

    Returns:
        (N,) int64, the fold of each image in 0 .. k-1; -1 for images that are not part of the data.
    """
    draw = generator(split_seed, "folds", k)
    folds = torch.full_like(labels, -1)
    dealt = 0
    for label in torch.unique(labels[labels >= 0]).tolist():
        of_class = torch.nonzero(labels == label).flatten()
        shuffled = of_class[torch.randperm(len(of_class), generator=draw)]
        # Dealt like cards, one class after the other, so that the folds differ by one image at most in all.
        folds[shuffled] = (torch.arange(len(of_class)) + dealt) % k
        dealt += len(of_class)
    return folds


def teacher_images(
    labels: Tensor,
    split: Mapping[str, Any],
    regime: str,
    folds: int | None = None,
    fold: int | None = None,
    limit: int | None = None,
) -> Tensor:
    """The training images that a teacher learns from.

    Args:
        labels: (N,) int64 class of each training image.
        split: arguments of `make_split`.
        regime: `seen`: all images; `held_out`: the part held out for it; `cross_fitted`: all but a fold and the
            validation part, which none of a study's teachers may know.
        folds, fold: `cross_fitted`: how many folds there are, and which one this teacher never sees.
        limit: a stratified sample of so many of these.

    Returns:
        Sorted int64 indices.
    """
    images = _teacher_pool(labels, split, regime, folds, fold)
    if limit is None:
        return images
    return images[stratified(labels[images], limit, stream_seed(split["split_seed"], "split", "teacher limit"))]


def _teacher_pool(labels: Tensor, split: Mapping[str, Any], regime: str, folds: int | None, fold: int | None) -> Tensor:
    if regime == "held_out":
        return make_split(labels, **split).teacher
    everything = members(labels)
    if regime == "seen" or folds is None:
        return everything
    validation = make_split(labels, **{**split, "keep_validation_in_train": False}).validation
    others = everything[make_folds(labels, folds, split["split_seed"])[everything] != fold]
    return _without(others, validation)


def digest(*parts: Tensor) -> str:
    """SHA-256 (hex) over parts of a data set: lengths and indices, in order."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part.to(torch.int64).numpy().astype("<i8").tobytes())
    return sha.hexdigest()


def _without(pool: Tensor, taken: Tensor) -> Tensor:
    return pool[~torch.isin(pool, taken)]
