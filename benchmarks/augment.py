"""Crop, flip and normalise: whole batches of resident images against torchvision's transforms in a DataLoader.

    python -m benchmarks.augment [--root FOLDER] [--json FILE] [--quick]

Ours is what a run does for its epoch: `Pipeline.training` and `views.normalise`, on the CPU with one thread and on the
GPU if there is one. The other is what the code family of the papers does: RandomCrop(32, padding=4),
RandomHorizontalFlip, ToTensor and Normalize on a Pillow image, in a DataLoader with no worker and with two; its workers
are running already when the clock starts. Both go over the same images in batches, in turns. The images are CIFAR-100's
where its folder is there, and random numbers otherwise, which cost the same.

Before anything is timed, torchvision is given the crops and flips that ours drew: the pixels must be equal, and the
normalised ones equal to `TOLERANCE`.

Limit: the bytes. A 32x32 image is 3 kB of uint8 that are read and 12 kB of float32 that are written, so no method can
be faster than a plain conversion of uint8 to float32, which has a row of its own. To reach: at least 20 times
torchvision's images a second at batch 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import torchvision.transforms.functional as TF
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measuring import Table, arguments, interleaved, ratio, show
from trainables import data, protocol
from trainables.data import ImageDataset, ResidentImages
from trainables.data.images import to_picture
from trainables.pipeline import Pipeline
from trainables.views import CropFlip, normalise

TOLERANCE = 1e-6
"""Of normalised pixels, which lie between -2 and 3: the order of two roundings."""

_ROOT = Path("../shared/data/cifar100")
_PROTOCOL = protocol.resolve("crd-240")
_WORKERS = (0, 2)


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images and labels one by one, as torchvision's CIFAR classes give them."""

    def __init__(self, dataset: ImageDataset, n: int) -> None:
        assert isinstance(dataset.train_images, ResidentImages)
        self.pixels = dataset.train_images.pixels[:n].permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.train_labels[:n].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=_PROTOCOL.pad),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.pixels[i])), self.labels[i]


def images(root: Path, n: int) -> ImageDataset:
    """CIFAR-100 where it is; otherwise n random images."""
    if root.is_dir():
        return data.load("cifar100", root)
    generator = torch.Generator().manual_seed(0)
    pixels = ResidentImages(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator))
    labels = torch.randint(100, (n,), generator=generator)
    names = tuple(map(str, range(100)))
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return ImageDataset("random", 100, names, pixels, labels, pixels, labels, mean, std, "random")


def shown(dataset: ImageDataset, pipeline: Pipeline, n: int, size: int) -> Iterator[Tensor]:
    """Normalised batches of one epoch over the first n images."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for batch in pipeline.training(0, 1, order.split(size)):
        yield normalise(batch.views[0], dataset.mean, dataset.std)


def check_pixels(dataset: ImageDataset, n: int) -> None:
    """That torchvision makes the same pixels of the same draws.

    Raises:
        AssertionError: it does not.
    """
    views = CropFlip(_PROTOCOL.pad, _PROTOCOL.flip)
    pipeline = Pipeline(dataset, _PROTOCOL)
    assert isinstance(dataset.train_images, ResidentImages)
    for batch in pipeline.training(0, 1, torch.arange(n).split(64)):
        ids = views.view_ids(0, 1, batch.indices)
        for i, pixels, top, left, flipped in zip(batch.indices, batch.views[0], *views.offsets(ids), strict=True):
            picture = TF.pad(to_picture(dataset.train_images.pixels[int(i)]), [_PROTOCOL.pad])
            picture = TF.crop(picture, int(top), int(left), 32, 32)
            picture = TF.hflip(picture) if flipped else picture
            torch.testing.assert_close(pixels, TF.pil_to_tensor(picture), rtol=0, atol=0)
            theirs = TF.normalize(TF.to_tensor(picture), list(dataset.mean), list(dataset.std))
            ours = normalise(pixels[None], dataset.mean, dataset.std)[0]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def of_batches(dataset: ImageDataset, size: int, n: int, rounds: int) -> Table:
    """Passes over n images in batches of `size`, by each way."""
    pictures = Pictures(dataset, n)
    pixels = pictures.pixels
    raw = torch.from_numpy(pixels).split(size)

    def passes(batches: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            for _ in batches():  # type: ignore[attr-defined]
                pass

        return call

    calls: dict[str, Callable[[], None]] = {}
    for workers in _WORKERS:
        loader = DataLoader(pictures, size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        calls[f"torchvision, {workers} workers"] = passes(lambda loader=loader: loader)  # type: ignore[misc]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        pipeline = Pipeline(dataset, _PROTOCOL, device)
        calls[f"kdstudy, {device}"] = passes(lambda p=pipeline: shown(dataset, p, n, size))  # type: ignore[misc]
    calls["uint8 to float32, cpu"] = passes(lambda: (some.to(torch.float32) for some in raw))
    # The clock waits for a GPU wherever there is one: what the others have queued there is nothing.
    seconds = interleaved(calls, rounds=rounds, device="cuda" if torch.cuda.is_available() else "cpu")
    fastest = min((f"torchvision, {workers} workers" for workers in _WORKERS), key=lambda name: median(seconds[name]))
    rows = tuple(
        (name, n / median(taken), 1e6 * median(taken) / n, ratio(seconds[fastest], to=taken))
        for name, taken in seconds.items()
    )
    return Table(
        f"Crop, flip, normalise: batches of {size}, {dataset.name}",
        ("way", "images a second", "microseconds an image", f"speed-up over {fastest}"),
        rows,
        "Limit: the conversion in the last row. To reach at batch 64: 20x.",
    )


def measure(quick: bool, root: Path = _ROOT) -> list[Table]:
    """Batches of 64 and of 256, after the pixels have been checked.

    Raises:
        AssertionError: torchvision makes other pixels of the same draws.
    """
    n = 256 if quick else 5120
    dataset = images(root, n)
    check_pixels(dataset, 64 if quick else 1000)
    return [of_batches(dataset, size, n, rounds=1 if quick else 15) for size in (64, 256)]


def main() -> None:
    torch.set_num_threads(1)
    parser = arguments(__doc__)
    parser.add_argument("--root", type=Path, default=_ROOT, metavar="FOLDER", help=f"of CIFAR-100 ({_ROOT})")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    show("augment", measure(options.quick, options.root), options, device)


if __name__ == "__main__":
    main()
