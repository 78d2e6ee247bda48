"""What a network is shown: uint8 pixels in batches, from a data set by the views of a protocol.

There are two ways, with the same pixels. Resident images under crops and flips are whole-batch tensor operations on the
device, where the data lie once. Everything else (encoded images, resized crops, strong views) is made image by image in
worker processes, and is the same for any number of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainables import views as viewing
from trainables.data import BadImage, DataError, EncodedImages, ImageDataset, Images, ResidentImages, cache, settling
from trainables.data.images import Shape, to_picture, to_tensor
from trainables.protocol import Protocol
from trainables.views import CropFlip, RandAugment, RandomResizedCrop, fitted, uniforms

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("weak", "strong")
"""Views of a training image that a method may ask for: the protocol's, and a second draw of it that is distorted."""

EVALUATION_BATCH = 125  # small ones stay in a CPU's cache

# Views are made of so many images at once, or of one batch: less overhead a step. A core holds no more in its cache; on
# a GPU it is the launches that count.
_IMAGES_AT_ONCE = {"cpu": 512, "cuda": 32_768}


class Shown(NamedTuple):
    """One batch, on the device.

    `views` has (n, C, H, W) uint8 pixels for each kind that was asked for, `labels` and `indices` are (n,) int64. With
    `bad_images: skip` n may be smaller than the batch that was asked for, and even 0.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor


class Pipeline:
    """Shows the images of a data set to networks.

    Args:
        dataset: what is shown.
        protocol: how.
        device: where the pixels are wanted.
        workers: processes that decode and distort images; 0: this one does it.

    Raises:
        ValueError: the protocol's views cannot be made of these images; one line.
    """

    def __init__(
        self, dataset: ImageDataset, protocol: Protocol, device: torch.device | str = "cpu", workers: int = 0
    ) -> None:
        self.dataset = dataset
        self.device = torch.device(device)
        self.shape: Shape = _shape(dataset, protocol)
        """(C, H, W) of what a network sees."""
        self.precision = protocol.precision
        self._maker = _Maker(dataset, protocol, self.shape)
        self._workers = workers
        self._requests: list[_Request] = []
        self._busy = False

    @property
    def views(self) -> CropFlip | RandomResizedCrop:
        """The training images' weak views."""
        return self._maker.views

    def training(
        self, seed: int, epoch: int, batches: Sequence[Tensor], kinds: Sequence[str] = ("weak",)
    ) -> Iterator[Shown]:
        """Views of training images. One iteration of a pipeline must end before the next begins.

        Args:
            seed: the run's seed.
            epoch: from 1.
            batches: (n,) int64 indices into the full training set, of each batch.
            kinds: the views of each image.

        Raises:
            ValueError: a kind that there is not, or a strong view of images that have neither one nor three channels.
            DataError: an image does not decode, and such images are not to be skipped.
        """
        if not set(kinds) <= set(KINDS):
            raise ValueError(f"views {', '.join(kinds)}: there are {' and '.join(KINDS)} ones only")
        if "strong" in kinds and self.shape[0] not in (1, 3):
            raise ValueError(f"strong views need images of 1 or 3 channels; these have {self.shape[0]}")
        resident = self._resident if isinstance(self._maker.views, CropFlip) and set(kinds) == {"weak"} else None
        if resident is None:
            for shown in self._made([_Request("train", batch.numpy(), seed, epoch, tuple(kinds)) for batch in batches]):
                yield Shown(tuple(shown.views), shown.labels, shown.indices)
            return
        if resident.bad is not None:
            batches = [batch[~resident.bad["train"][batch]] for batch in batches]
        views = self._maker.views
        assert isinstance(views, CropFlip)
        images, labels = resident.images["train"], resident.labels["train"]
        order = torch.cat(list(batches)).to(self.device) if len(batches) else torch.zeros(0, dtype=torch.int64)
        begin = 0
        largest = max(map(len, batches), default=1)
        at_once = max(1, _IMAGES_AT_ONCE.get(self.device.type, 512) // max(1, largest))
        for i in range(0, len(batches), at_once):
            sizes = [len(batch) for batch in batches[i : i + at_once]]
            indices = order[begin : begin + sum(sizes)]
            pixels = views.apply(images.index_select(0, indices), views.view_ids(seed, epoch, indices))
            parts = (pixels.split(sizes), labels[indices].split(sizes), indices.split(sizes))
            for some, target, mine in zip(*parts, strict=True):
                yield Shown((some,) * len(kinds), target, mine)
            begin += sum(sizes)

    def evaluation(
        self, part: str, indices: Tensor | None, batch: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images as they are evaluated: the same at each call.

        Args:
            part: `train` or `test`.
            indices: (n,) int64 of them; None: all whose label is not -1.
            batch: images at a time.

        Yields:
            Pixels, uint8 (n, C, H, W), labels and indices, int64 (n,), of each batch.
        """
        labels = self.dataset.train_labels if part == "train" else self.dataset.test_labels
        if indices is None:
            indices = torch.nonzero(labels >= 0).flatten()
        resident = self._resident if self._maker.evaluates_as_is or isinstance(self._maker.views, CropFlip) else None
        if resident is None:
            for shown in self._made(_evaluations(part, indices.split(batch))):
                yield shown.views[0], shown.labels, shown.indices
            return
        if resident.bad is not None:
            indices = indices[~resident.bad[part][indices]]
        images, target = resident.images[part], resident.labels[part]
        for some in indices.to(self.device).split(batch):
            yield images.index_select(0, some), target[some], some

    @cached_property
    def _resident(self) -> _Resident | None:
        """The images as tensors on the device, of the size in which they are shown; None where they cannot be."""
        sets = {"train": self.dataset.train_images, "test": self.dataset.test_images}
        bad: dict[str, Tensor] | None = None
        if not all(isinstance(images, ResidentImages) and images.shape == self.shape for images in sets.values()):
            sized = self._sized() if isinstance(self._maker.views, CropFlip) else None
            if sized is None:
                return None
            sets, bad = sized
        pixels = {part: images.pixels for part, images in sets.items() if isinstance(images, ResidentImages)}
        labels = {"train": self.dataset.train_labels, "test": self.dataset.test_labels}
        with torch.inference_mode(False):  # training uses them too
            return _Resident(
                {part: values.to(self.device) for part, values in pixels.items()},
                {part: values.to(self.device) for part, values in labels.items()},
                bad,
            )

    def _sized(self) -> tuple[dict[str, Images], dict[str, Tensor] | None] | None:
        """The images at the size in which they are shown, and which of them do not decode; None: they are too large.

        Kept in the data set's cache, if it has one, and for the process: a study's runs share them.
        """
        dataset, (channels, height, width) = self.dataset, self.shape
        members = {"train": dataset.train_labels >= 0, "test": dataset.test_labels >= 0}
        if sum(map(len, members.values())) * channels * height * width > settling.RESIDENT_BYTES:
            return None
        which = hashlib.sha256(b"".join(np.packbits(mask.numpy()).tobytes() for mask in members.values()))
        key = f"{dataset.hash[:16]}-{which.hexdigest()[:16]}-{height}-{dataset.bad_images}-{viewing.VERSION}"
        if key not in _SIZED:
            if dataset.cache is None:
                made = {part: self._made_whole(part, mask) for part, mask in members.items()}
                found = {part: (ResidentImages(pixels), bad) for part, (pixels, bad) in made.items()}
            else:
                kept = dataset.cache / f"sized-{key}"
                if not kept.is_dir():
                    cache.keep(kept, lambda folder: self._write_sized(folder, members))
                found = {part: _read_sized(kept, part) for part in members}
            images: dict[str, Images] = {part: resident for part, (resident, _) in found.items()}
            bad = {part: mask for part, (_, mask) in found.items()}
            _SIZED.clear()  # one at a time: they are large
            _SIZED[key] = images, bad if any(mask.any() for mask in bad.values()) else None
        return _SIZED[key]

    def _write_sized(self, folder: Path, members: dict[str, Tensor]) -> None:
        for part, mask in members.items():
            pixels, bad = self._made_whole(part, mask)
            np.save(folder / f"{part}.npy", pixels.numpy())
            np.save(folder / f"{part}-bad.npy", bad.numpy())

    def _made_whole(self, part: str, members: Tensor) -> tuple[Tensor, Tensor]:
        """A part's members at the size in which they are shown, in their places, and a mask of those that are bad."""
        pixels, bad = torch.zeros((len(members), *self.shape), dtype=torch.uint8), members.clone()
        for made in self._results(_evaluations(part, torch.nonzero(members).flatten().split(EVALUATION_BATCH))):
            pixels[made.indices] = made.views[0]
            bad[made.indices] = False
        return pixels, bad

    def _made(self, requests: list[_Request]) -> Iterator[_Made]:
        """What is made image by image, on the device."""
        for made in self._results(requests):
            views = [pixels.to(self.device, non_blocking=True) for pixels in made.views]
            yield made._replace(
                views=views,
                labels=made.labels.to(self.device, non_blocking=True),
                indices=made.indices.to(self.device, non_blocking=True),
            )

    def _results(self, requests: list[_Request]) -> Iterator[_Made]:
        if self._busy:
            raise RuntimeError("the pipeline is still showing other images; end that iteration first")
        self._busy = True
        self._requests[:] = requests
        try:
            for made in self._loader:
                if made.bad and self.dataset.bad_images == "fail":
                    raise DataError(
                        f"data set {self.dataset.name}: {made.bad[0]}; with bad_images: skip such images are left out"
                    )
                yield made
        finally:
            self._busy = False

    @cached_property
    def _loader(self) -> DataLoader[_Made]:
        return DataLoader(
            self._maker,
            batch_size=None,  # a request is a whole batch
            sampler=_Requests(self._requests),
            num_workers=self._workers,
            # A fork would copy a process in the middle of whatever its other threads are doing.
            multiprocessing_context="spawn" if self._workers else None,
            # They start once, and are told with each request what to make.
            persistent_workers=self._workers > 0,
            pin_memory=self.device.type == "cuda",
            # The loader draws a seed that nothing uses: not from the generator that the networks draw from.
            generator=torch.Generator(),
        )


_SIZED: dict[str, tuple[dict[str, Images], dict[str, Tensor] | None]] = {}


def _read_sized(kept: Path, part: str) -> tuple[ResidentImages, Tensor]:
    try:
        return ResidentImages.mapped(kept / f"{part}.npy"), torch.from_numpy(np.load(kept / f"{part}-bad.npy"))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"the cached copy {kept} is damaged ({error}): remove that folder") from None


@dataclass(frozen=True)
class _Resident:
    """Pixels and labels of both parts on the device, and masks on the CPU of images that do not decode."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    bad: dict[str, Tensor] | None


class _Request(NamedTuple):
    """A batch to make: which images of which part, and how."""

    part: str
    indices: np.ndarray  # not a tensor: that would travel in shared memory of its own
    seed: int
    epoch: int
    kinds: tuple[str, ...]


def _evaluations(part: str, batches: Sequence[Tensor]) -> list[_Request]:
    return [_Request(part, batch.numpy(), 0, 0, ("evaluation",)) for batch in batches]


class _Made(NamedTuple):
    """A batch as it was made: pixels of each kind, labels and indices, and what is wrong with what is left out."""

    views: list[Tensor]
    labels: Tensor
    indices: Tensor
    bad: list[str]


class _Requests:
    """Hands the loader the requests of the moment."""

    def __init__(self, requests: list[_Request]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[_Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)


class _Maker(Dataset[_Made]):
    """Makes batches image by image, in whichever process."""

    def __init__(self, dataset: ImageDataset, protocol: Protocol, shape: Shape) -> None:
        self._images = {"train": dataset.train_images, "test": dataset.test_images}
        self._labels = {"train": dataset.train_labels, "test": dataset.test_labels}
        self._shape = shape
        self._augment = RandAugment()
        self.views: CropFlip | RandomResizedCrop
        self._resize: int | None
        if protocol.views == "crop_flip":
            self.views = CropFlip(protocol.pad, protocol.flip)
            self._resize = protocol.image_size
        else:
            self.views = RandomResizedCrop(shape[1], protocol.flip)
            self._resize = protocol.eval_resize

    @property
    def evaluates_as_is(self) -> bool:
        """Whether the images have the size in which they are evaluated."""
        same = all(images.shape == self._shape for images in self._images.values())
        return same and self._resize in (None, self._shape[1])

    def __getitem__(self, request: _Request) -> _Made:
        images = self._images[request.part]
        # Crops and flips are made of tensors of one size, the other views of pictures of any.
        as_shown = isinstance(self.views, CropFlip)
        pictures: list[Image.Image] = []
        tensors: list[Tensor] = []
        good, bad = [], []
        for i in request.indices.tolist():
            try:
                if as_shown:
                    tensors.append(self._fitted(images, i))
                else:
                    pictures.append(_picture(images, i))
                good.append(i)
            except BadImage as error:
                bad.append(str(error))
        indices = torch.tensor(good, dtype=torch.int64)
        views = [torch.zeros((0, *self._shape), dtype=torch.uint8) for _ in request.kinds]
        if good and isinstance(self.views, CropFlip):
            views = [self._cropped(self.views, torch.stack(tensors), kind, indices, request) for kind in request.kinds]
        elif good and isinstance(self.views, RandomResizedCrop):
            views = [self._scaled(self.views, pictures, kind, indices, request) for kind in request.kinds]
        return _Made(views, self._labels[request.part][indices], indices, bad)

    def _fitted(self, images: Images, i: int) -> Tensor:
        if self._resize is None or images.shape == self._shape:
            return images.image(i)
        return to_tensor(fitted(_picture(images, i), self._resize, self._shape[1]))

    def _cropped(self, views: CropFlip, pixels: Tensor, kind: str, indices: Tensor, request: _Request) -> Tensor:
        if kind == "evaluation":
            return pixels
        shown = views.apply(pixels, views.view_ids(request.seed, request.epoch, indices, _STREAMS[kind]))
        return self._distorted([to_picture(one) for one in shown], indices, request) if kind == "strong" else shown

    def _scaled(
        self, views: RandomResizedCrop, pictures: list[Image.Image], kind: str, indices: Tensor, request: _Request
    ) -> Tensor:
        if kind == "evaluation":
            resize = self._resize or views.size
            return torch.stack([to_tensor(fitted(picture, resize, views.size)) for picture in pictures])
        sizes = [(picture.height, picture.width) for picture in pictures]
        boxes = views.boxes(request.seed, request.epoch, indices, sizes, _STREAMS[kind])
        shown = [views.apply(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
        if kind == "strong":
            return self._distorted(shown, indices, request)
        return torch.stack([to_tensor(picture) for picture in shown])

    def _distorted(self, shown: list[Image.Image], indices: Tensor, request: _Request) -> Tensor:
        draws = uniforms(request.seed, request.epoch, indices, self._augment.draws, "distortions").tolist()
        return torch.stack([to_tensor(self._augment.apply(one, u)) for one, u in zip(shown, draws, strict=True)])


_STREAMS = {"weak": "views", "strong": "strong views"}


def _picture(images: Images, i: int) -> Image.Image:
    return images.picture(i) if isinstance(images, EncodedImages) else to_picture(images.image(i))


def _shape(dataset: ImageDataset, protocol: Protocol) -> Shape:
    """(C, H, W) of what a network sees.

    Raises:
        ValueError: the protocol's views cannot be made of these images.
    """
    stored = [dataset.train_images.shape, dataset.test_images.shape]
    channels = 3 if stored[0] is None else stored[0][0]
    size = protocol.image_size
    if size is not None:
        if channels not in (1, 3):
            raise ValueError(f"protocol.image_size: only images of 1 or 3 channels are resized; these have {channels}")
        return channels, size, size
    if stored[0] is None or stored[0] != stored[1]:
        raise ValueError(
            f"protocol.image_size: must be given, in pixels: {protocol.views} needs images of one size, and those of "
            f"{dataset.name} are of several"
        )
    return stored[0]
