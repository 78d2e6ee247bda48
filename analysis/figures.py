"""The report's figures: matplotlib on Agg, the same bytes for the same data, readable in grey.

Every series differs in marker or line style as well as in colour (Okabe and Ito's palette); text is set as paths so
that a figure looks alike everywhere.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.papers import Published
from analysis.points import BASELINE, SYMBOLS, Point, distinguishing, number, pairs
from analysis.statistics import Estimate

STYLE: Any = {
    "svg.hashsalt": "kdstudy",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "text.parse_math": False,  # a name with dollar signs is a name
}
INK = "#222222"
MUTED = "#6b6b6b"
LOCA = "#0072B2"
# colour, line style, marker: each tells the method apart on its own
LOOKS: dict[str, tuple[str, Any, str]] = {
    "kd": ("#111111", "-", "o"),
    "ce": ("#666666", (0, (1, 1.4)), "s"),
    "kd_drop": ("#D55E00", (0, (5, 2)), "^"),
    "kd_swap": ("#009E73", (0, (3, 1.5, 1, 1.5)), "D"),
    "kd_one_hot": ("#B0578D", (0, (7, 1.5, 1, 1.5, 1, 1.5)), "v"),
}
_OTHERS: tuple[tuple[str, Any, str], ...] = (
    ("#E69F00", (0, (2, 1)), "P"),
    ("#56B4E9", (0, (6, 3)), "X"),
    ("#8C6BB1", (0, (4, 1, 1, 1)), "h"),
)
_CURVES: tuple[tuple[str, Any, str], ...] = (
    (LOCA, "-", "o"),
    ("#D55E00", (0, (5, 2)), "s"),
    ("#009E73", (0, (1, 1.2)), "D"),
    ("#B0578D", (0, (4, 1.5, 1, 1.5)), "^"),
    ("#7a7a7a", (0, (8, 2)), "v"),
    ("#E69F00", (0, (2, 1)), "P"),
    ("#56B4E9", (0, (6, 1.5, 1, 1.5)), "X"),
)
MAX_PANELS = 18


@dataclass(frozen=True)
class Drawing:
    """One figure: file name without ending, a caption in plain words, what it shows to who cannot see it, its bytes."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes

    def inline(self) -> str:
        """The SVG as part of an HTML page: no prologue, ids that no other figure of the page uses."""
        text = self.svg.decode("utf-8")
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        prefix = re.sub(r"\W", "-", self.name) + "-"
        text = re.sub(r'\bid="', f'id="{prefix}', text)
        text = re.sub(r'href="#', f'href="#{prefix}', text)
        text = text.replace("url(#", f"url(#{prefix}")
        return re.sub(
            r'<svg ([^>]*?)width="[^"]*pt" ', r"<svg \1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1
        )


