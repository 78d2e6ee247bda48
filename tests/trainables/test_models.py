"""The contract for all models, the published sizes, and checkpoints of others."""

import dataclasses
import hashlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables import data, models
from trainables.contracts.models import ModelContract
from trainables.models import ModelEntry
from trainables.teachers import load_into, read_state_dict
from trainables.views import normalise

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
SIZES = {  # parameters, and multiply-adds in millions, with 100 classes
    "resnet20": (278_324, 40.8),
    "resnet32": (472_756, 69.1),
    "resnet44": (667_188, 97.4),
    "resnet56": (861_620, 125.8),
    "resnet110": (1_736_564, 253.2),
    "resnet8x4": (1_233_540, 177.1),
    "resnet32x4": (7_433_860, 1083.0),
    "wrn_16_2": (703_284, 101.1),
    "wrn_40_1": (569_780, 83.3),
    "wrn_40_2": (2_255_156, 327.6),
    "vgg8": (3_965_028, 96.2),
    "vgg13": (9_462_180, 284.9),
    "mobilenet_v2": (812_836, 6.5),
    "shufflenet_v1": (949_258, 38.7),
    "shufflenet_v2": (1_355_528, 44.5),
    "resnet50": (23_705_252, 1298.0),
}
IMAGENET_SIZES = {  # the same with 1000 classes and at 224x224
    "imagenet_resnet18": (11_689_512, 1814),
    "imagenet_resnet34": (21_797_672, 3664),
    "imagenet_resnet50": (25_557_032, 4089),
    "imagenet_mobilenet_v1": (4_231_976, 569),
}
KEYS = {  # of each network's state dict in the public code of CRD and DKD, with 100 classes; see `digest`
    "resnet8": "b0d6b90b7f82eae7",
    "resnet14": "09b9f32bbe1fd323",
    "resnet20": "d62528ebf09500ac",
    "resnet32": "871c1b2d9e39d361",
    "resnet44": "e3f9bc0daaf54a9b",
    "resnet56": "7d3a91d4a8b97b8c",
    "resnet110": "471c41f07af2c39c",
    "resnet8x4": "a04332a459ae1465",
    "resnet32x4": "24fbb1ea1d0f23f9",
    "wrn_16_2": "5994bb013d98efa7",
    "wrn_40_1": "c785d10f458c7b05",
    "wrn_40_2": "9a74d15007bab65e",
    "vgg8": "fdc773ff39915584",
    "vgg13": "bf74037647da8d81",
    "mobilenet_v2": "68a2c5f51e5cea07",
    "shufflenet_v1": "a2ef493a832e640c",
    "shufflenet_v2": "577996dd44e66b38",
    "resnet50": "d22cdf0e7420b1ea",
    "imagenet_mobilenet_v1": "a7bb754a62a44132",
}
BY_DEFAULT = ("shufflenet_v1", "shufflenet_v2", "imagenet_mobilenet_v1")  # whose convolutions start as PyTorch's do
TOP1 = {"resnet20": 68.83, "resnet32": 70.14, "resnet44": 71.66, "resnet56": 72.61}  # percent, as measured with them


TORCHVISION = [name for name in models.names() if models.get(name).family == "imagenet_resnet"]


class TestModels(ModelContract):
    """Every registered model but torchvision's."""

    names = tuple(name for name in models.names() if name not in TORCHVISION)


@pytest.mark.slow
class TestModelsOfTorchvision(ModelContract):
    """Large, and not our code; their sizes are tested with the others'."""

    names = TORCHVISION


def entry_of(network):
    return ModelEntry("any", "own", (3, 12, 20), "a model of one's own", "-", network)


class Flattened(nn.Module):
    """Takes images of one size only."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3 * 12 * 12, num_classes)

    def forward(self, images):
        return self.linear(images.flatten(1))


own_net = dataclasses.replace(entry_of(Flattened), input_shape=(3, 12, 12))


class TestAModelOfOnesOwn(ModelContract):
    """Named by where it is."""

    names = (f"{__name__}:own_net",)


class Average(nn.Module):
    """As small as a model can be, and the faults that follow differ from it in one thing each."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.linear(images.mean((2, 3)))


class OfTheBatch(Average):
    def forward(self, images):
        return super().forward(images - images.mean(0))


class Noisy(Average):
    def forward(self, images):
        return super().forward(images + torch.randn_like(images))


