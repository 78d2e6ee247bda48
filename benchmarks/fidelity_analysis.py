"""What the histories that `fidelity` keeps say: how cheap looks order the points, and what pruning by them loses."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.measuring import Table
from benchmarks.ranking import Estimate, Pruned, Resamples, agreement, kendall, pruned, spearman
from trainables import protocol

# A short schedule has one epoch of so many.
FRACTIONS = (9, 3, 2)
SEEDS = 3  # of a search, for what a plan costs in all
_ORDERS = 200  # in which the points may come to an asynchronous pruner


def histories(file: Path) -> dict[tuple[int, int, int], list[float]]:
    """Validation accuracy (percent) by epoch of each run in a file, by point, seed and epochs of its schedule."""
    with file.open(encoding="utf-8", newline="") as stream:
        return {
            (int(row["point"]), int(row["seed"]), int(row["epochs"])): [float(v) for v in row["val_top1"].split()]
            for row in csv.DictReader(stream)
        }


@dataclass(frozen=True)
class Runs:
    """The runs of a setting.

    `values`: (n, S, e) validation accuracy by point, seed and epoch, of each schedule by its epochs `e`.
    `drops`: the first epochs of the whole schedule with a lower learning rate.
    """

    name: str
    epochs: int
    drops: tuple[int, ...]
    values: dict[int, np.ndarray]

    @classmethod
    def read(cls, name: str, base: str, file: Path) -> Runs:
        """From a file of histories; of a schedule that some points lack, only the seeds that all points have."""
        found = histories(file)
        epochs = max(schedule for _, _, schedule in found)
        count = 1 + max(number for number, _, _ in found)
        values = {}
        for schedule in sorted({schedule for _, _, schedule in found}):
            seeds = [s for s in range(99) if all((number, s, schedule) in found for number in range(count))]
            if seeds:
                rows = [[found[number, seed, schedule] for seed in seeds] for number in range(count)]
                values[schedule] = np.array(rows)
        return cls(name, epochs, protocol.resolve(base, epochs=epochs).milestones, values)

    def where(self, epoch: int) -> str:
        """How an epoch lies to the drops, where it is next to one."""
        for drop in self.drops:
            if epoch in (drop - 1, drop):
                return " (before a drop)" if epoch < drop else " (after a drop)"
        return ""

    @property
    def end(self) -> np.ndarray:
        """(n, S) after the last epoch of the whole schedule."""
        return self.values[self.epochs][..., -1]

    @property
    def rungs(self) -> list[int]:
        """Epochs to look at: where the short schedules end, and just before and after each drop."""
        around = [epoch for drop in self.drops for epoch in (drop - 1, drop)]
        return sorted({*(self.epochs // fraction for fraction in FRACTIONS), *around})

    @property
    def short(self) -> list[int]:
        """The short schedules that every point and seed has."""
        return [e for e, v in self.values.items() if e < self.epochs and v.shape[1] == self.end.shape[1]]

    def rung(self, epoch: int, over: int = 1) -> np.ndarray:
        """(n, S) at an epoch of the whole schedule, or the mean over the last few epochs up to it."""
        return self.values[self.epochs][..., max(epoch - over, 0) : epoch].mean(-1)


def agreements(runs: Runs) -> Table:
    """How each look orders the points, against whole runs."""
    n, seeds = runs.end.shape
    resamples = Resamples.draw(n, seeds)
    looks = [(f"rung {epoch}{runs.where(epoch)}", epoch, runs.rung(epoch)) for epoch in runs.rungs]
    looks += [(f"mean of the 3 epochs to {epoch}", epoch, runs.rung(epoch, 3)) for epoch in runs.rungs if epoch > 3]
    looks += [(f"short schedule, {epochs} epochs", epochs, runs.values[epochs][..., -1]) for epochs in runs.short]
    looks.append(("the whole run", runs.epochs, runs.end))
    limit, limits = agreement(runs.end, runs.end, spearman, resamples, same_seed=False)
    rows = []
    for name, epochs, cheap in looks:
        found = {
            (same, measure): agreement(cheap, runs.end, measure, resamples, same_seed=same)
            for same in (True, False)
            for measure in (spearman, kendall)
        }
        value, drawn = found[False, spearman]
        figures = [Estimate.of(*each) for each in found.values()]
        rows.append((name, epochs / runs.epochs, *figures, Estimate.of(value - limit, drawn - limits)))
    noise = float(np.sqrt(runs.end.var(axis=1, ddof=1).mean()))
    return Table(
        f"{runs.name}: order of the points by a cheap look, against whole runs of {runs.epochs} epochs",
        (
            "look",
            "work",
            "rho, same seed",
            "tau, same seed",
            "rho, another seed",
            "tau, another seed",
            "rho to the limit",
        ),
        tuple(rows),
        f"{n} points, {seeds} seeds; 95 % bootstrap intervals over points and seeds. The learning rate drops at "
        f"{', '.join(map(str, runs.drops))}. Whole runs: {runs.end.mean():.1f} % on average, SD {noise:.2f} between "
        f"the seeds of a point and {runs.end.mean(1).std(ddof=1):.2f} between the points' means. "
        "The limit is the last row: what a whole run says of another seed's; the last "
        "column is the difference to it, in the same resamples.",
    )


def contrasts(runs: Runs) -> Table:
    """Whether one look tells more than another, in the same resamples."""
    n, seeds = runs.end.shape
    resamples = Resamples.draw(n, seeds)
    drop = runs.drops[0]
    pairs = [(f"short schedule of {e} epochs", f"rung {e}", runs.values[e][..., -1], runs.rung(e)) for e in runs.short]
    pairs += [(f"mean of the 3 epochs to {e}", f"rung {e}", runs.rung(e, 3), runs.rung(e)) for e in runs.short if e > 3]
    pairs.append((f"rung {drop}, after the drop", f"rung {drop - 1}, before it", runs.rung(drop), runs.rung(drop - 1)))
    rows = []
    for name, other, look, against in pairs:
        (a, drawn_a), (b, drawn_b) = (
            agreement(v, runs.end, spearman, resamples, same_seed=False) for v in (look, against)
        )
        rows.append((name, other, Estimate.of(a - b, drawn_a - drawn_b)))
    return Table(f"{runs.name}: differences in rho to another seed", ("look", "against", "difference"), tuple(rows))


@dataclass(frozen=True)
class Plan:
    """Where points are stopped: at rungs of the whole run, or after a short schedule; its survivors then begin anew."""

    looks: tuple[int, ...]
    factor: int
    short: bool = False

    def __str__(self) -> str:
        kind = "short schedule" if self.short else "rungs"
        return f"{kind} {', '.join(map(str, self.looks))}; 1 of {self.factor}"


def plans(runs: Runs) -> list[Plan]:
    """Those that are compared: as the shipped searches have them (a tenth of the epochs, times 3), and others."""
    first = max(runs.epochs // 10, 1)
    thirds = tuple(e for e in (first, 3 * first, 9 * first) if e < runs.epochs)
    ninth, third, half = (runs.epochs // fraction for fraction in FRACTIONS)
    drop = runs.drops[0]
    rungs = [
        thirds,
        (ninth, third),
        (third,),
        (half,),
        (drop - 1,),
        (drop,),
        (third, drop),
        *((d,) for d in runs.drops[1:]),
        (runs.epochs,),
    ]
    found = [Plan(looks, factor) for looks in dict.fromkeys(rungs) for factor in (2, 3)]
    return found + [Plan((epochs,), factor, short=True) for epochs in runs.short for factor in (2, 3)]


def losses(runs: Runs, draws: int = 1000) -> Table:
    """What each plan saves, and what it loses."""
    n, seeds = runs.end.shape
    resamples = Resamples.draw(n, seeds, draws)
    rows = []
    for plan in plans(runs):
        sample = [_pruned(runs, plan, np.arange(n), s, others, order) for s, others, order in _screenings(n, seeds)]
        drawn = []
        generator = np.random.default_rng(1)
        for chosen, by in zip(resamples.points, resamples.seeds, strict=True):
            others = by[by != by[0]]
            drawn.append(_pruned(runs, plan, chosen, by[0], others, generator.permutation(n)).lost)
        mean = [float(np.mean([getattr(one, field.name) for one in sample])) for field in fields(Pruned)]
        work, survivors, kept, lost = mean
        study = (work + survivors * (SEEDS - 1)) / SEEDS
        rows.append((str(plan), work, survivors, study, kept, Estimate.of(lost, np.array(drawn))))
    chosen = [_chosen_by_one(runs, s) for s in range(seeds)]
    return Table(
        f"{runs.name}: what pruning saves and loses",
        ("plan", "work, screening", "survivors", f"work, {SEEDS} seeds", "best point kept", "lost, points"),
        tuple(rows),
        f"One seed screens, by Optuna's asynchronous rule, {_ORDERS} orders of the {n} points; the others say what the "
        "points are worth. Work: epochs, as a share of all points in full. Lost: how far the best survivor lies below "
        "the best point. A rung at the last epoch saves other seeds alone. For comparison: the point that one whole "
        f"run alone would choose, without any pruning, lies {np.mean(chosen):.2f} points below the best.",
    )


def _screenings(n: int, seeds: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(the seed that screens, the others, the order of the points)."""
    generator = np.random.default_rng(0)
    every = np.arange(seeds)
    return [(s, every[every != s], generator.permutation(n)) for s in range(seeds) for _ in range(_ORDERS)]


