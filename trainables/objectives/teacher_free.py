"""Objectives that learn from no teacher. Given teacher logits they report their mis-instruction ratio, no more."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.objectives.answer import answer, ratios
from trainables.objectives.distillation import Distillation


class CrossEntropy(nn.Module):
    """CE against (1 - eps) on the label and eps / C on every class; eps = 0 is plain cross-entropy.

    Label smoothing: Szegedy et al., arXiv 1512.00567. `ce` is the plain one in either case.
    """

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """The package's docstring has the arguments and the keys."""
        z_s = student_logits.float()
        ce = F.cross_entropy(z_s, target)
        loss = F.cross_entropy(z_s, target, label_smoothing=self.eps) if self.eps else ce
        return answer(loss, ce, ce.new_zeros(()), **ratios(teacher_logits, target, ce))


class VirtualTeacher(nn.Module):
    """Distillation from a made teacher: probability a on the label and (1 - a) / (C - 1) on every other class.

    The manually designed teacher of Yuan et al., arXiv 1909.11723, read as any other teacher: both softmaxes at tau,
    and a factor tau^2. Their released code departs from that: it takes the softmax of the made probabilities, not of
    their logarithms, divided by tau; the student's at temperature 1; the mean over the classes as well as the batch;
    and, in place of tau^2, a multiplier chosen for each network.
    """

    def __init__(self, distillation: Distillation, a: float) -> None:
        super().__init__()
        self.distillation, self.a = distillation, a

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor | None, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """The package's docstring has the arguments and the keys."""
        others = student_logits.shape[-1] - 1
        made = student_logits.new_zeros(student_logits.shape, dtype=student_logits.float().dtype)
        # Logits are known but for a constant, so those of the others may be 0.
        made = made.scatter(-1, target.unsqueeze(-1), math.log(self.a) - math.log((1 - self.a) / others))
        parts = self.distillation(student_logits, made, target, epoch)
        return parts | ratios(teacher_logits, target, parts["ce"])
