"""Each method's value and gradient against the probabilities in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainables.objectives.given import METHODS, batch, batch_for, given_parameters, make
from tests.trainables.objectives.references import expected, mis_instructed
from trainables import objectives

SETTINGS = settings(max_examples=25, deadline=None)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)

PARAMETERS = st.fixed_dictionaries(
    {
        "alpha": st.floats(0.05, 2.5),
        "tau": st.floats(0.5, 20.0),
        "beta": st.floats(0.0, 3.0),
        "gamma": st.floats(0.0, 3.0),
        "eps_ls": st.floats(0.0, 1.0),
        "a_tf": st.floats(0.001, 0.999),
        "tau_tf": st.floats(0.5, 30.0),
        "alpha_dkd": st.floats(0.0, 3.0),
        "beta_dkd": st.floats(0.0, 8.0),
        "warmup_dkd": st.floats(0.5, 30.0),
        "gamma_nkd": st.floats(0.0, 4.0),
        "lambda_nkd": st.floats(0.5, 5.0),
        "warmup_ctkd": st.floats(0.5, 20.0),
        "tau_mlkd": st.floats(0.5, 10.0),
    }
)


def magnitude(v: dict[str, float]) -> float:
    """What the terms of order 1 are multiplied by: float32's rounding is multiplied as well."""
    tau = max(v.get("tau", 1.0), v.get("tau_tf", 1.0), v.get("lambda_nkd", 1.0))
    if "warmup_ctkd" in v:
        tau = 15.7
    if "tau_mlkd" in v:
        tau = 2 * max(v["tau_mlkd"], 6.0)
    return tau**2 * max(1.0, v.get("alpha_dkd", 0.0) + v.get("beta_dkd", 0.0), v.get("gamma_nkd", 0.0))


@every_method
@SETTINGS
@given(st.integers(1, 9), st.sampled_from([2, 3, 10, 100]), st.integers(0, 2**32), PARAMETERS, st.integers(1, 40))
def test_value_and_gradient_are_those_of_the_probabilities(method, size, classes, seed, drawn, epoch):
    parameters = given_parameters(method, **drawn)
    student, teacher, target = batch_for(method, size, classes, seed)
    parts = objectives.build(method.name, **parameters)(student, teacher, target, epoch)
    parts["loss"].backward()
    wide = student.detach().double().requires_grad_()
    right = expected(method.name, parameters, wide, teacher.double(), target, epoch)
    right["loss"].backward()
    kd_scale, beta = magnitude(parameters), parameters.get("beta", 1.0)
    assert parts["ce"].item() == pytest.approx(right["ce"].item(), rel=1e-5, abs=1e-6)
    assert parts["kd"].item() == pytest.approx(right["kd"].item(), rel=1e-5, abs=1e-5 * kd_scale)
    assert parts["loss"].item() == pytest.approx(right["loss"].item(), rel=1e-5, abs=1e-5 * (1 + beta * kd_scale))
    atol = 1e-5 * (1 + beta * kd_scale / parameters.get("tau", 1.0))
    np.testing.assert_allclose(student.grad.numpy(), wide.grad.numpy(), rtol=1e-4, atol=atol)


@every_method
@pytest.mark.parametrize("classes", [2, 100, 1000, 32000])
@pytest.mark.parametrize("size", [1, 4])
def test_value_holds_for_few_and_many_classes_and_a_batch_of_one(method, classes, size):
    student, teacher, target = batch_for(method, size, classes)
    parts = make(method)(student, teacher, target)
    with torch.no_grad():
        right = expected(method.name, given_parameters(method), student.double(), teacher.double(), target)
    # At a temperature of 16 or 20 a softmax is a float32 sum of 32,000 nearly equal numbers, known to 2e-5 at worst,
    # and tau^2 magnifies the error.
    atol = 1e-2 if classes == 32000 and method.name in ("tf_kd", "ctkd_ls") else 1e-5
    for key in ("loss", "ce", "kd"):
        assert parts[key].item() == pytest.approx(right[key].item(), rel=1e-4, abs=atol)
    wrong = mis_instructed(teacher if teacher.dim() == 2 else teacher[0], target)
    assert parts["mis_instruction_ratio"].item() == pytest.approx(wrong.float().mean().item())


@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "label_smoothing"], ids=lambda m: m.name)
def test_the_loss_is_the_weighted_sum_of_its_parts(method):
    parameters = given_parameters(method, beta=0.7, gamma=0.4)
    # Once a warm-up is over; what has no such weights has weights of 1.
    parts = objectives.build(method.name, **parameters)(*batch_for(method), epoch=100)
    weighted = parameters.get("gamma", 1.0) * parts["ce"] + parameters.get("beta", 1.0) * parts["kd"]
    torch.testing.assert_close(parts["loss"].detach(), weighted)


@pytest.mark.parametrize("name", ["kd", "kd_swap", "kd_one_hot", "loca", "dkd", "ctkd", "tf_kd", "kd_ls", "mlkd"])
def test_without_tau_squared_the_term_is_smaller_by_that_factor(name):
    method = objectives.get(name)
    logits = batch_for(method)
    with_it, without = (make(method, tau_squared=value)(*logits) for value in (True, False))
    if name == "mlkd":
        assert without["kd_instance"] < with_it["kd_instance"] / 4
        assert torch.equal(without["kd_batch"], with_it["kd_batch"])
        return
    tau = {"ctkd": with_it.get("temperature", 0.0), "tf_kd": 20.0, "kd_ls": 2.0}.get(name, 4.0)
    torch.testing.assert_close(without["kd"] * tau**2, with_it["kd"])
    torch.testing.assert_close(without["ce"], with_it["ce"])


def test_the_batch_of_these_tests_has_right_and_wrong_views_and_a_tie():
    _, teacher, target = batch()
    assert mis_instructed(teacher, target).float().mean() == 0.5
    assert teacher[0, target[0]] == teacher[0].max()
