"""What each method promises: its limits, its schedules, what it keeps and what it drops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.trainables.objectives.given import KEYS, METHODS, batch, batch_for, make
from tests.trainables.objectives.references import divergence, softmax, z_score
from trainables import objectives
from trainables.calibration import loca_logits, mis_instructed, swap_logits
from trainables.objectives.multi_level import relations_of_classes, relations_of_views
from trainables.objectives.standardisation import standardise
from trainables.objectives.temperatures import reversal_weight

SETTINGS = settings(max_examples=25, deadline=None)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
every_zero_at_teacher = pytest.mark.parametrize(
    "method", [m for m in METHODS if m.zero_at_teacher], ids=lambda m: m.name
)


@every_method
def test_the_answer_has_the_same_keys_as_scalars_in_float32(method):
    own = {
        "dkd": {"tckd", "nckd"},
        "loca_dkd": {"tckd", "nckd"},
        "ctkd": {"temperature"},
        "mlkd": {"kd_instance", "kd_batch", "kd_class"},
    }
    parts = make(method)(*batch_for(method), epoch=7)
    assert set(parts) == KEYS | own.get(method.name.removesuffix("_ls"), set())
    assert all(part.shape == () and part.dtype == torch.float32 for part in parts.values())
    assert [key for key, part in parts.items() if part.requires_grad] == ["loss"]


@every_method
def test_the_gradient_reaches_every_view_of_the_student(method):
    student, teacher, target = batch_for(method)
    make(method)(student, teacher, target)["loss"].backward()
    assert (student.grad.abs().sum(-1) > 0).all()


# Standardised logits have a deviation of 1, and have no longer once LoCa has moved one of them: no student has those.
REACHABLE = [m for m in METHODS if m.zero_at_teacher and m.name not in ("loca_ls", "loca_dkd_ls")]


def calibrated(name, teacher, target):
    """Logits of the teacher that the method's student would have to equal."""
    if name == "kd_swap":
        return swap_logits(teacher, target).logits
    if name.startswith("loca"):
        return loca_logits(teacher, target, 0.95, 4.0).logits
    if name == "kd_one_hot":
        # One-hot at any temperature: a logit that outweighs all the others.
        wrong = mis_instructed(teacher, target).float().unsqueeze(-1)
        return teacher.scatter_add(-1, target.unsqueeze(-1), 1e4 * wrong)
    return teacher


@pytest.mark.parametrize("method", REACHABLE, ids=lambda m: m.name)
def test_the_kd_term_is_zero_and_flat_where_the_student_equals_the_calibrated_teacher(method):
    _, teacher, target = batch_for(method)
    student = calibrated(method.name, teacher, target).clone().requires_grad_()
    parts = make(method, gamma=0.0, beta=1.0, alpha_dkd=1.0, beta_dkd=1.0, warmup_dkd=1.0)(student, teacher, target)
    # DKD has no gamma that could be 0.
    ce = nn.functional.cross_entropy(student, target) if "dkd" in method.name else 0.0
    (parts["loss"] - ce).backward()
    # Rounding is multiplied by tau^2, which is 16 at most but for a learnt tau.
    assert parts["kd"].item() == pytest.approx(0, abs=1e-5 if method.name.startswith("ctkd") else 1e-6)
    assert student.grad.abs().max() < (5e-6 if method.name.startswith("ctkd") else 1e-6)


@every_zero_at_teacher
@SETTINGS
@given(st.integers(0, 2**32))
def test_the_kd_term_is_never_negative(method, seed):
    student, teacher, target = batch_for(method, seed=seed)
    rounding = 1e-4 if method.name in ("dkd", "loca_dkd", "ctkd", "ctkd_ls") else 1e-5
    assert make(method)(0.03 * student, 0.03 * teacher, target)["kd"] >= -rounding


