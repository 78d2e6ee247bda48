"""MobileNetV2 for 32x32 images (Sandler et al., arXiv 1801.04381), as the distillation papers use it.

Half width and expansion 6: a 3x3 stem of 16 channels and stride 2, seven stages of inverted residual blocks of 8 to 160
channels, a 1x1 convolution to 1280 channels (not halved), global average pool, one linear layer. Activations are ReLU,
not ReLU6, and strides are fewer than for ImageNet: 16 in all. The first stage too has an expanding convolution,
though its expansion is 1. State-dict keys are the widely used ones (`blocks.1.0.conv.3`, `classifier.0`).
"""

from torch import Tensor, nn

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions, start_linear

STAGES = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
"""Expansion, channels, blocks and first stride of each stage, at half width."""
STEM, LAST = 16, 1280


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 depthwise, 1x1 to `channels` without activation; the input is added where
    the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *_conv_bn_relu(in_channels, inner, 1),
            *_conv_bn_relu(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        return x + self.conv(x) if self.adds_input else self.conv(x)


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 of half width for small images.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), the linear layer from one of
    standard deviation 0.01 and biases of 0, batch norm from 1 and 0.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(3, STEM, 3, stride=2)
        self.blocks = nn.Sequential()
        channels = STEM
        for expansion, width, blocks, stride in STAGES:
            first = InvertedResidual(channels, width, stride, expansion)
            rest = (InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels = width
        self.conv2 = _conv_bn_relu(channels, LAST, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(LAST, num_classes)
        self.classifier = nn.Sequential(linear)
        start_convolutions(self)
        start_linear(linear, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = self.conv2(self.blocks(self.conv1(images)))
        return self.classifier(self.avgpool(x).flatten(1))


def _conv_bn_relu(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


ENTRIES = (
    ModelEntry(
        name="mobilenet_v2",
        family="mobilenet_v2",
        input_shape=(3, 32, 32),
        summary="MobileNetV2 of half width and expansion 6 for 32x32 images",
        source="arXiv 1801.04381",
        factory=CifarMobileNetV2,
        smallest=1,
    ),
)
