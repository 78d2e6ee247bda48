"""KL divergences of a student from a teacher, whole and decoupled, with the student's gradient in closed form.

Both networks' logits lie in one tensor, so that each step is one kernel for both. With v_i = (z_i - m) / tau and
e_i = exp(v_i), where m is a shift of each view, and S and Z sums of e over the non-targets and over all classes,

    KL(p_t ‖ p_s) = sum_i e_t,i (v_t,i - v_s,i) / Z_t + log(Z_s / Z_t)          p = e / Z
    NCKD          = the same over the non-targets, with S for Z                 q = e / S
    TCKD          = KL(b_t ‖ b_s)        log-odds of b = v_y - log S

No (B, C) tensor of log-probabilities is made, and one exponential of each logit is all that is taken, forward and
backward. LoCa moves the label's logit alone, hence works on the (B,) numbers of the teacher's label and sums.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.calibration import log_label_to_top
from trainables.objectives.calibrations import Teacher

LEAST_ALPHA = 1e-30
"""Any alpha below gives the same probabilities in float32."""


class Whole(NamedTuple):
    """KL(p_t ‖ p_s) of each view, and the mis-instructed and the capped (None: none) ones: (B,) each."""

    kl: Tensor
    wrong: Tensor
    capped: Tensor | None


class Decoupled(NamedTuple):
    """TCKD and NCKD of each view, and the mis-instructed and the capped (None: none) ones: (B,) each."""

    tckd: Tensor
    nckd: Tensor
    wrong: Tensor
    capped: Tensor | None


def whole(student: Tensor, teacher: Teacher, target: Tensor, tau: float) -> Whole:
    """KL(p_t ‖ p_s), from logits.

    Args:
        student: (B, C) float32.
        teacher: as the calibrations give it.
        target: (B,) int64.
        tau: temperature of both softmaxes, a fixed one: it gets no gradient.

    Returns:
        `Whole`; its `kl` has a gradient for the student.
    """
    with torch.no_grad():
        y = target.unsqueeze(-1)
        of_both = y.expand(2, -1, -1)
        v = torch.stack([student, teacher.logits])
        label = v.gather(-1, of_both)
        top = v.scatter_(-1, of_both, -math.inf).amax(-1, keepdim=True)
        wrong = (top >= label)[1] if teacher.wrong is None else teacher.wrong.unsqueeze(-1)
        # From the largest logit, the label's or another: a label that is far ahead would overflow.
        v.scatter_(-1, of_both, label).sub_(torch.maximum(top, label)).div_(tau)
        e = v.exp()
        (v_s, v_t), e_t = v.unbind(), e[1]
        capped = teacher.capped
        if teacher.alpha is not None:
            e_y = e_t.gather(-1, y)
            # A mis-instructed view's largest logit is a non-target's, so that this is 1 / r there.
            one_over_r = e_t.sum(-1, keepdim=True).sub_(e_y)
            moved, over = log_label_to_top(one_over_r, max(teacher.alpha, LEAST_ALPHA), v.shape[-1])
            capped = None if over is None else (wrong & over).squeeze(-1)
            e_t.scatter_(-1, y, torch.where(wrong, moved.exp(), e_y))
            v_t.scatter_(-1, y, torch.where(wrong, moved, v_t.gather(-1, y)))
        z = e.sum(-1, keepdim=True)
        z_s, z_t = z.unbind()
        kl = v_t.sub_(v_s).mul_(e_t).sum(-1, keepdim=True).div_(z_t).add_((z_s / z_t).log_())
    return Whole(_Whole.apply(student, kl.squeeze(-1), e, z, tau), wrong.squeeze(-1), capped)


class _Whole(torch.autograd.Function):
    """Gives the divergences their gradient, (p_s - p_t) / tau."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, kl: Tensor, e: Tensor, z: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(e, z)
        ctx.tau = tau
        return kl.view_as(kl)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        e, z = ctx.saved_tensors
        per_e = (gradients[0] / ctx.tau).unsqueeze(-1) / z
        gradient = (e[0] * per_e[0]).addcmul_(e[1], per_e[1], value=-1)
        return gradient, None, None, None, None


def decoupled(student: Tensor, teacher: Teacher, target: Tensor, tau: float) -> Decoupled:
    """TCKD and NCKD (Zhao et al., arXiv 2203.08679), from logits.

    Args:
        student: (B, C) float32.
        teacher: as the calibrations give it. What an alpha does to the label leaves NCKD as it is, bit for bit.
        target: (B,) int64.
        tau: temperature of both softmaxes, a fixed one: it gets no gradient.

    Returns:
        `Decoupled`; both divergences have a gradient for the student.
    """
    with torch.no_grad():
        y = target.unsqueeze(-1)
        of_both = y.expand(2, -1, -1)
        v = torch.stack([student, teacher.logits])
        label = v.gather(-1, of_both)
        top = v.scatter_(-1, of_both, -math.inf).amax(-1, keepdim=True)
        wrong = (top >= label)[1] if teacher.wrong is None else teacher.wrong.unsqueeze(-1)
        # From the largest non-target, so that the label may be as far ahead as it likes.
        e = v.sub_(top).div_(tau).exp()
        s = e.sum(-1, keepdim=True)
        label.sub_(top).div_(tau)
        capped = teacher.capped
        if teacher.alpha is not None:
            moved, over = log_label_to_top(s[1], teacher.alpha, v.shape[-1])
            capped = None if over is None else (wrong & over).squeeze(-1)
            label[1] = torch.where(wrong, moved, label[1])
        (v_s, v_t), (s_s, s_t) = v.scatter_(-1, of_both, 0.0).unbind(), s.unbind()
        nckd = v_t.sub_(v_s).mul_(e[1]).sum(-1, keepdim=True).div_(s_t).add_((s_s / s_t).log_())

        odds = label.sub_(s.log())
        log_b = F.logsigmoid(torch.cat([odds, -odds], -1))
        b = log_b.exp()
        tckd = (b[1] * (log_b[1] - log_b[0])).sum(-1)
        beyond = b[0, :, :1] - b[1, :, :1]
    tckd, nckd = _Decoupled.apply(student, tckd, nckd.squeeze(-1), e, s, beyond, y, tau)
    return Decoupled(tckd, nckd, wrong.squeeze(-1), capped)


class _Decoupled(torch.autograd.Function):
    """Gives both divergences their gradients.

    With g = p_s,y - p_t,y, TCKD's is g / tau on the label and -q_s g / tau on the others; NCKD's is (q_s - q_t) / tau
    on the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        tckd: Tensor,
        nckd: Tensor,
        e: Tensor,
        s: Tensor,
        beyond: Tensor,
        y: Tensor,
        tau: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(e, s, beyond, y)
        ctx.tau = tau
        return tckd.view_as(tckd), nckd.view_as(nckd)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        e, s, beyond, y = ctx.saved_tensors
        on_label, on_others = (gradient.unsqueeze(-1) / ctx.tau for gradient in gradients)
        on_label = on_label * beyond
        gradient = e[0] * ((on_others - on_label) / s[0])
        # e is 0 in the label's place.
        gradient.addcmul_(e[1], on_others / s[1], value=-1).scatter_(-1, y, on_label)
        return gradient, None, None, None, None, None, None, None
