"""Distillation terms as parts of a method: called as `term(student, teacher, target, tau)`.

`student` are logits, (B, C) float32, `teacher` is what a calibration gives, `target` is (B,) int64, and tau divides
both networks' logits. A term gives its value on each view and the parts of it that have a name, (B,) each, and tells
the mis-instructed and the capped views. No value has a factor tau^2, which is the temperature's business.

p_t and p_s are the softmaxes of teacher and student at tau, y the label.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables import calibration
from trainables.objectives import divergences
from trainables.objectives.calibrations import Teacher


class Terms(NamedTuple):
    """What a term answers, (B,) each: its values, its named parts, and which views are mis-instructed and capped."""

    of_views: Tensor
    parts: dict[str, Tensor]
    wrong: Tensor
    capped: Tensor | None  # None: none


def kl(student: Tensor, teacher: Teacher, target: Tensor, tau: float | Tensor) -> Terms:
    """KL(p_t ‖ p_s) (Hinton et al., arXiv 1503.02531)."""
    if isinstance(tau, Tensor):
        # A learnt tau has a gradient too, by both networks' softmaxes: autograd's business.
        divergence = kl_divergence((student / tau).log_softmax(-1), (teacher.logits / tau).log_softmax(-1))
        return Terms(divergence, {}, _wrong(teacher, target), teacher.capped)
    whole = divergences.whole(student, teacher, target, tau)
    return Terms(whole.kl, {}, whole.wrong, whole.capped)


def kl_where_right(student: Tensor, teacher: Teacher, target: Tensor, tau: float | Tensor) -> Terms:
    """KL(p_t ‖ p_s), and 0 on mis-instructed views (KD* of arXiv 2409.04778)."""
    terms = kl(student, teacher, target, tau)
    return terms._replace(of_views=terms.of_views.masked_fill(terms.wrong, 0.0))


def kl_or_one_hot(student: Tensor, teacher: Teacher, target: Tensor, tau: float | Tensor) -> Terms:
    """KL(p_t ‖ p_s), and KL(one-hot ‖ p_s) on mis-instructed views: -log p_s,y, as a one-hot has no entropy."""
    terms = kl(student, teacher, target, tau)
    one_hot = F.cross_entropy(student / tau, target, reduction="none")
    return terms._replace(of_views=torch.where(terms.wrong, one_hot, terms.of_views))


@dataclass(frozen=True)
class Decoupled:
    """DKD (Zhao et al., arXiv 2203.08679): alpha * TCKD + beta * NCKD.

    With b = (p_y, 1 - p_y), and q the softmax over the non-targets alone,

        TCKD = KL(b_t ‖ b_s)        NCKD = KL(q_t ‖ q_s)

    and KL(p_t ‖ p_s) = TCKD + (1 - p_t,y) * NCKD. A teacher whose label logit alone moves keeps its NCKD.
    """

    alpha: float
    beta: float

    def __call__(self, student: Tensor, teacher: Teacher, target: Tensor, tau: float) -> Terms:
        """The term, and its parts before their weights."""
        tckd, nckd, wrong, capped = divergences.decoupled(student, teacher, target, tau)
        return Terms(self.alpha * tckd + self.beta * nckd, {"tckd": tckd, "nckd": nckd}, wrong, capped)


@dataclass(frozen=True)
class Normalised:
    """NKD (Yang et al., arXiv 2303.13005): -p_t,y log p_s,y - gamma * lambda^2 * sum_{i != y} q_t,i log q_s,i.

    p are softmaxes at tau, q those over the non-targets alone at `lambda_` times it. Both
    parts are cross-entropies, so neither is zero at the teacher.
    """

    gamma: float
    lambda_: float

    def __call__(self, student: Tensor, teacher: Teacher, target: Tensor, tau: float) -> Terms:
        """The term; it has no named parts."""
        student, logits = student / tau, teacher.logits / tau
        label = _at(logits.log_softmax(-1), target).exp() * _at(student.log_softmax(-1), target)
        log_q_s, log_q_t = (_of_others(u / self.lambda_, target) for u in (student, logits))
        others = (log_q_t.exp() * log_q_s).sum(-1)
        of_views = -label - self.gamma * self.lambda_**2 * others
        return Terms(of_views, {}, _wrong(teacher, target), teacher.capped)


def kl_divergence(log_p_s: Tensor, log_p_t: Tensor) -> Tensor:
    """KL(p_t ‖ p_s) over the last dimension, from log-probabilities."""
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)


def _at(values: Tensor, target: Tensor) -> Tensor:
    return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def _wrong(teacher: Teacher, target: Tensor) -> Tensor:
    return calibration.mis_instructed(teacher.logits, target) if teacher.wrong is None else teacher.wrong


def _of_others(logits: Tensor, target: Tensor) -> Tensor:
    """log q, the log-softmax over the non-targets alone.

    Args:
        logits: (B, C).
        target: (B,).

    Returns:
        (B, C), which has 0 in the label's place, so that sums of products with log-probabilities are those over the
        non-targets.
    """
    y = target.unsqueeze(-1)
    return logits.scatter(-1, y, -torch.inf).log_softmax(-1).scatter(-1, y, 0.0)
