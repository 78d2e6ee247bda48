import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.data.images import to_picture, to_tensor
from trainables.streams import stream_seed
from trainables.views import _OPERATIONS, CropFlip, RandAugment, RandomResizedCrop, fitted, normalise, uniforms

CIFAR = CropFlip(pad=4, flip=True)
VIEWS = [CIFAR, CropFlip(pad=1, flip=False), CropFlip(pad=2, flip=True), CropFlip(pad=0, flip=True)]


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("views", "count"), [*zip(VIEWS, (162, 9, 50, 2), strict=True)])
def test_an_image_has_one_view_for_each_offset_and_flip(views, count):
    assert views.count == count
    offsets = {tuple(int(part) for part in parts) for parts in zip(*views.offsets(torch.arange(count)), strict=True)}
    side = range(2 * views.pad + 1)
    assert offsets == {(top, left, flip) for top in side for left in side for flip in range(1 + views.flip)}


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 6, 9)])
def test_every_view_is_torchvisions_pad_crop_and_flip_bit_for_bit(views, shape):
    F = pytest.importorskip("torchvision.transforms.functional")
    ids = torch.arange(views.count)
    images = pixels(views.count, *shape)
    shown = views.apply(images, ids)
    assert shown.dtype == torch.uint8
    for image, view, top, left, flip in zip(images, shown, *views.offsets(ids), strict=True):
        expected = F.crop(F.pad(image, [views.pad]), int(top), int(left), *shape[1:])
        assert torch.equal(view, F.hflip(expected) if flip else expected)


def test_no_padding_and_no_flip_leaves_images_as_they_are():
    views = CropFlip(pad=0, flip=False)
    images = pixels(5, 3, 8, 8)
    assert torch.equal(views.apply(images, views.view_ids(0, 1, torch.arange(5))), images)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 300), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_view_depends_on_seed_epoch_and_image_and_not_on_the_company(seed, epoch, images):
    together = CIFAR.view_ids(seed, epoch, torch.tensor(images))
    alone = [CIFAR.view_ids(seed, epoch, torch.tensor([image])).item() for image in images]
    assert together.tolist() == alone
    assert all(0 <= view < 162 for view in alone)


def test_views_are_those_of_splitmix64_in_plain_integers():
    def splitmix64(x):
        mask = 2**64 - 1
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    images = [0, 1, 2, 777, 49_999]
    start = stream_seed(5, "views", 9)
    expected = [(splitmix64((start + i * 0x9E3779B97F4A7C15) % 2**64) >> 33) * 162 >> 31 for i in images]
    assert CIFAR.view_ids(5, 9, torch.tensor(images)).tolist() == expected


