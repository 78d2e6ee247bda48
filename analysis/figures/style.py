"""How every figure looks: matplotlib on Agg, the same bytes for the same data, readable in grey.

Every series differs in marker or line style as well as in colour (Okabe and Ito's palette); text is set as paths so
that a figure looks alike everywhere.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
CURVES: tuple[tuple[str, Any, str], ...] = (
    (LOCA, "-", "o"),
    ("#D55E00", (0, (5, 2)), "s"),
    ("#009E73", (0, (1, 1.2)), "D"),
    ("#B0578D", (0, (4, 1.5, 1, 1.5)), "^"),
    ("#7a7a7a", (0, (8, 2)), "v"),
    ("#E69F00", (0, (2, 1)), "P"),
    ("#56B4E9", (0, (6, 1.5, 1, 1.5)), "X"),
)


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


def render(name: str, caption: str, alt: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Drawing:
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


def looks_of(methods: Sequence[str]) -> dict[str, tuple[str, Any, str]]:
    """Colour, line style and marker of each method; methods without a look of their own take the spare ones in turn."""
    spare = [each for each in methods if each not in LOOKS]
    return {each: LOOKS.get(each) or _OTHERS[spare.index(each) % len(_OTHERS)] for each in methods}


def cycle(n: int) -> list[tuple[str, Any, str]]:
    return [CURVES[i % len(CURVES)] for i in range(n)]


def signed(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 6):.3g}"
    return text.replace("-", "−")


def jitter(n: int, width: float) -> np.ndarray:
    return np.linspace(-width, width, n) if n > 1 else np.zeros(n)


def halo() -> list[Any]:
    """A white rim, so that text stays readable on lines."""
    return [matplotlib.patheffects.withStroke(linewidth=2.2, foreground="white")]
