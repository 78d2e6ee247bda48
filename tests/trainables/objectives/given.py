"""Methods with their parameters, and batches of logits, for the tests of this folder."""

from typing import Any

import torch
from torch import Tensor, nn

from trainables import objectives
from trainables.objectives import Method

KEYS = {"loss", "ce", "kd", "mis_instruction_ratio", "capped_ratio"}
PROTOCOL = {"tau": 4.0, "beta": 0.9, "gamma": 0.1, "warmup_dkd": 20.0, "warmup_ctkd": 10.0}
METHODS = [objectives.get(name) for name in objectives.names()]


def given_parameters(method: Method, **changes: Any) -> dict[str, Any]:
    """The method's defaults, the protocol's values where it has none, and the changes that it takes."""
    values = PROTOCOL | {p.name: p.default for p in method.parameters if p.default is not None} | changes
    taken = [p.name for p in method.parameters] + [option.name for option in method.options if option.name in changes]
    return {name: values[name] for name in taken}


def make(method: Method | str, **changes: Any) -> nn.Module:
    """The method's objective with `given_parameters`."""
    method = objectives.get(method) if isinstance(method, str) else method
    return objectives.build(method.name, **given_parameters(method, **changes))


def batch(
    size: int = 8, classes: int = 100, seed: int = 0, scale: float = 3.0, views: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits and labels; the teacher is right on about half of the views, and ties on one."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, size, classes) if views == 1 else (2, views, size, classes)
    student, teacher = scale * torch.randn(shape, generator=generator)
    target = torch.randint(classes, (size,), generator=generator)
    right = torch.arange(size) % 2 == 1
    rows = torch.arange(size)
    teacher[..., rows[right], target[right]] = teacher.amax(-1)[..., right] + 1
    teacher[..., 0, target[0]] = teacher[..., 0, :].amax(-1)
    return student.requires_grad_(), teacher, target


def batch_for(method: Method, size: int = 8, classes: int = 100, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A batch with the method's views.

    With several views the teacher's confidences are of moderate size and differ from view to view, so that no two are
    one number in float32 and two in float64.
    """
    if len(method.views) == 1:
        return batch(size, classes, seed)
    student, teacher, target = batch(size, classes, seed, scale=1.0, views=len(method.views))
    return student, teacher * (1 + 0.05 * torch.arange(size).unsqueeze(-1)), target