@every_method
@SETTINGS
@given(st.integers(0, 2**32), st.integers(-64, 64), st.integers(-64, 64))
def test_shifting_all_logits_of_a_view_changes_nothing(method, seed, by_student, by_teacher):
    student, teacher, target = batch_for(method, seed=seed)
    # On a grid of 1/64 these sums are exact, so the shift moves no tie.
    student, teacher = ((z.detach() * 64).round() / 64 for z in (student, teacher))
    shift = torch.arange(len(target)).unsqueeze(-1)
    objective = make(method)
    before = objective(student, teacher, target)
    after = objective(student + by_student + shift, teacher + by_teacher - shift, target)
    for key in before:
        torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-3)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_loss_and_gradient_are_finite_at_extreme_logits_and_in_half_precision(method, dtype):
    extremes = torch.tensor([1e4, -1e4, 0.0, 1e4])
    student = torch.stack([extremes.roll(i) for i in range(4)] * 4).to(dtype)
    teacher = torch.stack([extremes.roll(i // 4) for i in range(16)]).to(dtype)
    if len(method.views) > 1:
        student, teacher = student.expand(2, -1, -1).clone(), teacher.expand(2, -1, -1)
    target = torch.arange(16) % 3
    taken = {parameter.name for parameter in method.parameters}
    alphas = (1e-6, 0.95, 1.0, 1.5) if "alpha" in taken else (1.0,)
    taus = (0.1, 1.0, 4.0, 100.0) if taken & {"tau", "tau_tf", "tau_mlkd", "lambda_nkd"} else (1.0,)
    for alpha in alphas:
        for tau in taus:
            leaf = student.clone().requires_grad_()
            objective = make(method, alpha=alpha, tau=tau, tau_tf=tau, tau_mlkd=tau, lambda_nkd=tau)
            parts = objective(leaf, teacher, target)
            parts["loss"].backward()
            assert all(part.isfinite() for part in parts.values()), (alpha, tau)
            assert leaf.grad.isfinite().all(), (alpha, tau)


@every_method
def test_a_diverged_student_shows_in_the_loss(method):
    student, teacher, target = batch_for(method)
    with torch.no_grad():
        student[..., 0, 0] = math.nan
    assert make(method)(student, teacher, target)["loss"].isnan()


def test_cross_entropy_needs_no_teacher_and_is_not_changed_by_one():
    student, teacher, target = batch()
    alone, beside = objectives.build("ce")(student, None, target), objectives.build("ce")(student, teacher, target)
    assert set(alone) == KEYS
    assert alone["mis_instruction_ratio"].isnan()
    assert alone["capped_ratio"].isnan()
    assert torch.equal(alone["loss"], beside["loss"])
    assert beside["mis_instruction_ratio"].item() == 0.5


def test_label_smoothing_of_zero_is_cross_entropy_to_the_bit():
    student, teacher, target = batch()
    smoothed, plain = (make(name, eps_ls=0.0)(student, teacher, target) for name in ("label_smoothing", "ce"))
    assert torch.equal(smoothed["loss"], plain["loss"])
    assert torch.equal(make("label_smoothing")(student, teacher, target)["ce"], plain["ce"])


@pytest.mark.parametrize("name", ["kd_drop", "kd_swap", "kd_one_hot", "loca"])
def test_a_teacher_that_is_never_wrong_makes_every_method_plain_kd_to_the_bit(name):
    check_to_the_bit(name, "kd")


@pytest.mark.parametrize(("name", "plain"), [("loca_dkd", "dkd"), ("loca_ls", "kd_ls"), ("loca_dkd_ls", "dkd_ls")])
def test_a_teacher_that_is_never_wrong_makes_loca_its_baseline_to_the_bit(name, plain):
    check_to_the_bit(name, plain)


def check_to_the_bit(*names):
    student, teacher, target = batch()
    teacher[torch.arange(len(target)), target] = teacher.amax(-1) + 1
    losses, gradients = [], []
    for name in names:
        leaf = student.detach().clone().requires_grad_()
        parts = make(name)(leaf, teacher, target)
        parts["loss"].backward()
        losses.append(parts["loss"])
        gradients.append(leaf.grad)
        assert parts["mis_instruction_ratio"].item() == 0
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_kd_drop_divides_by_the_whole_batch_and_keeps_the_cross_entropy():
    student, teacher, target = batch(size=2)
    objective = make("kd_drop")
    both, right = objective(student, teacher, target), objective(student[1:], teacher[1:], target[1:])
    assert both["mis_instruction_ratio"].item() == 0.5
    assert both["kd"].item() == pytest.approx(right["kd"].item() / 2)
    assert both["ce"].item() == pytest.approx(nn.functional.cross_entropy(student, target).item())


def test_kd_drop_of_samples_is_kd_of_the_right_views_alone():
    student, teacher, target = batch()
    right = ~mis_instructed(teacher, target)
    dropped = make("kd_drop", drop="sample")(student, teacher, target)
    alone = make("kd")(student[right], teacher[right], target[right])
    assert dropped["mis_instruction_ratio"].item() == 0.5
    for key in ("loss", "ce", "kd"):
        assert dropped[key].item() == pytest.approx(alone[key].item())
    dropped["loss"].backward()
    assert (student.grad[~right] == 0).all()
    assert (student.grad[right].abs().sum(-1) > 0).all()


def test_kd_drop_of_samples_without_any_right_view_has_a_loss_of_zero_and_no_nan():
    student, teacher, target = batch(size=1)
    parts = make("kd_drop", drop="sample")(student, teacher, target)
    parts["loss"].backward()
    assert parts["mis_instruction_ratio"].item() == 1
    assert parts["loss"].item() == 0
    assert (student.grad == 0).all()


def test_loca_approaches_kd_one_hot_as_alpha_goes_to_zero():
    logits = batch()
    limit = make("kd_one_hot")(*logits)["loss"].item()
    distance = [abs(make("loca", alpha=alpha)(*logits)["loss"].item() - limit) for alpha in (0.1, 1e-3, 1e-6)]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 1e-3


def test_capped_views_are_counted_over_the_whole_batch():
    student, teacher, target = batch(size=8)
    parts = make("loca", alpha=2.5)(student, teacher, target)
    assert parts["mis_instruction_ratio"].item() == 0.5
    assert parts["capped_ratio"].item() == 0.5
    assert make("loca", alpha=1.0)(student, teacher, target)["capped_ratio"].item() == 0
    everywhere = make("loca", alpha=2.5, apply_to="all")(student, teacher, target)
    assert everywhere["mis_instruction_ratio"].item() == 0.5
    assert everywhere["capped_ratio"].item() == 1


@pytest.mark.parametrize("name", ["loca", "loca_dkd", "loca_ls", "loca_dkd_ls"])
def test_every_choice_about_loca_changes_the_distillation_term_and_nothing_else(name):
    logits = batch()
    plain = make(name)(*logits)
    for option, choice in [
        ("order", "calibrate_first"),
        ("apply_to", "right"),
        ("apply_to", "all"),
        ("non_target", "uniform"),
        ("non_target", "shuffle"),
    ]:
        changed = make(name, **{option: choice})(*logits)
        assert not torch.equal(changed["kd"], plain["kd"]), (option, choice)
        assert torch.equal(changed["ce"], plain["ce"])
        assert torch.equal(changed["mis_instruction_ratio"], plain["mis_instruction_ratio"])


def test_calibrating_first_gives_the_margin_at_temperature_one_and_tempers_afterwards():
    student, teacher, target = batch()
    alpha, tau = 0.8, 4.0
    at_one = loca_logits(teacher, target, alpha, 1.0).logits
    kl = nn.functional.kl_div((student / tau).log_softmax(-1), (at_one / tau).softmax(-1), reduction="batchmean")
    kd = make("loca", alpha=alpha, order="calibrate_first")(student, teacher, target)["kd"]
    torch.testing.assert_close(kd, (tau**2 * kl).detach())


@SETTINGS
@given(st.integers(0, 2**32), st.sampled_from([3, 10, 100]), st.floats(0.5, 20.0))
def test_dkd_is_kd_where_its_beta_is_the_teachers_probability_of_the_others(seed, classes, tau):
    student, teacher, target = batch(1, classes, seed)
    rest = 1 - (teacher.double() / tau).softmax(-1)[0, target[0]].item()
    dkd = make("dkd", tau=tau, alpha_dkd=1.0, beta_dkd=rest)(student, teacher, target)
    kd = make("kd", tau=tau)(student, teacher, target)
    assert dkd["kd"].item() == pytest.approx(kd["kd"].item(), rel=1e-4, abs=1e-5 * tau**2)
    assert dkd["tckd"].item() + rest * dkd["nckd"].item() == pytest.approx(kd["kd"].item() / tau**2, rel=1e-4, abs=1e-5)


@SETTINGS
@given(st.integers(0, 2**32), st.sampled_from([2, 10, 100]), st.floats(0.1, 2.0), st.floats(0.5, 20.0))
def test_loca_inside_dkd_leaves_nckd_untouched_to_the_bit(seed, classes, alpha, tau):
    logits = batch(classes=classes, seed=seed)
    plain, calibrated = make("dkd", tau=tau)(*logits), make("loca_dkd", tau=tau, alpha=alpha)(*logits)
    assert torch.equal(calibrated["nckd"], plain["nckd"])
    acts = bool(plain["mis_instruction_ratio"] > 0)  # a small batch may have no view to repair
    assert torch.equal(calibrated["tckd"], plain["tckd"]) != acts


def test_dkd_of_two_classes_has_no_non_target_term():
    assert make("dkd")(*batch(classes=2))["nckd"].item() == 0


@pytest.mark.parametrize("name", ["dkd", "loca_dkd", "dkd_ls", "loca_dkd_ls"])
@pytest.mark.parametrize(("epoch", "factor"), [(1, 1 / 20), (10, 0.5), (20, 1.0), (21, 1.0), (300, 1.0)])
def test_dkd_warms_up_over_twenty_epochs(name, epoch, factor):
    parts = make(name, beta=1.0)(*batch(), epoch=epoch)
    torch.testing.assert_close(parts["loss"].detach(), parts["ce"] + factor * parts["kd"])


def test_a_warm_up_of_less_than_an_epoch_is_over_in_the_first():
    parts = make("dkd", warmup_dkd=0.5)(*batch())
    torch.testing.assert_close(parts["loss"].detach(), parts["ce"] + parts["kd"])


def test_ctkd_starts_at_the_temperature_of_theta_one():
    parts = make("ctkd")(*batch())
    assert parts["temperature"].item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.024472), (5, 0.5), (10, 1.0), (11, 1.0), (300, 1.0)])
