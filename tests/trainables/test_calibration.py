"""Calibration against the paper's formulas, written again here in float64 from the probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.calibration import CAP, capped_bound, loca, loca_logits, mis_instructed, moved, swap_logits

ALPHAS = st.floats(0.01, 3.0)
TAUS = st.floats(0.5, 20.0)
SETTINGS = settings(max_examples=60, deadline=None)


def softmax(logits: Tensor, tau: float) -> np.ndarray:
    """Rows of softmax(logits / tau) in float64."""
    u = logits.double().numpy() / tau
    e = np.exp(u - u.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference(p: np.ndarray, y: int, alpha: float) -> tuple[np.ndarray, float]:
    """LoCa of one row of probabilities, and what the label would have without the cap (1 on other views)."""
    others = np.delete(p, y)
    p_k = others.max()
    if p_k < p[y]:
        return p, 1.0
    rest = others.sum()
    s = alpha / (rest + p_k)
    uncapped = 1 - s * rest
    if uncapped < CAP:
        s = (1 - CAP) / rest
    calibrated = s * p
    calibrated[y] = 1 - s * rest
    return calibrated, uncapped


def references(logits: Tensor, target: Tensor, alpha: float, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """`reference` of each row of logits."""
    rows = [reference(p, int(y), alpha) for p, y in zip(softmax(logits, tau), target, strict=True)]
    return np.stack([row for row, _ in rows]), np.array([uncapped for _, uncapped in rows])


def others_of(row: np.ndarray, y: Tensor) -> np.ndarray:
    return np.delete(row, int(y))


@st.composite
def views(draw: st.DrawFn, mis: bool | None = None) -> tuple[Tensor, Tensor]:
    """(4, C) float32 logits, some with ties, and labels; all mis-instructed, none, or as it comes."""
    classes = draw(st.sampled_from([2, 3, 10, 100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])) * torch.randn(4, classes, generator=generator)
    if draw(st.booleans()):
        logits = logits.round()
    target = torch.randint(classes, (4,), generator=generator)
    if mis is True:
        top = logits.argmax(-1)
        target = torch.where(target == top, (target + 1) % classes, target)
    if mis is False:
        logits[torch.arange(4), target] = logits.amax(-1) + 0.25
    return logits, target


@SETTINGS
@given(views(), ALPHAS, TAUS)
def test_logits_and_probabilities_both_give_the_reference(view, alpha, tau):
    logits, target = view
    expected, uncapped = references(logits, target, alpha, tau)
    calibrated = loca_logits(logits, target, alpha, tau)
    np.testing.assert_allclose(softmax(calibrated.logits, tau), expected, atol=2e-6, rtol=5e-5)
    probabilities = torch.from_numpy(softmax(logits, tau))
    np.testing.assert_allclose(loca(probabilities, target, alpha).numpy(), expected, atol=1e-12, rtol=1e-9)
    clear = np.abs(uncapped - CAP) > 1e-6  # within float32's rounding of the edge either answer is right
    assert np.array_equal(calibrated.capped.numpy()[clear], (uncapped < CAP)[clear])


@SETTINGS
@given(views(mis=True), ALPHAS, TAUS)
def test_calibrated_probabilities_sum_to_one_and_are_never_negative(view, alpha, tau):
    logits, target = view
    calibrated = loca(torch.from_numpy(softmax(logits, tau)), target, alpha).numpy()
    np.testing.assert_allclose(calibrated.sum(-1), 1, atol=1e-12)
    assert (calibrated >= 0).all()


@SETTINGS
@given(views(mis=True), ALPHAS, TAUS)
def test_ratios_of_non_target_probabilities_are_kept(view, alpha, tau):
    logits, target = view
    p = softmax(logits, tau)
    calibrated = loca(torch.from_numpy(p), target, alpha).numpy()
    for before, after, y in zip(p, calibrated, target, strict=True):
        scale = others_of(after, y) / others_of(before, y)
        np.testing.assert_allclose(scale, scale[0], rtol=1e-12)


@SETTINGS
@given(views(mis=True), ALPHAS, TAUS)
def test_the_target_logit_alone_moves(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau).logits
    elsewhere = torch.ones_like(logits, dtype=torch.bool).scatter(-1, target.unsqueeze(-1), False)
    assert torch.equal(calibrated[elsewhere], logits[elsewhere])


@SETTINGS
@given(views(mis=True), ALPHAS, TAUS)
def test_the_margin_is_one_minus_alpha_whatever_the_view(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau)
    exact = loca(torch.from_numpy(softmax(logits, tau)), target, alpha).numpy()
    for row in range(len(target)):
        if calibrated.capped[row] or exact[row, target[row]] < 2 * CAP:
            continue
        assert exact[row, target[row]] - others_of(exact[row], target[row]).max() == pytest.approx(1 - alpha, abs=1e-12)
        q = softmax(calibrated.logits[row : row + 1], tau)[0]
        assert q[target[row]] - others_of(q, target[row]).max() == pytest.approx(1 - alpha, abs=2e-5)


@SETTINGS
@given(views(mis=True), st.floats(0.01, 0.999), TAUS)
def test_alpha_below_one_puts_the_label_on_top(view, alpha, tau):
    logits, target = view
    assert not mis_instructed(loca_logits(logits, target, alpha, tau).logits, target).any()


@SETTINGS
@given(views(mis=True), TAUS)
def test_alpha_of_one_is_an_exact_tie(view, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, 1.0, tau).logits
    assert torch.equal(calibrated.gather(-1, target.unsqueeze(-1)).squeeze(-1), calibrated.amax(-1))
    assert mis_instructed(calibrated, target).all()


@SETTINGS
@given(views(mis=True), st.one_of(st.floats(1.001, 3.0), st.floats(3.0, 1e6)), TAUS)
def test_alpha_above_one_never_puts_the_label_on_top(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau).logits
    assert (calibrated.gather(-1, target.unsqueeze(-1)).squeeze(-1) < calibrated.amax(-1)).all()


@SETTINGS
@given(views(mis=True), ALPHAS, TAUS)
def test_the_label_gets_one_minus_alpha_over_one_plus_r(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau)
    for p, q, y, capped in zip(
        softmax(logits, tau), softmax(calibrated.logits, tau), target, calibrated.capped, strict=True
    ):
        r = others_of(p, y).max() / others_of(p, y).sum()
        assert q[y] == pytest.approx(CAP if capped else 1 - alpha / (1 + r), abs=1e-5)


@SETTINGS
@given(views(mis=True), st.floats(0.01, 1.0), TAUS)
def test_the_target_logit_follows_the_logsumexp_of_the_others(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau).logits
    for z, moved_z, y in zip(logits.double().numpy(), calibrated.numpy(), target, strict=True):
        u = others_of(z, y) / tau
        logsumexp = u.max() + math.log(np.exp(u - u.max()).sum())
        r = math.exp(u.max() - logsumexp)
        assert moved_z[y] / tau == pytest.approx(logsumexp + math.log((1 + r - alpha) / alpha), rel=1e-5, abs=1e-5)


@SETTINGS
@given(views(mis=True), st.floats(0.0, 1.0), TAUS)
def test_no_view_is_capped_below_the_bound(view, share, tau):
    logits, target = view
    alpha = 0.01 + share * (capped_bound(logits.shape[-1]) * (1 - 1e-5) - 0.01)
    calibrated = loca_logits(logits, target, alpha, tau)
    assert not calibrated.capped.any()
    assert calibrated.mis_instructed.all()


@pytest.mark.parametrize(("classes", "bound"), [(2, 2.0), (100, 1.0101), (1000, 1.001001)])
def test_the_bound_is_tight_for_a_teacher_that_knows_nothing(classes, bound):
    assert capped_bound(classes) == pytest.approx(bound, abs=1e-5)
    uniform, target = torch.zeros(1, classes), torch.tensor([classes - 1])
    assert not loca_logits(uniform, target, capped_bound(classes) * (1 - 1e-5), 4.0).capped.any()
    assert loca_logits(uniform, target, capped_bound(classes) * (1 + 1e-5), 4.0).capped.all()


@SETTINGS
@given(views(mis=True), st.floats(2.001, 1e30), TAUS)
def test_capped_views_stay_on_the_simplex_and_leave_the_label_the_cap(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau)
    assert calibrated.capped.all()
    assert calibrated.logits.isfinite().all()
    q = (calibrated.logits / tau).softmax(-1)
    torch.testing.assert_close(q.sum(-1), torch.ones(4))
    torch.testing.assert_close(q.gather(-1, target.unsqueeze(-1)), torch.full((4, 1), CAP), rtol=1e-3, atol=0)
    exact = loca(torch.from_numpy(softmax(logits, tau)), target, alpha).numpy()
    np.testing.assert_allclose(exact.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(exact[np.arange(4), target], CAP, rtol=1e-6)


@SETTINGS
@given(views(mis=False), ALPHAS, TAUS)
def test_views_that_are_not_mis_instructed_are_never_capped(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, 1000 * alpha, tau)
    assert not calibrated.mis_instructed.any()
    assert not calibrated.capped.any()


@SETTINGS
@given(views(mis=True), st.floats(1e-300, 1e-3), TAUS)
@example((torch.tensor([[30.0, -30.0]]), torch.tensor([1])), 5e-324, 0.5)
def test_alpha_towards_zero_gives_the_one_hot_label(view, alpha, tau):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau).logits
    assert calibrated.isfinite().all()
    one_hot = torch.zeros_like(logits).scatter(-1, target.unsqueeze(-1), 1.0)
    torch.testing.assert_close((calibrated / tau).softmax(-1), one_hot, rtol=0, atol=1.01 * alpha + 1e-6)


@pytest.mark.parametrize("alpha", [0.0, -0.5, -math.inf, math.inf, math.nan])
def test_an_alpha_that_is_not_positive_and_finite_is_refused_in_one_line(alpha):
    logits, target = torch.zeros(1, 3), torch.tensor([0])
    for call in (
        lambda: loca(logits.softmax(-1), target, alpha),
        lambda: loca_logits(logits, target, alpha, 4.0),
        lambda: moved(logits, target, alpha, 4.0),
    ):
        with pytest.raises(ValueError, match=r"^alpha is \S+: it must be a finite number above 0$"):
            call()


def test_the_worked_example_moves_a_tenth_of_probability():
    logits, target = torch.full((1, 100), -0.3), torch.tensor([2])
    logits[0, :3] = torch.tensor([12.0, 10.5, 9.5])
    before = softmax(logits, 4.0)[0]
    after = softmax(loca_logits(logits, target, 0.95, 4.0).logits, 4.0)[0]
    assert before[2] == pytest.approx(0.080, abs=5e-4)
    assert after[2] == pytest.approx(0.183, abs=5e-4)
    assert before[0] == pytest.approx(0.149, abs=5e-4)
    assert after[0] == pytest.approx(0.133, abs=5e-4)
    assert moved(logits, target, 0.95, 4.0).item() == pytest.approx(0.103, abs=5e-4)


@SETTINGS
@given(views(), ALPHAS, TAUS, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_other_views_pass_bit_identical(view, alpha, tau, dtype):
    logits, target = view[0].to(dtype), view[1]
    for calibrated in (loca_logits(logits, target, alpha, tau), swap_logits(logits, target)):
        assert calibrated.logits.dtype == torch.float32
        kept = ~calibrated.mis_instructed
        bits = [x.float()[kept].view(torch.int32) for x in (logits, calibrated.logits)]
        assert torch.equal(*bits)
        assert torch.equal(calibrated.mis_instructed, mis_instructed(logits, target))


def test_calibration_leaves_its_input_alone():
    logits, target = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([1])
    before = logits.clone()
    loca_logits(logits, target, 0.9, 4.0)
    swap_logits(logits, target)
    mis_instructed(logits, target)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tie_counts_as_mis_instruction_in_every_precision(dtype):
    logits = torch.tensor([[1.5, 1.5, 0.0], [1.5, 1.0, 0.0], [1.0, 1.5, 0.0]], dtype=dtype)
    target = torch.tensor([0, 0, 0])
    assert mis_instructed(logits, target).tolist() == [True, False, True]
    assert loca_logits(logits, target, 0.9, 4.0).mis_instructed.tolist() == [True, False, True]
    assert swap_logits(logits, target).mis_instructed.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_that_half_precision_makes_equal_are_a_tie(dtype):
    exact = torch.tensor([[10.0001, 10.0]])
    assert not mis_instructed(exact, torch.tensor([0])).any()
    assert mis_instructed(exact.to(dtype), torch.tensor([0])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_lead_of_the_label_is_no_tie_although_the_softmax_rounds_it_away(dtype):
    one = torch.tensor(1.0, dtype=dtype)
    logits = torch.stack([one.nextafter(one + 1), one]).unsqueeze(0)
    assert not mis_instructed(logits, torch.tensor([0])).any()
    assert mis_instructed(logits, torch.tensor([1])).all()


@pytest.mark.parametrize("classes", [2, 100, 1000, 32000])
@pytest.mark.parametrize("alpha", [0.5, 0.95, 0.995, 1.0, 1.05])
def test_the_reference_holds_for_few_and_many_classes(classes, alpha):
    generator = torch.Generator().manual_seed(classes)
    logits = 4 * torch.randn(16, classes, generator=generator)
    target = torch.randint(classes, (16,), generator=generator)
    calibrated = loca_logits(logits, target, alpha, 4.0)
    expected, uncapped = references(logits, target, alpha, 4.0)
    np.testing.assert_allclose(softmax(calibrated.logits, 4.0), expected, atol=1e-6, rtol=1e-4)
    assert np.array_equal(calibrated.capped.numpy(), uncapped < CAP)


@pytest.mark.parametrize("tau", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("alpha", [1e-6, 0.95, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_and_temperatures_give_finite_calibrations(tau, alpha, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [1e-4, 0.0, 1e4]], dtype=dtype)
    for label in range(3):
        target = torch.full((4,), label)
        calibrated = loca_logits(logits, target, alpha, tau)
        expected, _ = references(logits, target, alpha, tau)
        assert calibrated.logits.isfinite().all()
        # A float32 logit of 1e4 is known to 5e-4, which a small tau magnifies in the exponent.
        np.testing.assert_allclose(softmax(calibrated.logits, tau), expected, atol=1e-6 + 2e-3 * min(1 / tau, 1e3))


@SETTINGS
@given(views(mis=True), st.floats(-1e-3, 1e-3), TAUS)
def test_precision_holds_where_the_margin_nearly_cancels(view, nudge, tau):
    """Alpha close to 1 + r of the first view, where 1 + r - alpha has few digits left."""
    logits, target = view
    u = softmax(logits, tau)[0]
    r = others_of(u, target[0]).max() / others_of(u, target[0]).sum()
    alpha = (1 + r) * (1 + nudge)
    q = softmax(loca_logits(logits[:1], target[:1], alpha, tau).logits, tau)[0]
    assert q[target[0]] == pytest.approx(max(1 - alpha / (1 + r), CAP), abs=2e-6, rel=1e-3)


@SETTINGS
@given(views(mis=True), TAUS)
def test_swap_exchanges_the_label_and_the_top_and_keeps_the_rest(view, tau):
    logits, target = view
    swapped = swap_logits(logits, target)
    p, q = softmax(logits, tau), softmax(swapped.logits, tau)
    for before, after, y in zip(p, q, target, strict=True):
        k = int(np.argmax(np.where(np.arange(len(before)) == int(y), -1.0, before)))
        expected = before.copy()
        expected[[k, int(y)]] = before[[int(y), k]]
        np.testing.assert_allclose(after, expected, rtol=1e-12)
    assert not swapped.capped.any()


@SETTINGS
@given(views(), ALPHAS, TAUS)
def test_moved_is_the_total_variation_distance(view, alpha, tau):
    logits, target = view
    expected, _ = references(logits, target, alpha, tau)
    distance = 0.5 * np.abs(expected - softmax(logits, tau)).sum(-1)
    measured = moved(logits, target, alpha, tau)
    np.testing.assert_allclose(measured.numpy(), distance, atol=1e-5)
    assert (measured[~mis_instructed(logits, target)] == 0).all()


def test_leading_dimensions_are_free():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 5, generator=generator), torch.randint(5, (2, 3), generator=generator)
    flat_logits, flat_target = logits.reshape(6, 5), target.reshape(6)
    for shaped, flat in (
        (loca_logits(logits, target, 0.9, 2.0), loca_logits(flat_logits, flat_target, 0.9, 2.0)),
        (swap_logits(logits, target), swap_logits(flat_logits, flat_target)),
    ):
        assert torch.equal(shaped.logits.reshape(6, 5), flat.logits)
        assert torch.equal(shaped.mis_instructed.reshape(6), flat.mis_instructed)
        assert torch.equal(shaped.capped.reshape(6), flat.capped)
    p = logits.softmax(-1)
    assert torch.equal(loca(p, target, 0.9).reshape(6, 5), loca(p.reshape(6, 5), flat_target, 0.9))
    alone = loca_logits(logits[0, 0], target[0, 0], 0.9, 2.0)
    assert torch.equal(alone.logits, loca_logits(logits, target, 0.9, 2.0).logits[0, 0])
    assert alone.mis_instructed.shape == ()


def test_a_teacher_of_two_classes_is_tied_by_one_and_capped_from_two():
    logits, target = torch.tensor([[2.0, -1.0]]), torch.tensor([1])
    for alpha, label in ((0.5, 0.75), (1.0, 0.5), (1.5, 0.25), (1.99, 0.005), (2.5, CAP)):
        q = softmax(loca_logits(logits, target, alpha, 1.0).logits, 1.0)[0]
        assert q[1] == pytest.approx(label, rel=1e-4)


@SETTINGS
@given(views(mis=True), st.floats(0.1, 0.99), TAUS)
def test_more_alpha_leaves_the_label_less(view, alpha, tau):
    logits, target = view
    assume(alpha * 1.01 < 1)
    more, less = (
        loca_logits(logits, target, a, tau).logits.gather(-1, target.unsqueeze(-1)) for a in (alpha, alpha * 1.01)
    )
    assert (more > less).all()


@SETTINGS
@given(views(), ALPHAS, TAUS, st.sampled_from(["right", "all"]))
def test_any_view_may_be_given_the_margin_and_the_mask_stays_the_teachers(view, alpha, tau, apply_to):
    logits, target = view
    calibrated = loca_logits(logits, target, alpha, tau, apply_to=apply_to)
    wrong = mis_instructed(logits, target)
    assert torch.equal(calibrated.mis_instructed, wrong)
    acted_on = ~wrong if apply_to == "right" else torch.ones_like(wrong)
    assert torch.equal(calibrated.logits[~acted_on], logits[~acted_on])
    assert not calibrated.capped[~acted_on].any()
    before = softmax(logits, tau)
    for row, (p, q) in enumerate(zip(before, softmax(calibrated.logits, tau), strict=True)):
        y = target[row]
        if not acted_on[row]:
            continue
        r = others_of(p, y).max() / others_of(p, y).sum()
        assert q[y] == pytest.approx(CAP if calibrated.capped[row] else 1 - alpha / (1 + r), abs=1e-5)
        if not calibrated.capped[row]:
            assert q[y] - others_of(q, y).max() == pytest.approx(1 - alpha, abs=2e-5)


@SETTINGS
@given(views(), ALPHAS, TAUS)
def test_the_wrong_views_and_the_right_ones_make_up_all(view, alpha, tau):
    logits, target = view
    wrong, right, every = (loca_logits(logits, target, alpha, tau, apply_to=a) for a in ("wrong", "right", "all"))
    mask = wrong.mis_instructed.unsqueeze(-1)
    assert torch.equal(every.logits, torch.where(mask, wrong.logits, right.logits))
    assert torch.equal(every.capped, wrong.capped | right.capped)


@SETTINGS
@given(views(), ALPHAS, TAUS, st.sampled_from(["wrong", "right", "all"]))
def test_uniform_non_targets_share_their_mass_evenly_and_leave_the_labels(view, alpha, tau, apply_to):
    logits, target = view
    kept = loca_logits(logits, target, alpha, tau, apply_to)
    even = loca_logits(logits, target, alpha, tau, apply_to, non_target="uniform")
    wrong = kept.mis_instructed
    acted_on = {"wrong": wrong, "right": ~wrong, "all": torch.ones_like(wrong)}[apply_to]
    assert torch.equal(even.logits[~acted_on], logits[~acted_on])
    assert torch.equal(even.capped, kept.capped)
    rows = zip(softmax(kept.logits, tau), softmax(even.logits, tau), target, acted_on, strict=True)
    for p, q, y, changed in rows:
        if changed:
            assert q[y] == pytest.approx(p[y], rel=1e-4, abs=2e-6)
            np.testing.assert_allclose(others_of(q, y), (1 - q[y]) / (len(q) - 1), rtol=1e-6)


@SETTINGS
@given(views(), ALPHAS, TAUS, st.sampled_from(["wrong", "right", "all"]), st.integers(0, 2**32))
def test_shuffled_non_targets_are_the_same_numbers_in_other_places(view, alpha, tau, apply_to, seed):
    logits, target = view
    kept = loca_logits(logits, target, alpha, tau, apply_to)
    torch.manual_seed(seed)
    shuffled = loca_logits(logits, target, alpha, tau, apply_to, non_target="shuffle")
    acted_on = torch.ones(4, dtype=torch.bool)
    if apply_to != "all":
        acted_on = kept.mis_instructed == (apply_to == "wrong")
    assert torch.equal(shuffled.logits[~acted_on], logits[~acted_on])
    y = target.unsqueeze(-1)
    assert torch.equal(shuffled.logits.gather(-1, y), kept.logits.gather(-1, y))
    assert torch.equal(shuffled.logits.sort(-1).values, kept.logits.sort(-1).values)
    assert torch.equal(shuffled.capped, kept.capped)


def test_a_shuffle_is_drawn_anew_in_each_call_and_each_view_and_follows_torchs_seed():
    logits = torch.arange(100.0).expand(2, -1)
    target = torch.tensor([7, 7])
    torch.manual_seed(0)
    first, second = (loca_logits(logits, target, 0.95, 4.0, non_target="shuffle").logits for _ in range(2))
    torch.manual_seed(0)
    again = loca_logits(logits, target, 0.95, 4.0, non_target="shuffle").logits
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_each_order_of_the_non_targets_is_as_likely():
    logits, target = torch.tensor([[3.0, 2.0, 0.0, 1.0]]).expand(6000, -1), torch.full((6000,), 2)
    torch.manual_seed(0)
    shuffled = loca_logits(logits, target, 0.95, 4.0, non_target="shuffle").logits
    others = shuffled[:, [0, 1, 3]]
    orders, counts = others.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts - 1000).abs().max() < 150  # 5 standard deviations


def test_the_mask_may_be_decided_by_the_caller():
    logits, target = torch.tensor([[3.0, 1.0], [1.0, 3.0]]), torch.tensor([1, 1])
    decided = torch.tensor([False, True])
    for calibrated in (loca_logits(logits, target, 0.5, 1.0, wrong=decided), swap_logits(logits, target, decided)):
        assert torch.equal(calibrated.mis_instructed, decided)
        assert torch.equal(calibrated.logits[0], logits[0])
        assert not torch.equal(calibrated.logits[1], logits[1])


@pytest.mark.parametrize(("name", "value"), [("apply_to", "both"), ("non_target", "zero")])
def test_an_unknown_choice_is_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is '{value}'; it must be one of \w+, \w+, \w+$"):
        loca_logits(torch.zeros(1, 3), torch.tensor([0]), 0.9, 4.0, **{name: value})


@SETTINGS
@given(views(mis=True), st.floats(0.01, 0.99), TAUS)
def test_label_revision_makes_the_same_teacher(view, eta, tau):
    """arXiv 2404.03693: b * p + (1 - b) * one-hot on wrong views, with b = eta / (p_max - p_target + 1)."""
    logits, target = view
    for p, calibrated, y in zip(
        softmax(logits, tau), softmax(loca_logits(logits, target, eta, tau).logits, tau), target, strict=True
    ):
        b = eta / (p.max() - p[y] + 1)
        revised = b * p + (1 - b) * (np.arange(len(p)) == int(y))
        np.testing.assert_allclose(calibrated, revised, atol=2e-6, rtol=5e-5)


@pytest.mark.parametrize(("classes", "alpha"), [(100, 0.95), (1000, 0.995)])
def test_the_papers_settings_have_the_same_margin_in_units_of_a_uniform_probability(classes, alpha):
    logits, target = torch.zeros(1, classes), torch.tensor([3])
    q = softmax(loca_logits(logits, target, alpha, 4.0).logits, 4.0)[0]
    assert (q[3] - others_of(q, target[0]).max()) * classes == pytest.approx(5, rel=1e-3)


def test_calibrating_at_temperature_one_leaves_a_narrower_margin_once_tempered():
    """13 times in the worked example."""
    logits, target = torch.full((1, 100), -0.3), torch.tensor([2])
    logits[0, :3] = torch.tensor([12.0, 10.5, 9.5])
    margins = []
    for tau_of_margin in (1.0, 4.0):
        q = softmax(loca_logits(logits, target, 0.95, tau_of_margin).logits, 4.0)[0]
        margins.append(q[2] - others_of(q, target[0]).max())
    assert margins[1] == pytest.approx(0.05, abs=1e-5)
    assert margins[1] / margins[0] == pytest.approx(12.8, abs=0.1)
