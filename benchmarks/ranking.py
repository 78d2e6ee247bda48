"""Statistics of a cheap measurement that stands in for a dear one: rank correlation, and what pruning by it loses."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray


def spearman(x: Array, y: Array) -> Array:
    """Spearman's rho along the last axis: (..., n), (..., n) to (...); 0 where one of them is constant."""
    a, b = rankdata(x, axis=-1), rankdata(y, axis=-1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return _ratio((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1))


def kendall(x: Array, y: Array) -> Array:
    """Kendall's tau-b along the last axis: (..., n), (..., n) to (...); 0 where one of them is constant."""
    a, b = (np.sign(values[..., :, None] - values[..., None, :]) for values in (x, y))
    return _ratio(*((p * q).sum((-2, -1)) for p, q in ((a, b), (a, a), (b, b))))


def _ratio(product: Array, a: Array, b: Array) -> Array:
    scale = np.sqrt(a * b)
    return np.divide(product, scale, out=np.zeros_like(product, dtype=float), where=scale > 0)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval: percentiles of what it is in each bootstrap resample."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Array) -> Estimate:
        """From the figure and what it is in the resamples, (draws,)."""
        low, high = np.quantile(resampled, [0.025, 0.975])
        return cls(value, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Resamples:
    """Bootstrap resamples of points and seeds: (draws, n) and (draws, S) indices.

    Each has two different seeds at least, since a figure may compare one seed's runs with another's.
    """

    points: Array
    seeds: Array

    @classmethod
    def draw(cls, points: int, seeds: int, draws: int = 1000) -> Resamples:
        """As many resamples as asked for, the same each time."""
        generator = np.random.default_rng(0)
        chosen = generator.integers(seeds, size=(draws, seeds))
        while (lone := (chosen == chosen[:, :1]).all(1)).any():
            chosen[lone] = generator.integers(seeds, size=(int(lone.sum()), seeds))
        return cls(generator.integers(points, size=(draws, points)), chosen)


def agreement(
    cheap: Array, full: Array, measure: Callable[[Array, Array], Array], resamples: Resamples, *, same_seed: bool
) -> tuple[float, Array]:
    """How well the points' order by a cheap measurement agrees with that by the full one.

    Args:
        cheap: (n, S) of each point and seed.
        full: (n, S) likewise.
        measure: `spearman` or `kendall`.
        resamples: of points and seeds.
        same_seed: compare what the same seed says (a run's beginning with its end), else what each seed says with what
            each other seed does: the order of the points themselves, apart from the luck of a run.

    Returns:
        The mean over the (pairs of) seeds, and the same in each resample, (draws,).
    """
    seeds = range(full.shape[1])
    pairs = [(s, t) for s in seeds for t in seeds if (s == t) == same_seed]
    value = float(np.mean([measure(cheap[:, s], full[:, t]) for s, t in pairs]))
    drawn = {(s, t): measure(cheap[:, s][resamples.points], full[:, t][resamples.points]) for s, t in pairs}
    # How often each pair of seeds is among the drawn ones.
    times = np.stack([(resamples.seeds == s).sum(1) for s in seeds])
    weights = np.stack([times[s] if same_seed else times[s] * times[t] for s, t in pairs])
    return value, (weights * np.stack([drawn[pair] for pair in pairs])).sum(0) / weights.sum(0)


def halving(values: Array, factor: int, order: Sequence[int]) -> Array:
    """Asynchronous successive halving, one point after the other: which rungs does each point pass?

    The rule is that of Optuna's pruner: at a rung a point goes on if it is among the best 1/factor (one at least) of
    those that have come so far, itself among them.

    Args:
        values: (n, rungs), larger is better.
        factor: one of so many goes on.
        order: in which the points come.

    Returns:
        (n,) how many rungs each point passed: all of them, if it survived.
    """
    passed = np.zeros(len(values), dtype=int)
    seen: list[list[float]] = [[] for _ in range(values.shape[1])]
    for point in order:
        for rung, value in enumerate(values[point]):
            insort(seen[rung], value)
            if value < seen[rung][-max(len(seen[rung]) // factor, 1)]:
                break
            passed[point] += 1
    return passed


@dataclass(frozen=True)
class Pruned:
    """What pruning by one seed did, against what the other seeds say of the points.

    `work`: epochs trained with this seed, as a share of those of all points in full. `survivors`: their share.
    `kept`: whether the best point is among them. `lost`: how far the best survivor is below it, in points of accuracy.
    """

    work: float
    survivors: float
    kept: float
    lost: float


def pruned(
    values: Array, costs: Sequence[float], whole: float, truth: Array, factor: int, order: Sequence[int]
) -> Pruned:
    """Prune points and compare the survivors with all.

    Args:
        values: (n, rungs) of the screening seed.
        costs: what a point has cost by each rung, in epochs.
        whole: what a survivor has cost.
        truth: (n,) what the points are worth, from other seeds.
        factor: one of so many goes on.
        order: in which the points come.
    """
    passed = halving(values, factor, order)
    survives = passed == len(costs)
    spent = np.array([*costs, whole])[passed]
    lost = float(truth.max() - truth[survives].max())
    # Points are compared with points drawn with replacement in a bootstrap, so the best may be there twice.
    return Pruned(float(spent.mean()), float(survives.mean()), float(lost == 0), lost)
