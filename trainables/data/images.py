"""Images of one part of a data set: decoded pixels in memory, or encoded ones that are decoded when they are shown.

Images have a number, which never changes: an image that is left out keeps its place, under the label -1.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Shape = tuple[int, int, int]


class DataError(ValueError):
    """The data cannot be read; one line that says what, where and what would be right."""


class BadImage(DataError):
    """An image does not decode; one line that names its file, or its file and row."""


class Encoded(Protocol):
    """Where encoded images come from: files, or rows of a table."""

    def __len__(self) -> int: ...

    def stream(self) -> Iterator[bytes | None]:
        """All of them in order; None where there is nothing."""

    def place(self, i: int) -> str:
        """Where image `i` is, for a message."""


class Readable(Encoded, Protocol):
    """Encoded images that can be read in any order."""

    sizes: np.ndarray

    def read(self, i: int) -> bytes:
        """Image `i` as it is stored."""

    def names(self) -> list[str]:
        """What each is called, wherever the data set lies."""


class ResidentImages:
    """Images of one size whose pixels are in memory, or in a file that is mapped into it.

    Args:
        pixels: (N, C, H, W) uint8.
        path: the .npy file that they are mapped from: another process maps it too, instead of getting a copy.
    """

    def __init__(self, pixels: Tensor, path: Path | None = None) -> None:
        self.pixels = pixels
        self._path = path

    @classmethod
    def mapped(cls, path: Path) -> ResidentImages:
        """Those in a .npy file. Pages are shared between processes, and a stray write would not reach the file."""
        return cls(torch.from_numpy(np.load(path, mmap_mode="c")), path)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of each."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def image(self, i: int) -> Tensor:
        """Image `i`, uint8 (C, H, W)."""
        return self.pixels[i]

    def __reduce__(self) -> tuple[Any, ...]:
        return (ResidentImages, (self.pixels,)) if self._path is None else (ResidentImages.mapped, (self._path,))


class EncodedImages:
    """Images that are decoded when they are shown, to RGB.

    Args:
        source: the encoded images.
        shape: (C, H, W), where all are known to have it; None: of several sizes, or not known.
    """

    channels = 3

    def __init__(self, source: Readable, shape: Shape | None = None) -> None:
        self.source = source
        self.shape = shape

    def __len__(self) -> int:
        return len(self.source)

    def picture(self, i: int) -> Image.Image:
        """Image `i` as Pillow has it, in RGB.

        Raises:
            BadImage: it does not decode, or is not of the size that it should have.
        """
        try:
            encoded = self.source.read(i)
        except OSError as error:
            raise BadImage(f"{self.source.place(i)}: cannot be read ({error.strerror})") from None
        picture = decode(encoded, self.source.place(i))
        if self.shape is not None and (picture.height, picture.width) != self.shape[1:]:
            raise BadImage(_wrong_size(self.source.place(i), picture, self.shape[1:]))
        return picture

    def image(self, i: int) -> Tensor:
        """Image `i`, uint8 (3, H, W).

        Raises:
            BadImage: it does not decode.
        """
        return to_tensor(self.picture(i))


Images = ResidentImages | EncodedImages


class Files:
    """Encoded images in files.

    Args:
        root: the folder of the data set.
        relative: their names in it.
        sizes: (N,) int64, bytes of each.
    """

    def __init__(self, root: Path, relative: Sequence[str], sizes: np.ndarray) -> None:
        self.root = root
        self.relative = list(relative)
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.relative)

    def read(self, i: int) -> bytes:
        """The content of file `i`."""
        return (self.root / self.relative[i]).read_bytes()

    def stream(self) -> Iterator[bytes | None]:
        """The contents of all files; None for one that cannot be read."""
        for i in range(len(self)):
            try:
                yield self.read(i)
            except OSError:
                yield None

    def place(self, i: int) -> str:
        """The file."""
        return str(self.root / self.relative[i])

    def names(self) -> list[str]:
        """Their names under the data set's folder."""
        return self.relative


