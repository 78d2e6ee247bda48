"""VGG networks with batch norm for 32x32 images (Simonyan and Zisserman, arXiv 1409.1556), as distillation papers have
them.

Five blocks of 3x3 convolutions (with biases), batch norm and ReLU, of 64, 128, 256, 512 and 512 channels; one
convolution a block in `vgg8`, two in `vgg13`. A 2x2 max pool follows each of the first three; then, in place of the
original's three linear layers, global average pool and one linear layer. Images of 64 pixels or more are pooled once
more, after the fourth block. State-dict keys are the widely used ones (`block0.0`, `classifier`).
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions, start_linear

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks."""
LARGE = 64
"""From this height on, in pixels, there is a fourth max pool."""


class VGG(nn.Module):
    """Blocks of plain convolutions with batch norm, global average pool, linear.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), the linear layer from one of
    standard deviation 0.01, all biases from 0, batch norm from 1 and 0.

    Args:
        convolutions: in each block.
        num_classes: how many logits.
    """

    def __init__(self, convolutions: int, num_classes: int) -> None:
        super().__init__()
        self.block0 = _block(3, WIDTHS[0], convolutions)
        self.block1 = _block(WIDTHS[0], WIDTHS[1], convolutions)
        self.block2 = _block(WIDTHS[1], WIDTHS[2], convolutions)
        self.block3 = _block(WIDTHS[2], WIDTHS[3], convolutions)
        self.block4 = _block(WIDTHS[3], WIDTHS[4], convolutions)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        start_convolutions(self)
        start_linear(self.classifier, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = images
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        x = self.block3(x)
        if images.shape[-2] >= LARGE:
            x = F.max_pool2d(x, 2)
        x = self.block4(x)
        return self.classifier(self.avgpool(x).flatten(1))


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (in_channels, *[channels] * (convolutions - 1)):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


ENTRIES = tuple(
    ModelEntry(
        name=f"vgg{5 * convolutions + 3}",
        family="vgg",
        input_shape=(3, 32, 32),
        summary=f"VGG with batch norm for 32x32 images, {convolutions} convolution{'s' * (convolutions > 1)} a block",
        source="arXiv 1409.1556",
        factory=partial(VGG, convolutions),
        smallest=8,  # three max pools
    )
    for convolutions in (1, 2)
)
