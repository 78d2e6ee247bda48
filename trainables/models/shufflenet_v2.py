"""ShuffleNetV2 for 32x32 images (Ma et al., arXiv 1807.11164), as the distillation papers use it.

Width 1: a 1x1 stem of 24 channels and stride 1, three stages of one down-sampling unit and 3, 7 and 3 basic units with
116, 232 and 464 channels, a 1x1 convolution to 1024 channels, global average pool, one linear layer. State-dict keys
are the widely used ones (`layer1.0.conv1`, `linear`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.entry import ModelEntry
from trainables.models.shufflenet_v1 import shuffle


class BasicUnit(nn.Module):
    """Half of the channels pass; the others go through 1x1, 3x3 depthwise and 1x1; then all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        kept, x = x.chunk(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = F.relu(self.bn3(self.conv3(x)))
        return shuffle(torch.cat([kept, x], 1), 2)


class DownUnit(nn.Module):
    """Two branches of stride 2, each of which makes half of the channels out of all; then all are shuffled."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / 2, W / 2)."""
        short = self.bn1(self.conv1(x))
        short = F.relu(self.bn2(self.conv2(short)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.bn4(self.conv4(x))
        x = F.relu(self.bn5(self.conv5(x)))
        return shuffle(torch.cat([short, x], 1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 of width 1 for small images. All layers start from PyTorch's default."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, 116, basic_units=3)
        self.layer2 = _stage(116, 232, basic_units=7)
        self.layer3 = _stage(232, 464, basic_units=3)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, basic_units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_channels, channels), *(BasicUnit(channels) for _ in range(basic_units)))


ENTRIES = (
    ModelEntry(
        name="shufflenet_v2",
        family="shufflenet_v2",
        input_shape=(3, 32, 32),
        summary="ShuffleNetV2 of width 1 for 32x32 images, widths 116, 232, 464, 1024",
        source="arXiv 1807.11164",
        factory=ShuffleNetV2,
        smallest=1,
    ),
)
