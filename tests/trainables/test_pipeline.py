"""What networks are shown: the same pixels whichever way they are made."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainables import data, pipeline
from trainables.data import DataError, EncodedImages, ImageDataset, ResidentImages, settling
from trainables.pipeline import Pipeline
from trainables.protocol import resolve
from trainables.views import CropFlip, RandAugment, RandomResizedCrop, fitted, uniforms

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
DIGITS = data.load("digits")
AS_THEY_ARE = resolve("digits-quick")
RESIZED = resolve("crd-240", image_size=10, pad=2)
PARTS = resolve("imagenet-quick", image_size=12, eval_resize=14)
BATCHES = [torch.tensor([5, 0, 11]), torch.tensor([7, 2]), torch.tensor([3])]


def image_folder(root, sizes, n=6):
    """Two classes of `n` training images and three test images each, of the given (height, width) in turn."""
    for part, number in (("train", n), ("test", 3)):
        for c, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(10 * c + i).integers(0, 256, (*sizes[(c + i) % len(sizes)], 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture
def mixed(tmp_path) -> ImageDataset:
    """Images of three sizes, which stay encoded."""
    return data.load("image_folder", image_folder(tmp_path / "mixed", [(20, 16), (13, 30), (17, 17)]))


@pytest.fixture
def square(tmp_path) -> ImageDataset:
    """Images of one size, which are resident."""
    return data.load("image_folder", image_folder(tmp_path / "square", [(12, 12)]))


def encoded(dataset: ImageDataset, root: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    """The same images, but too large to be resident."""
    with monkeypatch.context() as patch:
        patch.setattr(settling, "RESIDENT_BYTES", 1)
        found = data.load(dataset.name, root)
    assert isinstance(found.train_images, EncodedImages)
    return found


def shown(made: Pipeline, kinds=("weak",), seed=1, epoch=2, batches=BATCHES):
    return [
        ([pixels.clone() for pixels in found.views], found.labels, found.indices)
        for found in made.training(seed, epoch, batches, kinds)
    ]


def equal(one, other):
    return len(one) == len(other) and all(
        all(torch.equal(a, b) for a, b in zip(views, views2, strict=True))
        and torch.equal(labels, labels2)
        and torch.equal(indices, indices2)
        for (views, labels, indices), (views2, labels2, indices2) in zip(one, other, strict=True)
    )


# Shapes


def test_the_shape_is_what_the_networks_see(mixed, square):
    assert Pipeline(DIGITS, AS_THEY_ARE).shape == (1, 8, 8)
    assert Pipeline(DIGITS, RESIZED).shape == (1, 10, 10)
    assert Pipeline(DIGITS, PARTS).shape == (1, 12, 12)
    assert Pipeline(square, AS_THEY_ARE).shape == (3, 12, 12)
    assert Pipeline(mixed, RESIZED).shape == (3, 10, 10)
    assert Pipeline(mixed, PARTS).shape == (3, 12, 12)


def test_crops_of_images_of_several_sizes_need_a_size_and_say_so_in_one_line(mixed):
    with pytest.raises(ValueError, match=r"protocol.image_size: must be given, in pixels: crop_flip needs") as caught:
        Pipeline(mixed, AS_THEY_ARE)
    assert "\n" not in str(caught.value)


def test_images_of_two_channels_are_cropped_but_neither_resized_nor_distorted():
    two = ResidentImages(DIGITS.train_images.pixels.expand(-1, 2, -1, -1))
    dataset = dataclasses.replace(DIGITS, train_images=two, test_images=two, test_labels=DIGITS.train_labels)
    made = Pipeline(dataset, AS_THEY_ARE)
    assert shown(made)[0][0][0].shape == (3, 2, 8, 8)
    with pytest.raises(ValueError, match="strong views need images of 1 or 3 channels; these have 2"):
        shown(made, ("weak", "strong"))
    with pytest.raises(ValueError, match="views weak, faint: there are weak and strong ones only"):
        shown(made, ("weak", "faint"))
    for protocol in (RESIZED, PARTS):
        with pytest.raises(ValueError, match="only images of 1 or 3 channels are resized; these have 2"):
            Pipeline(dataset, protocol)


# Training


def test_crops_of_resident_images_are_those_of_their_view_numbers_in_batches_of_any_sizes():
    made, views = Pipeline(DIGITS, AS_THEY_ARE), CropFlip(1, False)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for sizes in ([1000], [32] * 31 + [8], [1, 2, 3, 994]):
        batches = order.split(sizes)
        found = shown(made, batches=batches)
        assert [len(indices) for _, _, indices in found] == sizes
        for (pixels, labels, indices), asked in zip(found, batches, strict=True):
            assert torch.equal(indices, asked)
            assert torch.equal(labels, DIGITS.train_labels[asked])
            assert torch.equal(pixels[0], views.apply(DIGITS.train_images.pixels[asked], views.view_ids(1, 2, asked)))


def test_parts_of_images_are_those_of_their_boxes(mixed):
    views = RandomResizedCrop(12, True)
    for (pixels,), labels, indices in shown(Pipeline(mixed, PARTS)):
        assert torch.equal(labels, mixed.train_labels[indices])
        pictures = [mixed.train_images.picture(i) for i in indices.tolist()]
        boxes = views.boxes(1, 2, indices, [(picture.height, picture.width) for picture in pictures])
        for one, picture, box in zip(pixels, pictures, boxes, strict=True):
            assert np.array_equal(one.permute(1, 2, 0), views.apply(picture, box))


def test_strong_views_are_distortions_of_a_draw_of_their_own(mixed, square):
    for dataset, protocol in ((mixed, PARTS), (mixed, RESIZED), (square, AS_THEY_ARE), (DIGITS, PARTS)):
        made = Pipeline(dataset, protocol)
        both, weak = shown(made, ("weak", "strong")), shown(made)
        alone = shown(made, ("strong",))
        for (pixels, _, _), (of_weak, _, _), (of_strong, _, _) in zip(both, weak, alone, strict=True):
            assert torch.equal(pixels[0], of_weak[0])
            assert torch.equal(pixels[1], of_strong[0])
            assert not torch.equal(pixels[0], pixels[1])
            assert pixels[1].shape == pixels[0].shape
            assert pixels[1].dtype == torch.uint8
    views, (batch, *_) = CropFlip(1, False), BATCHES
    crops = views.apply(DIGITS.train_images.pixels[batch], views.view_ids(1, 2, batch, "strong views"))
    draws = uniforms(1, 2, batch, RandAugment.draws, "distortions").tolist()
    ((strong,), _, _), *_ = shown(Pipeline(DIGITS, AS_THEY_ARE), ("strong",))
    for one, crop, u in zip(strong, crops, draws, strict=True):
        assert np.array_equal(one[0], RandAugment().apply(Image.fromarray(crop[0].numpy()), u))


@pytest.mark.parametrize("protocol", [RESIZED, PARTS])
@pytest.mark.parametrize("kinds", [("weak",), ("strong", "weak")])
def test_a_view_depends_on_seed_epoch_and_image_and_not_on_the_company(mixed, protocol, kinds):
    made = Pipeline(mixed, protocol)
    together = shown(made, kinds)
    (alone,) = shown(made, kinds, batches=[torch.cat(BATCHES)])
    for k in range(len(kinds)):
        assert torch.equal(torch.cat([views[k] for views, _, _ in together]), alone[0][k])
    assert equal(together, shown(Pipeline(mixed, protocol), kinds))
    assert not equal(together, shown(made, kinds, seed=3))
    assert not equal(together, shown(made, kinds, epoch=3))


@pytest.mark.parametrize("protocol", [AS_THEY_ARE, RESIZED, PARTS])
def test_encoded_images_are_shown_like_the_same_images_when_resident(square, tmp_path, monkeypatch, protocol):
    other = encoded(square, tmp_path / "square", monkeypatch)
    if protocol is AS_THEY_ARE:  # of one size, which is not known without a look at all of them
        images = [EncodedImages(part.source, (3, 12, 12)) for part in (other.train_images, other.test_images)]
        other = dataclasses.replace(other, train_images=images[0], test_images=images[1])
    monkeypatch.setattr(pipeline, "_SIZED", {})
    monkeypatch.setattr(settling, "RESIDENT_BYTES", 1)
    one, two = Pipeline(square, protocol), Pipeline(other, protocol)
    for kinds in (("weak",), ("weak", "strong")):
        assert equal(shown(one, kinds), shown(two, kinds))
    for part in ("train", "test"):
        for first, second in zip(one.evaluation(part, None, 4), two.evaluation(part, None, 4), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_batches_are_no_views(mixed):
    assert shown(Pipeline(DIGITS, AS_THEY_ARE), batches=[]) == []
    assert shown(Pipeline(mixed, PARTS), batches=[]) == []


# Evaluation


@pytest.mark.parametrize(("protocol", "resize", "crop"), [(RESIZED, 10, 10), (PARTS, 14, 12)])
def test_images_are_evaluated_at_the_protocols_size(mixed, protocol, resize, crop):
    made = Pipeline(mixed, protocol)
    pixels, labels, indices = (torch.cat(found) for found in zip(*made.evaluation("test", None, 4), strict=True))
    assert torch.equal(labels, mixed.test_labels)
    assert indices.tolist() == list(range(6))
    for one, i in zip(pixels, range(6), strict=True):
        assert np.array_equal(one.permute(1, 2, 0), fitted(mixed.test_images.picture(i), resize, crop))


def test_images_are_evaluated_as_they_are_under_plain_crops():
    some = torch.tensor([4, 1, 700])
    ((pixels, labels, indices),) = Pipeline(DIGITS, AS_THEY_ARE).evaluation("train", some)
    assert torch.equal(pixels, DIGITS.train_images.pixels[some])
    assert torch.equal(labels, DIGITS.train_labels[some])
    assert torch.equal(indices, some)


def test_without_indices_all_that_are_part_of_the_data_are_evaluated():
    cut = data.restrict(DIGITS, classes=3)
    found = list(Pipeline(cut, AS_THEY_ARE).evaluation("test", None))
    assert [len(labels) for _, labels, _ in found[:-1]] == [125] * (len(found) - 1)
    indices = torch.cat([indices for _, _, indices in found])
    assert torch.equal(indices, torch.nonzero(cut.test_labels >= 0).flatten())
    assert torch.equal(torch.cat([labels for _, labels, _ in found]), cut.test_labels[indices])


# Images at another size


def test_images_of_several_sizes_become_resident_at_the_protocols_size_once_for_all_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_SIZED", {})
    root = image_folder(tmp_path / "mixed", [(20, 16), (13, 30)])
    dataset = data.load("image_folder", root, tmp_path / "cache")
    made = Pipeline(dataset, RESIZED)
    first = shown(made)
    (folder,) = (tmp_path / "cache").glob("sized-*")
    assert equal(shown(Pipeline(dataset, RESIZED)), first)

    def fails(self, i):
        raise AssertionError("decoded again")

    monkeypatch.setattr(EncodedImages, "picture", fails)
    assert equal(shown(Pipeline(dataset, RESIZED)), first)
    monkeypatch.setattr(pipeline, "_SIZED", {})
    again = Pipeline(dataset, RESIZED)
    assert equal(shown(again), first)
    (kept,) = pipeline._SIZED.values()
    assert isinstance(kept[0]["train"], ResidentImages)
    (folder / "train.npy").write_bytes(b"")
    monkeypatch.setattr(pipeline, "_SIZED", {})
    with pytest.raises(DataError, match=f"{folder.name} is damaged .*: remove that folder"):
        shown(Pipeline(dataset, RESIZED))


def test_images_of_other_classes_are_not_decoded_for_a_size(mixed, monkeypatch):
    monkeypatch.setattr(pipeline, "_SIZED", {})
    cut = dataclasses.replace(mixed, train_labels=torch.where(mixed.train_labels == 0, 0, -1))
    decoded, picture = [], EncodedImages.picture
    monkeypatch.setattr(EncodedImages, "picture", lambda self, i: decoded.append((self, i)) or picture(self, i))
    shown(Pipeline(cut, RESIZED), batches=[torch.tensor([0, 5])])
    assert [i for images, i in decoded if images is cut.train_images] == [0, 1, 2, 3, 4, 5]


def test_restricted_data_share_the_resized_images_and_not_the_labels(mixed, monkeypatch):
    monkeypatch.setattr(pipeline, "_SIZED", {})
    turned = data.restrict(mixed, classes=["b", "a"])
    for (a, labels, _), (b, turned_labels, _) in zip(
        shown(Pipeline(mixed, RESIZED)), shown(Pipeline(turned, RESIZED)), strict=True
    ):
        assert torch.equal(a[0], b[0])
        assert torch.equal(turned_labels, 1 - labels)
    assert len(pipeline._SIZED) == 1


# Images that do not decode


def spoiled(tmp_path, bad_images, **load):
    root = image_folder(tmp_path / "bad", [(20, 16), (13, 30)])
    (root / "train" / "a" / "5.png").write_text("no image")
    (root / "train" / "a" / "3.png").write_text("no image")
    (root / "test" / "b" / "1.png").write_text("no image")
    return data.load("image_folder", root, bad_images=bad_images, **load)


@pytest.mark.parametrize("protocol", [RESIZED, PARTS])
def test_a_bad_image_is_named_when_it_is_shown(tmp_path, protocol, monkeypatch):
    monkeypatch.setattr(pipeline, "_SIZED", {})
    made = Pipeline(spoiled(tmp_path, "fail"), protocol)
    with pytest.raises(DataError, match=r"bad/train/a/[35].png: not an image .*bad_images: skip") as caught:
        shown(made)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"bad/t(est/b/1|rain/a/3).png: not an image"):
        list(made.evaluation("test", None))


@pytest.mark.parametrize("cache", [None, "cache"])
@pytest.mark.parametrize(
    ("protocol", "kinds"), [(RESIZED, ("weak",)), (RESIZED, ("weak", "strong")), (PARTS, ("weak",))]
)
def test_bad_images_are_left_out_of_their_batches_where_they_are_to_be_skipped(
    tmp_path, protocol, kinds, cache, monkeypatch
):
    monkeypatch.setattr(pipeline, "_SIZED", {})
    dataset = spoiled(tmp_path, "skip", cache=cache and tmp_path / cache)
    made = Pipeline(dataset, protocol)
    for _ in range(2):
        found = shown(made, kinds)
        assert [indices.tolist() for _, _, indices in found] == [[0, 11], [7, 2], []]
        for views, labels, indices in found:
            assert torch.equal(labels, dataset.train_labels[indices])
            assert all(pixels.shape == (len(indices), *made.shape) for pixels in views)
        assert torch.cat([i for _, _, i in made.evaluation("test", None, 2)]).tolist() == [0, 1, 2, 3, 5]


# Worker processes


@pytest.mark.slow
def test_pixels_are_the_same_for_any_number_of_workers_and_torchs_generator_is_left_alone(mixed):
    inline, spread = Pipeline(mixed, PARTS), Pipeline(mixed, PARTS, workers=2)
    before = torch.get_rng_state()
    for epoch in (1, 2):
        kinds = ("weak", "strong")
        assert equal(shown(inline, kinds, epoch=epoch), shown(spread, kinds, epoch=epoch))
    # An iteration that is given up does not reach into the next one.
    next(spread.training(1, 2, BATCHES))
    for first, second in zip(inline.evaluation("test", None, 2), spread.evaluation("test", None, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_iterations_at_once_are_refused_instead_of_mixed_up(mixed):
    made = Pipeline(mixed, PARTS)
    first = made.training(1, 2, BATCHES)
    next(first)
    with pytest.raises(RuntimeError, match="still showing other images"):
        next(made.training(1, 2, BATCHES))
    first.close()
    assert len(shown(made)) == 3


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "tinyimagenet20").is_dir(), reason="needs shared/data/tinyimagenet20")
def test_tiny_imagenet_is_shown_by_imagenets_views_and_evaluated_from_memory():
    dataset = data.load("parquet", SHARED / "data" / "tinyimagenet20")
    made = Pipeline(dataset, resolve("imagenet-quick"))
    assert made.shape == (3, 64, 64)
    (found,) = shown(made, batches=[torch.arange(64)])
    assert found[0][0].shape == (64, 3, 64, 64)
    assert sum(len(labels) for _, labels, _ in made.evaluation("test", None)) == 1000
    assert torch.equal(next(made.evaluation("test", None))[0], dataset.test_images.pixels[:125])
