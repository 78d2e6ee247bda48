"""Temperatures as parts of a method: called as `temperature(epoch)`, they give the tau by which logits are divided."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LEAST, SPAN = 1.0, 20.0
"""A learnt tau lies between LEAST and LEAST + SPAN (Li et al., arXiv 2211.16231: the authors' configuration)."""


@dataclass(frozen=True)
class Fixed:
    """The same tau in every epoch."""

    tau: float

    def __call__(self, epoch: int) -> float:
        """tau."""
        return self.tau


class Learnt(nn.Module):
    """A tau that is learnt against the student (CTKD, Li et al., arXiv 2211.16231), one for all views.

        tau = LEAST + SPAN * sigmoid(theta)

    theta starts at 1 and has its gradient reversed, so that an optimiser that makes the loss small for the student
    makes it large by theta. The reversed gradient's weight rises from 0 to 1 over `warmup` epochs, along half a cosine.
    """

    def __init__(self, warmup: float) -> None:
        super().__init__()
        self.warmup = warmup
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, epoch: int) -> Tensor:
        """tau, 0-d float32."""
        theta: Tensor = _Reversed.apply(self.theta, reversal_weight(epoch, self.warmup))
        return LEAST + SPAN * theta.float().sigmoid()


def reversal_weight(epoch: int, warmup: float) -> float:
    """(1 - cos(pi * epoch / warmup)) / 2, and 1 from epoch `warmup` on; epochs count from 1."""
    return (1 - math.cos(math.pi * min(epoch / warmup, 1.0))) / 2


class _Reversed(torch.autograd.Function):
    """The identity, with a gradient of -weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None
