"""ROUGE-L by method and evaluation set: the paper's Figure 4."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.style import INK, LOCA, MUTED, Drawing, looks_of, render
from analysis.responses import OnSet


def rouge_by_set(scored: Sequence[OnSet], teacher: Mapping[str, float], name: str) -> Drawing | None:
    """A panel a set: mean and SD over seeds of each method, the seeds, and the teacher as a line; None without any.

    Of points with an alpha the one that is best on the first set stands for its method.

    Args:
        scored: of one pair, as `by_set` gives it.
        teacher: its ROUGE-L by set.
        name: file name without ending.
    """
    sets = list(dict.fromkeys(each.name for each in scored))
    if not sets:
        return None
    chosen: dict[str, OnSet] = {}
    for each in [one for one in scored if one.name == sets[0]]:
        known = chosen.get(each.point.method)
        if known is None or each.score.mean > known.score.mean:
            chosen[each.point.method] = each
    kept = [each.point for each in chosen.values()]
    looks = looks_of([each.method for each in kept if math.isnan(each.alpha)])
    panels = {of: [each for point in kept for each in scored if each.point is point and each.name == of] for of in sets}

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(sets), squeeze=False, sharey=True)
        for axes, (of, own) in zip(grid.flat, panels.items(), strict=True):
            for place, each in enumerate(own):
                colour = looks[each.point.method][0] if each.point.method in looks else LOCA
                axes.bar(place, each.score.mean, color=colour, alpha=0.35, width=0.7)
                if each.score.sd is not None:
                    axes.errorbar(place, each.score.mean, each.score.sd, color=INK, capsize=3, linewidth=1)
                values = list(each.by_seed.values())
                axes.plot(
                    place + np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [place],
                    values, ".", color=colour, markersize=4, zorder=3,
                )  # fmt: skip
            if of in teacher:
                axes.axhline(teacher[of], color=INK, linewidth=1, linestyle=(0, (3, 2)))
                axes.annotate(
                    f"teacher {teacher[of]:.1f}", (1, teacher[of]), (-2, 2), xycoords=axes.get_yaxis_transform(),
                    textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color=INK,
                )  # fmt: skip
            axes.set_title(of, loc="left", fontsize=9, fontweight="bold")
            labels = [each.point.label.replace(" ", "\n", 1) for each in own]
            axes.set_xticks(range(len(own)), labels, fontsize=7.5)
            axes.grid(axis="x", visible=False)
            axes.tick_params(axis="x", left=False, colors=MUTED)
        grid.flat[0].set_ylabel("ROUGE-L")
        grid.flat[0].set_ylim(bottom=0)

    ns = sorted({each.score.n for each in scored})
    seeds = f"n = {ns[0]}" if len(ns) == 1 else f"n = {ns[0]} to {ns[-1]}"
    caption = (
        f"ROUGE-L of the last epoch's responses by method and evaluation set ({seeds} seeds): bars are means, whiskers "
        "± 1 SD, dots the seeds, the dashed line the teacher. Of points with an alpha the one that is best on the "
        "first set is shown, which reads a little high there. The paper draws this as its Figure 4 and prints no "
        "numbers."
    )
    told = "; ".join(
        f"{of}: {', '.join(f'{each.point.label} {each.score.mean:.1f}' for each in own)}" for of, own in panels.items()
    )
    return render(name, caption, f"ROUGE-L by method. {told}.", (7.6, 3.2), draw)
