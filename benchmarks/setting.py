"""What steps are measured on where the real thing is not at hand: images, a teacher, and its logits in a store.

Needs trainables alone.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trainables import data, models, teachers
from trainables.data import ImageDataset, ResidentImages
from trainables.logits import LogitStore, key_of
from trainables.protocol import Protocol
from trainables.teachers import Teacher

CIFAR100 = Path("../shared/data/cifar100")


def images(root: Path | None, cache: Path | None = None, train: int = 50_000, test: int = 10_000) -> ImageDataset:
    """CIFAR-100 where its folder is there, otherwise as many random images of its shape, the same each time."""
    if root is not None and root.is_dir():
        return data.load("cifar100", root, cache)
    cifar = data.get("cifar100")
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> tuple[ResidentImages, torch.Tensor]:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ResidentImages(pixels), torch.randint(100, (n,), generator=generator)

    names = tuple(map(str, range(100)))
    return ImageDataset(
        "random", 100, names, *part(train), *part(test), cifar.mean, cifar.std, f"random-{train}-{test}"
    )


def random_teacher(model: str, dataset: ImageDataset) -> Teacher:
    """An untrained network: its answers cost what a trained one's cost."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.build(model, dataset.num_classes)
    weights = network.state_dict()
    record = teachers.unmeasured_record(model, dataset, weights, trained_on="none", origin="benchmarks.setting")
    return Teacher(record, [network])


def open_store(folder: Path, teacher: Teacher, dataset: ImageDataset, protocol: Protocol, device: str) -> LogitStore:
    """The store of a teacher's logits in a folder, made where it is not there."""
    key = key_of(teacher.record.hash, dataset, protocol, "float32", device)
    assert key is not None  # these views can be enumerated
    return LogitStore(folder, key)


def fill(store: LogitStore, epochs: int, seed: int = 0) -> None:
    """Put random, fixed logits into a store for all that a run with this seed meets in so many epochs."""
    indices = torch.arange(store.key.images)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, epochs + 1):
        ids = store.key.views.view_ids(seed, epoch, indices)
        store.write(indices, ids, 3 * torch.randn(len(indices), store.key.classes, generator=generator))
