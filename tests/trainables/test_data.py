import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables import data
from trainables.contracts import datasets as contract_datasets
from trainables.contracts.datasets import DatasetContract
from trainables.data import (
    DataError,
    DatasetEntry,
    EncodedImages,
    RawData,
    ResidentImages,
    cifar,
    load,
    parquet,
    restrict,
    settling,
)

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"


def test_digits_are_scikit_learns_cut_into_1000_and_797_with_every_class_in_both():
    from sklearn.datasets import load_digits

    digits = load("digits")
    train, test = digits.train_images.pixels, digits.test_images.pixels
    assert train.shape == (1000, 1, 8, 8)
    assert test.shape == (797, 1, 8, 8)
    assert train.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    rows = np.concatenate([train.flatten(1), test.flatten(1)]) // 15
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    theirs = load_digits()
    ours = sorted(map(tuple, np.column_stack([rows, labels]).tolist()))
    assert ours == sorted(map(tuple, np.column_stack([theirs.data, theirs.target]).astype(int).tolist()))
    for part in (digits.train_labels, digits.test_labels):
        share = np.bincount(theirs.target) * len(part) / 1797
        assert np.abs(part.bincount().numpy() - share).max() < 1


def test_the_digits_mean_and_std_are_those_of_the_training_part():
    digits = load("digits")
    pixels = digits.train_images.pixels.double() / 255
    assert (*digits.mean, *digits.std) == pytest.approx((pixels.mean().item(), pixels.std().item()), abs=5e-5)


@pytest.mark.parametrize("name", data.names())
def test_the_registry_agrees_with_itself(name):
    entry = data.get(name)
    assert entry.name == name
    assert len(entry.mean) == len(entry.std) == (entry.shape[0] if entry.shape else 3)
    assert entry.hash is None or len(entry.hash) == 64
    assert entry.summary
    assert entry.source


def test_an_unknown_data_set_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean cifar100"):
        load("cifar-100")


# A small data set of its own, read from parquet


def png(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)


