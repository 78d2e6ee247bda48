"""Calibrations of a teacher's distribution: LoCa (arXiv 2409.04778) and the label swap.

Symbols are the paper's. p is the teacher's softmax at temperature tau, y the label, k the largest non-target class. A
view is mis-instructed where p_k >= p_y. On such a view, with

    sigma = 1 / (1 - p_y + p_k)         s = alpha * sigma

LoCa's distribution is p'_i = s * p_i for i != y, and p'_y = 1 - s * (1 - p_y), so that p'_y - p'_k = 1 - alpha. Every
other view is left as it is.

An alpha above 1 + p_k / (1 - p_y) would make p'_y negative: such a view is capped, that is, s is at most
(1 - CAP) / (1 - p_y), and p'_y at least CAP. No alpha below C / (C - 1) can do that.

`loca` says this on probabilities; `loca_logits` computes it from logits in log space, and has variants that show what
matters about it: other views than the wrong ones are calibrated, or what the non-targets say there is destroyed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

VERSION = 1
"""Raised when a fix changes what this module computes."""

CAP = 1e-6
"""The least probability that a calibrated view leaves to its label."""

APPLY_TO = ("wrong", "right", "all")
"""Which views LoCa calibrates: the mis-instructed ones, which is LoCa; the others; or every view."""

NON_TARGET = ("keep", "uniform", "shuffle")
"""What becomes of the non-target probabilities of a calibrated view, given their sum: their ratios are kept, which is
LoCa; all are equal; or they change places at random."""


class Calibrated(NamedTuple):
    """A calibrated batch.

    logits: (..., C) float32; softmax(logits / tau) is the calibrated distribution.
    mis_instructed: (...) bool, the views on which the teacher was mis-instructed; a calibration acts on these and no
        others, unless it was told to.
    capped: (...) bool, the views that it acted on and for which alpha was too large for the simplex.
    """

    logits: Tensor
    mis_instructed: Tensor
    capped: Tensor


def mis_instructed(teacher_logits: Tensor, target: Tensor) -> Tensor:
    """Whether the largest non-target logit is at least the target's.

    Logits are compared, not probabilities, so that no rounding of a softmax makes or breaks a tie. A tie counts. Half
    precision is widened exactly, hence ordered as it was given.

    Args:
        teacher_logits: (..., C), any floating type.
        target: (...) int64, labels in 0 .. C-1.

    Returns:
        (...) bool.
    """
    z, y = _widened(teacher_logits), target.unsqueeze(-1)
    return (_without_target(z, y).amax(-1, keepdim=True) >= z.gather(-1, y)).squeeze(-1)


def loca(probabilities: Tensor, target: Tensor, alpha: float) -> Tensor:
    """LoCa on probabilities, as the paper writes it (arXiv 2409.04778, its sigma, s and p').

    The readable reference. It takes differences of probabilities, so use `loca_logits` where precision counts.

    Args:
        probabilities: (..., C), the teacher's softmax at temperature tau; rows sum to 1.
        target: (...) int64.
        alpha: above 0; 1 ties the label with the largest other class, below 1 puts it on top.

    Returns:
        (..., C) probabilities, in float32 at least.

    Raises:
        ValueError: alpha is not a positive, finite number.
    """
    _check_alpha(alpha)
    p, y = _widened(probabilities), target.unsqueeze(-1)
    p_y = p.gather(-1, y)
    p_k = _without_target(p, y).amax(-1, keepdim=True)
    sigma = 1 / (1 - p_y + p_k)
    s = torch.minimum(alpha * sigma, (1 - CAP) / (1 - p_y))
    calibrated = (s * p).scatter(-1, y, 1 - s * (1 - p_y))
    return torch.where(p_k >= p_y, calibrated, p)


def loca_logits(
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    tau: float,
    apply_to: str = "wrong",
    non_target: str = "keep",
    wrong: Tensor | None = None,
) -> Calibrated:
    """LoCa on logits (arXiv 2409.04778): the same distribution as `loca(softmax(teacher_logits / tau), ...)`.

    Only ratios to p_k matter in a softmax, and LoCa keeps all of them but the label's. Dividing p'_y by p'_k and
    writing r = p_k / (1 - p_y),

        p'_y / p'_k = (r + 1 - alpha) / (alpha * r) = (1 + (1 - alpha) / r) / alpha

    hence the target's logit alone moves, to z'_y = z_k + tau * log(p'_y / p'_k). This is the paper's setting written
    from z_k instead of from the logsumexp: an alpha of 1 gives log 1 = 0, an exact tie, and no two large numbers are
    subtracted. 1 / r is a sum of exponentials, the largest of which is 1, so it lies in 1 .. C-1 and neither overflows
    nor underflows.

    The formula gives a margin of 1 - alpha to any view, right or wrong; `apply_to` chooses the views. `non_target` then
    acts on the same views and leaves p'_y as it is: `uniform` gives each other class (1 - p'_y) / (C - 1), `shuffle`
    permutes the other classes' probabilities.

    Args:
        teacher_logits: (..., C), any floating type.
        target: (...) int64.
        alpha: above 0; up to C / (C - 1) no view is capped.
        tau: temperature, above 0.
        apply_to: one of `APPLY_TO`.
        non_target: one of `NON_TARGET`. A shuffle draws from torch's global generator, anew in each call.
        wrong: (...) bool, the mis-instructed views, where that was decided on logits that have been rounded since.

    Returns:
        `Calibrated`. Views that are not acted on have their logits unchanged, bit for bit, in float32. `capped` means
        that the label would have had less than CAP.

    Raises:
        ValueError: alpha is not a positive, finite number; an unknown choice.
    """
    _check_alpha(alpha)
    _check_choice("apply_to", apply_to, APPLY_TO)
    _check_choice("non_target", non_target, NON_TARGET)
    z, y = _widened(teacher_logits), target.unsqueeze(-1)
    z_y = z.gather(-1, y)
    others = _without_target(z, y)
    z_k = others.amax(-1, keepdim=True)
    mis = z_k >= z_y if wrong is None else wrong.unsqueeze(-1)
    acted_on = mis
    if apply_to != "wrong":
        acted_on = ~mis if apply_to == "right" else torch.ones_like(mis)

    one_over_r = others.sub_(z_k).div_(tau).exp_().sum(-1, keepdim=True)
    log_ratio, over = log_label_to_top(one_over_r, alpha, z.shape[-1])
    capped = torch.zeros_like(mis) if over is None else acted_on & over
    moved_z_y = z_k + tau * log_ratio
    logits = z.scatter(-1, y, torch.where(acted_on, moved_z_y, z_y))
    if non_target == "uniform":
        # The same logsumexp over the others, log(1 / r) above z_k / tau, from C - 1 equal logits.
        level = z_k + tau * (one_over_r / (z.shape[-1] - 1)).log()
        logits = torch.where(acted_on, level.expand_as(z).scatter(-1, y, moved_z_y), logits)
    elif non_target == "shuffle":
        logits = torch.where(acted_on, _shuffled(logits, y), logits)
    return Calibrated(logits.float(), mis.squeeze(-1), capped.squeeze(-1))


def log_label_to_top(one_over_r: Tensor, alpha: float, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """log(p'_y / p'_k), where `loca_logits` has the formula, and where the cap is what decides it.

    Args:
        one_over_r: any shape, (1 - p_y) / p_k, 1 to C - 1.
        alpha: above 0.
        num_classes: C.

    Returns:
        The logarithm, and bool of that shape; None where no view can be capped, whatever its probabilities.
    """
    # From 2 on every view is capped, and a capped view does not depend on alpha: so nothing below overflows.
    alpha = min(alpha, 3.0)
    ratio = torch.rsub(one_over_r, 1, alpha=alpha - 1)  # times alpha, as are all below
    # The least p'_y that there can be, and room for rounding.
    if 1 - alpha / capped_bound(num_classes) > 10 * CAP:
        return ratio.log() - math.log(alpha), None
    # p'_y = CAP in the same terms: p'_k = r * (1 - CAP).
    at_cap = one_over_r * (alpha * CAP / (1 - CAP))
    return torch.maximum(ratio, at_cap).log() - math.log(alpha), ratio < at_cap


def swap_logits(teacher_logits: Tensor, target: Tensor, wrong: Tensor | None = None) -> Calibrated:
    """On mis-instructed views, exchange the label's logit with the largest one (probability shift, arXiv 1911.07471).

    Args:
        teacher_logits: (..., C), any floating type.
        target: (...) int64.
        wrong: (...) bool, the mis-instructed views, where that was decided on logits that have been rounded since.

    Returns:
        `Calibrated`; nothing is ever capped. Among several largest classes the first one takes part.
    """
    z, y = _widened(teacher_logits), target.unsqueeze(-1)
    z_y = z.gather(-1, y)
    z_k, k = _without_target(z, y).max(-1, keepdim=True)
    mis = z_k >= z_y if wrong is None else wrong.unsqueeze(-1)
    logits = z.scatter(-1, k, torch.where(mis, z_y, z_k)).scatter_(-1, y, torch.where(mis, z_k, z_y)).float()
    return Calibrated(logits, mis.squeeze(-1), torch.zeros_like(mis.squeeze(-1)))


def moved(teacher_logits: Tensor, target: Tensor, alpha: float, tau: float) -> Tensor:
    """How much probability LoCa moves on each view: the total-variation distance between p and p'.

    All of it goes to or from the label, so this is |p'_y - p_y|.

    Args and Raises: as `loca_logits`.

    Returns:
        (...) float32 in 0 .. 1; 0 on views that are not mis-instructed.
    """
    y = target.unsqueeze(-1)
    before, after = teacher_logits.float(), loca_logits(teacher_logits, target, alpha, tau).logits
    p_y, calibrated_p_y = ((z / tau).softmax(-1).gather(-1, y).squeeze(-1) for z in (before, after))
    return (calibrated_p_y - p_y).abs()


def capped_bound(num_classes: int) -> float:
    """C / (C - 1): no alpha below it caps a view, the last CAP apart (1.0101 for 100 classes).

    p_k is at least the mean of the non-targets, so r = p_k / (1 - p_y) >= 1 / (C - 1), and p'_y = 1 - alpha / (1 + r).
    """
    return num_classes / (num_classes - 1)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: it must be a finite number above 0")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _shuffled(logits: Tensor, y: Tensor) -> Tensor:
    """The logits of all classes but the label's, (..., 1), in an order drawn for each view."""
    # Sorted by random keys, the label's below all others: first the label, then the other classes in random order.
    drawn = torch.rand_like(logits).scatter(-1, y, -1.0).argsort(-1)[..., 1:]
    others = torch.arange(logits.shape[-1] - 1, device=logits.device)
    others = others + (others >= y)
    return logits.scatter(-1, others, logits.gather(-1, drawn))


def _widened(x: Tensor) -> Tensor:
    """In its own precision, float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_target(x: Tensor, y: Tensor) -> Tensor:
    """A copy that has -inf at the labels y, (..., 1)."""
    return x.scatter(-1, y, -math.inf)
