"""The networks, one file a family, and their registry.

A family's file lists its models in `ENTRIES`; a new family is a new file, named in `MODELS`. A model of one's own needs
no file here: it is named `package.module:factory`, or an installed package declares it as an entry point of the group
`kdstudy.models`. Models map normalised images to logits, and draw their initial weights from PyTorch's global
generator. May import torch (torchvision inside a factory), and of ours only `trainables`.
"""

import copy
import math

import torch
from torch import Tensor, nn

from trainables.models import (
    cifar_resnet,
    cifar_resnet50,
    imagenet_mobilenet_v1,
    imagenet_resnet,
    mobilenet_v2,
    plain_cnn,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    wide_resnet,
)
from trainables.models.entry import ModelEntry
from trainables.registry import Registry

__all__ = ["MODELS", "VERSION", "ModelEntry", "build", "count_macs", "count_parameters", "get", "names"]

VERSION = 1
"""Raised when a fix changes what a model computes or how it starts."""

_FAMILIES = (
    cifar_resnet,
    cifar_resnet50,
    wide_resnet,
    vgg,
    mobilenet_v2,
    shufflenet_v1,
    shufflenet_v2,
    imagenet_resnet,
    imagenet_mobilenet_v1,
    plain_cnn,
)
MODELS = Registry("model", "kdstudy.models", ModelEntry, (entry for family in _FAMILIES for entry in family.ENTRIES))


def names() -> list[str]:
    """The models' names: ours in the order of registration, then those of installed packages."""
    return MODELS.names()


def get(name: str) -> ModelEntry:
    """The model of that name.

    Args:
        name: of ours, of an installed package's, or `package.module:factory`.

    Raises:
        ValueError: there is none (the message has the nearest names), or what the name leads to is no `ModelEntry`.
    """
    return MODELS.get(name)


def build(name: str, num_classes: int) -> nn.Module:
    """A new, randomly initialised network from (B, *input_shape) images to (B, num_classes) logits.

    Raises:
        ValueError: there is no model of that name, or it cannot be imported.
    """
    return get(name).factory(num_classes)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable values (buffers such as running means are not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers in one forward pass of one (channels, height, width) image.

    The model itself is left as it is.
    """
    macs = 0

    def count(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight = module.get_parameter("weight")
        # Every weight of one output channel is used once for each value that the channel has in the output.
        macs += output.numel() * math.prod(weight.shape[1:])

    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    device = next(probe.parameters()).device
    with torch.no_grad():
        probe(torch.zeros(1, *input_shape, device=device))
    return macs
