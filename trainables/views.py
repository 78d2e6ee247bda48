"""Views of training images, each a pure function of (seed, epoch, image index).

`CropFlip` crops the zero-padded image, as whole-batch tensor operations. Padding 4 with a flip has 9 * 9 * 2 = 162
views of an image, so a view has a number, the same views come back in other epochs, and a teacher's answers to them
are stored. `RandomResizedCrop` scales a part of the image, and `RandAugment` distorts what one of these shows:
both work image by image, with Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.streams import stream_seed

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1  # raised when a fix changes which view is drawn or what it looks like

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer, as are the two below
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(frozen=True)
class CropFlip:
    """Zero padding by `pad` pixels on each side, a crop of the original size, and (if `flip`) a horizontal flip.

    View number = ((flip * rows) + top) * rows + left with rows = 2 * pad + 1.
    """

    pad: int
    flip: bool

    @property
    def count(self) -> int:
        """How many views an image has."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def view_ids(self, seed: int, epoch: int, indices: Tensor, stream: str = "views") -> Tensor:
        """The view of each image in this epoch.

        Args:
            seed: the run's seed.
            epoch: from 1.
            indices: (n,) int64 indices into the full training set, on any device.
            stream: another one gives another draw.

        Returns:
            (n,) int64 numbers in [0, count), independent of which other images are asked for. Uniform but for a bias
            below count / 2**31.
        """
        # splitmix64 (Steele, Lea and Flood, 2014) with the image index as its counter.
        x = _mixed(indices * _GOLDEN + stream_seed(seed, stream, epoch))
        return (_shift(x, 33) * self.count) >> 31

    def offsets(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top row (n,) and left column (n,) of each crop in the padded image, and (n,) bool: is it flipped."""
        rows = 2 * self.pad + 1
        place = ids % (rows * rows)
        return place // rows, place % rows, ids >= rows * rows

    def apply(self, images: Tensor, ids: Tensor) -> Tensor:
        """Each image's view.

        Args:
            images: (n, C, H, W) uint8.
            ids: (n,) int64 view numbers on the same device.

        Returns:
            (n, C, H, W) uint8, bit for bit what torchvision's `pad`, `crop` and `hflip` give.
        """
        if self.count == 1 or not len(images):
            return images
        n, channels, height, width = images.shape
        top, left, flipped = self.offsets(ids)
        if self.flip:
            # images ^ ((mirrored ^ images) & 0xFF or 0): vectors of bytes, which a `where` on a CPU is not.
            chosen = (-flipped.to(torch.uint8)).view(n, 1, 1, 1)
            images = images.flip(-1).bitwise_xor_(images).bitwise_and_(chosen).bitwise_xor_(images)
            # The mirror image of a crop is the crop of the mirror image from the other side.
            left = torch.where(flipped, 2 * self.pad - left, left)
        # A crop is `height` rows of `width` bytes in each channel's plane: whole rows are copied, not single pixels.
        padded = F.pad(images, (self.pad, self.pad, self.pad, self.pad))
        row, plane = width + 2 * self.pad, (height + 2 * self.pad) * (width + 2 * self.pad)
        corners = top * row + left + torch.arange(0, padded.numel(), channels * plane, device=images.device)
        planes = torch.arange(0, channels * plane, plane, device=images.device)
        rows = torch.arange(0, height * row, row, device=images.device)
        starts = corners[:, None] + (planes[:, None] + rows).view(-1)
        return padded.flatten().unfold(0, width, 1).index_select(0, starts.view(-1)).view(images.shape)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image, scaled to `size` x `size` pixels, and (if `flip`) a horizontal flip.

    Its area is uniform from 8 to 100 % of the image's, its aspect (width / height) log-uniform from 3/4 to 4/3, its
    place uniform: the distribution of torchvision's RandomResizedCrop. A draw that does not fit into the image is
    repeated; after ten, the largest centred part of an allowed aspect is taken.
    """

    size: int
    flip: bool

    def boxes(
        self, seed: int, epoch: int, indices: Tensor, sizes: Sequence[tuple[int, int]], stream: str = "views"
    ) -> list[tuple[int, int, int, int, bool]]:
        """The part of each image that is shown in this epoch.

        Args:
            seed: the run's seed.
            epoch: from 1.
            indices: (n,) int64 indices into the full training set, on the CPU.
            sizes: (height, width) of each image.
            stream: another one gives another draw.

        Returns:
            (top, left, height, width, is it flipped) of each.
        """
        draws = uniforms(seed, epoch, indices, 4 * _TRIES + 1, stream).tolist()
        return [(*_box(u, *size), self.flip and u[-1] < 0.5) for u, size in zip(draws, sizes, strict=True)]

    def apply(self, picture: Image.Image, box: tuple[int, int, int, int, bool]) -> Image.Image:
        """The view of one image: bit for bit torchvision's `resized_crop` and `hflip` of a Pillow image (bilinear)."""
        from PIL import Image

        top, left, height, width, flipped = box
        # Cropped first: a resize with a box would mix in what lies beside it.
        part = picture.crop((left, top, left + width, top + height))
        shown = part.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else shown


_TRIES = 10
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)