def write_parquet(file, pixels, labels, label="fine_label", struct=False, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    encoded = [png(p) for p in pixels]
    table = pa.table({"image": [{"bytes": e} for e in encoded] if struct else encoded, label: labels, **columns})
    table = table.replace_schema_metadata({f"{label}_names": json.dumps(["a", "b"])})
    pyarrow.parquet.write_table(table, file)


def register(monkeypatch, entry):
    monkeypatch.setitem(data.DATASETS._own, entry.name, entry)


@pytest.fixture
def tiny(monkeypatch):
    entry = DatasetEntry(
        name="tiny",
        num_classes=2,
        shape=(3, 4, 4),
        sizes=(6, 3),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        summary="for tests",
        source="a folder",
        loader=lambda files: parquet.read(files, "fine_label"),
        finder=parquet.find("tiny", "a folder"),
    )
    register(monkeypatch, entry)
    return entry


TRAIN, TEST = images(6, 0), images(3, 1)
TRAIN_LABELS, TEST_LABELS = [0, 1, 1, 0, 1, 0], [1, 0, 1]


@pytest.fixture
def root(tmp_path, tiny):
    folder = tmp_path / "source"
    folder.mkdir()
    write_parquet(folder / "x-train.parquet", TRAIN, TRAIN_LABELS)
    write_parquet(folder / "x-test.parquet", TEST, TEST_LABELS)
    return folder


def test_parquet_gives_the_stored_pixels_labels_and_class_names(root):
    read = load("tiny", root)
    assert np.array_equal(read.train_images.pixels, TRAIN)
    assert np.array_equal(read.test_images.pixels, TEST)
    assert torch.equal(read.train_images.image(4), torch.from_numpy(TRAIN[4]))
    assert read.train_labels.tolist() == TRAIN_LABELS
    assert read.test_labels.tolist() == TEST_LABELS
    assert read.class_names == ("a", "b")


def test_the_hash_is_the_same_for_other_containers_of_the_same_pixels(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_parquet(other / "train-0.parquet", TRAIN[:4], TRAIN_LABELS[:4], label="label", struct=True)
    write_parquet(other / "train-1.parquet", TRAIN[4:], TRAIN_LABELS[4:], label="label", struct=True)
    write_parquet(other / "test.parquet", TEST, TEST_LABELS, label="label", struct=True)
    assert load("tiny", other).hash == load("tiny", root).hash


@pytest.mark.parametrize("what", ["pixel", "label", "order"])
def test_the_hash_notices_one_changed(what, root):
    before = load("tiny", root).hash
    pixels, labels = TRAIN.copy(), list(TRAIN_LABELS)
    if what == "pixel":
        pixels[5, 2, 3, 3] ^= 1
    elif what == "label":
        labels[5] = 1
    else:
        pixels = pixels[[1, 0, 2, 3, 4, 5]]
    write_parquet(root / "x-train.parquet", pixels, labels)
    assert load("tiny", root).hash != before


def test_pixels_that_differ_from_the_original_are_refused(root, tiny, monkeypatch):
    register(monkeypatch, dataclasses.replace(tiny, hash=load("tiny", root).hash))
    load("tiny", root)
    write_parquet(root / "x-train.parquet", TRAIN ^ 1, TRAIN_LABELS)
    with pytest.raises(DataError, match="differ from the original"):
        load("tiny", root)


def spoil(root, how):
    train = root / "x-train.parquet"
    if how == "no folder":
        shutil.rmtree(root)
    elif how == "no file":
        train.unlink()
    elif how == "truncated":
        train.write_bytes(train.read_bytes()[:-40])
    elif how == "text":
        train.write_text("not parquet")
    elif how == "no label column":
        write_parquet(train, TRAIN, TRAIN_LABELS, label="kind")
    elif how == "too few":
        write_parquet(train, TRAIN[:5], TRAIN_LABELS[:5])
    elif how == "label out of range":
        write_parquet(train, TRAIN, [*TRAIN_LABELS[:5], 2])
    elif how == "two sizes":
        write_parquet(train, [*TRAIN[:5], TRAIN[5, :, :2]], TRAIN_LABELS)
    elif how == "labels of text":
        write_parquet(train, TRAIN, list("abbaba"))
    elif how == "no image at all":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"image": [b"junk"] * 6, "fine_label": TRAIN_LABELS}), train)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no folder", "there is no folder .*source; wanted: a folder"),
        ("no file", "nothing of it in .*source; wanted: a folder"),
        ("truncated", "x-train.parquet cannot be read"),
        ("text", "x-train.parquet cannot be read"),
        ("no label column", r"x-train.parquet: wanted: columns image and fine_label \(or label\), found: image, kind"),
        ("too few", r"train part is \(5, 3, 4, 4\) .* wanted: \(6, 3, 4, 4\)"),
        ("label out of range", "labels outside 0 to 1"),
        ("two sizes", "1 of 9 images will not do, the first is .*x-train.parquet, row 5: 4x2 pixels; wanted: 4x4"),
        ("labels of text", "x-train.parquet: column fine_label: wanted: whole numbers"),
        ("no image at all", "none of 6 images decodes, the first is .*x-train.parquet, row 0: not an image"),
    ],
)
def test_a_folder_that_will_not_do_is_one_line_that_names_the_fault(root, tmp_path, how, says):
    spoil(root, how)
    with pytest.raises(DataError, match=says) as caught:
        load("tiny", root, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/*"))


def test_a_data_set_with_files_needs_a_folder(tiny):
    with pytest.raises(DataError, match="no folder given; wanted: a folder"):
        load("tiny")


# The cache


def test_a_cached_copy_equals_the_source_and_is_read_without_it(root, tmp_path, tiny, monkeypatch):
    fresh = load("tiny", root)
    load("tiny", root, tmp_path / "cache")

    def fails(files):
        raise AssertionError("read again")

    register(monkeypatch, dataclasses.replace(tiny, loader=fails))
    cached = load("tiny", root, tmp_path / "cache")
    assert torch.equal(cached.train_images.pixels, fresh.train_images.pixels)
    assert torch.equal(cached.test_images.pixels, fresh.test_images.pixels)
    assert torch.equal(cached.train_labels, fresh.train_labels)
    assert torch.equal(cached.test_labels, fresh.test_labels)
    assert (cached.hash, cached.class_names) == (fresh.hash, fresh.class_names)


def test_writing_to_a_cached_tensor_does_not_reach_the_file(root, tmp_path):
    load("tiny", root, tmp_path / "cache").train_images.pixels.zero_()
    assert np.array_equal(load("tiny", root, tmp_path / "cache").train_images.pixels, TRAIN)


@pytest.mark.parametrize("what", ["content", "time", "name"])
def test_a_changed_source_is_read_anew(root, tmp_path, what):
    before = load("tiny", root, tmp_path / "cache").hash
    train = root / "x-train.parquet"
    if what == "content":
        write_parquet(train, TRAIN ^ 1, TRAIN_LABELS)
    elif what == "time":
        stat = train.stat()
        os.utime(train, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    else:
        train.rename(root / "y-train.parquet")
    after = load("tiny", root, tmp_path / "cache").hash
    assert (before != after) == (what == "content")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_cached_copy_says_which_folder_to_remove(root, tmp_path):
    load("tiny", root, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    (kept / "test_images.npy").write_bytes(b"")
    with pytest.raises(DataError, match=f"{kept.name} is damaged .*: remove that folder"):
        load("tiny", root, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_one_line(root, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cache cannot be written"):
        load("tiny", root, tmp_path / "cache")


def _load_digits(cache, results):
    results.put(load("digits", cache=cache).hash)


def test_several_writers_of_one_cache_end_with_one_whole_copy(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=_load_digits, args=(tmp_path, results)) for _ in range(4)]
    for writer in writers:
        writer.start()
    hashes = {results.get(timeout=60) for _ in writers}
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert hashes == {load("digits").hash}
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("digits-")


# CIFAR-100


def test_a_pickle_that_is_not_the_original_is_refused_unopened(tmp_path):
    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "it ran"),))

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test", "meta"):
        (folder / part).write_bytes(pickle.dumps(Code()))
    with pytest.raises(DataError, match="train is damaged: its md5 is not 16019d7e"):
        load("cifar100", tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_an_empty_folder_says_which_layouts_were_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"cifar-100-python/\{train,test,meta\}.*\*train\*.parquet"):
        load("cifar100", tmp_path)


def test_the_hash_is_over_shapes_pixels_and_little_endian_labels():
    raw = RawData(TRAIN, np.array(TRAIN_LABELS), TEST, np.array(TEST_LABELS), ())
    sha = hashlib.sha256()
    for name, array in [
        ("train_images(6, 3, 4, 4)", TRAIN),
        ("train_labels(6,)", np.array(TRAIN_LABELS, dtype="<i8")),
        ("test_images(3, 3, 4, 4)", TEST),
        ("test_labels(3,)", np.array(TEST_LABELS, dtype="<i8")),
    ]:
        sha.update(name.encode() + array.tobytes())
    assert data.content_hash(raw) == sha.hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "cifar100").is_dir(), reason="needs shared/data/cifar100")
def test_cifar100_is_the_same_from_parquet_and_from_torchvisions_layout(tmp_path):
    unpack = SHARED / "tools" / "unpack_cifar100.py"
    subprocess.run([sys.executable, unpack, tmp_path], check=True, capture_output=True)
    pickled = load("cifar100", tmp_path)
    stored = load("cifar100", SHARED / "data" / "cifar100", tmp_path / "cache")
    assert pickled.hash == stored.hash
    assert torch.equal(pickled.train_images.pixels, stored.train_images.pixels)
    assert torch.equal(pickled.test_labels, stored.test_labels)
    assert pickled.class_names == stored.class_names
    assert stored.class_names[:2] == ("apple", "aquarium_fish")
    torchvision = pytest.importorskip("torchvision.datasets")
    theirs = torchvision.CIFAR100(tmp_path, train=False)
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), pickled.test_images.pixels)
    assert theirs.targets == pickled.test_labels.tolist()
    folder = load("cifar100", tmp_path / "cifar-100-python")
    assert folder.hash == pickled.hash


def pickled_cifar10(folder):
    """The layout of CIFAR-10 with six images a batch; the md5s of its files, and its pixels and labels in order."""
    folder.mkdir()
    pixels, labels = [], []
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        some = np.random.default_rng(i).integers(0, 256, (6, 3072), dtype=np.uint8)
        classes = [(i + j) % 10 for j in range(6)]
        (folder / name).write_bytes(pickle.dumps({"data": some, "labels": classes}))
        pixels.append(some.reshape(6, 3, 32, 32))
        labels.append(classes)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    return md5, np.stack(pixels), labels


def test_cifar10_is_read_from_torchvisions_layout_in_the_order_of_its_batches(tmp_path, monkeypatch):
    md5, pixels, labels = pickled_cifar10(tmp_path / "cifar-10-batches-py")
    for name, value in md5.items():
        monkeypatch.setitem(cifar._CIFAR10_MD5, name, value)
    register(monkeypatch, dataclasses.replace(data.get("cifar10"), sizes=(30, 6)))
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        read = load("cifar10", root)
        assert np.array_equal(read.train_images.pixels, np.concatenate(pixels[:5]))
        assert np.array_equal(read.test_images.pixels, pixels[5])
        assert read.train_labels.tolist() == [label for batch in labels[:5] for label in batch]
        assert read.class_names == tuple("abcdefghij")


def test_the_md5s_of_cifar10_are_torchvisions():
    CIFAR10 = pytest.importorskip("torchvision.datasets").CIFAR10
    theirs = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    assert [list(item) for item in cifar._CIFAR10_MD5.items()] == theirs


# Folders of images


def save_image(file, pixels):
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file)


def some_pixels(seed, height=6, width=6):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def image_folder(root, sizes=((6, 6),), test="val"):
    """Three classes, four images each for training and two for the test, of the given sizes in turn."""
    made = {}
    for part, n in (("train", 4), (test, 2)):
        for c, name in enumerate(("cat", "ant", "bee")):
            for i in range(n):
                pixels = some_pixels(100 * c + i + len(part), *sizes[(c + i) % len(sizes)])
                save_image(root / part / name / f"{i}.png", pixels)
                made[part, name, i] = pixels
    return made


@pytest.mark.parametrize("test", ["val", "test", "validation"])
def test_a_folder_of_images_of_one_size_is_resident_with_its_classes_in_the_order_of_their_names(tmp_path, test):
    made = image_folder(tmp_path, test=test)
    read = load("image_folder", tmp_path)
    assert read.class_names == ("ant", "bee", "cat")
    assert read.num_classes == 3
    assert read.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert read.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert isinstance(read.train_images, ResidentImages)
    assert read.train_images.shape == (3, 6, 6)
    assert np.array_equal(read.train_images.image(5), made["train", "bee", 1])
    assert np.array_equal(read.test_images.image(4), made[test, "cat", 0])


def test_a_folder_of_images_of_several_sizes_stays_encoded_and_decodes_each_when_it_is_shown(tmp_path):
    made = image_folder(tmp_path, sizes=((6, 6), (9, 7)))
    read = load("image_folder", tmp_path)
    assert isinstance(read.train_images, EncodedImages)
    assert read.train_images.shape is None
    assert len(read.train_images) == 12
    for i, key in enumerate(("train", name, i) for name in ("ant", "bee", "cat") for i in range(4)):
        assert np.array_equal(read.train_images.image(i), made[key])


def test_images_whose_pixels_do_not_fit_into_the_limit_stay_encoded(tmp_path, monkeypatch):
    image_folder(tmp_path)
    monkeypatch.setattr(settling, "RESIDENT_BYTES", 18 * 3 * 36 - 1)
    assert isinstance(load("image_folder", tmp_path).train_images, EncodedImages)
    monkeypatch.setattr(settling, "RESIDENT_BYTES", 18 * 3 * 36)
    assert isinstance(load("image_folder", tmp_path).train_images, ResidentImages)


def test_grey_and_transparent_and_palette_images_come_as_rgb(tmp_path):
    from PIL import Image

    image_folder(tmp_path)
    for i, mode in enumerate(("L", "RGBA", "P", "1")):
        Image.new(mode, (6, 6)).save(tmp_path / "train" / "ant" / f"{i}.png")
    assert load("image_folder", tmp_path).train_images.shape == (3, 6, 6)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_the_hash_of_encoded_images_covers_names_sizes_and_labels_wherever_they_lie(tmp_path, cache):
    def read(root):
        return load("image_folder", root, cache and tmp_path / cache).hash

    image_folder(tmp_path / "one", sizes=((6, 6), (9, 7)))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    before = read(tmp_path / "one")
    assert read(tmp_path / "two") == before
    (tmp_path / "two" / "train" / "ant" / "3.png").rename(tmp_path / "two" / "train" / "ant" / "4.png")
    renamed = read(tmp_path / "two")
    (tmp_path / "two" / "train" / "ant" / "4.png").rename(tmp_path / "two" / "train" / "bee" / "4.png")
    moved = read(tmp_path / "two")
    save_image(tmp_path / "one" / "train" / "ant" / "3.png", some_pixels(5, 20, 20))
    assert len({before, renamed, moved, read(tmp_path / "one")}) == 4


@pytest.mark.parametrize("sizes", [((6, 6),), ((6, 6), (9, 7))])
def test_a_folder_comes_back_the_same_through_the_cache_and_anew_when_an_image_changes(tmp_path, sizes):
    image_folder(tmp_path / "root", sizes=sizes)
    fresh = load("image_folder", tmp_path / "root")
    for _ in range(2):
        kept = load("image_folder", tmp_path / "root", tmp_path / "cache")
        assert (kept.hash, kept.class_names, kept.train_images.shape) == (
            fresh.hash,
            fresh.class_names,
            fresh.train_images.shape,
        )
        assert torch.equal(kept.test_labels, fresh.test_labels)
        assert all(torch.equal(kept.test_images.image(i), fresh.test_images.image(i)) for i in range(6))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    save_image(tmp_path / "root" / "val" / "cat" / "0.png", some_pixels(99, *sizes[0]))
    again = load("image_folder", tmp_path / "root", tmp_path / "cache")
    assert np.array_equal(again.test_images.image(4), some_pixels(99, *sizes[0]))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_images_that_do_not_decode_are_counted_and_the_first_is_named(tmp_path):
    image_folder(tmp_path)
    for name in ("train/bee/2.png", "train/cat/0.png", "val/ant/1.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(
        DataError, match=r"3 of 18 images will not do, the first is .*train/bee/2.png: not an"
    ) as caught:
        load("image_folder", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_images_that_do_not_decode_keep_their_place_under_the_label_minus_one(tmp_path, cache):
    made = image_folder(tmp_path / "root")
    whole = load("image_folder", tmp_path / "root")
    (tmp_path / "root" / "train" / "bee" / "2.png").write_text("no image")
    (tmp_path / "root" / "val" / "cat" / "1.png").write_bytes(b"")
    read = load("image_folder", tmp_path / "root", cache and tmp_path / cache, bad_images="skip")
    assert read.skipped == 2
    assert read.train_labels.tolist() == [0] * 4 + [1, 1, -1, 1] + [2] * 4
    assert read.test_labels.tolist() == [0, 0, 1, 1, 2, -1]
    assert np.array_equal(read.train_images.image(7), made["train", "bee", 3])
    assert read.hash != whole.hash
    assert whole.skipped == 0


def test_an_encoded_image_that_does_not_decode_is_named_when_it_is_shown(tmp_path):
    image_folder(tmp_path, sizes=((6, 6), (9, 7)))
    (tmp_path / "train" / "bee" / "2.png").write_text("no image")
    for bad_images in ("fail", "skip"):
        read = load("image_folder", tmp_path, bad_images=bad_images)
        assert read.skipped == 0
        with pytest.raises(DataError, match=r"train/bee/2.png: not an image \(its format is not known\)"):
            read.train_images.image(6)
    (tmp_path / "train" / "bee" / "3.png").unlink()
    with pytest.raises(DataError, match=r"train/bee/3.png: cannot be read"):
        read.train_images.image(7)


def test_what_becomes_of_bad_images_is_fail_or_skip():
    with pytest.raises(ValueError, match="bad_images: 'ignore' is none of fail, skip"):
        load("digits", bad_images="ignore")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"nothing of it in .*; wanted: a folder with train/CLASS"),
        (lambda root: shutil.rmtree(root / "val"), r"nothing of it in .*; wanted: a folder with train/CLASS"),
        (lambda root: (root / "val" / "dog").mkdir(), r"val/dog: no class of that name in .*train$"),
        (lambda root: (root / "train" / "dog").mkdir(), r"train/dog: no images"),
    ],
)
def test_a_folder_of_images_that_will_not_do_is_one_line(tmp_path, change, says):
    image_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=says) as caught:
        load("image_folder", tmp_path)
    assert "\n" not in str(caught.value)


def test_hidden_files_and_files_that_are_no_images_are_passed_over_and_folders_in_folders_are_not(tmp_path):
    image_folder(tmp_path)
    before = load("image_folder", tmp_path)
    (tmp_path / "train" / "ant" / "labels.txt").write_text("0")
    (tmp_path / "train" / "ant" / ".hidden.png").write_text("0")
    (tmp_path / "train" / ".cache").mkdir()
    assert load("image_folder", tmp_path).hash == before.hash
    save_image(tmp_path / "train" / "ant" / "more" / "x.PNG", some_pixels(3))
    assert len(load("image_folder", tmp_path).train_images) == 13


def test_imagenet_is_a_folder_of_a_thousand_classes_and_says_so_of_another(tmp_path):
    image_folder(tmp_path)
    with pytest.raises(DataError, match="data set imagenet: it has 3 classes; wanted: 1000"):
        load("imagenet", tmp_path)
    with pytest.raises(DataError, match=r"1,000 classes .* or one with \*train\*.parquet and \*val\*.parquet"):
        load("imagenet", tmp_path / "train")


def test_imagenets_test_part_is_its_validation_part(tmp_path, monkeypatch):
    register(monkeypatch, dataclasses.replace(data.get("imagenet"), num_classes=3))
    made = image_folder(tmp_path)
    (tmp_path / "test").mkdir()
    save_image(tmp_path / "test" / "unlabelled.png", some_pixels(0))
    assert np.array_equal(load("imagenet", tmp_path).test_images.image(0), made["val", "ant", 0])


def test_tiny_imagenet_is_read_as_it_is_published_and_as_an_ordinary_folder(tmp_path, monkeypatch):
    register(monkeypatch, dataclasses.replace(data.get("tiny_imagenet"), num_classes=3, shape=(3, 6, 6)))
    image_folder(tmp_path / "plain")
    published, lines = tmp_path / "published", []
    for name in ("cat", "ant", "bee"):
        shutil.copytree(tmp_path / "plain" / "train" / name, published / "train" / name / "images")
        (published / "train" / name / f"{name}_boxes.txt").write_text("0.png\t0\t0\t5\t5\n")
        for i in range(2):
            (published / "val" / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "plain" / "val" / name / f"{i}.png", published / "val" / "images" / f"{name}{i}.png")
            lines.append(f"{name}{i}.png\t{name}\t0\t0\t5\t5\n")
    (published / "val" / "val_annotations.txt").write_text("".join(lines))
    plain, read = load("tiny_imagenet", tmp_path / "plain"), load("tiny_imagenet", published)
    assert torch.equal(read.train_images.pixels, plain.train_images.pixels)
    assert read.test_labels.tolist() == [2, 2, 0, 0, 1, 1]
    assert torch.equal(read.test_images.pixels[2:4], plain.test_images.pixels[:2])
    (published / "val" / "val_annotations.txt").write_text("cat0.png\tdog\t0\t0\t5\t5\n")
    with pytest.raises(DataError, match=r"val_annotations.txt, line 1: wanted: a file, a tab and a class"):
        load("tiny_imagenet", published)


# Any parquet files


@pytest.fixture
def tables(tmp_path):
    """Two files for training and one for validation, of images of several sizes."""
    folder = tmp_path / "tables"
    folder.mkdir()
    pixels = [some_pixels(i, 5 + i % 2, 6) for i in range(7)]
    write_parquet(folder / "train-0.parquet", pixels[:3], [0, 1, 0], label="label", struct=True)
    write_parquet(folder / "train-1.parquet", pixels[3:5], [1, 0], label="label", struct=True)
    write_parquet(folder / "val.parquet", pixels[5:], [1, 0], label="label", struct=True)
    return folder, pixels


@pytest.mark.parametrize("cache", [None, "cache"])
def test_rows_of_images_of_several_sizes_are_read_in_any_order(tables, tmp_path, cache):
    folder, pixels = tables
    read = load("parquet", folder, cache and tmp_path / cache)
    assert isinstance(read.train_images, EncodedImages)
    assert read.class_names == ("a", "b")
    assert read.train_labels.tolist() == [0, 1, 0, 1, 0]
    for i in (4, 0, 3, 2, 1):
        assert np.array_equal(read.train_images.image(i), pixels[i])
    assert np.array_equal(read.test_images.image(1), pixels[6])
    assert read.train_images.source.place(4).endswith("train-1.parquet, row 1")


def test_the_hash_of_rows_does_not_depend_on_how_many_files_hold_them(tables, tmp_path):
    folder, pixels = tables
    before = load("parquet", folder).hash
    assert load("parquet", folder, tmp_path / "cache").hash == before
    write_parquet(folder / "train-0.parquet", pixels[:5], [0, 1, 0, 1, 0], label="label")
    (folder / "train-1.parquet").unlink()
    assert load("parquet", folder).hash == before


@pytest.mark.parametrize("kind", ["resident", "rows", "files"])
def test_images_travel_to_another_process_as_they_are_and_mapped_ones_by_their_file(kind, tables, tmp_path):
    folder, _ = tables
    if kind == "rows":
        read = load("parquet", folder, tmp_path / "cache")
    else:
        image_folder(tmp_path / "root", sizes=((40, 40),) if kind == "resident" else ((40, 40), (41, 40)))
        read = load("image_folder", tmp_path / "root", tmp_path / "cache")
    content = pickle.dumps(read.train_images)
    again = pickle.loads(content)
    assert all(torch.equal(again.image(i), read.train_images.image(i)) for i in range(len(again)))
    assert len(content) < 2000


def test_the_names_of_classes_come_from_the_tables_own_list_or_a_hubs_description(tables):
    folder, _ = tables
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def class_names(metadata):
        for file in folder.glob("*.parquet"):
            table = pyarrow.parquet.read_table(file).replace_schema_metadata(metadata)
            pyarrow.parquet.write_table(table, file)
        return load("parquet", folder).class_names

    hub = {"info": {"features": {"label": {"names": ["e", "f"], "_type": "ClassLabel"}}}}
    assert class_names({"names": json.dumps(["c", "d"])}) == ("c", "d")
    assert class_names({"huggingface": json.dumps(hub)}) == ("e", "f")
    assert class_names({}) == ("0", "1")
    assert class_names({"names": "no JSON"}) == ("0", "1")


# A data set of the user's own


class Own:
    """What `package.module:factory` may lead to."""

    @staticmethod
    def entry(seed=0):
        def arrays(n):
            return np.random.default_rng(seed).integers(0, 256, (n, 2, 5, 5), dtype=np.uint8), np.arange(n) % 3

        return DatasetEntry(
            name="mine",
            num_classes=None,
            shape=None,
            sizes=None,
            mean=(0.5, 0.5),
            std=(0.2, 0.2),
            summary="for tests",
            source="random numbers",
            loader=lambda files: RawData(*arrays(9), *arrays(6), class_names=()),
        )


def own():
    return Own.entry()


class TestDataSetsThatNeedNoFiles(DatasetContract):
    pass


class TestADataSetOfOnesOwn(DatasetContract):
    datasets = ((f"{__name__}:own", None),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    image_folder(root / "one size", sizes=((30, 30),))
    image_folder(root / "several sizes", sizes=((30, 34), (25, 40)))
    return root


@pytest.mark.parametrize("kind", ["one size", "several sizes"])
def test_folders_of_images_keep_the_contract(kind, folders, tmp_path):
    """The folder is made by the test, so the checks are called by hand."""
    contract, asked = DatasetContract(), ("image_folder", str(folders / kind))
    contract.test_the_registry_describes_the_data_set(*asked)
    contract.test_what_the_entry_says_is_what_is_there(*asked)
    contract.test_images_are_bytes_and_labels_whole_numbers_one_for_each(*asked)
    contract.test_labels_are_classes_and_each_class_has_a_name_and_training_images(*asked)
    contract.test_the_normalisation_has_a_mean_and_a_spread_for_each_channel(*asked)
    contract.test_the_hash_is_the_same_at_each_load_and_through_the_cache(*asked, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    contract.test_a_folder_that_will_not_do_is_one_line_that_says_what_is_wanted(*asked, tmp_path / "empty")
    contract.test_it_can_be_cut_to_some_classes_without_moving_an_image(*asked)
    contract.test_label_noise_is_an_exact_share_of_the_training_labels(*asked)
    for views in ("crop_flip", "random_resized_crop"):
        for kinds in (("weak",), ("weak", "strong")):
            contract.test_networks_are_shown_batches_of_the_pipelines_shape(*asked, views, kinds)


def test_the_contract_notices_a_data_set_that_breaks_it(monkeypatch, tmp_path):
    entry, contract = dataclasses.replace(own(), name="broken"), DatasetContract()
    raw = entry.loader(())

    def refused(check, *more, **changes):
        register(monkeypatch, dataclasses.replace(entry, **changes))
        contract_datasets._loaded.cache_clear()
        with pytest.raises(AssertionError):
            check("broken", None, *more)

    classes = contract.test_labels_are_classes_and_each_class_has_a_name_and_training_images
    without_one = dataclasses.replace(raw, train_labels=raw.train_labels % 2, class_names=("a", "b", "c"))
    refused(classes, loader=lambda files: without_one)
    refused(classes, loader=lambda files: dataclasses.replace(raw, class_names=("a", "a", "b")))
    refused(contract.test_the_normalisation_has_a_mean_and_a_spread_for_each_channel, std=(0.5, 50.0))
    other_each_time = (Own.entry(seed).loader(()) for seed in range(9))
    changing = contract.test_the_hash_is_the_same_at_each_load_and_through_the_cache
    refused(changing, tmp_path, loader=lambda files: next(other_each_time))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "tinyimagenet20").is_dir(), reason="needs shared/data/tinyimagenet20")
class TestTablesOfTinyImageNet(DatasetContract):
    datasets = (("parquet", SHARED / "data" / "tinyimagenet20"),)


def test_a_data_set_of_ones_own_is_named_by_its_module_and_factory(tmp_path):
    name = f"{__name__}:own"
    read = load(name, cache=tmp_path)
    assert read.name == name
    assert read.num_classes == 3
    assert read.class_names == ("0", "1", "2")
    assert read.train_images.shape == (2, 5, 5)
    with pytest.raises(ValueError, match=r"data set nowhere\.at:all: cannot be imported"):
        load("nowhere.at:all")


# Fewer classes, and wrong labels


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_the_first_so_many_classes_keep_their_labels_and_the_others_are_no_part_of_the_data(digits):
    cut = restrict(digits, classes=4)
    assert cut.num_classes == 4
    assert cut.class_names == tuple("0123")
    for part in ("train_labels", "test_labels"):
        before, after = getattr(digits, part), getattr(cut, part)
        assert torch.equal(after, torch.where(before < 4, before, -1))
    assert cut.train_images is digits.train_images
    assert cut.hash == digits.hash


def test_named_classes_are_numbered_in_the_order_in_which_they_are_given(digits):
    cut = restrict(digits, classes=[7, "2", 5])
    assert cut.class_names == ("7", "2", "5")
    for new, old in enumerate((7, 2, 5)):
        assert torch.equal(cut.train_labels == new, digits.train_labels == old)
        assert torch.equal(cut.test_labels == new, digits.test_labels == old)
    assert set(cut.train_labels.tolist()) == {-1, 0, 1, 2}
    again = restrict(cut, classes=["5", "7"])
    assert torch.equal(again.train_labels == 0, digits.train_labels == 5)
    assert (again.train_labels >= 0).sum() == ((digits.train_labels == 5) | (digits.train_labels == 7)).sum()


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (1, "classes: 1 will not do; digits has 10, and 2 at least are needed"),
        (11, "classes: 11 will not do; digits has 10"),
        ([3], "classes: 1 given; 2 at least"),
        ([3, 10], "classes: 10 is no class of digits, whose classes are 0 to 9"),
        ([3, -1], "classes: -1 is no class"),
        ([3, "3"], "classes: 3 is named twice"),
        ([3, "three"], "classes: unknown class of digits 'three'"),
    ],
)
def test_classes_that_there_are_not_are_one_line(digits, classes, says):
    with pytest.raises(ValueError, match=says) as caught:
        restrict(digits, classes=classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.333, 0.9])
def test_exactly_the_share_of_the_training_labels_is_wrong_and_no_test_label_is(digits, share):
    noisy = restrict(digits, label_noise=share, noise_seed=3)
    wrong = noisy.train_labels != digits.train_labels
    assert wrong.sum() == round(share * 1000)
    assert torch.equal(noisy.test_labels, digits.test_labels)
    assert noisy.train_labels.min() >= 0
    assert noisy.train_labels.max() <= 9
    again = restrict(digits, label_noise=share, noise_seed=3)
    assert torch.equal(again.train_labels, noisy.train_labels)
    other = restrict(digits, label_noise=share, noise_seed=4)
    assert not torch.equal(other.train_labels, noisy.train_labels)


def test_a_larger_share_of_noise_contains_a_smaller_one(digits):
    few, many = (restrict(digits, label_noise=share).train_labels for share in (0.2, 0.5))
    wrong = few != digits.train_labels
    assert torch.equal(many[wrong], few[wrong])


def test_wrong_labels_are_uniform_among_the_other_classes():
    labels = torch.zeros(90_000, dtype=torch.int64)
    clean = dataclasses.replace(load("digits"), train_labels=labels)
    counts = restrict(clean, label_noise=0.9999).train_labels.bincount()
    assert counts[0] == 9
    chi2 = ((counts[1:] - 9999.0) ** 2 / 9999).sum().item()
    assert chi2 < 26  # chi-square with 8 degrees of freedom: 0.1 % lie above


def test_noise_is_a_share_of_the_images_of_the_chosen_classes(digits):
    cut = restrict(digits, classes=3)
    noisy = restrict(digits, classes=3, label_noise=0.25)
    assert torch.equal(noisy.train_labels < 0, cut.train_labels < 0)
    assert (noisy.train_labels != cut.train_labels).sum() == round(0.25 * int((cut.train_labels >= 0).sum()))
    assert noisy.train_labels.max() == 2


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_noise_that_is_none_is_one_line(digits, share):
    with pytest.raises(ValueError, match=r"label_noise: .* is no share"):
        restrict(digits, label_noise=share)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "tinyimagenet20").is_dir(), reason="needs shared/data/tinyimagenet20")
def test_twenty_classes_of_tiny_imagenet_are_resident_from_parquet():
    read = load("parquet", SHARED / "data" / "tinyimagenet20")
    assert read.num_classes == 20
    assert read.class_names[0] == "goldfish, Carassius auratus"
    assert (len(read.train_images), len(read.test_images)) == (10_000, 1_000)
    assert read.train_images.shape == (3, 64, 64)
    assert read.train_labels.bincount().tolist() == [500] * 20
