"""ShuffleNet for 32x32 images (Zhang et al., arXiv 1707.01083), as the distillation papers use it.

Three groups: a 1x1 stem of 24 channels and stride 1, three stages of 4, 8 and 4 units with 240, 480 and 960 channels
(each starts with stride 2), global average pool, one linear layer. State-dict keys are the widely used ones
(`layer1.0.conv1`, `linear`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.entry import ModelEntry

STEM, GROUPS = 24, 3


def shuffle(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to the same shape: the first channel of each group, then the second of each, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """1x1 grouped convolution, channel shuffle, 3x3 depthwise, 1x1 grouped, and a shortcut.

    With stride 2 the shortcut is a 3x3 average pool and its channels are put beside the others (so that `channels` come
    out in all); with stride 1 it is the input itself, which is added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.downsamples = stride == 2
        out_channels = channels - in_channels if self.downsamples else channels
        inner = out_channels // 4
        # The stem's channels are too few to be split.
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        out = shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        # As in the code family, the depthwise convolution too has a ReLU, which the paper's has not.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsamples:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(out + x)


class ShuffleNetV1(nn.Module):
    """ShuffleNet of three groups for small images. All layers start from PyTorch's default."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, 240, units=4)
        self.layer2 = _stage(240, 480, units=8)
        self.layer3 = _stage(480, 960, units=4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    first = ShuffleUnit(in_channels, channels, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(channels, channels, stride=1) for _ in range(units - 1)))


ENTRIES = (
    ModelEntry(
        name="shufflenet_v1",
        family="shufflenet_v1",
        input_shape=(3, 32, 32),
        summary="ShuffleNet of 3 groups for 32x32 images, widths 240, 480, 960",
        source="arXiv 1707.01083",
        factory=ShuffleNetV1,
        smallest=1,
    ),
)
