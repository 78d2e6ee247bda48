"""Distillation terms as parts of a method: called as `term(student, teacher, target, wrong)`.

`student` and `teacher` are logits that have been divided by tau, (B, C) float32, the teacher's calibrated; `target` is
(B,) int64, and `wrong` (B,) bool tells the mis-instructed views. A term gives its value on each view, (B,), and the
parts of it that have a name, (B,) each. Neither has a factor tau^2, which is the temperature's business.

p_t and p_s are the softmaxes of teacher and student, y the label.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = tuple[Tensor, dict[str, Tensor]]


def kl(student: Tensor, teacher: Tensor, target: Tensor, wrong: Tensor) -> Terms:
    """KL(p_t ‖ p_s) (Hinton et al., arXiv 1503.02531)."""
    return kl_divergence(student.log_softmax(-1), teacher.log_softmax(-1)), {}


def kl_where_right(student: Tensor, teacher: Tensor, target: Tensor, wrong: Tensor) -> Terms:
    """KL(p_t ‖ p_s), and 0 on mis-instructed views (KD* of arXiv 2409.04778)."""
    divergence, parts = kl(student, teacher, target, wrong)
    return divergence.masked_fill(wrong, 0.0), parts


def kl_or_one_hot(student: Tensor, teacher: Tensor, target: Tensor, wrong: Tensor) -> Terms:
    """KL(p_t ‖ p_s), and KL(one-hot ‖ p_s) on mis-instructed views: -log p_s,y, as a one-hot has no entropy."""
    log_p_s = student.log_softmax(-1)
    divergence = kl_divergence(log_p_s, teacher.log_softmax(-1))
    return torch.where(wrong, -_at(log_p_s, target), divergence), {}


@dataclass(frozen=True)
class Decoupled:
    """DKD (Zhao et al., arXiv 2203.08679): alpha * TCKD + beta * NCKD.

    With b = (p_y, 1 - p_y), and q the softmax over the non-targets alone,

        TCKD = KL(b_t ‖ b_s)        NCKD = KL(q_t ‖ q_s)

    and KL(p_t ‖ p_s) = TCKD + (1 - p_t,y) * NCKD. A teacher whose label logit alone moves keeps its NCKD.
    """

    alpha: float
    beta: float

    def __call__(self, student: Tensor, teacher: Tensor, target: Tensor, wrong: Tensor) -> Terms:
        """The term, and its parts before their weights."""
        odds_s, log_q_s = _decoupled(student, target)
        odds_t, log_q_t = _decoupled(teacher, target)
        log_b_s, log_b_t = (torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=-1) for odds in (odds_s, odds_t))
        tckd, nckd = kl_divergence(log_b_s, log_b_t), kl_divergence(log_q_s, log_q_t)
        return self.alpha * tckd + self.beta * nckd, {"tckd": tckd, "nckd": nckd}


@dataclass(frozen=True)
class Normalised:
    """NKD (Yang et al., arXiv 2303.13005): -p_t,y log p_s,y - gamma * lambda^2 * sum_{i != y} q_t,i log q_s,i.

    p are softmaxes at the temperature of the arguments, q those over the non-targets alone at `lambda_` times it. Both
    parts are cross-entropies, so neither is zero at the teacher.
    """

    gamma: float
    lambda_: float

    def __call__(self, student: Tensor, teacher: Tensor, target: Tensor, wrong: Tensor) -> Terms:
        """The term; it has no named parts."""
        label = _at(teacher.log_softmax(-1), target).exp() * _at(student.log_softmax(-1), target)
        (_, log_q_s), (_, log_q_t) = (_decoupled(u / self.lambda_, target) for u in (student, teacher))
        others = (log_q_t.exp() * log_q_s).sum(-1)
        return -label - self.gamma * self.lambda_**2 * others, {}


def kl_divergence(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """KL(p_t ‖ p_s) over the last dimension, from log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def _at(values: Tensor, target: Tensor) -> Tensor:
    return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A softmax in two: whether it is the label, and which of the others it is if not.

    Args:
        logits: (B, C).
        target: (B,).

    Returns:
        log(p_y / (1 - p_y)), (B,), and log q, (B, C), which has 0 in the label's place, so that sums of differences and
        of products with log-probabilities are those over the non-targets.
    """
    y = target.unsqueeze(-1)
    # From the largest non-target, so that large logits cost no digits; a shift of all logits changes neither result.
    z = logits - logits.detach().scatter(-1, y, -torch.inf).amax(-1, keepdim=True)
    of_others = z.scatter(-1, y, -torch.inf).logsumexp(-1, keepdim=True)
    return (z.gather(-1, y) - of_others).squeeze(-1), (z - of_others).scatter(-1, y, 0.0)
