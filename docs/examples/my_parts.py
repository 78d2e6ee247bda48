"""A method, a model and a data set of one's own; docs/extending.md walks through it, and a test runs it."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import calibration
from trainables.data import DatasetEntry, RawData
from trainables.models import ModelEntry
from trainables.objectives import Method, Parameter


class TrustWhereRight(nn.Module):
    """CE on every view, and the squared distance of the logits where the teacher is right."""

    def __init__(self, weight_mse: float) -> None:
        super().__init__()
        self.weight = weight_mse

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """(B, C), (B, C), (B,) to the loss and its parts, each 0-d float32."""
        z_s, z_t = student_logits.float(), teacher_logits.detach().float()
        wrong = calibration.mis_instructed(z_t, target)
        # Of centred logits: a constant added to all of them changes nothing.
        distance = ((z_s - z_s.mean(-1, keepdim=True)) - (z_t - z_t.mean(-1, keepdim=True))).square().mean(-1)
        ce, kd = F.cross_entropy(z_s, target), distance.masked_fill(wrong, 0.0).mean()
        return {
            "loss": ce + self.weight * kd,
            "ce": ce.detach(),
            "kd": kd.detach(),
            "mis_instruction_ratio": wrong.float().mean(),
            "capped_ratio": ce.new_zeros(()),
        }


trust = Method(
    name="trust",
    summary="squared distance of the logits where the teacher is right",
    formula="CE + weight_mse * [not mis-instructed] * mean((z_s - z_t)^2)",
    source="-",
    parameters=(Parameter("weight_mse", 0.1, 0.0, None, False, "weight of the distance"),),
    needs_teacher=True,
    factory=TrustWhereRight,
)


def linear() -> ModelEntry:
    """One linear layer on 8x8 pixels. A callable that returns the entry does as well as the entry itself."""
    return ModelEntry(
        name="linear",
        family="linear",
        input_shape=(1, 8, 8),
        summary="one linear layer",
        source="-",
        factory=lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)),
        smallest=8,
        num_classes=4,
    )


def _stripes(files: tuple[object, ...]) -> RawData:
    """Four kinds of stripes in noise, 200 to train on and 200 to test."""
    draw = np.random.default_rng(0)
    rows, columns = np.indices((8, 8))
    patterns = np.stack([rows % 2, columns % 2, (rows + columns) % 2, (rows // 2) % 2])
    labels = np.arange(400) % 4
    images = np.clip(90 * patterns[labels] + draw.normal(60, 60, (400, 8, 8)), 0, 255).astype(np.uint8)[:, None]
    labels = labels.astype(np.int64)
    return RawData(images[:200], labels[:200], images[200:], labels[200:], ("rows", "columns", "checks", "wide rows"))


stripes = DatasetEntry(
    name="stripes",
    num_classes=4,
    shape=(1, 8, 8),
    sizes=(200, 200),
    mean=(0.4,),
    std=(0.3,),
    summary="four kinds of stripes in noise",
    source="made when it is loaded",
    loader=_stripes,
)
