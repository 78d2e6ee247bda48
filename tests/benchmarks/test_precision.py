"""The benchmark of precisions: what it says of runs whose differences are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import precision
from benchmarks.precision import BASE, MARGIN, Runs


def made(differences: list[float], variant: str = "bf16") -> Runs:
    """Two points on as many seeds, whose mean difference on a seed is the one given."""
    runs: Runs = {}
    for seed, difference in enumerate(differences):
        for point, extra in (("kd", 0.3), ("loca 1", -0.3)):
            runs[BASE, point, seed] = 2.0, 50.0 + seed
            runs[variant, point, seed] = 2.002, 50.0 + seed + difference + extra
    return runs


def test_a_difference_has_the_interval_of_a_paired_t_test_over_seeds() -> None:
    differences = [0.1, -0.2, 0.3, 0.05, 0.2]
    found = precision.agreement(made(differences), "bf16")
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (found.n, found.mean) == (5, pytest.approx(np.mean(differences)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.spread == pytest.approx(np.std(differences, ddof=1))
    assert found.largest == pytest.approx(0.6)
    assert found.loss == pytest.approx(0.001)


@pytest.mark.parametrize("shift", [-1.0, -0.3, 0.0, 0.2, 0.7])
def test_equivalence_is_the_larger_of_two_one_sided_tests(shift: float) -> None:
    differences = np.array([0.1, -0.2, 0.15, 0.05, -0.1, 0.0]) + shift
    found = precision.agreement(made(list(differences)), "bf16")
    low = stats.ttest_1samp(differences, -MARGIN, alternative="greater").pvalue
    high = stats.ttest_1samp(differences, MARGIN, alternative="less").pvalue
    assert found.p_equivalent == pytest.approx(max(low, high))
    assert (found.p_equivalent < 0.05) == (abs(shift) < 0.4)


def test_equal_runs_are_equivalent_and_runs_a_constant_apart_are_not() -> None:
    assert precision.agreement(made([0.0] * 3), "bf16").p_equivalent == pytest.approx(0.0)
    assert precision.agreement(made([2.0] * 3), "bf16").p_equivalent == pytest.approx(1.0)


def test_one_seed_can_say_nothing() -> None:
    with pytest.raises(ValueError, match="1 seeds with all points; a difference needs two"):
        precision.agreement(made([0.1]), "bf16")


def test_a_seed_that_lacks_a_point_is_left_out() -> None:
    runs = made([0.1, 0.2, 5.0])
    del runs["bf16", "kd", 2]
    assert precision.agreement(runs, "bf16").n == 2


def test_the_committed_runs_are_read_and_compared() -> None:
    for name, seeds in (("digits", 20), ("cifar100", 5)):
        runs = precision.read(precision.FOLDER / f"{name}.csv")
        assert len(runs) == seeds * len(precision.POINTS) * len(precision.VARIANTS)
        table = precision.compared(name, runs)
        assert [row[0] for row in table.rows] == ["float32, other sums", "bf16", "float16 logits", "tf32"]
        page = (precision.FOLDER / "README.md").read_text()
        assert all(str(row[2]) in page for row in table.rows if row[2])


@pytest.mark.slow
def test_a_quick_run_measures_every_variant(tmp_path: Path) -> None:
    table, logits = precision.measure(True, tmp_path)
    assert [row[1] for row in table.rows] == [2, 2, 2, None]
    assert all(value >= 0 for _, value in logits.rows)
    again = len((tmp_path / "digits.csv").read_text().splitlines())
    precision.measure(True, tmp_path)
    assert len((tmp_path / "digits.csv").read_text().splitlines()) == again