@pytest.mark.parametrize("along", ["images", "epochs", "seeds"])
def test_views_are_uniform_along_each_argument(along):
    n = 162 * 200
    if along == "images":
        ids = CIFAR.view_ids(0, 1, torch.arange(n))
    elif along == "epochs":
        ids = torch.cat([CIFAR.view_ids(0, epoch, torch.arange(100)) for epoch in range(1, n // 100 + 1)])
    else:
        ids = torch.cat([CIFAR.view_ids(seed, 1, torch.arange(100)) for seed in range(n // 100)])
    chi2 = ((ids.bincount(minlength=162).double() - n / 162) ** 2 / (n / 162)).sum().item()
    n = len(ids)
    assert 100 < chi2 < 240  # chi-square with 161 degrees of freedom: mean 161, SD 18


def test_views_of_neighbouring_images_and_epochs_agree_no_more_often_than_chance():
    images = torch.arange(50_000)
    first, second = CIFAR.view_ids(0, 1, images), CIFAR.view_ids(0, 2, images)
    chance = 50_000 / 162  # 309, SD 17.5
    assert abs((first == second).sum().item() - chance) < 90
    assert abs((first[1:] == first[:-1]).sum().item() - chance) < 90


def test_normalising_is_pixel_over_255_minus_mean_over_std():
    images = pixels(4, 3, 5, 5)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    shape = (3, 1, 1)
    expected = (images.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(
        shape
    )
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


def test_normalising_first_without_gradients_leaves_its_constants_fit_for_training():
    images = pixels(2, 3, 4, 4)
    with torch.inference_mode():
        normalise(images, (0.11, 0.12, 0.13), (0.2, 0.2, 0.2))
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (normalise(images, (0.11, 0.12, 0.13), (0.2, 0.2, 0.2)) * weight).sum().backward()
    assert weight.grad is not None


# Numbers that are a function of seed, epoch and image


def test_uniform_numbers_depend_on_seed_epoch_image_and_stream_and_not_on_the_company():
    images = torch.tensor([0, 1, 7, 49_999])
    together = uniforms(3, 5, images, 6, "views")
    assert together.shape == (4, 6)
    assert torch.equal(together, torch.cat([uniforms(3, 5, image[None], 6, "views") for image in images]))
    assert torch.equal(together[:, :2], uniforms(3, 5, images, 2, "views"))
    for other in (
        uniforms(4, 5, images, 6, "views"),
        uniforms(3, 6, images, 6, "views"),
        uniforms(3, 5, images, 6, "x"),
    ):
        assert not (together == other).any()


def test_uniform_numbers_are_uniform_and_uncorrelated():
    u = uniforms(0, 1, torch.arange(20_000), 4, "views")
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        counts = (column * 50).long().bincount(minlength=50).double()
        assert ((counts - 400) ** 2 / 400).sum() < 90  # chi-square with 49 degrees of freedom: 0.03 % lie above
    correlation = torch.corrcoef(torch.cat([u, u.roll(1, 0)], 1).T)
    off_diagonal = correlation[~torch.eye(8, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / math.sqrt(20_000)


# Random resized crops


def boxes(n, height, width, seed=0, epoch=1, flip=True):
    views = RandomResizedCrop(8, flip)
    return torch.tensor(views.boxes(seed, epoch, torch.arange(n), [(height, width)] * n), dtype=torch.float64)


def quantiles(values):
    return torch.quantile(values.double(), torch.linspace(0.05, 0.95, 19, dtype=torch.float64))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500), (300, 60)])
def test_parts_are_distributed_like_torchvisions(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    n = 6000
    ours = boxes(n, height, width)
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        get = transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([get(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], dtype=torch.float64)
    for measure, scale in [
        (lambda b: b[:, 2] * b[:, 3] / (height * width), 1.0),  # area
        (lambda b: (b[:, 3] / b[:, 2]).log(), 0.6),  # aspect
        (lambda b: b[:, 0] / height, 1.0),
        (lambda b: b[:, 1] / width, 1.0),
        (lambda b: (b[:, 0] + b[:, 2]) / height, 1.0),
    ]:
        # The standard error of a quantile of 6,000 uniform numbers is 0.0065 at most.
        gap = (quantiles(measure(ours)) - quantiles(measure(theirs))).abs().max().item()
        assert gap < 0.045 * scale
    assert abs(ours[:, 4].mean().item() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_where_no_part_fits_the_largest_centred_one_is_shown(height, width, box):
    found = boxes(40, height, width)[:, :4].tolist()
    assert list(map(float, box)) in found
    assert all(top + h <= height and left + w <= width for top, left, h, w in found)


def test_parts_are_a_function_of_seed_epoch_and_image():
    views = RandomResizedCrop(8, True)
    together = views.boxes(3, 2, torch.arange(20), [(30, 40)] * 20)
    assert together == [views.boxes(3, 2, torch.tensor([i]), [(30, 40)])[0] for i in range(20)]
    for seed, epoch, stream in ((4, 2, "views"), (3, 3, "views"), (3, 2, "strong views")):
        assert views.boxes(seed, epoch, torch.arange(20), [(30, 40)] * 20, stream) != together
    assert not any(box[4] for box in RandomResizedCrop(8, False).boxes(3, 2, torch.arange(20), [(30, 40)] * 20))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_part_is_torchvisions_resized_crop_and_flip_bit_for_bit(channels):
    F = pytest.importorskip("torchvision.transforms.functional")
    views = RandomResizedCrop(12, True)
    for i, box in enumerate(views.boxes(0, 1, torch.arange(30), [(31, 44)] * 30)):
        picture = to_picture(pixels(channels, 31, 44, seed=i))
        expected = F.resized_crop(picture, *box[:4], [12, 12], F.InterpolationMode.BILINEAR)
        expected = F.hflip(expected) if box[4] else expected
        assert np.array_equal(views.apply(picture, box), expected)


@pytest.mark.parametrize("shape", [(1, 31, 44), (3, 44, 31), (3, 12, 12), (3, 9, 10), (3, 32, 32), (3, 12, 40)])
@pytest.mark.parametrize(("resize", "crop"), [(12, 12), (14, 12), (32, 27)])
def test_an_image_is_fitted_like_torchvisions_resize_and_centre_crop(shape, resize, crop):
    F = pytest.importorskip("torchvision.transforms.functional")
    picture = to_picture(pixels(*shape))
    expected = F.center_crop(F.resize(picture, resize, F.InterpolationMode.BILINEAR), [crop, crop])
    assert np.array_equal(fitted(picture, resize, crop), expected)


# Strong views


def test_pictures_and_tensors_are_the_same_pixels():
    for shape in ((1, 5, 7), (3, 5, 7)):
        assert torch.equal(to_tensor(to_picture(pixels(*shape))), pixels(*shape))


def smooth(channels=3, side=32):
    ramp = torch.linspace(0, 255, side)
    image = torch.stack([ramp[:, None] * 0.5 + ramp * 0.5, ramp[:, None].expand(side, side), ramp.expand(side, side)])
    return to_picture(image[:channels].to(torch.uint8))


def operated(operation, strength, picture):
    # The numbers that choose the operation, then the identity, then a square of no size in the first corner.
    n = len(_OPERATIONS)
    _, low, high = _OPERATIONS[operation]
    u = [(operation + 0.5) / n, (strength - low) / (high - low), 5.5 / n, 0.5, 0.0, 0.0, 0.0]
    return to_tensor(RandAugment().apply(picture, u))[:, 1:, 1:].float()


def test_each_distortion_is_torchvisions_of_the_same_strength():
    F = pytest.importorskip("torchvision.transforms.functional")
    picture = smooth()
    expected = [
        (0, 0.5, F.autocontrast(picture)),
        (1, 0.3, F.adjust_brightness(picture, 0.3)),
        (2, 0.3, F.adjust_saturation(picture, 0.3)),
        (3, 0.3, F.adjust_contrast(picture, 0.3)),
        (4, 0.5, F.equalize(picture)),
        (5, 0.5, picture),
        (6, 5.5, F.posterize(picture, 5)),
        (7, 20.0, F.rotate(picture, 20.0)),
        (8, 0.3, F.adjust_sharpness(picture, 0.3)),
        (11, 100.0, F.solarize(picture, 100.0)),
        (12, 0.25, F.affine(picture, 0.0, [-8, 0], 1.0, [0.0, 0.0])),
        (13, 0.25, F.affine(picture, 0.0, [0, -8], 1.0, [0.0, 0.0])),
    ]
    for operation, strength, theirs in expected:
        assert torch.equal(operated(operation, strength, picture), to_tensor(theirs)[:, 1:, 1:].float()), operation
    for operation, axis in ((9, 1), (10, 2)):
        sheared = operated(operation, 0.3, picture)
        still = to_tensor(picture)[:, 1:, 1:].float()
        moved = (sheared - still).abs().mean((0, 3 - axis))
        assert moved[-1] > moved[0]  # a shear moves the far side


def test_every_distortion_takes_grey_and_colour_and_its_whole_range_and_keeps_size_and_mode():
    for channels in (1, 3):
        picture = smooth(channels)
        for operation, low, high in _OPERATIONS:
            for strength in (low, (low + high) / 2, math.nextafter(high, low)):
                changed = operation(picture, strength)
                assert (changed.size, changed.mode) == (picture.size, picture.mode)


def test_a_strong_view_has_a_grey_square_of_up_to_half_the_width():
    picture = to_picture(torch.zeros(3, 32, 32, dtype=torch.uint8))
    sides = []
    for u in uniforms(0, 1, torch.arange(400), 3, "squares").tolist():
        shown = to_tensor(RandAugment().apply(picture, [5.5 / 14, 0.5, 5.5 / 14, 0.5, *u]))
        grey = (shown == torch.tensor([125, 123, 114], dtype=torch.uint8)[:, None, None]).all(0)
        assert grey.sum() == (shown > 0).any(0).sum()
        sides.append(max(grey.any(0).sum().item(), grey.any(1).sum().item()))
    assert max(sides) in (16, 17)
    assert min(sides) <= 2
    assert 7 < sum(sides) / 400 < 10