class Rows:
    """Encoded images one after the other in one array, as they stood in the rows of one or more files.

    Args:
        content: (bytes,) uint8.
        offsets: (N + 1,) int64: image i is content[offsets[i] : offsets[i + 1]].
        files: (name of a file, how many rows it has), in order.
        path: the file that `content` is mapped from: another process maps it too, instead of getting a copy.
    """

    def __init__(
        self, content: np.ndarray, offsets: np.ndarray, files: Sequence[tuple[str, int]], path: Path | None = None
    ) -> None:
        self.content, self.offsets, self.files, self._path = content, offsets, [(f, n) for f, n in files], path
        self.sizes = np.diff(offsets)

    @classmethod
    def mapped(cls, path: Path, offsets: np.ndarray, files: Sequence[tuple[str, int]]) -> Rows:
        """Those in a file."""
        # A map of nothing is an error.
        content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        return cls(content, offsets, files, path)

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, i: int) -> bytes:
        """Row `i`."""
        return self.content[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def stream(self) -> Iterator[bytes | None]:
        """All rows."""
        return (self.read(i) for i in range(len(self)))

    def place(self, i: int) -> str:
        """The file and the row in it."""
        return row_place(self.files, i)

    def names(self) -> list[str]:
        """Their numbers, whatever the files are called and however many there are."""
        return [str(i) for i in range(len(self))]

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return Rows, (self.content, self.offsets, self.files)
        return Rows.mapped, (self._path, self.offsets, self.files)


def row_place(files: Sequence[tuple[str, int]], i: int) -> str:
    """Where image `i` is among files of so many rows."""
    for file, rows in files:
        if i < rows:
            return f"{file}, row {i}"
        i -= rows
    raise IndexError(i)


def decode(encoded: bytes | None, place: str) -> Image.Image:
    """An encoded image as Pillow has it, in RGB.

    Raises:
        BadImage: it does not decode.
    """
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise BadImage(f"{place}: not an image (it is empty, or cannot be read)")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:  # Pillow's message has an address in it
        raise BadImage(f"{place}: not an image (its format is not known)") from None
    except Exception as error:  # damaged bytes make the decoders fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImage(f"{place}: not an image ({reason})") from None


def decode_all(
    source: Encoded, shape: Shape | None, required: bool, most_bytes: int
) -> tuple[np.ndarray, dict[int, str]] | None:
    """Decode a whole part.

    Args:
        source: its images.
        shape: (3, H, W) that they should have; None: that of the first which decodes.
        required: an image of another size is bad; otherwise it ends the attempt.
        most_bytes: that the pixels may take.

    Returns:
        Pixels, uint8 (N, 3, H, W), black where an image is bad, and for each of the bad ones what is wrong with it, by
        number; None where the images are not all of one size, or too large together.

    Raises:
        DataError: none of them decodes.
    """
    pixels: np.ndarray | None = None
    bad: dict[int, str] = {}
    for i, encoded in enumerate(source.stream()):
        try:
            picture = decode(encoded, source.place(i))
        except BadImage as error:
            bad[i] = str(error)
            continue
        if pixels is None:
            height, width = (picture.height, picture.width) if shape is None else shape[1:]
            if 3 * height * width * len(source) > most_bytes:
                return None
            pixels = np.zeros((len(source), 3, height, width), np.uint8)
        if (picture.height, picture.width) != pixels.shape[2:]:
            if not required:
                return None
            bad[i] = _wrong_size(source.place(i), picture, pixels.shape[2:])
            continue
        pixels[i] = np.asarray(picture).transpose(2, 0, 1)
    if pixels is None:
        raise DataError(f"none of {len(source)} images decodes, the first is {bad[0]}")
    return pixels, bad


def to_tensor(picture: Image.Image) -> Tensor:
    """A Pillow image, grey or RGB, as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) as a Pillow image; C is 1 or 3."""
    from PIL import Image

    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy())


def _wrong_size(place: str, picture: Image.Image, wanted: Sequence[int]) -> str:
    height, width = wanted
    return f"{place}: {picture.width}x{picture.height} pixels; wanted: {width}x{height}"
