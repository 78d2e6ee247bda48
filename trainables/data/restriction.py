"""A data set cut to some of its classes, and with some of its training labels made wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.data.entry import ImageDataset
from trainables.naming import unknown
from trainables.streams import generator


def restrict(
    dataset: ImageDataset,
    classes: int | Sequence[int | str] | None = None,
    label_noise: float = 0.0,
    noise_seed: int = 0,
) -> ImageDataset:
    """The data set with other labels; its images keep their numbers, and `hash` stays that of the original.

    Args:
        dataset: the original; it is not changed.
        classes: the first so many, or a list of numbers or names. They are numbered anew from 0, in the given order;
            images of other classes get the label -1 in both parts.
        label_noise: share of the training images, in [0, 1), that get another class, each of the others equally often:
            round(share * n) of the n that are left. With one seed, a larger share contains a smaller one.
        noise_seed: which images these are, and which classes they get.

    Raises:
        ValueError: no such class, one named twice, fewer than two, or a share that is none; one line.
    """
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise: {label_noise!r} is no share from 0 to below 1")
    if classes is not None:
        dataset = _cut(dataset, _numbers(dataset, classes))
    if label_noise:
        labels = _noisy(dataset.train_labels, dataset.num_classes, label_noise, noise_seed)
        dataset = dataclasses.replace(dataset, train_labels=labels)
    return dataset


def _numbers(dataset: ImageDataset, classes: int | Sequence[int | str]) -> list[int]:
    there = dataset.num_classes
    if isinstance(classes, int):
        if not 2 <= classes <= there:
            raise ValueError(f"classes: {classes} will not do; {dataset.name} has {there}, and 2 at least are needed")
        return list(range(classes))
    numbers = []
    for name in classes:
        if isinstance(name, str) and name not in dataset.class_names:
            raise ValueError(f"classes: {unknown(f'class of {dataset.name}', name, dataset.class_names)}")
        number = dataset.class_names.index(name) if isinstance(name, str) else name
        if not 0 <= number < there:
            raise ValueError(f"classes: {number} is no class of {dataset.name}, whose classes are 0 to {there - 1}")
        if number in numbers:
            raise ValueError(f"classes: {name} is named twice")
        numbers.append(number)
    if len(numbers) < 2:
        raise ValueError(f"classes: {len(numbers)} given; 2 at least are needed")
    return numbers


def _cut(dataset: ImageDataset, numbers: list[int]) -> ImageDataset:
    renumbered = torch.full((dataset.num_classes + 1,), -1)  # the last stands for the label -1
    renumbered[numbers] = torch.arange(len(numbers))
    train, test = renumbered[dataset.train_labels], renumbered[dataset.test_labels]
    for part, labels in (("train", train), ("test", test)):
        if not (labels >= 0).any():
            raise ValueError(f"classes: the {part} part of {dataset.name} has no image of them")
    names = tuple(dataset.class_names[number] for number in numbers)
    return dataclasses.replace(
        dataset, num_classes=len(numbers), class_names=names, train_labels=train, test_labels=test
    )


def _noisy(labels: Tensor, num_classes: int, share: float, seed: int) -> Tensor:
    there = torch.nonzero(labels >= 0).flatten()
    draw = generator(seed, "label noise")
    order = torch.randperm(len(there), generator=draw)
    shifts = torch.randint(1, num_classes, (len(there),), generator=draw)
    wrong = there[order[: round(share * len(there))]]
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + shifts[: len(wrong)]) % num_classes
    return noisy
