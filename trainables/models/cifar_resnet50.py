"""ResNet-50 for 32x32 images (He et al., arXiv 1512.03385, table 1), as the distillation papers use it as a teacher.

ImageNet's network with a 3x3 stem of stride 1 and without the max pool: stages of 3, 4, 6 and 3 bottleneck blocks with
256, 512, 1024 and 2048 channels, of which all but the first start with stride 2 (in the block's 3x3 convolution),
global average pool, one linear layer. State-dict keys are the code family's, which differ from those of the networks of
basic blocks: a block's projection is `shortcut`, the classifier `linear`.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, and a shortcut: relu(x' + f(x)); 4 * `channels` come out."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 * channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet50(nn.Module):
    """The ResNet of 50 layers for small images.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), batch norm from 1 and 0, the
    linear layer from PyTorch's default.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks=3, stride=1)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=6, stride=2)
        self.layer4 = _stage(1024, 512, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(Bottleneck(4 * channels, channels, 1) for _ in range(blocks - 1)))


ENTRIES = (
    ModelEntry(
        name="resnet50",
        family="cifar_resnet50",
        input_shape=(3, 32, 32),
        summary="ResNet of 50 layers with a 3x3 stem for 32x32 images",
        source="arXiv 1512.03385, table 1",
        factory=CifarResNet50,
        smallest=1,
    ),
)
