"""Distillation from a teacher's logits on one view of each image."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import calibration
from trainables.objectives.answer import answer
from trainables.objectives.calibrations import Teacher, unchanged
from trainables.objectives.standardisation import standardise
from trainables.objectives.terms import Terms

Calibration = Callable[..., Teacher]
Temperature = Callable[[int], float | Tensor]
Term = Callable[[Tensor, Teacher, Tensor, Any], Terms]


class Distillation(nn.Module):
    """A term, a temperature, a calibration and a scale of the logits, put together:

        loss = gamma * CE(z_s, y) + beta * min(epoch / warmup, 1) * tau^2 * term(Z(z_s) / tau, calibrate(Z(z_t)) / tau)

    Means are over the whole batch. Z is the identity unless the logits are standardised; CE sees z_s as it is.

    Args:
        term: one of `trainables.objectives.terms`.
        temperature: one of `trainables.objectives.temperatures`.
        calibrate: one of `trainables.objectives.calibrations`.
        standardised: whether both networks' logits are standardised.
        tau_squared: whether there is a factor tau^2.
        beta, gamma: the weights.
        warmup: epochs in which the distillation term reaches its full weight; None for at once.
        drop_wrong_views: whether mis-instructed views are left out, as if they had never been in the batch: their CE is
            gone as well, and the means are over the others. A batch without others has a loss of 0.
    """

    def __init__(
        self,
        term: Term,
        temperature: Temperature,
        *,
        calibrate: Calibration = unchanged,
        standardised: bool = False,
        tau_squared: bool = True,
        beta: float = 1.0,
        gamma: float = 1.0,
        warmup: float | None = None,
        drop_wrong_views: bool = False,
    ) -> None:
        super().__init__()
        self.term, self.temperature, self.calibrate = term, temperature, calibrate
        self.standardised, self.tau_squared, self.drop_wrong_views = standardised, tau_squared, drop_wrong_views
        self.beta, self.gamma, self.warmup = beta, gamma, warmup
        # How many views are left is known of the whole batch only.
        self.mean_over_rows = not drop_wrong_views

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """The package's docstring has the arguments and the keys."""
        z_s, teacher_logits = student_logits.float(), teacher_logits.detach()
        compared, wrong = z_s, None
        if self.standardised or teacher_logits.dtype == torch.float64:
            # Decided on the logits as they came: rounding could make a tie of the smallest lead.
            wrong = calibration.mis_instructed(teacher_logits, target)
        if self.standardised:
            compared, teacher_logits = standardise(z_s), standardise(teacher_logits)
        tau = self.temperature(epoch)
        terms = self.term(compared, self.calibrate(teacher_logits, target, tau, wrong), target, tau)

        if self.drop_wrong_views:
            kept = ~terms.wrong
            ce = _mean_over(F.cross_entropy(z_s, target, reduction="none"), kept)
            term = _mean_over(terms.of_views, kept)
        else:
            ce = F.cross_entropy(z_s, target)
            term = terms.of_views.mean()
        warm = 1.0 if self.warmup is None else min(epoch / self.warmup, 1.0)
        # A fixed factor joins the weight, whose product the sum takes anyway; one that is learnt has a gradient.
        scale = tau**2 if self.tau_squared else 1.0
        if isinstance(scale, Tensor):
            term, scale = scale * term, 1.0
        named = {name: part.detach().mean() for name, part in terms.parts.items()}
        if isinstance(tau, Tensor):
            named["temperature"] = tau
        return answer(
            torch.add(self.gamma * ce, term, alpha=self.beta * warm * scale),
            ce,
            scale * term.detach(),
            terms.wrong.float().mean(),
            ce.new_zeros(()) if terms.capped is None else terms.capped.float().mean(),
            **named,
        )


def _mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """The mean of the values, (B,), where `kept`, (B,) bool; 0 if there is none."""
    return values.masked_fill(~kept, 0.0).sum() / kept.sum().clamp_min(1)
