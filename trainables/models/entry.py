"""What the registry knows of a model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ModelEntry:
    """A model in the registry.

    name: its name. family: models built alike share one. input_shape: (channels, height, width) of the images that it
    was designed for, and at which it is counted. summary: one line. source: paper. factory: called with the number of
    classes. smallest: the smallest height and width in pixels that it can be trained on, in batches of two or more; by
    default that of `input_shape`. num_classes: how many it has in listings. weights: the path of its trained weights in
    torchvision, where there are any (`ResNet34_Weights.IMAGENET1K_V1`). version: raised when a fix changes what this
    model computes or how it starts.
    """

    name: str
    family: str
    input_shape: tuple[int, int, int]
    summary: str
    source: str
    factory: Callable[[int], nn.Module]
    smallest: int = 0
    num_classes: int = 100
    weights: str | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if not self.smallest:
            object.__setattr__(self, "smallest", min(self.input_shape[1:]))

    def require(self, shape: tuple[int, int, int]) -> None:
        """Refuse images that the model cannot take.

        Args:
            shape: (channels, height, width) of the images.

        Raises:
            ValueError: another number of channels, or too small; one line.
        """
        channels = self.input_shape[0]
        if shape[0] != channels or min(shape[1:]) < self.smallest:
            raise ValueError(
                f"{self.name} takes images of {channels} channel{'' if channels == 1 else 's'} and at least "
                f"{self.smallest}x{self.smallest} pixels; given: {'x'.join(map(str, shape))}"
            )
