"""What an accuracy costs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.style import INK, LOCA, LOOKS, MUTED, Drawing, halo, render
from analysis.points import Point


def cost_curve(found: Sequence[Point], runs: pd.DataFrame, name: str) -> Drawing | None:
    """Accuracy against device time of a run, with the points that nothing beats in both; None without times.

    Args:
        found: the points of one pair.
        runs: as `load_runs` returns it.
        name: file name without ending.
    """
    seconds = runs.set_index("run_id")["device_seconds"]
    seconds = seconds[~seconds.index.duplicated()]
    costs: Mapping[int, float] = {
        index: float(seconds.reindex(list(each.run_ids)).mean()) for index, each in enumerate(found) if each.last.n
    }
    shown = [(found[index], cost) for index, cost in costs.items() if cost > 0 and not math.isnan(cost)]
    if len(shown) < 2:
        return None
    front = pareto([(cost, each.last.mean) for each, cost in shown])
    devices = sorted(
        set(runs.loc[runs["run_id"].isin([r for each, _ in shown for r in each.run_ids]), "device"]) - {""}
    )

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for each, cost in shown:
            colour, _, marker = LOOKS.get(each.method, (LOCA, "-", "o"))
            if each.last.low is not None and each.last.high is not None:
                axes.vlines(cost, each.last.low, each.last.high, color=colour, linewidth=1, alpha=0.45)
            axes.plot([cost], [each.last.mean], marker, color=colour, markersize=6, zorder=3)
        path = sorted((shown[index][1], shown[index][0].last.mean) for index in front)
        axes.step([x for x, _ in path], [y for _, y in path], where="post", color=INK, linewidth=1, zorder=2)
        for index in front:
            each, cost = shown[index]
            axes.annotate(
                each.label, (cost, each.last.mean), (5, 4), textcoords="offset points", fontsize=7.5, color=INK,
                path_effects=halo(), zorder=6,
            )  # fmt: skip
        values = [each.last.mean for each, _ in shown]
        room = max(0.35 * float(np.ptp(values)), 0.3)
        axes.set_ylim(min(values) - room, max(values) + room)
        axes.set_xlabel("device time of a run (s)")
        axes.set_ylabel(shown[0][0].score.axis("test", ", last epoch"))
        if max(cost for _, cost in shown) > 4 * min(cost for _, cost in shown):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(colors=MUTED, labelcolor=INK)

    best = ", ".join(shown[index][0].label for index in front)
    caption = (
        "Accuracy against the device time of a run, means over seeds, bars are 95 % intervals of the accuracy. The "
        "line joins the points that no other beats in both; differences of time within a few percent are chance."
        + (
            f" The runs were on {len(devices)} devices ({', '.join(devices)}), so times are not all alike."
            if len(devices) > 1
            else ""
        )
    )
    return render(
        name, caption, f"Cost against accuracy of {len(shown)} points; on the front: {best}.", (7.6, 3.2), draw
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) points that no other beats: none is as cheap and better, or cheaper and as good."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front, best = [], -math.inf
    for index in order:
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front
