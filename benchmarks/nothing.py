"""A run that does nothing: two images of one pixel, a network of one parameter, cross entropy.

Parts of a spec: `benchmarks.nothing:images`, `benchmarks.nothing:network`, `benchmarks.nothing:loss`.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.data import DatasetEntry, RawData
from trainables.models import ModelEntry
from trainables.objectives import Method, Parameter


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 1, 1) to (B, 2): the pixel, scaled, for one class and against the other."""
        logit = self.scale(images.flatten(1))
        return F.pad(logit, (0, 1))


class _CrossEntropy(nn.Module):
    """CE. Its parameter changes nothing: it only tells points apart."""

    def __init__(self, number: float) -> None:
        super().__init__()

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """(B, 2), nothing, (B,) to the loss and its parts, each 0-d float32."""
        found, none = F.cross_entropy(student_logits.float(), target), student_logits.new_zeros(())
        return {"loss": found, "ce": found.detach(), "kd": none, "mis_instruction_ratio": none, "capped_ratio": none}


def _load(files: tuple[object, ...]) -> RawData:
    pixels = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1)
    labels = np.array([0, 1], dtype=np.int64)
    return RawData(pixels, labels, pixels, labels, ("dark", "bright"))


images = DatasetEntry(
    name="two-images",
    num_classes=2,
    shape=(1, 1, 1),
    sizes=(2, 2),
    mean=(0.5,),
    std=(0.5,),
    summary="a dark pixel and a bright one",
    source="made when it is loaded",
    loader=_load,
)

network = ModelEntry(
    name="one-parameter",
    family="one-parameter",
    input_shape=(1, 1, 1),
    summary="one parameter",
    source="-",
    factory=lambda num_classes: _Scale(),
    smallest=1,
    num_classes=2,
)

loss = Method(
    name="numbered-ce",
    summary="CE with a number that does nothing",
    formula="CE",
    source="-",
    parameters=(Parameter("number", 0.0, 0.0, None, False, "tells points apart"),),
    needs_teacher=False,
    factory=_CrossEntropy,
)
