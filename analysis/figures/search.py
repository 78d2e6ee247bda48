"""What a search tried, what it found to matter, and what its pruner saved."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import INK, LOCA, MUTED, Drawing, render
from analysis.frames import PARAMETERS
from analysis.points import SYMBOLS
from analysis.scores import TOP1, Score
from analysis.tables import PARTS

PRUNED = "#D55E00"
ENOUGH = 10  # finished points below which nothing is said of importance
SHUFFLES = 100


def search_history(tried: pd.DataFrame, pair: str, name: str, part: str, score: Score = TOP1) -> Drawing | None:
    """Value of each of a pair's searched points in the order of its start, and the best so far; None without values.

    Args:
        tried: one row a point: order, value (percent, nan where it has none), state (DONE, PRUNED, FAILED).
        pair: the pair that was searched.
        name: file name without ending.
        part: what the values were measured on, "validation" or "test".
    """
    valued = tried[tried["value"].notna()]
    if valued.empty:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        done = valued[valued["state"] == "DONE"]
        pruned = valued[valued["state"] == "PRUNED"]
        axes.plot(done["order"], done["value"], "o", color=LOCA, markersize=5, label="finished")
        axes.plot(pruned["order"], pruned["value"], "x", color=PRUNED, markersize=5, label="pruned (value at the stop)")
        if len(done):
            best = done.set_index("order")["value"].cummax().reindex(tried["order"]).ffill()
            axes.step(best.index, best, where="post", color=INK, linewidth=1.1, label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("point, in the order of starting")
        axes.set_ylabel(score.axis(part, ", last epoch"))
        axes.legend(loc="best")

    caption = (
        f"The search for {pair}: {part} {score.called} of each point that was tried, mean over its seeds. These "
        "values chose the points: the best of them reads high."
    )
    best_of_all = valued.loc[valued["state"] == "DONE", "value"].max()
    found = (
        f"best {part} {score.called} {best_of_all:.2f}{score.unit}" if not math.isnan(best_of_all) else "none finished"
    )
    alt = f"Search history of {pair}: {len(tried)} points; {found}."
    return render(name, caption, alt, (7.6, 3.0), draw)


def screening_curves(history: pd.DataFrame, pair: str, name: str, part: str, score: Score = TOP1) -> Drawing | None:
    """Accuracy by epoch of the runs that a pruner judged, the stopped ones told apart; None where none was stopped.

    Args:
        history: as `load_history` returns it, of one study.
        pair: the pair that was searched.
        name: file name without ending.
        part: what points are valued on, "val" or "test".
    """
    mine = history[(history["pair"] == pair) & (history["stage"] == "search") & history["screening"]]
    mine = mine.dropna(subset=[score.column(part)])
    states = mine.groupby("run_id")["state"].first()
    stopped = states[states == "PRUNED"].index
    if stopped.empty:
        return None
    ends = mine[mine["run_id"].isin(stopped)].groupby("run_id")["epoch"].max()
    whole = int(mine.loc[mine["state"] == "DONE", "epoch"].max()) if (states == "DONE").any() else int(ends.max())
    trained = int(mine.groupby("run_id")["epoch"].max().sum())
    saved = int((whole - ends).clip(lower=0).sum())

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for run_id, rows in mine.groupby("run_id"):
            was_stopped = run_id in stopped
            axes.plot(
                rows["epoch"], rows[score.column(part)],
                color=PRUNED if was_stopped else LOCA, linewidth=0.9, alpha=0.75,
                linestyle=(0, (4, 1.5)) if was_stopped else "-",
                marker="x" if was_stopped else None, markevery=[len(rows) - 1], markersize=5,
            )  # fmt: skip
        for epoch in sorted(set(ends)):
            axes.axvline(epoch, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
        axes.plot([], [], color=LOCA, linewidth=1, label="went on")
        axes.plot([], [], color=PRUNED, linewidth=1, linestyle=(0, (4, 1.5)), marker="x", label="stopped")
        low = mine.loc[mine["epoch"] > 0.1 * mine["epoch"].max(), score.column(part)].quantile(0.02)
        high = mine[score.column(part)].max()
        axes.set_ylim(low - 0.1 * (high - low) - 0.2, high + 0.1 * (high - low) + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(score.axis(PARTS[part]))
        axes.legend(loc="lower right")

    caption = (
        f"What the pruner saw of {pair}: {PARTS[part]} {score.called} of each point's first seed, and the epochs at "
        f"which it decided (dotted). It stopped {len(stopped)} of {len(states)} points, which trained {trained:,} "
        f"epochs "
        f"instead of {trained + saved:,}: {100 * saved / (trained + saved):.0f} % of the screening was saved."
    )
    alt = f"Screening curves of {pair}: {len(stopped)} of {len(states)} points were stopped early."
    return render(name, caption, alt, (7.6, 3.0), draw)


def importance(tried: pd.DataFrame, pair: str, name: str) -> Drawing | None:
    """Importance of each parameter for being among the best points (PED-ANOVA); None with too few finished points.

    Watanabe, Bansal and Hutter 2023 (arXiv 2304.10255), as Optuna has it: how far the distribution of a parameter among
    the best points is from that among all. Beside each bar stands what the same method finds where the values are dealt
    out to the points by chance (95th percentile of 100 deals): a bar within that says nothing.

    Args:
        tried: one row a point of one method: parameters, value, state.
        pair: the pair that was searched.
        name: file name without ending.
    """
    done, names = _finished(tried)
    if len(done) < ENOUGH or len(names) < 2:
        return None
    quantile = min(0.5, max(0.1, 5 / len(done)))
    values = done["value"].to_numpy()
    found = _ped_anova(done[names], values, quantile)
    rng = np.random.default_rng(0)
    by_chance = [_ped_anova(done[names], rng.permutation(values), quantile) for _ in range(SHUFFLES)]
    limits = {key: float(np.quantile([each[key] for each in by_chance], 0.95)) for key in names}
    order = sorted(names, key=lambda key: -found[key])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, key in enumerate(order):
            clear = found[key] > limits[key]
            axes.barh(
                row,
                found[key],
                height=0.55,
                color=LOCA if clear else "white",
                edgecolor=LOCA,
                hatch=None if clear else "//",
            )
            axes.plot([limits[key]] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.4)
            told = f" {found[key]:.2f}" + ("" if clear else ", within chance")
            axes.text(max(found[key], limits[key]), row, told, va="center", fontsize=8, color=INK)
        axes.plot([], [], color=INK, linewidth=1.4, label="95 % of what chance gives")
        axes.set_yticks(range(len(order)), [SYMBOLS[key] for key in order])
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0, 1.25 * max([*found.values(), *limits.values(), 0.1]))
        axes.tick_params(left=False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of importance")
        axes.legend(loc="lower right")

    best = max(1, round(quantile * len(done)))
    caption = (
        f"How much each parameter matters for being among the best {best} of the {len(done)} finished points of {pair} "
        "(PED-ANOVA). It looks at one parameter at a time, so it cannot see that two matter only together; it sees "
        "where good points lie, not how much is gained there; a sampler that went on where it was good makes what it "
        "kept fixed look unimportant; and points that a pruner stopped are not in it."
    )
    alt = "Importance: " + ", ".join(
        f"{key} {found[key]:.2f}{'' if found[key] > limits[key] else ' (within chance)'}" for key in order
    )
    return render(name, caption, f"{alt}.", (7.6, 1.3 + 0.42 * len(order)), draw)


def _finished(tried: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The points that ended with a value, and the parameters that differ among them."""
    done = tried[(tried["state"] == "DONE") & tried["value"].notna()]
    return done, [key for key in PARAMETERS if done[key].nunique() > 1]


