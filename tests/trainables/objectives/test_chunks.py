"""An objective in parts is the objective: loss, parts and every gradient, for every method that is a mean over rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainables import objectives, protocol
from trainables.objectives import chunks

TEXT = [name for name in objectives.names() if "text" in objectives.get(name).tasks]
BASE = protocol.resolve("dolly-10")


def built(name: str, **given_: object) -> nn.Module:
    method = objectives.get(name)
    fields = {p.name: getattr(BASE, p.name) for p in method.parameters if p.default is None}
    return objectives.build(name, **{**fields, **given_})  # type: ignore[arg-type]


def batch(
    rows: int, width: int, classes: int, seed: int = 0
) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=draw).requires_grad_()
    head = nn.Linear(width, classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(classes, width, generator=draw))
    teacher = 3 * torch.randn(rows, classes, generator=draw)
    target = torch.randint(classes, (rows,), generator=draw)
    return features, head, teacher, target


def gradients(objective: nn.Module, features: torch.Tensor, head: nn.Linear) -> list[torch.Tensor]:
    found = [features.grad, *(p.grad for p in head.parameters()), *(p.grad for p in objective.parameters())]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_in_parts_it_is_the_same_loss_and_gradient(name: str, rows: int) -> None:
    features, head, teacher, target = batch(23, 5, 300)
    objective = built(name)
    whole = objective(head(features), teacher, target, 2)
    whole["loss"].backward()
    expected = gradients(objective, features, head)
    for one in (features, *head.parameters(), *objective.parameters()):
        one.grad = None
    sums = chunks.accumulate(objective, features, head, lambda part: teacher[part], target, epoch=2, rows=rows)
    for name_, value in whole.items():
        torch.testing.assert_close(sums[name_] / 23, value.detach(), rtol=1e-5, atol=1e-6, msg=name_)
    for found, right in zip(gradients(objective, features, head), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=3e-5)
    assert float(sums["hits"]) == int((head(features).argmax(1) == target).sum())


def test_two_micro_batches_add_up_to_the_batch() -> None:
    features, head, teacher, target = batch(20, 4, 50)
    objective = built("loca", alpha=0.9)
    chunks.accumulate(objective, features, head, lambda part: teacher[part], target)
    whole = gradients(objective, features, head)
    features.grad = None
    head.zero_grad()
    for half in (slice(0, 8), slice(8, 20)):
        asked = teacher[half]
        chunks.accumulate(
            objective, features[half], head, lambda part, asked=asked: asked[part], target[half], of=20, rows=3
        )
    for found, right in zip(gradients(objective, features, head), whole, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-7)


@settings(deadline=None)
@given(rows=st.integers(1, 40), at_once=st.integers(1, 50), classes=st.integers(2, 60), seed=st.integers(0, 99))
def test_whatever_the_parts_the_gradient_is_that_in_float64(rows: int, at_once: int, classes: int, seed: int) -> None:
    features, head, teacher, target = batch(rows, 3, classes, seed)
    objective = built("loca", alpha=0.95)
    chunks.accumulate(objective, features, head, lambda part: teacher[part], target, rows=at_once)
    exact, wide = features.detach().double().requires_grad_(), head.weight.detach().double()
    z, bias = exact @ wide.T, head.bias.detach().double()
    log_s = ((z + bias) / BASE.tau).log_softmax(-1)
    from trainables.calibration import loca

    p = loca((teacher.double() / BASE.tau).softmax(-1), target, 0.95)
    kl = (p * (p.clamp_min(1e-300).log() - log_s)).sum(-1).mean()
    loss = BASE.gamma * torch.nn.functional.cross_entropy(z + bias, target) + BASE.beta * BASE.tau**2 * kl
    loss.backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def test_half_precision_and_huge_logits_stay_finite() -> None:
    features, head, teacher, target = batch(16, 4, 32_000)
    head, features = head.half(), (1e3 * features.detach()).half().requires_grad_()
    sums = chunks.accumulate(built("loca"), features, head, lambda part: (1e3 * teacher[part]).half(), target, rows=5)
    assert torch.isfinite(sums["loss"])
    assert torch.isfinite(gradients(built("sft"), features, head)[0]).all()


def test_what_is_no_mean_over_rows_gets_all_of_them_or_is_refused() -> None:
    features, head, teacher, target = batch(9, 4, 12)
    objective = built("kd_drop", drop="sample")
    assert not chunks.is_mean_over_rows(objective)
    assert not chunks.is_mean_over_rows(built("mlkd"))
    whole = objective(head(features), teacher, target)["loss"]
    sums = chunks.accumulate(objective, features, head, lambda part: teacher[part], target, rows=2)
    torch.testing.assert_close(sums["loss"] / 9, whole.detach())
    with pytest.raises(ValueError, match="cannot be taken in parts"):
        chunks.accumulate(objective, features, head, lambda part: teacher[part], target, of=20)
