"""ResNets for 32x32 images (He et al., arXiv 1512.03385, section 4.2), as the distillation papers use them.

Depth 6n + 2: a 3x3 stem of 16 channels, three stages of n basic blocks with 16, 32 and 64 channels (the second and
third start with stride 2), global average pool, one linear layer. The x4 networks have a stem of 32 channels and stages
of 64, 128 and 256. Where a block changes the shape its shortcut is a 1x1 convolution with batch norm, not the zero
padding of the original. State-dict keys are the widely used ones.
"""

from functools import partial

from torch import Tensor, nn

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut: relu(x' + f(x))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class CifarResNet(nn.Module):
    """A ResNet of basic blocks for small images.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), batch norm from 1 and 0, the
    linear layer from PyTorch's default.

    Args:
        widths: channels of the stem and of the three stages.
        blocks: in each stage.
        num_classes: how many logits.
    """

    def __init__(self, widths: tuple[int, int, int, int], blocks: int, num_classes: int) -> None:
        super().__init__()
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


ENTRIES = tuple(
    ModelEntry(
        name=f"resnet{depth}{suffix}",
        family="cifar_resnet",
        input_shape=(3, 32, 32),
        summary=f"ResNet of depth {depth} for 32x32 images, widths {', '.join(map(str, widths))}",
        source=source,
        factory=partial(CifarResNet, widths, (depth - 2) // 6),
        smallest=1,
    )
    for suffix, widths, depths, source in (
        ("", (16, 16, 32, 64), (8, 14, 20, 32, 44, 56, 110), "arXiv 1512.03385, section 4.2"),
        ("x4", (32, 64, 128, 256), (8, 32), "arXiv 1512.03385, section 4.2; widths: arXiv 1910.10699"),
    )
    for depth in depths
)
