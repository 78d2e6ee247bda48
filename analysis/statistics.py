"""What a handful of seeds can tell: intervals, paired differences, equivalence, power.

All accuracies and differences are in percentage points; all tests are two-sided Student t tests. Intervals are
Student's t up to seven seeds, and bootstrapped (bias-corrected and accelerated; Efron 1987) from eight on, where the
sample can speak for its own shape.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8
SAME = 1e-9  # points: an SD below this is rounding
BOOTSTRAP_FROM = 8  # seeds
RESAMPLES = 9_999
EQUIVALENT = 0.2  # points: a difference smaller than this is none that anyone would act on


@dataclass(frozen=True)
class Estimate:
    """Mean of n values with SD (n - 1 in the denominator) and 95 % interval.

    `sd`, `low` and `high` are None where n < 2: one value has no spread. `mean` is nan where n = 0.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of n differences paired by seed; `p` is the paired t test's, `corrected` the same by Holm's method.

    `low`, `high` and `p` are None where n < 2, and where every seed gave the same difference: a finite test set has
    steps, and t knows nothing of a spread that it cannot see. `same_p` is the p-value of the claim that the true
    difference is smaller than `EQUIVALENT` either way. `corrected` counts all comparisons with a baseline among the
    points of a pair; None until these are known.
    """

    p: float | None
    same_p: float | None = None
    corrected: float | None = None

    @property
    def shown(self) -> bool:
        """Whether the 95 % interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def same(self) -> bool:
        """Whether no difference as large as `EQUIVALENT` is left possible, at the 5 % level."""
        return self.same_p is not None and self.same_p < LEVEL


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean, SD and interval of independent values (one a seed)."""
    n = len(values)
    if n == 0:
        return Estimate(0, math.nan, None, None, None)
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(1, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    if n >= BOOTSTRAP_FROM and sd >= SAME:
        return Estimate(n, mean, sd, *_bootstrapped(values, level))
    half = float(stats.t.ppf(1 - level / 2, n - 1)) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def _bootstrapped(values: Sequence[float], level: float) -> tuple[float, float]:
    """BCa interval of the mean; the same for the same values, in whichever order they come."""
    found = stats.bootstrap(
        (np.sort(np.asarray(values, dtype=float)),),
        np.mean,
        confidence_level=1 - level,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL) -> Difference:
    """Difference to a baseline, paired by seed: only seeds present in both count.

    Args:
        values: accuracy by seed.
        baseline: accuracy by seed of the point that is compared with.
        level: the test's level; the interval covers 1 - level.
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    around = estimate(differences, level)
    if around.sd is None:
        return Difference(around.n, around.mean, None, None, None, None)
    if around.sd < SAME:
        return Difference(around.n, around.mean, 0.0, None, None, None)
    p = float(2 * stats.t.sf(abs(around.mean) / (around.sd / math.sqrt(around.n)), around.n - 1))
    return Difference(around.n, around.mean, around.sd, around.low, around.high, p, equivalence(around))


def equivalence(around: Estimate, margin: float = EQUIVALENT) -> float | None:
    """p-value of the claim that a mean difference is smaller than `margin` either way; None without a spread.

    The larger of two one-sided t tests (Schuirmann 1987): a small p excludes differences of the margin and more.
    """
    if around.sd is None or around.sd < SAME:
        return None
    error = around.sd / math.sqrt(around.n)
    return float(stats.t.sf((margin - abs(around.mean)) / error, around.n - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down method (1979), so that a level holds for all tests together."""
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    corrected = [0.0] * len(ps)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = least
    return corrected


def pooled_sd(estimates: Sequence[Estimate]) -> float | None:
    """One SD from several samples, each weighted by its n - 1; None where none has a spread."""
    spread = [(each.n - 1, each.sd) for each in estimates if each.sd is not None]
    if not spread:
        return None
    return math.sqrt(sum(df * sd**2 for df, sd in spread) / sum(df for df, _ in spread))


def finite_test_interval(accuracy: float, images: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval of an accuracy (percent) measured on `images` images: binomial, for images not yet seen."""
    z = float(stats.norm.ppf(1 - level / 2))
    share = accuracy / 100
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return 100 * (centre - half), 100 * (centre + half)


def detection_power(difference: float, sd: float, n: int, paired: bool, level: float = LEVEL) -> float:
    """Power of the two-sided t test for a true difference, by the noncentral t distribution.

    Args:
        difference: the true difference, in points.
        sd: paired: SD of the differences; unpaired: SD of either group.
        n: seeds, of each group where unpaired.
        paired: one-sample test on differences (n - 1 degrees of freedom), or two samples (2n - 2).
        level: the test's level.
    """
    df = n - 1 if paired else 2 * n - 2
    centre = abs(difference) / (sd * math.sqrt((1 if paired else 2) / n))
    critical = float(stats.t.ppf(1 - level / 2, df))
    # The far tail adds less than 1e-8 once the near one holds a tenth, and scipy's nct is nan far out there.
    far = float(np.nan_to_num(stats.nct.cdf(-critical, df, centre)))
    return float(stats.nct.sf(critical, df, centre)) + far


def resolvable_difference(sd: float, n: int, paired: bool, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest true difference that n seeds find with the given power; None where n < 2.

    Args: as for `detection_power`.
    """
    if n < 2:
        return None
    if sd == 0:
        return 0.0
    unit = math.sqrt((1 if paired else 2) / n)
    df = n - 1 if paired else 2 * n - 2

    def missing(shift: float) -> float:
        return power - detection_power(shift * unit, 1.0, n, paired, level)

    upper = float(stats.t.ppf(1 - level / 2, df))
    while missing(upper) > 0:
        upper *= 2
    return float(optimize.brentq(missing, 1e-9, upper)) * unit * sd


def seeds_needed(difference: float, sd: float, paired: bool, power: float = POWER, level: float = LEVEL) -> int:
    """The fewest seeds (of each group where unpaired) that find a true difference with the given power.

    Args: as for `detection_power`.
    """
    low, high = 1, 2
    while detection_power(difference, sd, high, paired, level) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if detection_power(difference, sd, middle, paired, level) < power:
            low = middle
        else:
            high = middle
    return high