def _ped_anova(parameters: pd.DataFrame, values: np.ndarray, quantile: float) -> dict[str, float]:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {key: FloatDistribution(float(column.min()), float(column.max())) for key, column in parameters.items()}
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=row, distributions=spaces, value=float(value))
            for row, value in zip(parameters.to_dict("records"), values, strict=True)
        ]
    )
    shares = optuna.importance.get_param_importances(
        study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile, evaluate_on_local=False), normalize=True
    )
    return {str(key): float(shares.get(str(key), 0.0)) for key in parameters.columns}


def contours(tried: pd.DataFrame, pair: str, name: str, part: str, score: Score = TOP1) -> Drawing | None:
    """Slices through the points by each parameter, and their values over alpha and tau, alpha and beta.

    None where a single parameter was searched, which the alpha curve shows already, or with fewer than four points.

    Args:
        tried: one row a point of one method: parameters, value, state.
        pair: the pair that was searched.
        name: file name without ending.
        part: what the values were measured on, "validation" or "test".
    """
    done, names = _finished(tried)
    if len(names) < 2 or len(done) < 4:
        return None
    wanted = [("alpha", "tau"), ("alpha", "beta"), ("alpha", "gamma")]
    planes = [plane for plane in wanted if set(plane) <= set(names)] or list(combinations(names, 2))[:2]
    low, high = float(done["value"].quantile(0.1)), float(done["value"].max())
    best = done.sort_values("value").iloc[-1]

    def draw(figure: Figure) -> None:
        columns = max(len(names), len(planes))
        grid = figure.add_gridspec(2, columns, height_ratios=[1, 1.25])
        for place, key in enumerate(names):
            axes = figure.add_subplot(grid[0, place])
            axes.plot(done[key], done["value"], "o", color=LOCA, markersize=3.5, alpha=0.75)
            axes.plot([best[key]], [best["value"]], "*", color=INK, markersize=9)
            axes.set_xlabel(SYMBOLS[key])
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            if place == 0:
                axes.set_ylabel(score.axis(part))
            else:
                axes.tick_params(labelleft=False)
        shades = None
        panels = []
        for place, (x, y) in enumerate(planes):
            axes = figure.add_subplot(grid[1, place])
            panels.append(axes)
            if _spread(done, x, y):
                axes.tricontourf(done[x], done[y], done["value"].clip(low, high), levels=8, cmap="cividis", alpha=0.45)
            shades = axes.scatter(
                done[x], done[y], c=done["value"], cmap="cividis", vmin=low, vmax=high, s=26, edgecolors=INK,
                linewidths=0.5, zorder=3,
            )  # fmt: skip
            axes.plot([best[x]], [best[y]], "*", color="white", markeredgecolor=INK, markersize=12, zorder=4)
            axes.set_xlabel(SYMBOLS[x])
            axes.set_ylabel(SYMBOLS[y])
            axes.grid(visible=False)
            axes.margins(0.07)
        if shades is not None:
            figure.colorbar(shades, ax=panels, label=score.axis(part), shrink=0.9, extend="min")

    caption = (
        f"The searched points of {pair}: {part} {score.called} against each parameter, and over pairs of parameters "
        f"(shades "
        "are interpolated between the points and guide the eye only; values in the lowest tenth share a shade). The "
        "star is the best point, which reads high for being picked."
    )
    shown = ", ".join(f"{key} {float(best[key]):.3g}" for key in names)
    return render(name, caption, f"Slices and contours of {pair}; best at {shown}.", (7.6, 4.6), draw)


def _spread(done: pd.DataFrame, x: str, y: str) -> bool:
    """Whether points span a plane: a triangulation needs three that are on no line."""
    centred = done[[x, y]].drop_duplicates().to_numpy(dtype=float)
    return len(centred) >= 4 and np.linalg.matrix_rank(centred - centred.mean(axis=0)) == 2
