"""Accuracy by epoch."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import INK, LOCA, LOOKS, MUTED, Drawing, render
from analysis.points import BASELINE, SYMBOLS, Point, distinguishing, number
from analysis.scores import TOP1

MAX_PANELS = 18


def learning_curves(found: Sequence[Point], history: pd.DataFrame, name: str) -> Drawing | None:
    """Accuracy by epoch: one panel a point, mean over seeds, last and best epoch told apart; None without epochs.

    Args:
        found: the points of one pair.
        history: as `load_history` returns it.
        name: file name without ending.
    """
    shown = [each for each in found if each.last.n]
    mine = history[history["run_id"].isin([run for each in shown for run in each.run_ids])]
    score = shown[0].score if shown else TOP1
    parts = [part for part in ("test", "val") if score.column(part) in mine and mine[score.column(part)].notna().any()]
    if not parts:
        return None
    measure = score.column(parts[0])
    if mine.loc[mine[measure].notna(), "epoch"].nunique() == 1 < mine["epoch"].max():
        return None  # scored after the last epoch alone: there is no curve
    if len(shown) > MAX_PANELS:
        baselines = [each for each in shown if math.isnan(each.alpha)]
        others = sorted((each for each in shown if not math.isnan(each.alpha)), key=lambda each: -each.last.mean)
        keep = [*baselines, *others][:MAX_PANELS]
        shown = [each for each in shown if each in keep]
    curves = {id(each): _curve_of(mine[mine["run_id"].isin(each.run_ids)], measure) for each in shown}
    shown = [each for each in shown if len(curves[id(each)])]
    reference = next((each for each in shown if each.method == BASELINE), None)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    apart = distinguishing(shown)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        # Most of a curve's range is its first epochs; the question is about its end.
        late = mine[mine["epoch"] > mine["epoch"].max() * 0.1]
        low, high = late[measure].quantile(0.02), mine[measure].max()
        grid.flat[0].set_ylim(low - 0.06 * (high - low) - 0.2, high + 0.1 * (high - low) + 0.2)
        for axes, each in zip(grid.flat, shown, strict=False):
            colour = LOOKS.get(each.method, (LOCA, "-", "o"))[0]
            if reference is not None and each is not reference:
                other = curves[id(reference)]
                axes.plot(other["epoch"], other["mean"], color="#9a9a9a", linewidth=1, linestyle=(0, (3, 1.5)))
            curve = curves[id(each)]
            axes.fill_between(curve["epoch"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
            axes.plot(curve["epoch"], curve["mean"], color=colour, linewidth=1.3)
            _mark_last_and_best(axes, each, mine, measure, colour)
            words = [
                f"{SYMBOLS.get(key, key)} {number(each.parameters[key])}" for key in apart if key in each.parameters
            ]
            axes.set_title(each.label, loc="left", fontweight="bold", fontsize=8.5, pad=15 if apart else 5)
            axes.text(0, 1.03, ", ".join(words), transform=axes.transAxes, fontsize=7, color=MUTED)
        for axes in list(grid.flat)[len(shown) :]:
            axes.remove()
        for axes in list(grid.flat)[max(0, len(shown) - columns) : len(shown)]:
            axes.tick_params(labelbottom=True)
        grid.flat[0].xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        if mine["epoch"].max() == 1:
            grid.flat[0].set_xlim(0.5, 1.5)
            grid.flat[0].set_xticks([1])
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(score.axis("test" if parts[0] == "test" else "validation"), fontsize=9)

    left_out = sum(1 for each in found if each.last.n) - len(shown)
    caption = (
        f"{score.called[0].upper()}{score.called[1:]} by epoch: mean over seeds, band ± 1 SD"
        + (f", dashed grey {BASELINE} for reference" if reference is not None else "")
        + ". The filled circle is the last epoch, the number that this report compares; the hollow triangle is the "
        "best test epoch (mean over seeds of height and of place), kept beside it because other papers report it."
        + (f" {left_out} points with lower {score.called} are not drawn." if left_out else "")
    )
    alt = f"Learning curves of {len(shown)} points over {int(mine['epoch'].max())} epochs."
    return render(name, caption, alt, (7.6, (1.8 if apart else 1.62) * rows + 0.55), draw)


def _curve_of(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean and mean ± SD by epoch; without a second seed the band has no width."""
    grouped = rows.dropna(subset=[measure]).groupby("epoch")[measure].agg(["mean", "std"]).fillna({"std": 0.0})
    curve = grouped.reset_index()
    return curve.assign(low=curve["mean"] - curve["std"], high=curve["mean"] + curve["std"])


def _mark_last_and_best(axes: Axes, point: Point, mine: pd.DataFrame, measure: str, colour: str) -> None:
    own = mine[mine["run_id"].isin(point.run_ids)].dropna(subset=[measure])
    last = own.sort_values("epoch").groupby("run_id").tail(1)
    best = own.loc[own.groupby("run_id")[measure].idxmax()]
    axes.plot(
        [best["epoch"].mean()], [best[measure].mean()],
        "^", color=colour, markerfacecolor="white", markersize=5.5, zorder=4, clip_on=False,
    )  # fmt: skip
    axes.plot(
        [last["epoch"].mean()], [last[measure].mean()], "o", color=colour, markersize=4.5, zorder=5, clip_on=False
    )
    low, high = axes.get_ylim()
    top = last[measure].mean() < (low + high) / 2  # where the curve is not
    axes.text(
        0.97, 0.95 if top else 0.05, f"last {last[measure].mean():.1f}  best {best[measure].mean():.1f}",
        transform=axes.transAxes, ha="right", va="top" if top else "bottom", fontsize=7.5, color=INK,
    )  # fmt: skip