def test_ctkds_reversal_rises_along_half_a_cosine(epoch, weight):
    assert reversal_weight(epoch, 10.0) == pytest.approx(weight, abs=1e-6)


@pytest.mark.parametrize("name", ["ctkd", "ctkd_ls"])
@pytest.mark.parametrize("epoch", [1, 4, 10, 50])
def test_ctkds_theta_has_the_kd_terms_gradient_reversed_and_the_student_has_it_straight(name, epoch):
    objective = make(name, beta=0.7, gamma=0.3)
    (theta,) = objective.parameters()
    student, teacher, target = batch()
    objective(student, teacher, target, epoch)["loss"].backward()
    assert theta.shape == ()

    wide = torch.ones((), dtype=torch.float64, requires_grad=True)
    tau = 1 + 20 * wide.sigmoid()
    u_s, u_t = (z.detach().double() for z in (student, teacher))
    u_s, u_t = (z_score(u_s), z_score(u_t)) if name == "ctkd_ls" else (u_s, u_t)
    (tau**2 * divergence(softmax(u_t / tau), softmax(u_s / tau)).mean()).backward()
    assert theta.grad.item() == pytest.approx(-reversal_weight(epoch, 10.0) * 0.7 * wide.grad.item(), rel=1e-2)

    straight = student.detach().clone().requires_grad_()
    fixed = make("kd" if name == "ctkd" else "kd_ls", tau=tau.item(), beta=0.7, gamma=0.3)
    fixed(straight, teacher, target)["loss"].backward()
    torch.testing.assert_close(student.grad, straight.grad)


