"""Accuracy against alpha: the paper's Figure 5."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import CURVES, INK, MUTED, Drawing, cycle, halo, jitter, looks_of, render, signed
from analysis.papers import Published
from analysis.points import SYMBOLS, Point, distinguishing, number
from analysis.statistics import Estimate


class AlphaScale:
    """asinh((1 - alpha) / width), mirrored: near the tie alpha = 1 linear, away from it logarithmic on either side.

    alpha runs from left to right and 0.5, 0.95, 0.995, 1 and 1.05 are all apart. `width` is the smallest margin
    |1 - alpha| that is drawn, so that points beside the tie stay readable.
    """

    def __init__(self, alphas: Sequence[float]) -> None:
        margins = [abs(1 - alpha) for alpha in alphas if not math.isclose(alpha, 1, abs_tol=1e-12)]
        self.width = min(max(min(margins, default=0.01), 1e-4), 0.05)

    def forward(self, alpha: Any) -> Any:
        """Position of alpha."""
        return -np.arcsinh((1 - np.asarray(alpha, dtype=float)) / self.width)


def alpha_curve(
    found: Sequence[Point], num_classes: int, name: str, printed: Sequence[tuple[float, Published]] = ()
) -> Drawing | None:
    """Accuracy against alpha for one pair, baselines beside it; None where no point has an alpha.

    Args:
        found: the points of one pair.
        num_classes: C, for the second axis (1 - alpha) * C and the bound C / (C - 1).
        name: file name without ending.
        printed: published (alpha, accuracy) points, empty unless the protocol is theirs.
    """
    swept = [each for each in found if not math.isnan(each.alpha) and each.last.n]
    baselines = [each for each in found if math.isnan(each.alpha) and each.last.n]
    if not swept:
        return None
    alphas = sorted({each.alpha for each in swept} | {alpha for alpha, _ in printed})
    scale = AlphaScale(alphas)
    score = swept[0].score
    bound = num_classes / (num_classes - 1)
    shown_bound = f"{bound:.5g}" if num_classes < 10_000 else f"{bound:.8g}"
    looks = looks_of([each.method for each in baselines])
    curves = _curves(swept)
    limits = _limits([*swept, *baselines], [each.value for _, each in printed])

    def draw(figure: Figure) -> None:
        if baselines:
            grid = figure.add_gridspec(1, 2, width_ratios=[5.2, 0.3 * len(baselines) + 0.4], wspace=0.03)
            axes = figure.add_subplot(grid[0])
            side = figure.add_subplot(grid[1], sharey=axes)
            axes.set_ylim(limits)
            _draw_baselines(axes, side, baselines, looks)
        else:
            axes = figure.add_subplot()
            axes.set_ylim(limits)
        positions = scale.forward(alphas)
        left, right = min(float(positions[0]), 0.0), max(float(positions[-1]), 0.0)  # the tie is always in sight
        pad = max(0.06 * (right - left), 0.2)
        left, right = left - pad, right + pad * (2.4 if baselines else 1)
        if alphas[-1] > bound:
            edge = float(scale.forward(bound))
            axes.axvspan(edge, right, facecolor="#faf3e6", hatch="///", edgecolor="#e6d3ae", linewidth=0, zorder=0.1)
            axes.axvline(edge, color="#a57c2c", linewidth=1, zorder=0.2)
            axes.text(
                edge, 0.02, f" beyond C/(C−1) = {shown_bound}: may be capped", transform=axes.get_xaxis_transform(),
                fontsize=7, color="#7a5a1e", rotation=90, ha="left", va="bottom", zorder=6, path_effects=halo(),
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        axes.text(
            0, 0.985, " tie, α = 1", transform=axes.get_xaxis_transform(),
            fontsize=7.5, color=INK, va="top", zorder=6, path_effects=halo(),
        )  # fmt: skip
        for (title, members), (colour, line, marker) in zip(curves, cycle(len(curves)), strict=True):
            _draw_curve(axes, scale, members, title, colour, line, marker, (right - left) / 100)
        if printed:
            axes.plot(
                scale.forward([alpha for alpha, _ in printed]), [each.value for _, each in printed],
                linestyle="none", marker="*", markersize=11, markerfacecolor="white", markeredgecolor="#D55E00",
                label="published", zorder=5,
            )  # fmt: skip
        axes.set_xlim(left, right)
        _label_baselines(axes, baselines, looks, right)
        axes.set_xticks(positions, [number(alpha) for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlabel("α  (placed by asinh of the margin 1 − α, so that values near the tie stay apart)")
        axes.set_ylabel(score.axis("test", ", last epoch"))
        axes.grid(axis="x", visible=False)
        top = axes.secondary_xaxis("top")
        top.set_xticks(positions, [signed((1 - alpha) * num_classes) for alpha in alphas])
        top.set_xlabel(f"(1 − α) · C, with C = {num_classes:,}", color=MUTED)
        top.tick_params(labelcolor=MUTED)
        _thin_labels(axes, top, positions, left, right)
        if len(curves) > 1 or printed:
            axes.legend(loc="best")

    ns = sorted({each.last.n for each in [*swept, *baselines]})
    seeds = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
    caption = (
        f"Test {score.name} of the last epoch against α ({seeds} seeds a point). Each small dot is one seed, the "
        f"larger "
        "marker their mean, the bar the 95 % interval of the mean"
        + (" (one seed gives no interval)" if ns[0] == 1 else "")
        + (", an arrow where the interval goes on" if _beyond([*swept, *baselines], limits) else "")
        + "; lines and bands are the baselines' means and 95 % intervals, shown again with their seeds at the right. "
    )
    if max(alphas) < bound:
        caption += (
            f"Every α here lies below C/(C−1) = {shown_bound}, where no {score.shown[:-1]} can leave the simplex."
        )
    else:
        caption += f"Beyond C/(C−1) = {shown_bound} (shaded) {score.shown} may leave the simplex and are capped."
    best = max(swept, key=lambda each: each.last.mean)
    alt = (
        f"{score.called[0].upper()}{score.called[1:]} against alpha from {number(alphas[0])} to {number(alphas[-1])}; "
        f"highest mean {best.last.mean:.2f}{score.unit} at alpha {number(best.alpha)}."
    )
    return render(name, caption, alt, (7.6, 4.5), draw)


def _curves(swept: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Points that differ in alpha alone, as one curve each; titles name what sets the curves apart."""
    apart = distinguishing(swept)
    grouped: dict[str, list[Point]] = {}
    for each in swept:
        words = [f"{SYMBOLS.get(key, key)} {number(each.parameters[key])}" for key in apart if key in each.parameters]
        grouped.setdefault(", ".join([each.method, *words]), []).append(each)
    if len(grouped) > len(CURVES):
        return [(f"{len(grouped)} settings of {', '.join(apart) or 'method'}", list(swept))]
    return list(grouped.items())


