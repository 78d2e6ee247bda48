"""MobileNet for 224x224 images (Howard et al., arXiv 1704.04861), as the distillation papers use it as a student.

Width 1: a 3x3 stem of 32 channels and stride 2, thirteen depthwise separable convolutions with batch norm and ReLU
after each of their two parts, global average pool, one linear layer. State-dict keys are the code family's
(`model.1.3`, `fc`).
"""

from torch import Tensor, nn

from trainables.models.entry import ModelEntry

STEM = 32
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of the depthwise separable convolutions."""


class MobileNetV1(nn.Module):
    """MobileNet of full width. All layers start from PyTorch's default."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Sequential(*_conv_bn_relu(3, STEM, 3, stride=2)))
        channels = STEM
        for width, stride in LAYERS:
            depthwise = _conv_bn_relu(channels, channels, 3, stride=stride, groups=channels)
            self.model.append(nn.Sequential(*depthwise, *_conv_bn_relu(channels, width, 1)))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        return self.fc(self.avgpool(self.model(images)).flatten(1))


def _conv_bn_relu(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


ENTRIES = (
    ModelEntry(
        name="imagenet_mobilenet_v1",
        family="imagenet_mobilenet_v1",
        input_shape=(3, 224, 224),
        summary="MobileNet of width 1 for 224x224 images",
        source="arXiv 1704.04861",
        factory=MobileNetV1,
        smallest=1,
        num_classes=1000,
    ),
)
