"""Logit standardisation (Sun et al., arXiv 2403.01427): student and teacher compared on one scale."""

import math

from torch import Tensor

EPSILON = 1e-7
"""Keeps the division from 0 (the authors' code)."""


def standardise(logits: Tensor) -> Tensor:
    """Z(z) = (z - mean(z)) / (std(z) + EPSILON), over the classes; std is the unbiased one.

    A positive affine map of each view: it keeps the order of the classes, and Z(a z + b) = Z(z) for a > 0. A view whose
    logits are all equal becomes 0 and passes no gradient: its true gradient, of order 1 / EPSILON, is of no use, and a
    network whose last layer starts from 0 would meet it in its first step.

    Args:
        logits: (..., C), any floating type; C at least 2.

    Returns:
        (..., C) float32.
    """
    # From the maximum, so that equal logits give exactly 0 whatever they are, and no large mean costs any digits.
    z = logits.float()
    z = z - z.detach().amax(-1, keepdim=True)
    std = z.std(-1, keepdim=True)
    scale = (std + EPSILON).masked_fill(std == 0, math.inf)
    return (z - z.mean(-1, keepdim=True)) / scale
