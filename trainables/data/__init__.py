"""Image data sets: pixels in memory (or in a shared memory map), or encoded images that are decoded when shown.

A data set is an entry in the file of its kind (`digits`, `cifar`, `folder`, `parquet`), or the user's own; `registry`
has them all, `loading` reads one, `settling` decodes, checks and hashes it, `cache` keeps it, `restriction` cuts it to
some classes. May import torch, numpy and of ours `trainables`; Pillow, pyarrow and scikit-learn where one is needed.
"""

from trainables.data.entry import DatasetEntry, ImageDataset, RawData
from trainables.data.images import BadImage, DataError, EncodedImages, Files, Images, ResidentImages, Rows
from trainables.data.loading import BAD_IMAGES, VERSION, load
from trainables.data.registry import DATASETS, get, names
from trainables.data.restriction import restrict
from trainables.data.settling import RESIDENT_BYTES, content_hash

__all__ = [
    "BAD_IMAGES",
    "DATASETS",
    "RESIDENT_BYTES",
    "VERSION",
    "BadImage",
    "DataError",
    "DatasetEntry",
    "EncodedImages",
    "Files",
    "ImageDataset",
    "Images",
    "RawData",
    "ResidentImages",
    "Rows",
    "content_hash",
    "get",
    "load",
    "names",
    "restrict",
]