def _limits(drawn: Sequence[Point], others: Sequence[float]) -> tuple[float, float]:
    """Room for every seed; an interval of two seeds may be 13 SD wide, and is cut where it would flatten the rest."""
    values = [value for each in drawn for value in each.by_seed.values()] + list(others)
    low, high = min(values), max(values)
    room = max(0.3 * (high - low), 0.2)
    bottoms = [each.last.low for each in drawn if each.last.low is not None]
    tops = [each.last.high for each in drawn if each.last.high is not None]
    bottom = max(min([*bottoms, low]), low - room)
    top = min(max([*tops, high]), high + room)
    bottom, top = max(bottom, 0.0), min(top, 100.0)
    span = max(top - bottom, 0.2)
    return bottom - 0.05 * span, top + 0.08 * span


def _beyond(drawn: Sequence[Point], limits: tuple[float, float]) -> bool:
    intervals = [(each.last.low, each.last.high) for each in drawn]
    return any(
        low is not None and high is not None and (low < limits[0] or high > limits[1]) for low, high in intervals
    )


def _bar(axes: Axes, x: float, around: Estimate, colour: str, marker: str) -> None:
    """A mean with its interval, an arrow where that is cut; a hollow marker where one seed gives none."""
    if around.low is not None and around.high is not None:
        axes.vlines(x, around.low, around.high, color=colour, linewidth=1.4, zorder=3)
        bottom, top = axes.get_ylim()
        for beyond, edge, arrow in ((around.low < bottom, bottom, "v"), (around.high > top, top, "^")):
            if beyond:
                axes.plot([x], [edge], arrow, color=colour, markersize=5, clip_on=False, zorder=4)
    face = colour if around.low is not None else "white"
    rim = "white" if around.low is not None else colour
    axes.plot(
        [x], [around.mean], marker, color=colour, markersize=7, markerfacecolor=face, markeredgecolor=rim,
        markeredgewidth=0.8, zorder=4,
    )  # fmt: skip