class WithUnused(Average):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.unused = nn.Linear(1, 1)


class Constant(Average):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.constant_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)


class Unseeded(Average):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        nn.init.normal_(self.linear.bias, generator=ENTROPY)


class Forgetful(Average):
    """Keeps a part of its state out of the state dict."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("shift", torch.randn(3, 1, 1), persistent=False)

    def forward(self, images):
        return super().forward(images + self.shift)


class TenClasses(Average):
    def __init__(self, num_classes):
        super().__init__(10)


class InMemoryOrder(Average):
    def forward(self, images):
        return super().forward(images.as_strided(images.shape, torch.empty(images.shape).stride()))


ENTROPY = torch.Generator().manual_seed(0)
FAULTS = {
    OfTheBatch: "test_an_image_is_answered_alone_and_always_alike_in_eval_mode",
    Noisy: "test_an_image_is_answered_alone_and_always_alike_in_eval_mode",
    WithUnused: "test_a_gradient_reaches_every_parameter",
    Constant: "test_another_seed_starts_other_weights",
    Unseeded: "test_the_same_seed_starts_the_same_weights",
    Forgetful: "test_a_state_dict_survives_a_file_and_loads_strictly",
    InMemoryOrder: "test_channels_last_gives_the_same_logits",
    TenClasses: "test_there_is_a_logit_for_each_class",
}


@pytest.mark.parametrize("network", [Average, *FAULTS])
def test_the_contract_finds_a_fault_and_passes_what_has_none(network, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], f"own_{network.__name__}", entry_of(network), raising=False)
    failing = []
    for check in (each for each in dir(ModelContract) if each.startswith("test_")):
        try:
            getattr(ModelContract(), check)(f"{__name__}:own_{network.__name__}", *[2] * ("for_each_class" in check))
        except AssertionError:
            failing.append(check)
    assert FAULTS[network] in failing if network in FAULTS else not failing


def shapes_of(name, num_classes):
    """A model without values, which costs nothing and still checks every shape."""
    with torch.device("meta"):
        return models.build(name, num_classes)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    parameters, million_macs = SIZES[name]
    model = shapes_of(name, 100)
    assert models.count_parameters(model) == parameters
    assert round(models.count_macs(model, (3, 32, 32)) / 1e6, 1) == million_macs
    assert models.get(name).num_classes == 100


@pytest.mark.parametrize("name", IMAGENET_SIZES)
def test_sizes_at_imagenet_are_the_published_ones(name):
    parameters, million_macs = IMAGENET_SIZES[name]
    entry = models.get(name)
    model = shapes_of(name, entry.num_classes)
    assert entry.num_classes == 1000
    assert models.count_parameters(model) == parameters
    assert round(models.count_macs(model, entry.input_shape) / 1e6) == million_macs


@pytest.mark.parametrize("name", KEYS)
def test_a_state_dict_has_the_keys_and_shapes_of_the_code_family(name):
    assert digest(shapes_of(name, 100).state_dict()) == KEYS[name]


def digest(state_dict):
    """Of `key (shape)`, one a line, in order, since the weights are drawn in that order."""
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state_dict.items())
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", [*SIZES, *IMAGENET_SIZES])
def test_colour_images_of_other_sizes_are_taken(name):
    """32x32 of CIFAR's and 224x224 of ImageNet's networks are in the contract: they were designed for them."""
    entry, model = models.get(name), models.build(name, 10).eval()
    for size in ((64, 64), (40, 24)):
        entry.require((3, *size))
        with torch.inference_mode():
            assert model(torch.randn(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize("name", ["vgg8", "vgg13"])
def test_the_smallest_image_that_is_stated_is_the_smallest(name):
    side = models.get(name).smallest - 1
    with pytest.raises(RuntimeError, match="too small"):
        models.build(name, 10).eval()(torch.randn(1, 3, side, side))


def test_a_vgg_pools_large_images_once_more():
    macs = {side: models.count_macs(shapes_of("vgg8", 10), (3, side, side)) for side in (32, 56, 64)}
    last_block = 512 * 512 * 9
    assert macs[56] - 7**2 * last_block == pytest.approx((macs[32] - 4**2 * last_block) * (56 / 32) ** 2, rel=1e-4)
    assert macs[64] == pytest.approx((macs[32] - 4**2 * last_block) * 4 + 4**2 * last_block, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in models.names() if name not in (*BY_DEFAULT, *TORCHVISION)])
def test_convolutions_start_with_the_variance_of_their_fan_out(name):
    torch.manual_seed(0)
    squares, count = 0.0, 0
    for module in models.build(name, 10).modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None or not module.bias.any()
            fan_out = module.out_channels * math.prod(module.kernel_size)
            squares += (module.weight**2).sum().item() * fan_out / 2
            count += module.weight.numel()
    # The mean of `count` squares of standard normals, within 5 standard errors.
    assert squares / count == pytest.approx(1, abs=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("blocks_and_depth", [(1, 8), (2, 14), (3, 20), (5, 32), (7, 44), (9, 56), (18, 110)])
def test_a_resnet_is_as_deep_as_its_name(blocks_and_depth):
    blocks, depth = blocks_and_depth
    model = models.build(f"resnet{depth}", 100)
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3)] == [blocks] * 3
    weighted = [m for m in model.modules() if isinstance(m, nn.Linear) or getattr(m, "kernel_size", None) == (3, 3)]
    assert len(weighted) == depth


def test_the_digits_student_is_far_smaller_than_its_teacher():
    student, teacher = (models.count_parameters(models.build(name, 10)) for name in ("cnn3", "cnn32"))
    assert student < 1500
    assert teacher > 50 * student


def test_multiply_adds_are_counted_for_strides_groups_and_linear_layers():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
    )
    convolution = 8 * 3 * 3 * (4 // 2) * 9  # output channels, output size, input channels of a group, kernel
    assert models.count_macs(model, (4, 6, 6)) == convolution + 72 * 5


def test_counting_leaves_the_model_as_it_was():
    model = models.build("cnn3", 10).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    models.count_macs(model, (1, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "nearest"), [("resnet21", "resnet20"), ("cnn31", "cnn3"), ("wrn-16-2", "wrn_16_2")])
def test_an_unknown_model_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=rf"^unknown model '{name}': did you mean .*{nearest}") as refusal:
        models.build(name, 10)
    assert "\n" not in str(refusal.value)


def test_a_refused_image_is_told_what_the_model_takes():
    with pytest.raises(ValueError, match=r"^cnn3 takes images of 1 channel and at least 1x1 pixels; given: 3x32x32$"):
        models.get("cnn3").require((3, 32, 32))
    with pytest.raises(ValueError, match=r"^vgg8 takes images of 3 channels and at least 8x8 pixels; given: 3x7x32$"):
        models.get("vgg8").require((3, 7, 32))


def test_an_entry_takes_no_smaller_images_than_it_was_designed_for_unless_it_says_so():
    assert entry_of(Average).smallest == 12
    assert dataclasses.replace(entry_of(Average), smallest=3).smallest == 3


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_of_torchvision_are_for_the_model_that_names_them(name):
    from torchvision.models import get_weight

    parameters = get_weight(models.get(name).weights).meta["num_params"]
    assert parameters == IMAGENET_SIZES[name][0]


def checkpoint(name):
    path = SHARED / "data" / "teachers" / f"cifar100_{name}.pth"
    if not path.is_file():
        pytest.skip(f"no checkpoint {path.name} in shared/data/teachers beside the repository")
    return load_into(name, 100, read_state_dict(path), path.name).eval()


@pytest.mark.parametrize("name", TOP1)
def test_a_checkpoint_of_others_loads_strictly(name):
    checkpoint(name)


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    root = SHARED / "data" / "cifar100"
    if not root.is_dir():
        pytest.skip("no shared/data/cifar100 beside the repository")
    return data.load("cifar100", root, tmp_path_factory.mktemp("decoded"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOP1)
def test_a_checkpoint_of_others_classifies_as_well_as_measured_with_it(name, cifar100):
    """Not the keys alone fit: the same share of all 10,000 test images is right."""
    model = checkpoint(name)
    hits, batch = 0, 250
    with torch.inference_mode():
        for start in range(0, len(cifar100.test_labels), batch):
            logits = model(normalised(cifar100, start, start + batch))
            hits += (logits.argmax(-1) == cifar100.test_labels[start : start + batch]).sum().item()
    assert len(cifar100.test_labels) == 10_000
    assert hits / 100 == pytest.approx(TOP1[name], abs=0.02)


def normalised(dataset, start, end):
    """(end - start, 3, 32, 32) normalised."""
    return normalise(dataset.test_images.pixels[start:end], dataset.mean, dataset.std)
