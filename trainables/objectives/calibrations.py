"""Calibrations as parts of a method: called as `calibrate(teacher_logits, target, tau, wrong)` -> `Calibrated`.

`teacher_logits` are (B, C), `target` is (B,), and `wrong` the mis-instructed views, (B,) bool, where the caller has
decided which they are; otherwise None, and the calibration decides. What each of them does is in
`trainables.calibration`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables import calibration
from trainables.calibration import Calibrated


def unchanged(teacher_logits: Tensor, target: Tensor, tau: float | Tensor, wrong: Tensor | None) -> Calibrated:
    """The teacher as it is."""
    wrong = calibration.mis_instructed(teacher_logits, target) if wrong is None else wrong
    return Calibrated(teacher_logits.float(), wrong, torch.zeros_like(wrong))


def swapped(teacher_logits: Tensor, target: Tensor, tau: float | Tensor, wrong: Tensor | None) -> Calibrated:
    """Label and top class exchanged on mis-instructed views."""
    return calibration.swap_logits(teacher_logits, target, wrong)


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

    def __call__(self, teacher_logits: Tensor, target: Tensor, tau: float, wrong: Tensor | None) -> Calibrated:
        """The calibrated teacher."""
        tau_of_margin = tau if self.order == "temper_first" else 1.0
        return calibration.loca_logits(
            teacher_logits, target, self.alpha, tau_of_margin, self.apply_to, self.non_target, wrong
        )