def _dots(axes: Axes, x: float, by_seed: Mapping[int, float], colour: str, width: float) -> None:
    """One dot a seed, from left to right in the order of the seeds, so that pairs can be followed."""
    values = [by_seed[seed] for seed in sorted(by_seed)]
    axes.plot(
        x + jitter(len(values), width), values,
        "o", color=colour, markersize=3.4, alpha=0.7, markeredgecolor="white", markeredgewidth=0.4, zorder=3.8,
    )  # fmt: skip


def _label_baselines(
    axes: Axes, baselines: Sequence[Point], looks: Mapping[str, tuple[str, Any, str]], right: float
) -> None:
    """Names at the right end of the baselines' lines, pushed apart where lines are close."""
    bottom, top = axes.get_ylim()
    gap = 0.042 * (top - bottom)
    floor = bottom
    for each in sorted(baselines, key=lambda each: each.last.mean):
        height = max(each.last.mean + 0.15 * gap, floor)
        axes.text(
            right, height, _baseline_label(each, baselines) + " ",
            fontsize=7.5, color=looks[each.method][0], ha="right", va="bottom", zorder=6, path_effects=halo(),
        )  # fmt: skip
        floor = height + gap


def _draw_curve(
    axes: Axes,
    scale: AlphaScale,
    members: Sequence[Point],
    title: str,
    colour: str,
    line: Any,
    marker: str,
    step: float,
) -> None:
    """One curve; `step`, a hundredth of the axis, sets the seeds' dots apart from their mean."""
    ordered = sorted(members, key=lambda each: each.alpha)
    positions = scale.forward([each.alpha for each in ordered])
    repeated = len({each.alpha for each in ordered}) < len(ordered)
    axes.plot(
        positions, [each.last.mean for each in ordered],
        color=colour, linestyle="none" if repeated else line, marker=marker, markersize=7, label=title, zorder=3.5,
    )  # fmt: skip
    for x, each in zip(positions, ordered, strict=True):
        _bar(axes, float(x), each.last, colour, marker)
        _dots(axes, float(x) + 1.7 * step, each.by_seed, colour, 0.6 * step)


def _draw_baselines(
    axes: Axes, side: Axes, baselines: Sequence[Point], looks: Mapping[str, tuple[str, Any, str]]
) -> None:
    for position, each in enumerate(baselines):
        colour, line, marker = looks[each.method]
        for panel in (axes, side):
            if each.last.low is not None and each.last.high is not None:
                panel.axhspan(each.last.low, each.last.high, color=colour, alpha=0.09, linewidth=0, zorder=0.5)
            panel.axhline(each.last.mean, color=colour, linestyle=line, linewidth=1.2, zorder=1)
        _dots(side, position + 0.3, each.by_seed, colour, 0.08)
        _bar(side, position, each.last, colour, marker)
    side.set_xlim(-0.6, len(baselines) - 0.4)
    side.set_xticks(
        range(len(baselines)), [_baseline_label(each, baselines) for each in baselines], rotation=45, ha="right"
    )
    side.set_xlabel("baselines")
    side.grid(axis="x", visible=False)
    side.tick_params(labelleft=False, left=False)
    side.spines["left"].set_visible(False)


def _baseline_label(point: Point, others: Sequence[Point]) -> str:
    twins = [each for each in others if each.method == point.method]
    words = [number(point.parameters[name]) for name in distinguishing(twins) if name in point.parameters]
    return " ".join([point.method, *words])


def _thin_labels(axes: Axes, top: Any, positions: np.ndarray, left: float, right: float) -> None:
    """Blank the labels of ticks that would touch the one before; the tie keeps its own."""
    room = 0.048 * (right - left)
    kept: list[float] = []
    order = sorted(range(len(positions)), key=lambda i: (abs(positions[i]) > 1e-9, i))
    for i in order:
        if all(abs(positions[i] - other) >= room for other in kept):
            kept.append(float(positions[i]))
    for axis in (axes, top):
        labels = [label.get_text() for label in axis.get_xticklabels()]
        axis.set_xticks(
            positions, [text if float(x) in kept else "" for text, x in zip(labels, positions, strict=True)]
        )


