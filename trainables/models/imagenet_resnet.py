"""torchvision's ResNets for 224x224 images (He et al., arXiv 1512.03385, table 1), with its state-dict keys.

The bottleneck blocks of `imagenet_resnet50` have their stride in the 3x3 convolution. Convolutions start from a normal
distribution of variance 2 / (fan out) (Kaiming), batch norm from 1 and 0, the linear layer from PyTorch's default.
"""

from functools import partial

from torch import nn

from trainables.models.entry import ModelEntry


def _build(name: str, num_classes: int) -> nn.Module:
    # Here, since it takes seconds to import and most studies need none of these.
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=num_classes)


ENTRIES = tuple(
    ModelEntry(
        name=f"imagenet_resnet{depth}",
        family="imagenet_resnet",
        input_shape=(3, 224, 224),
        summary=f"torchvision's ResNet of {depth} layers for 224x224 images",
        source="arXiv 1512.03385, table 1",
        factory=partial(_build, f"resnet{depth}"),
        smallest=1,
        num_classes=1000,
        weights=f"ResNet{depth}_Weights.IMAGENET1K_V1",
    )
    for depth in (18, 34, 50)
)
