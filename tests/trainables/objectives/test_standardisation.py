"""Logit standardisation: what it leaves out of the comparison, what it keeps, and the example that motivates it."""

import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainables.objectives.given import batch, make
from trainables.calibration import mis_instructed
from trainables.objectives.standardisation import standardise

SETTINGS = settings(max_examples=25, deadline=None)
STANDARDISED = ["kd_ls", "loca_ls", "dkd_ls", "loca_dkd_ls", "ctkd_ls"]
FIGURE = Path(__file__).parents[3] / "docs/figures/logit_standardisation.py"


def test_the_standardised_logits_have_mean_zero_and_deviation_one():
    z = standardise(3 + 5 * batch()[1])
    torch.testing.assert_close(z.mean(-1), torch.zeros(8), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.std(-1), torch.ones(8))


@pytest.mark.parametrize("name", STANDARDISED)
@SETTINGS
@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 10, 100]),
    *[st.floats(0.05, 20.0)] * 2,
    *[st.floats(-50.0, 50.0)] * 2,
)
def test_the_distillation_term_does_not_see_scale_and_offset_of_the_logits(
    name, seed, classes, a_student, a_teacher, b_student, b_teacher
):
    student, teacher, target = batch(classes=classes, seed=seed)
    objective, student = make(name), student.detach()
    before = objective(student, teacher, target)["kd"].item()
    after = objective(a_student * student + b_student, a_teacher * teacher + b_teacher, target)["kd"].item()
    # An offset of 50 costs small logits their last digits, and so may make or break the tie; tau^2 is up to 246.
    assert after == pytest.approx(before, rel=5e-3, abs=5e-3)


@SETTINGS
@given(st.integers(0, 2**32), st.sampled_from([2, 10, 100]))
def test_the_order_of_the_classes_and_the_mask_are_kept(seed, classes):
    student, teacher, target = batch(classes=classes, seed=seed)
    assert (standardise(teacher).gather(-1, teacher.argsort(-1)).diff() >= 0).all()
    raw, ours = make("kd")(student, teacher, target), make("loca_ls")(student, teacher, target)
    assert torch.equal(ours["mis_instruction_ratio"], raw["mis_instruction_ratio"])


def test_the_mask_is_that_of_the_logits_even_where_rounding_makes_a_tie():
    one = torch.tensor(1.0)
    teacher = torch.tensor([[one.nextafter(one + 1), one, -1e4, 1e-3]])
    target = torch.tensor([0])
    assert not mis_instructed(teacher, target).any()
    assert mis_instructed(standardise(teacher), target).all()
    loca, kd = (make(name)(torch.zeros(1, 4), teacher, target) for name in ("loca_ls", "kd_ls"))
    assert loca["mis_instruction_ratio"].item() == 0
    assert torch.equal(loca["kd"], kd["kd"])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e4])
def test_equal_logits_become_zero_and_pass_no_gradient(value):
    logits = torch.full((1, 100), value, requires_grad=True)
    z = standardise(logits)
    assert torch.equal(z, torch.zeros(1, 100))
    (z * torch.randn(1, 100)).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(1, 100))


@pytest.mark.parametrize("name", STANDARDISED)
def test_the_cross_entropy_sees_the_logits_as_they_are(name):
    logits = batch()
    assert torch.equal(make(name)(*logits)["ce"], make("ce")(*logits)["ce"])


def test_with_one_temperature_the_worse_ranking_may_have_the_smaller_loss_and_standardised_it_has_not():
    """The motivating case of arXiv 2403.01427, with the numbers of the guide's figure."""
    figure = runpy.run_path(str(FIGURE))
    teacher, near, ranked = (torch.tensor([figure[name]]) for name in ("TEACHER", "NEAR", "RANKED"))
    label = torch.tensor([0])
    assert torch.equal(ranked.argsort(-1), teacher.argsort(-1))
    assert near.argmax() != teacher.argmax() == label
    assert (near - teacher).norm() < (ranked - teacher).norm()

    def kd(name, student):
        return make(name, tau=figure["TAU"])(student, teacher, label)["kd"].item()

    assert kd("kd", near) == pytest.approx(0.1931, abs=1e-4)
    assert kd("kd", ranked) == pytest.approx(0.4652, abs=1e-4)
    assert kd("kd_ls", near) == pytest.approx(0.0583, abs=1e-4)
    assert kd("kd_ls", ranked) == pytest.approx(0.0008, abs=1e-4)
