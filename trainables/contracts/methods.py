"""What every method must do, as a test class: ours pass it, and a method of one's own is held to it in three lines.

    from trainables.contracts.methods import MethodContract

    class TestMyLoss(MethodContract):
        names = ["my_package.losses:my_method"]

Needs pytest, and is imported by tests only.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables import objectives, protocol
from trainables.contracts.named import NamedContract
from trainables.objectives import Method, Option, Parameter

KEYS = ("loss", "ce", "kd", "mis_instruction_ratio", "capped_ratio")
"""What every method answers."""

PROTOCOL = "crd-240"
"""Whose values the checks use where a method has no default of its own."""

FORBIDDEN = {"share", "seed", "epoch", "method", "pair", "protocol", "teacher", "data", "train_loss", "lr"}
"""Words that mean something else in a spec or in a run's record."""


class MethodContract(NamedContract):
    """A method answers the same keys, teaches the student alone, stays finite, and says what it takes.

    names: the methods that are held to it, by default all that are registered.
    """

    names: Sequence[str] = tuple(objectives.names())

    def test_the_registry_describes_the_method(self, name: str) -> None:
        method = objectives.get(name)
        assert method.name == name
        for what, text in (("summary", method.summary), ("formula", method.formula), ("source", method.source)):
            assert text, f"no {what}; `-` where there is none"
            assert "\n" not in text, f"a {what} of several lines"
        assert method.views, "no view"
        assert method.version >= 1

    def test_its_parameters_and_options_are_described_and_have_defaults(self, name: str) -> None:
        method = objectives.get(name)
        taken: list[Parameter | Option] = [*method.parameters, *method.options]
        called = [each.name for each in taken]
        assert len(set(called)) == len(called), f"a name twice: {called}"
        assert not FORBIDDEN & set(called), f"names with another meaning: {FORBIDDEN & set(called)}"
        assert all(each.help for each in taken), "no help"
        fields = protocol.resolve(PROTOCOL)
        for parameter in method.parameters:
            value = getattr(fields, parameter.name, None) if parameter.default is None else parameter.default
            assert value is not None, f"{parameter.name} has no default, and no protocol has a field of its name"
            assert parameter.contains(float(value)), f"{parameter.name}: its default {value} is out of its bounds"
        for option in method.options:
            assert len(set(option.choices)) == len(option.choices) > 1, f"{option.name}: {option.choices}"

    @pytest.mark.parametrize("epoch", [1, 300])
    def test_it_answers_scalars_in_float32_of_which_the_loss_alone_has_a_gradient(self, name: str, epoch: int) -> None:
        _checked(_build(name), *_batch(name), epoch)

    def test_the_gradient_reaches_the_student_and_not_the_teacher(self, name: str) -> None:
        student, teacher, target = _batch(name)
        teacher.requires_grad_()
        _checked(_build(name), student, teacher, target)["loss"].backward()
        assert student.grad is not None, "no gradient for the student"
        assert student.grad.count_nonzero() > 0, "a gradient of 0 for the student"
        assert teacher.grad is None, "a gradient for the teacher"

    def test_the_distillation_term_is_zero_where_the_student_equals_a_teacher_that_is_right(self, name: str) -> None:
        if not objectives.get(name).zero_at_teacher:
            pytest.skip("the method does not say so")
        _, teacher, target = _batch(name)
        rows = torch.arange(len(target))
        teacher[..., rows, target] = teacher.amax(-1) + 1
        kd = _build(name)(teacher.clone(), teacher, target)["kd"].item()
        assert abs(kd) < 1e-4, f"kd is {kd}"

    def test_logits_that_are_shifted_by_a_constant_in_each_view_change_nothing(self, name: str) -> None:
        student, teacher, target = _batch(name)
        # On a grid of 1/64 these sums are exact, so the shift moves no tie.
        student, teacher = ((z.detach() * 64).round() / 64 for z in (student, teacher))
        shift = torch.arange(len(target)).unsqueeze(-1) - 3.0
        objective = _build(name)
        before, after = objective(student, teacher, target), objective(student + shift, teacher - 5 * shift, target)
        for key in before:
            torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-3, equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_loss_and_gradient_are_finite_for_logits_up_to_ten_thousand(self, name: str, dtype: torch.dtype) -> None:
        extremes = torch.tensor([1e4, -1e4, 0.0, 1e4])
        student = torch.stack([*[extremes.roll(i) for i in range(4)] * 4, torch.zeros(4), torch.full((4,), 1e4)])
        teacher = torch.stack([*[extremes.roll(i // 4) for i in range(16)], torch.zeros(4), torch.full((4,), -1e4)])
        target = torch.arange(18) % 3
        _checked(_build(name), _views(name, student.to(dtype)), _views(name, teacher.to(dtype)), target, backward=True)

    @pytest.mark.parametrize("classes", [2, 100, 1000, 32000])
    def test_few_and_many_classes_and_a_batch_of_one_are_taken(self, name: str, classes: int) -> None:
        for size in (1, 4):
            _checked(_build(name), *_batch(name, size, classes), backward=True)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_only_a_matter_of_the_input(self, name: str, dtype: torch.dtype) -> None:
        student, teacher, target = _batch(name)
        student, teacher = student.detach().to(dtype), teacher.to(dtype)
        objective = _build(name)
        _check_equal(objective(student, teacher, target), objective(student.float(), teacher.float(), target))

    def test_autocast_does_not_lower_the_precision(self, name: str) -> None:
        objective, batch = _build(name), _batch(name)
        plain = objective(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            cast = objective(*batch)
        _check_equal(cast, plain)

    def test_the_same_input_gives_the_same_output(self, name: str) -> None:
        first, second = _batch(name), _batch(name)
        for batch in (first, second):
            _build(name)(*batch)["loss"].backward()
        assert torch.equal(first[0].grad, second[0].grad)  # type: ignore[arg-type]
        objective = _build(name)
        _check_equal(objective(*first), objective(*second))

    def test_its_inputs_are_left_alone(self, name: str) -> None:
        student, teacher, target = _batch(name)
        kept = student.detach().clone(), teacher.clone(), target.clone()
        _build(name)(student, teacher, target)["loss"].backward()
        assert all(torch.equal(*pair) for pair in zip((student, teacher, target), kept, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_it_may_be_moved_to_another_precision(self, name: str, dtype: torch.dtype) -> None:
        expected = _build(name)(*_batch(name))
        moved = _checked(_build(name).to(dtype), *_batch(name), backward=True)
        for key, value in expected.items():
            torch.testing.assert_close(moved[key], value, rtol=1e-3, atol=1e-3, equal_nan=True)

    def test_nothing_is_read_back_from_the_device(self, name: str) -> None:
        """Tensors on the meta device have no values: any read, and any branch on one, raises."""
        student, teacher, target = (x.detach().to("meta") for x in _batch(name))
        student.requires_grad_()
        parts = _build(name).to("meta")(student, teacher, target)
        parts["loss"].backward()
        assert all(part.device.type == "meta" for part in parts.values()), "an answer on another device"
        assert student.grad is not None
        assert student.grad.device.type == "meta"

    def test_what_it_learns_survives_a_file_and_loads_strictly(self, name: str) -> None:
        saved, loaded, batch = _build(name), _build(name), _batch(name)
        with torch.no_grad():
            for parameter in saved.parameters():
                parameter.add_(0.25)
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
        _check_equal(loaded(*batch), saved(*batch))

    def test_without_a_teacher_it_answers_the_same_loss_if_it_needs_none(self, name: str) -> None:
        if objectives.get(name).needs_teacher:
            pytest.skip("the method needs a teacher")
        student, teacher, target = _batch(name)
        objective = _build(name)
        alone, beside = objective(student, None, target), objective(student, teacher, target)
        assert set(alone) == set(beside)
        assert torch.equal(alone["loss"], beside["loss"]), "the teacher changes the loss"
        assert alone["mis_instruction_ratio"].isnan()

    def test_a_parameter_out_of_its_bounds_is_refused_with_its_name_and_range(self, name: str) -> None:
        method = objectives.get(name)
        for parameter in method.parameters:
            for value in _outside(parameter):
                _check_refused(name, {parameter.name: value}, parameter.name, parameter.allowed)
            if parameter.default is None:
                given = {key: value for key, value in _given(method).items() if key != parameter.name}
                with pytest.raises(ValueError, match=f"^method {re.escape(name)}: {parameter.name} is missing"):
                    objectives.build(name, **given)

    def test_a_parameter_that_it_does_not_take_is_refused(self, name: str) -> None:
        _check_refused(name, {"no_such_parameter": 1.0}, "no_such_parameter", "it takes")

    def test_every_value_of_every_option_works_and_no_other_is_taken(self, name: str) -> None:
        for option in objectives.get(name).options:
            for choice in option.choices:
                _checked(_build(name, **{option.name: choice}), *_batch(name), backward=True)
            for wrong in ("no_such_choice", 1, None):
                _check_refused(name, {option.name: wrong}, option.name, option.allowed)


def _given(method: Method, **changes: Any) -> dict[str, Any]:
    """What the method must be given: the protocol's values where it has no default, and the changes."""
    fields = protocol.resolve(PROTOCOL)
    return {p.name: getattr(fields, p.name) for p in method.parameters if p.default is None} | changes


def _build(name: str, **changes: Any) -> nn.Module:
    return objectives.build(name, **_given(objectives.get(name), **changes))


def _batch(name: str, size: int = 8, classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher as the method wants them, and labels.

    The teacher is right on every second view, and ties on the first.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, len(objectives.get(name).views), size, classes)
    student, teacher = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(classes, (size,), generator=generator)
    rows = torch.arange(size)
    right = rows % 2 == 1
    teacher[:, rows[right], target[right]] = teacher.amax(-1)[:, right] + 1
    teacher[:, 0, target[0]] = teacher[:, 0].amax(-1)
    if shape[1] == 1:
        student, teacher = student[0], teacher[0]
    return student.clone().requires_grad_(), teacher.clone(), target


def _views(name: str, logits: Tensor) -> Tensor:
    """(B, C) logits for each of the method's views, every further one another permutation of the batch."""
    count = len(objectives.get(name).views)
    if count == 1:
        return logits
    return torch.stack([logits.roll(view, 0) for view in range(count)])


def _checked(
    objective: nn.Module, student: Tensor, teacher: Tensor, target: Tensor, epoch: int = 1, backward: bool = False
) -> dict[str, Tensor]:
    """An answer that has been checked, and on request its gradient."""
    student = student if student.is_leaf and student.requires_grad else student.detach().requires_grad_()
    parts: dict[str, Tensor] = objective(student, teacher, target, epoch)
    assert set(KEYS) <= set(parts), f"no {set(KEYS) - set(parts)}"
    for key, part in parts.items():
        assert part.shape == (), f"{key} has the shape {tuple(part.shape)}"
        assert part.dtype == torch.float32, f"{key} is {part.dtype}"
        assert part.isfinite(), f"{key} is {part.item()}"
        assert part.requires_grad == (key == "loss"), f"{key}: the loss, and nothing else, has a gradient"
    for key in ("mis_instruction_ratio", "capped_ratio"):
        assert 0 <= parts[key] <= 1, f"{key} is {parts[key].item()}"
    if backward:
        parts["loss"].backward()
        assert student.grad is not None
        assert student.grad.dtype == student.dtype
        assert student.grad.isfinite().all(), "a gradient that is not finite"
        for key, parameter in objective.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{key} has a gradient that is not finite"
    return parts


def _outside(parameter: Parameter) -> list[Any]:
    """Values that the parameter cannot have."""
    wrong: list[Any] = [math.nan, math.inf, "1", True]
    if parameter.low is not None:
        wrong.append(parameter.low if parameter.low_open else parameter.low - 1e-3)
    if parameter.high is not None:
        wrong.append(parameter.high if parameter.high_open else parameter.high + 1e-3)
    return wrong


def _check_refused(name: str, changes: dict[str, Any], *said: str) -> None:
    """That the changes are refused in one line which says all this."""
    with pytest.raises(ValueError, match=f"^method {re.escape(name)}: ") as refusal:
        _build(name, **changes)
    message = str(refusal.value)
    assert "\n" not in message
    assert all(words in message for words in said), message


def _check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True, msg=f"{key} differs")
