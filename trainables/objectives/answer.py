"""What every objective answers."""

import math

from torch import Tensor

from trainables import calibration


def answer(
    loss: Tensor, ce: Tensor, kd: Tensor, mis_instruction_ratio: Tensor, capped_ratio: Tensor, **parts: Tensor
) -> dict[str, Tensor]:
    """The dictionary that the package's docstring describes: `loss` keeps its gradient, nothing else does."""
    return {
        "loss": loss,
        "ce": ce.detach(),
        "kd": kd.detach(),
        "mis_instruction_ratio": mis_instruction_ratio,
        "capped_ratio": capped_ratio,
    } | {name: part.detach() for name, part in parts.items()}


def ratios(teacher_logits: Tensor | None, target: Tensor, like: Tensor) -> dict[str, Tensor]:
    """The two ratios of a method that does not learn from the teacher: nan if there is none.

    Args:
        teacher_logits: (..., C), or None.
        target: (...) int64.
        like: a tensor of the wanted type and device.
    """
    if teacher_logits is None:
        nan = like.new_full((), math.nan)
        return {"mis_instruction_ratio": nan, "capped_ratio": nan}
    wrong = calibration.mis_instructed(teacher_logits.detach(), target)
    return {"mis_instruction_ratio": wrong.float().mean(), "capped_ratio": like.new_zeros(())}
