"""The divergences' closed forms: LoCa inside them is LoCa on the logits, and their gradient is autograd's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainables.objectives.given import batch, make
from trainables.calibration import capped_bound, loca_logits, log_label_to_top
from trainables.objectives.calibrations import LoCa, Teacher
from trainables.objectives.divergences import decoupled, whole

SETTINGS = settings(max_examples=40, deadline=None)
BATCHES = (st.integers(0, 2**32), st.sampled_from([2, 3, 10, 100]))


@SETTINGS
@given(*BATCHES, st.floats(0.01, 2.5), st.floats(0.5, 20.0))
def test_loca_inside_a_divergence_is_loca_on_the_logits(seed, classes, alpha, tau):
    student, teacher, target = batch(classes=classes, seed=seed)
    before = loca_logits(teacher, target, alpha, tau)
    for divergence in (whole, decoupled):
        inside = divergence(student, Teacher(teacher, alpha=alpha), target, tau)
        outside = divergence(student, Teacher(*before), target, tau)
        gradients = []
        for found in (inside, outside):
            values = found.kl if divergence is whole else found.tckd + 0.3 * found.nckd
            gradients.append(torch.autograd.grad(values.sum(), student)[0])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=2e-6)
        for one, other in zip(inside[:-2], outside[:-2], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(inside.wrong, before.mis_instructed)
        assert torch.equal(torch.zeros_like(inside.wrong) if inside.capped is None else inside.capped, before.capped)


@SETTINGS
@given(*BATCHES, st.floats(0.5, 20.0))
def test_the_gradient_is_that_of_autograd_through_log_softmax(seed, classes, tau):
    student, teacher, target = batch(classes=classes, seed=seed)
    weights = torch.rand(len(target), generator=torch.Generator().manual_seed(seed))
    ours = whole(student, Teacher(teacher), target, tau).kl
    log_p_s, log_p_t = (student / tau).log_softmax(-1), (teacher / tau).log_softmax(-1)
    theirs = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad((weights * values).sum(), student)[0] for values in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_each_of_the_decoupled_parts_has_its_own_gradient():
    student, teacher, target = batch(size=4, classes=6)
    y = target.unsqueeze(-1)
    tckd, nckd, *_ = decoupled(student, Teacher(teacher), target, 2.0)
    (of_tckd,) = torch.autograd.grad(tckd.sum(), student, retain_graph=True)
    (of_nckd,) = torch.autograd.grad(nckd.sum(), student, retain_graph=True)
    assert (of_nckd.gather(-1, y) == 0).all()
    assert (of_tckd.gather(-1, y) != 0).all()
    both, again = (torch.autograd.grad((tckd + nckd).sum(), student, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(both, of_tckd + of_nckd)
    assert torch.equal(both, again)
    rest = 1 - (teacher / 2).softmax(-1).gather(-1, y).squeeze(-1)
    kl = whole(student, Teacher(teacher), target, 2.0).kl
    torch.testing.assert_close(tckd + rest * nckd, kl)


def test_a_label_far_ahead_or_far_behind_costs_nothing_in_either_form():
    """At tau = 0.1 these odds are 1e5 to 1 in the exponent."""
    student = torch.tensor([[1e4, 0.0, 1.0], [-1e4, 0.0, 1.0]], requires_grad=True)
    teacher, target = torch.tensor([[-1e4, 2.0, 1.9], [1e4, 0.0, 0.05]]), torch.tensor([0, 0])
    tckd, nckd, wrong, _ = decoupled(student, Teacher(teacher), target, 0.1)
    kl = whole(student, Teacher(teacher), target, 0.1).kl
    u_s, u_t = student.detach().double() / 0.1, teacher.double() / 0.1
    exact = F.kl_div(u_s.log_softmax(-1), u_t.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    others = F.kl_div(u_s[:, 1:].log_softmax(-1), u_t[:, 1:].log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nckd.double(), others, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tckd.double(), torch.tensor([1e5, 1e5]).double(), rtol=1e-4, atol=0)
    assert wrong.tolist() == [True, False]


def test_logits_in_double_precision_decide_their_ties_in_it():
    one = torch.tensor(1.0, dtype=torch.float64)
    teacher = torch.stack([torch.stack([one.nextafter(one + 1), one, one - 5])] * 2)
    parts = make("loca")(torch.zeros(2, 3, requires_grad=True), teacher, torch.tensor([0, 1]))
    assert parts["mis_instruction_ratio"].item() == 0.5


@pytest.mark.parametrize("classes", [2, 100, 1000])
def test_the_cap_is_looked_for_where_it_can_be_reached_and_only_there(classes):
    one_over_r = torch.linspace(1, classes - 1, 50)
    bound = capped_bound(classes)
    assert log_label_to_top(one_over_r, bound * 0.9995, classes)[1] is None
    capped = log_label_to_top(one_over_r, bound * 1.001, classes)[1]
    assert capped is not None
    assert capped[-1]


def test_only_the_default_reading_of_loca_is_left_to_the_term():
    _, teacher, target = batch()
    assert LoCa(0.9, "temper_first", "wrong", "keep")(teacher, target, 4.0, None).alpha == 0.9
    for order, apply_to, non_target in (
        ("calibrate_first", "wrong", "keep"),
        ("temper_first", "all", "keep"),
        ("temper_first", "wrong", "uniform"),
    ):
        calibrated = LoCa(0.9, order, apply_to, non_target)(teacher, target, 4.0, None)
        tau = 4.0 if order == "temper_first" else 1.0
        expected = loca_logits(teacher, target, 0.9, tau, apply_to, non_target)
        assert calibrated.alpha is None
        assert torch.equal(calibrated.logits, expected.logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd", "loca", "dkd", "loca_dkd"])
def test_a_compiled_objective_is_one_graph_with_the_same_answers(name):
    student, teacher, target = batch()
    objective = make(name)
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    plain, graph = (one(student, teacher, target, 3) for one in (objective, compiled))
    for key, value in plain.items():
        torch.testing.assert_close(graph[key], value)
    gradients = [torch.autograd.grad(parts["loss"], student)[0] for parts in (plain, graph)]
    torch.testing.assert_close(*gradients)
