"""Rank correlations against SciPy's, and successive halving against Optuna's, on made numbers."""

import numpy as np
import optuna
import pytest
from scipy import stats

from benchmarks.ranking import Estimate, Resamples, agreement, halving, kendall, pruned, spearman

GENERATOR = np.random.default_rng(3)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_are_those_of_scipy(ties: bool) -> None:
    x, y = GENERATOR.normal(size=(2, 5, 12))
    if ties:
        x, y = x.round(), y.round()
    assert spearman(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert kendall(x, y) == pytest.approx([stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_a_constant_says_nothing_about_an_order() -> None:
    assert spearman(np.ones(4), np.arange(4)) == 0
    assert kendall(np.arange(4), np.ones(4)) == 0


def test_agreement_is_the_mean_over_pairs_of_seeds() -> None:
    full = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    cheap = np.column_stack([full[:, 0], -full[:, 1]])  # the first seed's look is right, the second's is reversed
    resamples = Resamples.draw(4, 2, 50)
    assert agreement(full, full, spearman, resamples, same_seed=False)[0] == 1
    for same_seed in (True, False):
        value, resampled = agreement(cheap, full, spearman, resamples, same_seed=same_seed)
        assert value == pytest.approx(0)
        assert resampled == pytest.approx(np.zeros(50))


def test_the_interval_tells_noise_from_agreement() -> None:
    worth = GENERATOR.normal(size=(30, 1))
    noisy = worth + 0.1 * GENERATOR.normal(size=(30, 3))
    resamples = Resamples.draw(30, 3, 300)
    close = Estimate.of(*agreement(noisy, noisy, spearman, resamples, same_seed=False))
    assert 0.8 < close.low < close.value < 1
    unrelated = GENERATOR.normal(size=(30, 3))
    none = Estimate.of(*agreement(unrelated, noisy, spearman, resamples, same_seed=False))
    assert none.low < none.value < none.high < close.low


def test_each_resample_has_two_seeds_to_compare() -> None:
    seeds = Resamples.draw(5, 2, 200).seeds
    assert all(len(set(row)) == 2 for row in seeds.tolist())


@pytest.mark.parametrize("factor", [2, 3])
def test_halving_is_optunas(factor: int) -> None:
    values = GENERATOR.integers(10, size=(25, 3)).astype(float)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    expected = []
    for row in values:
        trial = study.ask()
        passed = 0
        for rung, value in enumerate(row):
            trial.report(value, factor**rung)
            if trial.should_prune():
                break
            passed += 1
        study.tell(trial, 0.0)
        expected.append(passed)
    assert halving(values, factor, range(25)).tolist() == expected


def test_what_pruning_costs_is_counted() -> None:
    # In this order the second point, the best by the other seeds, is stopped at a third of its epochs.
    values = np.array([[3.0], [2.0], [4.0]])
    found = pruned(values, [1 / 3], 1.0, np.array([80.0, 90.0, 85.0]), 2, [0, 1, 2])
    assert found.work == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert (found.survivors, found.kept, found.lost) == pytest.approx((2 / 3, 0, 5))
    again = pruned(values, [1 / 3], 1.0, np.array([80.0, 90.0, 85.0]), 2, [1, 0, 2])
    assert (again.survivors, again.kept, again.lost) == (1, 1, 0)