def _pruned(runs: Runs, plan: Plan, chosen: np.ndarray, seed: int, others: np.ndarray, order: np.ndarray) -> Pruned:
    if plan.short:
        values = np.stack([runs.values[e][chosen, seed, -1] for e in plan.looks], axis=1)
    else:
        values = np.stack([runs.rung(e)[chosen, seed] for e in plan.looks], axis=1)
    costs = [e / runs.epochs for e in plan.looks]
    whole = 1.0 + (sum(costs) if plan.short else 0.0)
    return pruned(values, costs, whole, runs.end[chosen][:, others].mean(1), plan.factor, order.tolist())


def _chosen_by_one(runs: Runs, seed: int) -> float:
    truth = np.delete(runs.end, seed, axis=1).mean(1)
    return float(truth.max() - truth[runs.end[:, seed].argmax()])


def draw(runs: Runs, file: Path) -> None:
    """The correlation with another seed's whole run against the epoch, as FILE.svg and FILE.png."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    n, seeds = runs.end.shape
    resamples = Resamples.draw(n, seeds, 400)

    def of(cheap: np.ndarray, same_seed: bool = False) -> Estimate:
        return Estimate.of(*agreement(cheap, runs.end, spearman, resamples, same_seed=same_seed))

    epochs = range(1, runs.epochs + 1)
    rungs, same = [of(runs.rung(e)) for e in epochs], [of(runs.rung(e), same_seed=True).value for e in epochs]
    short = [of(runs.values[e][..., -1]) for e in runs.short]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(epochs, same, color="#999999", lw=1, label="rung, against the same run's end")
    axes.plot(epochs, [r.value for r in rungs], color="#0072B2", label="rung, against another seed's end")
    axes.fill_between(epochs, [r.low for r in rungs], [r.high for r in rungs], color="#0072B2", alpha=0.15, lw=0)
    if short:
        bars = np.array([[r.value - r.low for r in short], [r.high - r.value for r in short]])
        label = "short schedule, against another seed's end"
        values = [r.value for r in short]
        axes.errorbar(runs.short, values, yerr=bars, fmt="o", color="#D55E00", capsize=3, label=label)
    axes.axhline(rungs[-1].value, color="black", lw=0.8, ls="--", label="limit: a whole run against another seed's")
    for drop in runs.drops:
        line = axes.axvline(drop - 0.5, color="black", lw=0.8, ls=":")
    if runs.drops:
        line.set_label("the learning rate drops")
    axes.set(xlabel="epochs trained", ylabel="Spearman's rho", xlim=(0, runs.epochs + 1), ylim=(-0.5, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{runs.name}: {n} points, {seeds} seeds, 95 % intervals", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    for ending in ("svg", "png"):
        figure.savefig(file.with_suffix(f".{ending}"), dpi=110, metadata={"Date": None} if ending == "svg" else None)
    plt.close(figure)
