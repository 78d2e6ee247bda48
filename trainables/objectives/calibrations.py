"""Calibrations as parts of a method: called as `calibrate(teacher_logits, target, tau, wrong)` -> `Teacher`.

`teacher_logits` are (B, C), `target` is (B,), and `wrong` the mis-instructed views, (B,) bool, where the caller has
decided which they are; otherwise None. What each of them does is in `trainables.calibration`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from trainables import calibration


class Teacher(NamedTuple):
    """A teacher as a term takes it.

    logits: (B, C) float32, calibrated but for what alpha says.
    wrong: (B,) bool, the mis-instructed views; None where these logits have yet to decide that.
    capped: (B,) bool, the views whose calibration was capped; None for none so far.
    alpha: LoCa's, where it is left to the term to give the label of the mis-instructed views, at the term's own
        temperature, the margin 1 - alpha: a term computes what that takes anyway. None: nothing is left to do.
    """

    logits: Tensor
    wrong: Tensor | None = None
    capped: Tensor | None = None
    alpha: float | None = None


def unchanged(teacher_logits: Tensor, target: Tensor, tau: float | Tensor, wrong: Tensor | None) -> Teacher:
    """The teacher as it is."""
    return Teacher(teacher_logits.float(), wrong)


def swapped(teacher_logits: Tensor, target: Tensor, tau: float | Tensor, wrong: Tensor | None) -> Teacher:
    """Label and top class exchanged on mis-instructed views."""
    swap = calibration.swap_logits(teacher_logits, target, wrong)
    return Teacher(swap.logits, swap.mis_instructed)


@dataclass(frozen=True)
class LoCa:
    """LoCa with a margin of 1 - alpha.

    order: `temper_first` gives that margin to softmax(z_t / tau), as the paper's equations have it; `calibrate_first`
    gives it to softmax(z_t), and what is calibrated is tempered afterwards, which narrows the margin. apply_to and
    non_target: as in `trainables.calibration.loca_logits`.
    """

    alpha: float
    order: str
    apply_to: str
    non_target: str

    def __call__(self, teacher_logits: Tensor, target: Tensor, tau: float, wrong: Tensor | None) -> Teacher:
        """The calibrated teacher."""
        if (self.order, self.apply_to, self.non_target) == ("temper_first", "wrong", "keep"):
            return Teacher(teacher_logits.float(), wrong, alpha=self.alpha)
        tau_of_margin = tau if self.order == "temper_first" else 1.0
        return Teacher(
            *calibration.loca_logits(
                teacher_logits, target, self.alpha, tau_of_margin, self.apply_to, self.non_target, wrong
            )
        )
