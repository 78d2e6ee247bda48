"""Multi-level logit distillation (MLKD, Jin et al., CVPR 2023): views, relations of views, relations of classes.

With p_t, p_s (B, C) the softmaxes of one view of each image at temperature tau,

    instance:   KL(p_t ‖ p_s), times tau^2, the mean over the batch
    batch:      ‖p_t p_t^T - p_s p_s^T‖^2 / B, which images are answered alike
    class:      ‖p_t^T p_t - p_s^T p_s‖^2 / C, which classes are answered together

each summed over tau in (tau_mlkd, 2, 3, 5, 6), and

    loss = gamma * (CE of the weak view + CE of the strong view) + beta * (instance + batch + class)

A view is doubtful if the teacher's top probability on the weak view is at most its median over the batch; a class, if
the sum of its probabilities over the batch is at most the median over the classes; both at temperature 1.

There are two readings. `released` is, term by term, what the authors' published code adds up, from which the published
numbers come:

- instance, weak view, five temperatures: times the share of doubtful views. (The code averages over the batch before
  it applies its mask.)
- instance, strong view at tau_mlkd, 3 and 5; at 2 and 6 the weak view takes the strong one's place, unmasked.
- batch, weak view: times the share of doubtful views. Class, weak view: times the share of doubtful classes. (The code
  computes both for the strong view too, and adds them to nothing.)

`whole` has every level on both views at all five temperatures; on the weak view it keeps the doubtful views' own
instance terms, the doubtful views' rows of the batch level, and the doubtful classes' rows of the class level.

Both readings hold for a batch of one: its only view is its own median, hence doubtful.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import calibration
from trainables.objectives.answer import answer
from trainables.objectives.standardisation import standardise
from trainables.objectives.terms import kl_divergence

WEAK, STRONG = 0, 1

TAUS = ((2.0, WEAK), (3.0, STRONG), (5.0, STRONG), (6.0, WEAK))
"""The temperatures beside tau_mlkd, and the view whose instance term the released code has in the strong view's place.
"""

Levels = dict[str, Tensor]


class MultiLevel(nn.Module):
    """MLKD; the module's docstring says what it computes.

    Args:
        tau: the first temperature, tau_mlkd.
        beta, gamma: the weights.
        reading: `released` or `whole`.
        tau_squared: whether the instance terms have their factor tau^2.
        standardised: whether the instance terms compare standardised logits. The other levels never do, as in the code
            of arXiv 2403.01427.
    """

    mean_over_rows = False  # it compares views with each other

    def __init__(
        self, *, tau: float, beta: float, gamma: float, reading: str, tau_squared: bool, standardised: bool
    ) -> None:
        super().__init__()
        self.tau, self.beta, self.gamma = tau, beta, gamma
        self.reading, self.tau_squared, self.standardised = reading, tau_squared, standardised

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, epoch: int = 1
    ) -> dict[str, Tensor]:
        """The package's docstring has the arguments and the keys; logits are (2, B, C), the weak view first.

        `ce` is the sum of both views' CE, the mis-instruction ratio is the weak view's, and `kd` is the sum of the
        three levels `kd_instance`, `kd_batch` and `kd_class`.
        """
        teacher_logits = teacher_logits.detach()
        with _full_precision(student_logits):
            z_s, z_t = student_logits.float(), teacher_logits.float()
            ce = F.cross_entropy(z_s[WEAK], target) + F.cross_entropy(z_s[STRONG], target)
            add_up = self._released if self.reading == "released" else self._whole
            levels = add_up(z_s, z_t, *_doubtful(z_t[WEAK]))
            kd = levels["kd_instance"] + levels["kd_batch"] + levels["kd_class"]
        wrong = calibration.mis_instructed(teacher_logits[WEAK], target)
        loss = self.gamma * ce + self.beta * kd
        return answer(loss, ce, kd, wrong.float().mean(), ce.new_zeros(()), **levels)

    def _released(self, z_s: Tensor, z_t: Tensor, views: Tensor, classes: Tensor) -> Levels:
        share_of_views, share_of_classes = views.float().mean(), classes.float().mean()
        u_s, u_t = self._compared(z_s, z_t)
        instance, batch, class_ = [], [], []
        for tau, in_place_of_strong in ((self.tau, STRONG), *TAUS):
            weak = self._instance(u_s[WEAK], u_t[WEAK], tau).mean()
            other = weak if in_place_of_strong == WEAK else self._instance(u_s[STRONG], u_t[STRONG], tau).mean()
            instance.append(share_of_views * weak + other)
            p_s, p_t = (z_s[WEAK] / tau).softmax(-1), (z_t[WEAK] / tau).softmax(-1)
            batch.append(share_of_views * relations_of_views(p_s, p_t))
            class_.append(share_of_classes * relations_of_classes(p_s, p_t))
        return _sums(instance, batch, class_)

    def _whole(self, z_s: Tensor, z_t: Tensor, views: Tensor, classes: Tensor) -> Levels:
        u_s, u_t = self._compared(z_s, z_t)
        instance, batch, class_ = [], [], []
        for tau in (self.tau, *(tau for tau, _ in TAUS)):
            weak, strong = self._instance(u_s, u_t, tau)
            instance.append((views * weak).mean() + strong.mean())
            for view, doubtful_views, doubtful_classes in ((WEAK, views, classes), (STRONG, None, None)):
                p_s, p_t = (z_s[view] / tau).softmax(-1), (z_t[view] / tau).softmax(-1)
                batch.append(relations_of_views(p_s, p_t, doubtful_views))
                class_.append(relations_of_classes(p_s, p_t, doubtful_classes))
        return _sums(instance, batch, class_)

    def _compared(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """What the instance terms compare."""
        return (standardise(z_s), standardise(z_t)) if self.standardised else (z_s, z_t)

    def _instance(self, u_s: Tensor, u_t: Tensor, tau: float) -> Tensor:
        """(..., C) twice to (...): the term of each view."""
        divergence = kl_divergence((u_s / tau).log_softmax(-1), (u_t / tau).log_softmax(-1))
        return (tau**2 if self.tau_squared else 1.0) * divergence


def relations_of_views(p_s: Tensor, p_t: Tensor, rows: Tensor | None = None) -> Tensor:
    """‖p_t p_t^T - p_s p_s^T‖^2 / B, of the matrix's rows given, (B,) bool, or of all.

    With P = p_t - p_s and Q = p_t + p_s the difference is (P Q^T + Q P^T) / 2: no two large numbers are subtracted.
    """
    half = (p_t - p_s) @ (p_t + p_s).T
    difference = (half + half.T) / 2
    if rows is not None:
        difference = difference * rows.unsqueeze(-1)
    return difference.square().sum() / len(p_t)


def relations_of_classes(p_s: Tensor, p_t: Tensor, rows: Tensor | None = None) -> Tensor:
    """‖p_t^T p_t - p_s^T p_s‖^2 / C, of the matrix's rows given, (C,) bool, or of all.

    With P and Q as in `relations_of_views` the difference is (P^T Q + Q^T P) / 2. Its square comes from B x B matrices,
    so that the C x C one, of a billion entries for 32,000 classes, is never made:

        4 ‖difference‖^2 = <P P^T, Q Q^T> + <Q Q^T, P P^T> + 2 <P Q^T, Q P^T>

    where the first factor of each product, which carries the rows, has only their classes.
    """
    p, q = p_t - p_s, p_t + p_s
    p_rows, q_rows = (p, q) if rows is None else (p * rows, q * rows)
    squares = (p_rows @ p_rows.T) * (q @ q.T) + (q_rows @ q_rows.T) * (p @ p.T)
    crossed = (p_rows @ q_rows.T) * (q @ p.T)
    return (squares + 2 * crossed).sum() / (4 * p_t.shape[-1])


def _doubtful(z_t: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) and (C,) bool: the doubtful views and classes, from the teacher's logits on the weak view, (B, C)."""
    p_t = z_t.softmax(-1)
    confidence, of_classes = p_t.amax(-1), p_t.sum(0)
    return confidence <= _median(confidence), of_classes <= _median(of_classes)


def _median(values: Tensor) -> Tensor:
    """The median of (n,) values: the mean of the two in the middle, where n is even."""
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def _sums(instance: Sequence[Tensor], batch: Sequence[Tensor], class_: Sequence[Tensor]) -> Levels:
    levels = {"kd_instance": instance, "kd_batch": batch, "kd_class": class_}
    return {name: torch.stack(list(terms)).sum() for name, terms in levels.items()}


def _full_precision(like: Tensor) -> AbstractContextManager[None]:
    """No autocast: it would multiply matrices in half precision."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