def margin_curves(found: Sequence[Point], classes: Mapping[str, int], name: str) -> Drawing | None:
    """Gain over the baseline against (1 - alpha) * C, all pairs on one axis; None with fewer than two pairs.

    The margin times the number of classes is how far alpha lies from the tie in units of an even share, which makes
    data sets of different sizes comparable: the bound C / (C - 1) lies at -C / (C - 1) for each, near -1.

    Args:
        found: points of several pairs.
        classes: C of each pair.
        name: file name without ending.
    """
    swept = [
        each for each in found if not math.isnan(each.alpha) and each.difference is not None and each.difference.n > 0
    ]
    # One method: the question is whether pairs agree.
    method = "loca" if any(each.method == "loca" for each in swept) else next((each.method for each in swept), "")
    swept = [each for each in swept if each.method == method]
    curves: dict[str, list[Point]] = {}
    for each in swept:
        curves.setdefault(each.pair, []).append(each)
    if len(curves) < 2:
        return None

    def margin(point: Point) -> float:
        return (1 - point.alpha) * classes[point.pair]

    width = max(min((abs(margin(each)) for each in swept if abs(margin(each)) > 1e-9), default=0.1), 0.05)

    def place(values: Any) -> Any:
        return -np.arcsinh(np.asarray(values, dtype=float) / width)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (title, members), (colour, line, marker) in zip(curves.items(), cycle(len(curves)), strict=True):
            ordered = sorted(members, key=margin, reverse=True)
            positions = place([margin(each) for each in ordered])
            gains = [each.difference.mean for each in ordered if each.difference is not None]
            repeated = len({each.alpha for each in ordered}) < len(ordered)
            axes.plot(
                positions, gains, color=colour, linestyle="none" if repeated else line, marker=marker, markersize=6,
                label=title, zorder=3,
            )  # fmt: skip
            for x, each in zip(positions, ordered, strict=True):
                gain = each.difference
                if gain is not None and gain.low is not None and gain.high is not None:
                    axes.vlines(float(x), gain.low, gain.high, color=colour, linewidth=1.1, alpha=0.55, zorder=2)
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.text(
            0, 0.985, " tie, α = 1", transform=axes.get_xaxis_transform(), fontsize=7.5, color=INK, va="top",
            zorder=6, path_effects=halo(),
        )  # fmt: skip
        gains = [each.difference.mean for each in swept if each.difference is not None]
        room = max(0.6 * (max(gains) - min(gains)), 0.3)
        axes.set_ylim(min(*gains, 0.0) - room, max(*gains, 0.0) + room)
        ticks = sorted({round(margin(each), 6) for each in swept} | {0.0}, reverse=True)
        kept: list[float] = []
        span = abs(float(place(ticks[-1]) - place(ticks[0]))) or 1.0
        for tick in sorted(ticks, key=abs):
            if all(abs(float(place(tick) - place(other))) > 0.055 * span for other in kept):
                kept.append(tick)
        axes.set_xticks([float(place(tick)) for tick in kept], [signed(tick) for tick in kept])
        axes.minorticks_off()
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("(1 − α) · C, by asinh: left of the tie the label wins, right of it the teacher's class")
        axes.set_ylabel(f"gain of {method} over its baseline (points)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7.5)

    best = max(swept, key=lambda each: each.difference.mean if each.difference is not None else -math.inf)
    caption = (
        "Gain over the baseline, paired by seed, against the margin in units of an even share, (1 − α) · C: one curve "
        "a pair, bars are 95 % intervals, cut where they would flatten the rest. Curves that agree here agree whatever "
        "their number of classes."
    )
    alt = (
        f"Gains of {len(curves)} pairs against (1 - alpha) times C; the largest, "
        f"{best.difference.mean if best.difference else 0:+.2f} points, at alpha {number(best.alpha)} of {best.pair}."
    )
    return render(name, caption, alt, (7.6, 3.6 + 0.12 * len(curves)), draw)
