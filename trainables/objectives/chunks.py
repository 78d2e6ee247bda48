"""An objective over so many classes that a whole batch of logits would not fit: a few rows at a time.

With a vocabulary of 32,000 to 150,000 tokens the logits of a batch are its largest tensor by far, and plain autograd
holds several of its size (both networks' logits, their softmaxes, the gradient). All objectives but a few are means
over rows, so their gradient is the weighted sum of that of parts of the rows. Each part is projected, differentiated
and forgotten before the next: what is held is the gradient of what is projected, (N, D) with hidden states, and one
part's logits. Without a projection it is one further copy of the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

ROWS = 256
"""Rows at a time: enough to keep a GPU busy, and 50 MB of logits at 49,152 classes."""


def is_mean_over_rows(objective: nn.Module) -> bool:
    """Whether an objective's loss is a mean over rows, so that it may be taken in parts.

    A module says so by an attribute `mean_over_rows`; one without it is taken at its word that it is.
    """
    return bool(getattr(objective, "mean_over_rows", True))


def hits(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """On how many rows the target is the largest logit (`hits`), and one of the five largest (`hits5`); float32.

    Args:
        logits: (n, C).
        target: (n,) int64.
    """
    best = logits.topk(min(5, logits.shape[-1])).indices == target.unsqueeze(-1)
    return {"hits": best[:, 0].sum().float(), "hits5": best.sum().float()}


def accumulate(
    objective: nn.Module,
    features: Tensor,
    project: Callable[[Tensor], Tensor],
    answers: Callable[[slice], Tensor | None],
    target: Tensor,
    *,
    epoch: int = 1,
    of: float | None = None,
    rows: int = ROWS,
) -> dict[str, Tensor]:
    """Add the gradient of an objective's loss to everything that it depends on.

    Args:
        objective: one of `trainables.objectives`.
        features: (N, D), what the student's logits are computed from; its gradient reaches what it was computed from.
        project: (n, D) to (n, C) logits; its parameters get their gradient.
        answers: the teacher's (n, C) logits of some rows; None without a teacher.
        target: (N,) int64.
        epoch: from 1.
        of: how many rows the loss is the mean of, if these are a part of them; None: these are all.
        rows: how many at a time; an objective that is no mean over rows gets all of them.

    Returns:
        For each of the objective's parts its sum over the rows, 0-d float32; `hits` and `hits5`: on how many the
        target is the student's largest logit, and one of its five largest.

    Raises:
        ValueError: a part of the rows of an objective that is no mean over them.
    """
    total = len(target)
    of = total if of is None else of
    if not is_mean_over_rows(objective):
        if of != total:
            raise ValueError("this objective is no mean over tokens: its batch cannot be taken in parts")
        rows = max(1, total)
    leaf = features.detach().requires_grad_()
    gradient = torch.zeros_like(leaf) if features.requires_grad else None
    sums: dict[str, Tensor] = {}
    for begin in range(0, total, rows):
        part = slice(begin, min(begin + rows, total))
        n = part.stop - part.start
        some = leaf[part].detach().requires_grad_(gradient is not None)
        logits = project(some).float()
        parts = objective(logits, answers(part), target[part], epoch)
        (parts["loss"] * (n / of)).backward()
        if gradient is not None and some.grad is not None:
            gradient[part] = some.grad
        with torch.no_grad():
            found = {name: value.detach().float() * n for name, value in parts.items()}
            found |= hits(logits.detach(), target[part])
        sums = {name: value + sums[name] if sums else value for name, value in found.items()}
    if gradient is not None:
        features.backward(gradient)
    return sums
