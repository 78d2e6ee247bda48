"""Statistics against scipy, closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    BOOTSTRAP_FROM,
    detection_power,
    equivalence,
    estimate,
    finite_test_interval,
    holm,
    paired_difference,
    pooled_sd,
    resolvable_difference,
    seeds_needed,
)

ACCURACIES = st.lists(st.floats(0, 100, allow_nan=False), min_size=2, max_size=BOOTSTRAP_FROM - 1)


def test_three_seeds_worked_by_hand() -> None:
    found = estimate([70.0, 71.0, 72.0])
    # SD 1; t(0.975, 2) = 4.30265273; half = 4.30265273 / sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 71.0, 1.0)
    assert found.low == pytest.approx(71 - 2.4841377, abs=1e-6)
    assert found.high == pytest.approx(71 + 2.4841377, abs=1e-6)


@settings(deadline=None)
@given(ACCURACIES)
def test_the_interval_is_scipys_t_interval(values: list[float]) -> None:
    found = estimate(values)
    error = stats.sem(values)
    if error > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    else:
        assert (found.low, found.high) == pytest.approx((found.mean, found.mean), abs=1e-9)


def test_from_eight_seeds_on_the_sample_speaks_for_its_shape() -> None:
    skewed = [70.0, 70.1, 70.1, 70.2, 70.2, 70.3, 70.4, 75.0]
    found = estimate(skewed)
    assert found.low is not None
    assert found.high is not None
    reference = stats.bootstrap(
        (np.array(skewed),), np.mean, n_resamples=200_000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.05)
    assert found.high - found.mean > 2 * (found.mean - found.low)  # the long tail is above
    assert estimate(skewed[::-1]) == found
    assert estimate([70.0] * 8).low == 70.0


def test_the_bootstrap_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    found = [estimate(list(rng.normal(71, 0.2, 12))) for _ in range(150)]
    covered = np.mean([(each.low or 0) < 71 < (each.high or 0) for each in found])
    assert 0.84 < covered < 0.99  # a bootstrap of twelve is known to be a little narrow


def test_holm_as_in_the_textbooks() -> None:
    # By hand: 4 * 0.005, then the larger of that and 3 * 0.01, then 2 * 0.03, then 1 * 0.04, which may not be smaller.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= corrected <= min(1.0, len(ps) * p) + 1e-12 for p, corrected in zip(ps, found, strict=True))
    order = np.argsort(ps, kind="stable")
    assert list(np.array(found)[order]) == sorted(found)
    assert found[int(order[0])] == pytest.approx(min(1.0, len(ps) * min(ps)))


def test_equivalence_is_two_one_sided_tests_of_scipys() -> None:
    differences = [0.02, -0.05, 0.04, 0.01, -0.03]
    above = stats.ttest_1samp(differences, 0.2, alternative="less").pvalue
    below = stats.ttest_1samp(differences, -0.2, alternative="greater").pvalue
    assert equivalence(estimate(differences)) == pytest.approx(max(above, below))
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0))
    assert found.same
    assert not found.shown
    wide = paired_difference({0: 0.3, 1: -0.3, 2: 0.1}, dict.fromkeys(range(3), 0.0))
    assert not wide.same  # neither a difference nor its absence: too few seeds
    assert not wide.shown
    assert equivalence(estimate([0.1])) is None


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert (estimate([70.0]).mean, estimate([70.0]).sd, estimate([70.0]).low) == (70.0, None, None)
    assert math.isnan(estimate([]).mean)
    assert estimate([]).n == 0


def test_only_seeds_present_in_both_are_compared() -> None:
    found = paired_difference({1: 73.0, 2: 75.0, 9: 99.0}, {1: 70.0, 2: 71.0, 3: 10.0})
    assert (found.n, found.mean) == (2, 3.5)


def test_the_paired_difference_is_scipys_paired_t_test() -> None:
    ours, theirs = {1: 73.0, 2: 75.5, 3: 77.0, 4: 74.0}, {1: 70.0, 2: 71.0, 3: 72.0, 4: 74.5}
    found = paired_difference(ours, theirs)
    reference = stats.ttest_rel(list(ours.values()), list(theirs.values()))
    low, high = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.shown == (reference.pvalue < 0.05)


@settings(deadline=None)
@given(ACCURACIES, st.data())
def test_swapping_the_sides_turns_the_interval_over(values: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.floats(0, 100), min_size=len(values), max_size=len(values)))
    ours, theirs = dict(enumerate(values)), dict(enumerate(others))
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert one.mean == pytest.approx(-other.mean, abs=1e-9)
    assert one.p == other.p or one.p == pytest.approx(other.p)
    assert one.shown == other.shown
    if one.low is not None and other.high is not None:
        assert one.low == pytest.approx(-other.high, abs=1e-9)


def test_differences_without_spread_claim_no_interval() -> None:
    found = paired_difference({1: 71.0, 2: 72.0}, {1: 70.5, 2: 71.5})
    assert (found.n, found.mean, found.low, found.high, found.p) == (2, 0.5, None, None, None)
    assert not found.shown


def test_one_shared_seed_gives_a_difference_and_no_interval() -> None:
    found = paired_difference({1: 71.0, 2: 72.0}, {1: 70.0})
    assert (found.n, found.mean, found.sd, found.p) == (1, 1.0, None, None)


def test_pooled_sd_weighs_by_degrees_of_freedom() -> None:
    # SDs 1 (n = 3) and 2 * sqrt(2) (n = 2): sqrt((2 * 1 + 1 * 8) / 3)
    samples = [estimate([1.0, 2.0, 3.0]), estimate([0.0, 4.0]), estimate([7.0])]
    assert pooled_sd(samples) == pytest.approx(math.sqrt(10 / 3))
    assert pooled_sd([estimate([7.0])]) is None


@pytest.mark.parametrize(("accuracy", "images"), [(79.0, 797), (71.0, 10_000), (99.9, 50), (100.0, 10), (0.0, 10)])
def test_the_finite_test_set_interval_is_wilsons(accuracy: float, images: int) -> None:
    right = round(accuracy / 100 * images)
    reference = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    low, high = finite_test_interval(100 * right / images, images)
    assert (low, high) == pytest.approx((100 * reference.low, 100 * reference.high), abs=1e-9)


# The rule of thumb beside these (science.md) takes a normal distribution: 6, 14 and 3 seeds.
@pytest.mark.parametrize(("seeds", "difference"), [(6, 0.3), (14, 0.2), (3, 0.5)])
def test_the_known_rules_of_thumb_hold_within_a_tenth(seeds: int, difference: float) -> None:
    found = resolvable_difference(0.18, seeds, paired=False)
    assert found == pytest.approx(difference, rel=0.12)
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.18 * math.sqrt(2 / seeds)
    assert found > normal  # the t distribution costs something, the less the more seeds


def test_many_seeds_approach_the_normal_closed_form() -> None:
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.18
    assert resolvable_difference(0.18, 2000, paired=False) == pytest.approx(normal * math.sqrt(2 / 2000), rel=1e-3)
    assert resolvable_difference(0.18, 2000, paired=True) == pytest.approx(normal * math.sqrt(1 / 2000), rel=1e-3)


@pytest.mark.parametrize("paired", [True, False])
def test_the_power_is_what_simulated_tests_find(paired: bool) -> None:
    rng = np.random.default_rng(5)
    n, sd, trials = 5, 0.4, 20_000
    difference = resolvable_difference(sd, n, paired)
    assert difference is not None
    if paired:
        p = stats.ttest_1samp(rng.normal(difference, sd, (trials, n)), 0, axis=1).pvalue
    else:
        p = stats.ttest_ind(rng.normal(difference, sd, (trials, n)), rng.normal(0, sd, (trials, n)), axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.012)  # four standard errors of 20,000 trials


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 3.0), st.integers(2, 40), st.booleans())
def test_the_resolvable_difference_has_the_asked_power(sd: float, n: int, paired: bool) -> None:
    found = resolvable_difference(sd, n, paired)
    assert found is not None
    assert detection_power(found, sd, n, paired) == pytest.approx(0.8, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 2.0), st.floats(0.1, 1.0), st.booleans())
def test_seeds_needed_is_the_fewest_that_resolve(difference: float, sd: float, paired: bool) -> None:
    n = seeds_needed(difference, sd, paired)
    assert n >= 2
    enough = resolvable_difference(sd, n, paired)
    assert enough is not None
    assert enough <= difference * (1 + 1e-6)
    if n > 2:
        fewer = resolvable_difference(sd, n - 1, paired)
        assert fewer is not None
        assert fewer > difference * (1 - 1e-6)


def test_one_seed_resolves_nothing_and_no_spread_resolves_all() -> None:
    assert resolvable_difference(0.2, 1, paired=True) is None
    assert resolvable_difference(0.0, 3, paired=True) == 0.0


def test_a_high_power_on_two_seeds_is_still_found() -> None:
    found = resolvable_difference(0.2, 2, paired=True, power=0.99)
    assert found is not None
    assert detection_power(found, 0.2, 2, paired=True) == pytest.approx(0.99, abs=1e-6)