def _render(name: str, caption: str, alt: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Drawing:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.draw_without_rendering()  # lay out once, not once a format
        figure.set_layout_engine("none")
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Drawing(name, caption, alt, svg.getvalue(), png.getvalue())


def _looks(methods: Sequence[str]) -> dict[str, tuple[str, Any, str]]:
    """Colour, line style and marker of each method; methods without a look of their own take the spare ones in turn."""
    spare = [each for each in methods if each not in LOOKS]
    return {each: LOOKS.get(each) or _OTHERS[spare.index(each) % len(_OTHERS)] for each in methods}


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
    bound = num_classes / (num_classes - 1)
    looks = _looks([each.method for each in baselines])
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
                edge, 0.02, f" beyond C/(C−1) = {bound:.5g}: may be capped", transform=axes.get_xaxis_transform(),
                fontsize=7, color="#7a5a1e", rotation=90, ha="left", va="bottom", zorder=6, path_effects=_halo(),
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        axes.text(
            0, 0.985, " tie, α = 1", transform=axes.get_xaxis_transform(),
            fontsize=7.5, color=INK, va="top", zorder=6, path_effects=_halo(),
        )  # fmt: skip
        for (title, members), (colour, line, marker) in zip(curves, _cycle(len(curves)), strict=True):
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
        axes.set_ylabel("test top-1, last epoch (%)")
        axes.grid(axis="x", visible=False)
        top = axes.secondary_xaxis("top")
        top.set_xticks(positions, [_signed((1 - alpha) * num_classes) for alpha in alphas])
        top.set_xlabel(f"(1 − α) · C, with C = {num_classes}", color=MUTED)
        top.tick_params(labelcolor=MUTED)
        _thin_labels(axes, top, positions, left, right)
        if len(curves) > 1 or printed:
            axes.legend(loc="best")

    ns = sorted({each.last.n for each in [*swept, *baselines]})
    seeds = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
    caption = (
        f"Test top-1 of the last epoch against α ({seeds} seeds a point). Each small dot is one seed, the larger "
        "marker their mean, the bar the 95 % t interval of the mean"
        + (" (one seed gives no interval)" if ns[0] == 1 else "")
        + (", an arrow where the interval goes on" if _beyond([*swept, *baselines], limits) else "")
        + "; lines and bands are the baselines' means and 95 % intervals, shown again with their seeds at the right. "
    )
    if max(alphas) < bound:
        caption += f"Every α here lies below C/(C−1) = {bound:.5g}, where no view can leave the simplex."
    else:
        caption += f"Beyond C/(C−1) = {bound:.5g} (shaded) views may leave the simplex and are capped."
    best = max(swept, key=lambda each: each.last.mean)
    alt = (
        f"Accuracy against alpha from {number(alphas[0])} to {number(alphas[-1])}; "
        f"highest mean {best.last.mean:.2f} % at alpha {number(best.alpha)}."
    )
    return _render(name, caption, alt, (7.6, 4.5), draw)


def _cycle(n: int) -> list[tuple[str, Any, str]]:
    return [_CURVES[i % len(_CURVES)] for i in range(n)]


def _curves(swept: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Points that differ in alpha alone, as one curve each; titles name what sets the curves apart."""
    apart = distinguishing(swept)
    grouped: dict[str, list[Point]] = {}
    for each in swept:
        words = [f"{SYMBOLS.get(key, key)} {number(each.parameters[key])}" for key in apart if key in each.parameters]
        grouped.setdefault(", ".join([each.method, *words]), []).append(each)
    if len(grouped) > len(_CURVES):
        return [(f"{len(grouped)} settings of {', '.join(apart) or 'method'}", list(swept))]
    return list(grouped.items())


def _signed(value: float) -> str:
    return f"{round(value, 6):.3g}".replace("-", "−")


def _jitter(n: int, width: float) -> np.ndarray:
    return np.linspace(-width, width, n) if n > 1 else np.zeros(n)


def _halo() -> list[Any]:
    """A white rim, so that text stays readable on lines."""
    return [matplotlib.patheffects.withStroke(linewidth=2.2, foreground="white")]


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
        x + _jitter(len(values), width), values,
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
            fontsize=7.5, color=looks[each.method][0], ha="right", va="bottom", zorder=6, path_effects=_halo(),
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


def learning_curves(found: Sequence[Point], history: pd.DataFrame, name: str) -> Drawing | None:
    """Accuracy by epoch: one panel a point, mean over seeds, last and best epoch told apart; None without epochs.

    Args:
        found: the points of one pair.
        history: as `load_history` returns it.
        name: file name without ending.
    """
    shown = [each for each in found if each.last.n]
    mine = history[history["run_id"].isin([run for each in shown for run in each.run_ids])]
    measure = "test_top1" if mine["test_top1"].notna().any() else "val_top1"
    if not mine[measure].notna().any():
        return None
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
        figure.supylabel(f"{'test' if measure == 'test_top1' else 'validation'} top-1 (%)", fontsize=9)

    left_out = sum(1 for each in found if each.last.n) - len(shown)
    caption = (
        "Accuracy by epoch: mean over seeds, band ± 1 SD"
        + (f", dashed grey {BASELINE} for reference" if reference is not None else "")
        + ". The filled circle is the last epoch, the number that this report compares; the hollow triangle is the "
        "best test epoch (mean over seeds of height and of place), kept beside it because other papers report it."
        + (f" {left_out} points with lower accuracy are not drawn." if left_out else "")
    )
    alt = f"Learning curves of {len(shown)} points over {int(mine['epoch'].max())} epochs."
    return _render(name, caption, alt, (7.6, (1.8 if apart else 1.62) * rows + 0.55), draw)


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


def mis_instruction(
    found: Sequence[Point], history: pd.DataFrame, teachers: Sequence[Mapping[str, Any]], name: str
) -> Drawing | None:
    """Share of views on which the teacher is wrong: by epoch for each pair, and by teacher; None without teachers.

    Args:
        found: points of every pair.
        history: as `load_history` returns it.
        teachers: `study.json`'s records, with pair, model and the recorded ratio.
        name: file name without ending.
    """
    mine = history[history["run_id"].isin([run for each in found for run in each.run_ids])]
    mine = mine.dropna(subset=["mis_instruction_ratio"])
    if mine.empty:
        return None
    names = [pair for pair in pairs(found) if (mine["pair"] == pair).any()]
    recorded = {each["pair"]: each for each in teachers}
    called = _short(names)

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(1, 2, width_ratios=[3, 2])
        axes, side = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        highest = 0.0
        for row, (pair, (colour, line, marker)) in enumerate(zip(names, _cycle(len(names)), strict=True)):
            own = mine[mine["pair"] == pair]
            by_epoch = own.groupby("epoch")["mis_instruction_ratio"].agg(["mean", "min", "max"]) * 100
            axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.18, linewidth=0)
            only = marker if len(by_epoch) == 1 else None
            axes.plot(by_epoch.index, by_epoch["mean"], color=colour, linestyle=line, marker=only, label=called[pair])
            during = float(own.groupby("run_id")["mis_instruction_ratio"].mean().mean()) * 100
            side.hlines(row, 0, during, color=colour, linewidth=5, alpha=0.35)
            side.plot([during], [row], marker, color=colour, markersize=7)
            highest = max(highest, float(by_epoch["max"].max()), during)
            before = recorded.get(pair, {}).get("mis_instruction_ratio")
            if before is not None and not math.isnan(before):
                side.plot([100 * before], [row], "D", color=INK, markerfacecolor="white", markersize=6, zorder=5)
                highest = max(highest, 100 * before)
            if before is not None and not math.isnan(before) and len(names) == 1:
                axes.axhline(100 * before, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
                above = 100 * before >= during
                axes.annotate(
                    "measured before", (1, 100 * before), (-2, 2 if above else -2), xycoords=axes.get_yaxis_transform(),
                    textcoords="offset points", ha="right", va="bottom" if above else "top", fontsize=7.5, color=INK,
                )  # fmt: skip
            capped = float(own.groupby("run_id")["capped_ratio"].mean().max()) * 100
            text = f"{during:.1f} % of views" + (f", up to {capped:.1f} % capped" if capped > 0 else "")
            side.annotate(text, (0, row), (2, -14), textcoords="offset points", fontsize=7.5, color=INK)
        top = max(1.15 * highest, 1.0)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if mine["epoch"].max() == 1:
            axes.set_xlim(0.5, 1.5)
            axes.set_xticks([1])
        axes.set_xlabel("epoch")
        axes.set_ylabel("mis-instructed views (%)")
        side.set_xlim(0, top)
        side.set_ylim(len(names) - 0.35, -0.65)
        side.set_yticks(range(len(names)), [_teacher_label(pair, recorded, called[pair]) for pair in names])
        side.tick_params(left=False)
        side.grid(axis="y", visible=False)
        side.set_xlabel("mis-instructed views (%)")
        if len(names) > 1:
            # Above the axes: with many pairs there is no free corner.
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7.5)

    caption = (
        "Share of training views on which the teacher's largest other probability is at least the label's: the only "
        "views that LoCa changes. Left: by epoch (mean, and range over runs)"
        + ("; dashed: as measured before the study. " if len(names) == 1 else ". ")
        + "Right: by teacher, mean over the runs (coloured) and as measured before (diamond)."
    )
    worst = ", ".join(
        f"{pair} {100 * mine.loc[mine['pair'] == pair, 'mis_instruction_ratio'].mean():.1f} %" for pair in names
    )
    return _render(name, caption, f"Mis-instruction ratio: {worst}.", (7.6, max(2.3, 1.5 + 0.5 * len(names))), draw)


def teacher_ratios(teachers: Sequence[Mapping[str, Any]], name: str) -> Drawing | None:
    """Each teacher's mis-instruction ratio as measured (the paper's Figure 2), highest first; None without teachers.

    Args:
        teachers: `study.json`'s records, with pair, model, regime and the recorded ratio.
        name: file name without ending.
    """
    shown = sorted(teachers, key=lambda each: -each["mis_instruction_ratio"])
    if not shown:
        return None
    recorded = {each["pair"]: each for each in shown}
    percent = [100 * each["mis_instruction_ratio"] for each in shown]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.barh(range(len(shown)), percent, color=LOCA, height=0.55)
        for row, (each, value) in enumerate(zip(shown, percent, strict=True)):
            text = f" {value:.2f} %, top-1 {each['test_top1']:.1f} %"
            axes.text(value, row, text, va="center", fontsize=8, color=INK)
        labels = [_teacher_of_data(each, recorded) for each in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, max(1.35 * max(percent), 1.0))
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 100])
        axes.tick_params(left=False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mis-instructed views (%)")

    caption = (
        "Share of the students' training views on which each teacher's largest other probability is at least the "
        "label's, beside its accuracy on the test set."
    )
    worst = ", ".join(f"{each['model']} {value:.1f} %" for each, value in zip(shown, percent, strict=True))
    return _render(name, caption, f"Mis-instruction ratios: {worst}.", (7.6, 1.2 + 0.5 * len(shown)), draw)


def _teacher_label(pair: str, recorded: Mapping[str, Mapping[str, Any]], called: str = "") -> str:
    """A teacher's model and regime, and what its pair is called where pairs share a teacher's model."""
    teacher = recorded.get(pair, {})
    model = teacher.get("model") or pair
    regime = str(teacher.get("regime") or "").replace("_", " ")
    shared = sum(each.get("model") == model for each in recorded.values()) > 1
    named = f"{model} {called}" if shared and called else str(model)
    return f"{named}\n({regime})" if regime else named


def _teacher_of_data(teacher: Mapping[str, Any], recorded: Mapping[str, Mapping[str, Any]]) -> str:
    dataset, _, pair = str(teacher["pair"]).partition("/")
    return f"{dataset}: {_teacher_label(str(teacher['pair']), recorded, pair.partition('@')[2])}"


def _short(names: Sequence[str]) -> dict[str, str]:
    """Pairs by their labels alone, where they are all the same pair; else as they are called."""
    bare = {name: name.partition("@") for name in names}
    if len(names) > 1 and len({parts[0] for parts in bare.values()}) == 1:
        return {name: parts[2] or "without a label" for name, parts in bare.items()}
    return {name: name for name in names}


def search_history(tried: pd.DataFrame, pair: str, name: str, part: str) -> Drawing | None:
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
        axes.plot(
            pruned["order"], pruned["value"], "x", color="#D55E00", markersize=5, label="pruned (value at the stop)"
        )
        if len(done):
            best = done.set_index("order")["value"].cummax().reindex(tried["order"]).ffill()
            axes.step(best.index, best, where="post", color=INK, linewidth=1.1, label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("point, in the order of starting")
        axes.set_ylabel(f"{part} top-1, last epoch (%)")
        axes.legend(loc="best")

    caption = (
        f"The search for {pair}: {part} accuracy of each point that was tried, mean over its seeds. These values chose "
        "the points: the best of them reads high."
    )
    best_of_all = valued.loc[valued["state"] == "DONE", "value"].max()
    found = f"best {part} accuracy {best_of_all:.2f} %" if not math.isnan(best_of_all) else "none finished"
    alt = f"Search history of {pair}: {len(tried)} points; {found}."
    return _render(name, caption, alt, (7.6, 3.0), draw)
