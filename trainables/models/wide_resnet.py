"""Wide ResNets for 32x32 images (Zagoruyko and Komodakis, arXiv 1605.07146).

Depth 6n + 4 and width k: a 3x3 stem of 16 channels, three stages of n pre-activation blocks with 16k, 32k and 64k
channels (the second and third start with stride 2), batch norm, ReLU, global average pool, one linear layer; no
dropout. State-dict keys are the widely used ones (`block1.layer.0.conv1`, `convShortcut`).
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the first activation; else it is the
    input itself.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class Stage(nn.Module):
    """Blocks of one width; the first may change the shape."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """A ResNet of few, wide pre-activation blocks for small images.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), batch norm from 1 and 0, the
    linear layer's weights from PyTorch's default and its biases from 0.

    Args:
        blocks: in each stage.
        width: the factor k.
        num_classes: how many logits.
    """

    def __init__(self, blocks: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        start_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(self.avgpool(F.relu(self.bn1(x))).flatten(1))


ENTRIES = tuple(
    ModelEntry(
        name=f"wrn_{depth}_{width}",
        family="wide_resnet",
        input_shape=(3, 32, 32),
        summary=f"wide ResNet of depth {depth} and width {width} for 32x32 images",
        source="arXiv 1605.07146",
        factory=partial(WideResNet, (depth - 4) // 6, width),
        smallest=1,
    )
    for depth, width in ((16, 2), (40, 1), (40, 2))
)
