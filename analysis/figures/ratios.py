"""How often teachers are wrong, and what that has to do with what is gained: the paper's Figure 2 and beyond."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from analysis.figures.style import INK, LOCA, Drawing, cycle, render
from analysis.points import Point, pairs


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
    shown = found[0].score.shown

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(1, 2, width_ratios=[3, 2])
        axes, side = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        highest = 0.0
        for row, (pair, (colour, line, marker)) in enumerate(zip(names, cycle(len(names)), strict=True)):
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
            text = f"{during:.1f} % of {shown}" + (f", up to {capped:.1f} % capped" if capped > 0 else "")
            side.annotate(text, (0, row), (2, -14), textcoords="offset points", fontsize=7.5, color=INK)
        top = max(1.15 * highest, 1.0)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if mine["epoch"].max() == 1:
            axes.set_xlim(0.5, 1.5)
            axes.set_xticks([1])
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"mis-instructed {shown} (%)")
        side.set_xlim(0, top)
        side.set_ylim(len(names) - 0.35, -0.65)
        side.set_yticks(range(len(names)), [_teacher_label(pair, recorded, called[pair]) for pair in names])
        side.tick_params(left=False)
        side.grid(axis="y", visible=False)
        side.set_xlabel(f"mis-instructed {shown} (%)")
        if len(names) > 1:
            # Above the axes: with many pairs there is no free corner.
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7.5)

    caption = (
        f"Share of training {shown} on which the teacher's largest other probability is at least the label's: the only "
        f"{shown} that LoCa changes. Left: by epoch (mean, and range over runs)"
        + ("; dashed: as measured before the study. " if len(names) == 1 else ". ")
        + "Right: by teacher, mean over the runs (coloured) and as measured before (diamond)."
    )
    worst = ", ".join(
        f"{pair} {100 * mine.loc[mine['pair'] == pair, 'mis_instruction_ratio'].mean():.1f} %" for pair in names
    )
    return render(name, caption, f"Mis-instruction ratio: {worst}.", (7.6, max(2.3, 1.5 + 0.5 * len(names))), draw)


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
    return render(name, caption, f"Mis-instruction ratios: {worst}.", (7.6, 1.2 + 0.5 * len(shown)), draw)


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


def gain_against_ratio(found: Sequence[Point], name: str) -> Drawing | None:
    """Gain over the baseline against how often the teacher is wrong, one marker a pair; None with fewer than two pairs.

    The points drawn are those of the label (method and alpha) that most pairs share, so that no pair's best is picked.
    From three pairs on with a fitted line and its 95 % band, and Pearson's correlation (its interval by Fisher's z from
    four on).

    Args:
        found: points of several pairs.
        name: file name without ending.
    """
    told = [
        each
        for each in found
        if not math.isnan(each.alpha)
        and each.difference is not None
        and each.difference.n > 0
        and not math.isnan(each.mis_instruction_ratio)
    ]
    labels = [each.label for each in told]
    if not labels:
        return None
    label = max(dict.fromkeys(labels), key=lambda one: (labels.count(one), -labels.index(one)))
    shown = list({each.pair: each for each in told if each.label == label}.values())
    if len(shown) < 2:
        return None
    ratios = np.array([100 * each.mis_instruction_ratio for each in shown])
    gains = np.array([each.difference.mean for each in shown if each.difference is not None])
    fitted = stats.linregress(ratios, gains) if len(shown) > 2 and np.ptp(ratios) > 0 else None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhline(0, color=INK, linewidth=0.9, zorder=1)
        if fitted is not None:
            xs = np.linspace(0, 1.08 * ratios.max(), 100)
            ys = fitted.intercept + fitted.slope * xs
            residual = gains - (fitted.intercept + fitted.slope * ratios)
            spread = math.sqrt(float((residual**2).sum()) / (len(shown) - 2))
            centre = float(((ratios - ratios.mean()) ** 2).sum())
            half = stats.t.ppf(0.975, len(shown) - 2) * spread
            band = half * np.sqrt(1 / len(shown) + (xs - ratios.mean()) ** 2 / centre)
            axes.fill_between(xs, ys - band, ys + band, color=LOCA, alpha=0.12, linewidth=0)
            axes.plot(xs, ys, color=LOCA, linewidth=1.2)
        for each, (colour, _, marker) in zip(shown, cycle(len(shown)), strict=True):
            gain = each.difference
            x = 100 * each.mis_instruction_ratio
            if gain is None:
                continue
            if gain.low is not None and gain.high is not None:
                axes.vlines(x, gain.low, gain.high, color=colour, linewidth=1.2, alpha=0.7)
            axes.plot([x], [gain.mean], marker, color=colour, markersize=7, label=each.pair, zorder=3)
        room = max(0.8 * float(np.ptp(gains)), 0.3)
        axes.set_ylim(min(float(gains.min()), 0) - room, max(float(gains.max()), 0) + room)
        axes.set_xlim(0, max(1.08 * float(ratios.max()), 1.0))
        axes.set_xlabel("mis-instructed views (%)")
        axes.set_ylabel(f"gain of {label} (points)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7.5)

    caption = (
        f"Gain of {label} over its baseline, paired by seed, against how often the teacher is wrong; one marker a pair."
    )
    if fitted is None:
        caption += " Two pairs make no line."
    else:
        caption += (
            f" Least squares: {fitted.slope:+.3f} points for each percent (p = {fitted.pvalue:.2g}, {len(shown)} "
            f"pairs), with its 95 % band; correlation r = {fitted.rvalue:.2f}{_fisher(fitted.rvalue, len(shown))}."
        )
    told_of = ", ".join(f"{each.pair} {100 * each.mis_instruction_ratio:.1f} %" for each in shown)
    alt = f"Gain against mis-instruction ratio of {len(shown)} pairs: {told_of}."
    return render(name, caption, alt, (7.6, 3.3 + 0.12 * len(shown)), draw)


def _fisher(r: float, n: int) -> str:
    """The 95 % interval of a correlation by Fisher's z, as a text; empty where n is too small for one."""
    if n < 4 or abs(r) >= 1:
        return " (too few pairs for an interval)"
    half = 1.959964 / math.sqrt(n - 3)
    low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return f" (95 %: {low:.2f} to {high:.2f})"