def test_an_optimiser_step_of_ctkd_makes_the_distillation_harder():
    objective, (student, teacher, target) = make("ctkd"), batch()
    before = objective(student, teacher, target, 10)
    before["loss"].backward()
    torch.optim.SGD(objective.parameters(), lr=0.1).step()
    assert objective(student, teacher, target, 10)["kd"] > before["kd"]


@pytest.mark.parametrize("rows", [None, "some"])
def test_the_relations_of_classes_need_no_matrix_of_classes(rows):
    generator = torch.Generator().manual_seed(0)
    p_s, p_t = (2 * torch.randn(2, 5, 12, generator=generator)).double().softmax(-1)
    classes = torch.arange(12) % 3 == 0 if rows else None
    difference = p_t.T @ p_t - p_s.T @ p_s
    kept = difference if classes is None else difference[classes]
    torch.testing.assert_close(relations_of_classes(p_s, p_t, classes), kept.square().sum() / 12)
    views = torch.tensor([True, False, True, True, False]) if rows else None
    difference = p_t @ p_t.T - p_s @ p_s.T
    kept = difference if views is None else difference[views]
    torch.testing.assert_close(relations_of_views(p_s, p_t, views), kept.square().sum() / 5)


def test_mlkd_as_a_whole_has_every_level_on_both_views_with_the_masks_on_their_rows():
    student, teacher, target = batch_for(objectives.get("mlkd"), size=5, classes=7)
    parts = make("mlkd", reading="whole")(student, teacher, target)
    p = teacher[0].softmax(-1)
    views = (p.amax(-1) <= p.amax(-1).median()).numpy()
    classes = (p.sum(0) <= p.sum(0).median()).numpy()
    assert (views.sum(), classes.sum()) == (3, 4)
    instance = of_views = of_classes = 0.0
    for tau in (4, 2, 3, 5, 6):
        for view, doubtful, rare in ((0, views, classes), (1, np.full(5, True), np.full(7, True))):
            s, t = ((z[view].detach().double() / tau).softmax(-1).numpy() for z in (student, teacher))
            kl = (t * (np.log(t) - np.log(s))).sum(-1)
            instance += tau**2 * (kl * doubtful).mean()
            of_views += np.square(t @ t.T - s @ s.T)[doubtful].sum() / 5
            of_classes += np.square(t.T @ t - s.T @ s)[rare].sum() / 7
    assert parts["kd_instance"].item() == pytest.approx(instance, rel=1e-4)
    assert parts["kd_batch"].item() == pytest.approx(of_views, rel=1e-4)
    assert parts["kd_class"].item() == pytest.approx(of_classes, rel=1e-4)


