"""Small plain convolutional networks for the 8x8 digits.

Three blocks of 3x3 convolution, batch norm and ReLU, of `width`, 2 * `width` and 4 * `width` channels, the second and
third with stride 2; then global average pool and one linear layer. `cnn32` is meant as a teacher; `cnn3` is so narrow
that what it is taught shows.
"""

from functools import partial

from torch import Tensor, nn

from trainables.models.entry import ModelEntry
from trainables.models.initialisation import start_convolutions


class PlainCNN(nn.Module):
    """Three conv-BN-ReLU blocks, global average pool, linear.

    Convolutions start from a normal distribution of variance 2 / (fan out) (Kaiming), batch norm from 1 and 0, the
    linear layer from PyTorch's default.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, width, stride=1), *_block(width, 2 * width, stride=2), *_block(2 * width, 4 * width, stride=2)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        start_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) normalised images to (B, num_classes) logits."""
        return self.fc(self.avgpool(self.features(images)).flatten(1))


def _block(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


ENTRIES = tuple(
    ModelEntry(
        name=f"cnn{width}",
        family="plain_cnn",
        input_shape=(1, 8, 8),
        summary=f"three convolutions for 8x8 images, widths {width}, {2 * width}, {4 * width}",
        source="-",
        factory=partial(PlainCNN, width),
        smallest=1,
        num_classes=10,
    )
    for width in (3, 32)
)
