"""Our methods and a method of one's own through the contract, and that the contract finds what is wrong."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables import objectives
from trainables.contracts.methods import MethodContract
from trainables.objectives import Method, Option, Parameter

HERE = __name__


class SquaredError(nn.Module):
    """CE + weight * mean squared error of the logits' probabilities: a method as a user might write one."""

    def __init__(self, weight_mse: float, reduction: str) -> None:
        super().__init__()
        self.weight, self.reduction = weight_mse, reduction

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, epoch: int = 1):
        z_s, z_t = student_logits.float(), teacher_logits.detach().float()
        ce = F.cross_entropy(z_s, target)
        kd = F.mse_loss(z_s.softmax(-1), z_t.softmax(-1), reduction=self.reduction)
        wrong = (z_t.argmax(-1) != target).float().mean()
        zero = torch.zeros_like(wrong)
        return {
            "loss": ce + self.weight * kd,
            "ce": ce.detach(),
            "kd": kd.detach(),
            "mis_instruction_ratio": wrong,
            "capped_ratio": zero,
        }


def squared_error() -> Method:
    return Method(
        name="squared_error",
        summary="squared error of the probabilities",
        formula="CE + weight_mse * mean (p_t - p_s)^2",
        source="-",
        parameters=(Parameter("weight_mse", 1.0, 0.0, None, False, "weight of the squared error"),),
        options=(Option("reduction", ("mean", "sum"), "over views and classes"),),
        needs_teacher=True,
        zero_at_teacher=True,
        factory=SquaredError,
    )


class TestOurMethods(MethodContract):
    pass


class TestAMethodOfOnesOwn(MethodContract):
    names = (f"{HERE}:squared_error",)


def _spoilt(change: Callable[..., dict[str, Tensor]], **fields: Any) -> Callable[[], Method]:
    class Spoilt(SquaredError):
        def forward(self, student_logits, teacher_logits, target, epoch=1):
            return change(super().forward, student_logits, teacher_logits, target)

    return lambda: dataclasses.replace(squared_error(), factory=Spoilt, **fields)


no_capped_ratio = _spoilt(lambda f, s, t, y: {k: v for k, v in f(s, t, y).items() if k != "capped_ratio"})
half_loss = _spoilt(lambda f, s, t, y: f(s, t, y) | {"loss": f(s, t, y)["loss"].half()})
a_kd_with_a_gradient = _spoilt(lambda f, s, t, y: f(s, t, y) | {"kd": s.sum()})
teaches_the_teacher = _spoilt(lambda f, s, t, y: f(s, t, y) | {"loss": f(s, t, y)["loss"] + t.float().sum()})
reads_from_the_device = _spoilt(lambda f, s, t, y: f(s, t, y) if s.sum().item() < 1e9 else {})
draws_at_random = _spoilt(lambda f, s, t, y: f(s + torch.rand_like(s), t, y))
changes_its_input = _spoilt(lambda f, s, t, y: f(s, t.mul_(2), y))
is_never_zero = _spoilt(lambda f, s, t, y: f(s, t, y) | {"kd": f(s, t, y)["kd"] + 1})
sees_the_scale = _spoilt(lambda f, s, t, y: f(s, t, y) | {"loss": f(s, t, y)["loss"] + s.float().mean()})
no_source = _spoilt(lambda f, s, t, y: f(s, t, y), source="")
no_default = _spoilt(
    lambda f, s, t, y: f(s, t, y), parameters=(Parameter("weight_mse", None, 0.0, None, False, "weight"),)
)


@pytest.mark.parametrize(
    ("method", "check", "arguments"),
    [
        ("no_capped_ratio", "it_answers_scalars_in_float32_of_which_the_loss_alone_has_a_gradient", (1,)),
        ("half_loss", "it_answers_scalars_in_float32_of_which_the_loss_alone_has_a_gradient", (1,)),
        ("a_kd_with_a_gradient", "it_answers_scalars_in_float32_of_which_the_loss_alone_has_a_gradient", (1,)),
        ("teaches_the_teacher", "the_gradient_reaches_the_student_and_not_the_teacher", ()),
        ("reads_from_the_device", "nothing_is_read_back_from_the_device", ()),
        ("draws_at_random", "the_same_input_gives_the_same_output", ()),
        ("changes_its_input", "its_inputs_are_left_alone", ()),
        ("is_never_zero", "the_distillation_term_is_zero_where_the_student_equals_a_teacher_that_is_right", ()),
        ("sees_the_scale", "logits_that_are_shifted_by_a_constant_in_each_view_change_nothing", ()),
        ("no_source", "the_registry_describes_the_method", ()),
        ("no_default", "its_parameters_and_options_are_described_and_have_defaults", ()),
    ],
)
def test_the_contract_finds_what_is_wrong(method, check, arguments):
    name = f"{HERE}:{method}"
    assert objectives.get(name).name == name
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(MethodContract(), f"test_{check}")(name, *arguments)