def _box(u: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part, from 40 numbers uniform in [0, 1): area, aspect and place of each try."""
    for i in range(0, 4 * _TRIES, 4):
        area = height * width * (_AREA[0] + u[i] * (_AREA[1] - _AREA[0]))
        aspect = math.exp(math.log(_ASPECT[0]) + u[i + 1] * math.log(_ASPECT[1] / _ASPECT[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u[i + 2] * (height - h + 1)), int(u[i + 3] * (width - w + 1)), h, w
    w = min(width, round(height * _ASPECT[1]))
    h = min(height, round(width / _ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


class RandAugment:
    """Two random distortions and a grey square: the strong view of multi-level logit distillation.

    As its authors' code has it: two of fourteen operations, drawn with replacement, each with a strength uniform in its
    range, then a square (cut at the border) whose side is uniform from 0 to half the width.
    """

    draws = 7
    """How many uniform numbers an image takes."""

    def apply(self, picture: Image.Image, u: Sequence[float]) -> Image.Image:
        """Distort one image, RGB or grey, by `draws` numbers uniform in [0, 1)."""
        for chosen, strength in ((u[0], u[1]), (u[2], u[3])):
            operation, low, high = _OPERATIONS[int(chosen * len(_OPERATIONS))]
            picture = operation(picture, low + (high - low) * strength)
        return _square(picture, u[4] / 2, u[5], u[6])


def _auto_contrast(picture: Image.Image, _: float) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def _equalise(picture: Image.Image, _: float) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.equalize(picture)


def _posterise(picture: Image.Image, bits: float) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.posterize(picture, int(bits))


def _solarise(picture: Image.Image, threshold: float) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.solarize(picture, threshold)  # type: ignore[arg-type]  # compared only


def _enhanced(kind: str) -> Callable[[Image.Image, float], Image.Image]:
    def enhance(picture: Image.Image, factor: float) -> Image.Image:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, kind)(picture).enhance(factor)

    return enhance


def _affine(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Callable[[Image.Image, float], Image.Image]:
    def transform(picture: Image.Image, strength: float) -> Image.Image:
        from PIL import Image

        return picture.transform(picture.size, Image.Transform.AFFINE, matrix(strength, picture))

    return transform


# (operation, smallest and largest strength): factors, bits, degrees, thresholds, shears, shares of a side.
_OPERATIONS: list[tuple[Callable[[Image.Image, float], Image.Image], float, float]] = [
    (_auto_contrast, 0, 1),
    (_enhanced("Brightness"), 0.05, 0.95),
    (_enhanced("Color"), 0.05, 0.95),
    (_enhanced("Contrast"), 0.05, 0.95),
    (_equalise, 0, 1),
    (lambda picture, _: picture, 0, 1),
    (_posterise, 4, 8),
    (lambda picture, degrees: picture.rotate(degrees), -30, 30),
    (_enhanced("Sharpness"), 0.05, 0.95),
    (_affine(lambda shear, _: (1, shear, 0, 0, 1, 0)), -0.3, 0.3),
    (_affine(lambda shear, _: (1, 0, 0, shear, 1, 0)), -0.3, 0.3),
    (_solarise, 0, 256),
    (_affine(lambda share, picture: (1, 0, share * picture.width, 0, 1, 0)), -0.3, 0.3),
    (_affine(lambda share, picture: (1, 0, 0, 0, 1, share * picture.height)), -0.3, 0.3),
]
_GREY = (125, 123, 114)  # ImageNet's mean colour


def _square(picture: Image.Image, share: float, u_x: float, u_y: float) -> Image.Image:
    """A grey square with a side of `share` of the width, its centre uniform in the image."""
    from PIL import ImageDraw

    side = share * picture.width
    left, top = (int(max(0.0, u * length - side / 2)) for u, length in zip((u_x, u_y), picture.size, strict=True))
    corners = (left, top, min(picture.width, left + side), min(picture.height, top + side))
    picture = picture.copy()
    ImageDraw.Draw(picture).rectangle(corners, _GREY if picture.mode == "RGB" else _GREY[1])
    return picture


def fitted(picture: Image.Image, resize: int, crop: int) -> Image.Image:
    """The shorter side resized to `resize` pixels (bilinear), and the centre of `crop` x `crop` pixels cut out.

    Bit for bit torchvision's `resize` and `center_crop` of a Pillow image; `crop` is `resize` at most.
    """
    from PIL import Image

    width, height = picture.size
    if min(width, height) != resize:
        longer = int(resize * max(width, height) / min(width, height))
        width, height = (resize, longer) if width <= height else (longer, resize)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (crop, crop):
        return picture
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return picture.crop((left, top, left + crop, top + crop))


def uniforms(seed: int, epoch: int, indices: Tensor, count: int, stream: str) -> Tensor:
    """Random numbers of each image in an epoch.

    Args:
        seed: the run's seed.
        epoch: from 1.
        indices: (n,) int64 indices into the full training set.
        count: how many numbers each image gets.
        stream: what they are for; apart from other streams.

    Returns:
        (n, count) float64, uniform in [0, 1), independent of which other images are asked for.
    """
    start = _mixed(indices * _GOLDEN + stream_seed(seed, stream, epoch))
    # Each image's own splitmix64 sequence, from a start that is itself mixed.
    x = _mixed(start[:, None] + torch.arange(1, count + 1, device=indices.device) * _GOLDEN)
    return _shift(x, 11).to(torch.float64) * 2.0**-53


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, C, H, W) uint8 pixels to float32: (pixel / 255 - mean) / std, by channel."""
    shift, scale = _shift_and_scale(tuple(mean), tuple(std), tuple(images.shape[-2:]), images.device)
    pixels = images.to(torch.float32, copy=True)
    return torch.addcmul(shift, pixels, scale, out=pixels)


@lru_cache(maxsize=64)
def _shift_and_scale(
    mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(C, H, W) each.

    Kept on the device: a copy at each batch would make it wait for Python. Of an image's size, not (C, 1, 1): a CPU's
    vectors want both factors side by side.
    """
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        shift, scale = (factor.view(-1, 1, 1).expand(-1, *size).contiguous() for factor in (shift, scale))
    return shift, scale


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's output function, on int64."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, which torch's `>>` is not: it copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