@pytest.mark.parametrize("reading", ["released", "whole"])
def test_mlkd_of_one_image_has_its_view_as_its_own_median(reading):
    method = objectives.get("mlkd")
    student, teacher, target = batch_for(method, size=1, classes=6)
    parts = make(method, reading=reading)(student, teacher, target)
    (weak_s, strong_s), (weak_t, strong_t) = student.detach(), teacher

    def kl(s, t, tau):
        return tau**2 * nn.functional.kl_div((s / tau).log_softmax(-1), (t / tau).softmax(-1), reduction="batchmean")

    other = {"released": ((strong_s, strong_t), (weak_s, weak_t)), "whole": ((strong_s, strong_t),) * 2}[reading]
    expected = sum(kl(weak_s, weak_t, tau) for tau in (4, 2, 3, 5, 6))
    expected = expected + sum(kl(*other[0], tau) for tau in (4, 3, 5)) + sum(kl(*other[1], tau) for tau in (2, 6))
    torch.testing.assert_close(parts["kd_instance"], expected)


def test_mlkd_standardises_its_instance_level_alone():
    method = objectives.get("mlkd_ls")
    student, teacher, target = batch_for(method)
    raw = make("mlkd", tau_mlkd=2.0)(student, teacher, target)
    standardised = make(method)(student, teacher, target)
    by_hand = make("mlkd", tau_mlkd=2.0)(standardise(student), standardise(teacher), target)
    assert torch.equal(standardised["kd_batch"], raw["kd_batch"])
    assert torch.equal(standardised["kd_class"], raw["kd_class"])
    torch.testing.assert_close(by_hand["kd_instance"], standardised["kd_instance"])


def test_a_made_teacher_is_learnt_where_the_student_has_its_odds():
    target = torch.tensor([2, 0])
    student = torch.zeros(2, 5).scatter(-1, target.unsqueeze(-1), math.log(0.9 / (0.1 / 4)))
    assert make("tf_kd", a_tf=0.9)(student, None, target)["kd"].item() == pytest.approx(0, abs=1e-5)
