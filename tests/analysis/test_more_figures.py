"""Figures over several pairs and of searches: what they say, and when there is nothing to draw."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from analysis import figures, load_history, load_runs, load_studies
from analysis.figures.cost import pareto
from analysis.points import Point, points
from analysis.statistics import pooled_sd, resolvable_difference
from analysis.tables import gains, resolution

PAIRS = {"digits/cnn32-cnn3": (0.1, 0.5), "digits/cnn3-cnn3": (0.2, 1.0), "digits/cnn32-cnn3@other": (0.3, 1.5)}


@pytest.fixture(scope="module")
def several(store: str, write: Any, made: Any) -> list[Point]:
    """Three pairs whose gain is five times their teacher's ratio."""
    runs = []
    for pair, (ratio, gain) in PAIRS.items():
        accuracies = {("kd", None): (70.0, 71.0, 72.0), ("loca", 0.9): (70.0 + gain, 71.1 + gain, 71.9 + gain)}
        accuracies |= {("loca", 1.0): (70.0, 71.2, 72.1)}
        runs += made.sweep(accuracies, pair=pair, ratio=ratio)
    record = made.study_record("figures-of-pairs")
    write(record, runs)
    return points(
        load_runs(store, "figures-of-pairs"),
        load_history(store, "figures-of-pairs"),
        load_studies(store, "figures-of-pairs")[0],
    )


def require_drawn(drawing: figures.Drawing | None) -> figures.Drawing:
    assert drawing is not None
    pixels = np.asarray(Image.open(io.BytesIO(drawing.png)).convert("L"))
    assert pixels.std() > 5
    assert drawing.svg.startswith(b"<?xml")
    return drawing


def test_gains_of_all_pairs_stand_on_one_axis_of_margins(several: list[Point]) -> None:
    classes = dict.fromkeys(PAIRS, 10)
    drawing = require_drawn(figures.margin_curves(several, classes, "margins"))
    assert "the largest, +1.50 points, at alpha 0.9 of digits/cnn32-cnn3@other" in drawing.alt
    again = figures.margin_curves(several, classes, "margins")
    assert again is not None
    assert again.svg == drawing.svg
    one = [each for each in several if each.pair == "digits/cnn3-cnn3"]
    assert figures.margin_curves(one, classes, "margins") is None


def test_gain_against_ratio_fits_the_line_that_scipy_fits(several: list[Point]) -> None:
    drawing = require_drawn(figures.gain_against_ratio(several, "ratio"))
    fitted = stats.linregress([10, 20, 30], [0.5, 1.0, 1.5])
    assert f"{fitted.slope:+.3f} points for each percent" in drawing.caption
    assert "r = 1.00 (too few pairs for an interval)" in drawing.caption
    two = [each for each in several if "@" not in each.pair]
    drawn = figures.gain_against_ratio(two, "ratio")
    assert drawn is not None
    assert "Two pairs make no line" in drawn.caption


def test_the_mean_gain_over_pairs_has_its_interval_over_pairs(several: list[Point]) -> None:
    table = gains(several, "gains")
    assert table is not None
    # Gains 0.5, 1 and 1.5: mean 1, SD 0.5, half the interval 4.3027 * 0.5 / sqrt(3).
    row = table.cells()[-1]
    heading = [column.heading for column in table.columns].index("Δ loca α 0.9")
    assert (row[0], row[heading]) == ("mean over 3 pairs", "+1.00 (−0.24 to +2.24)")


def test_what_more_seeds_would_resolve(several: list[Point]) -> None:
    own = [each for each in several if each.pair == "digits/cnn3-cnn3"]
    table = resolution(own, "resolution")
    assert table is not None
    assert [cells[0] for cells in table.cells()] == ["3 (this study)", "5", "8", "12", "20", "40"]
    sd = pooled_sd([each.difference for each in own if each.difference is not None])
    assert sd is not None
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    one, both = ([float(row[key]) for row in rows] for key in ("one", "all"))
    assert one[1] == resolvable_difference(sd, 5, paired=True)
    assert both[1] == resolvable_difference(sd, 5, paired=True, level=0.025)
    assert resolution(own[:1], "resolution") is None


def test_the_front_of_cost_and_accuracy() -> None:
    assert pareto([(1, 70), (2, 69), (2, 72), (3, 72), (4, 73)]) == [0, 2, 4]
    assert pareto([(1, 70), (1, 71)]) == [1]
    assert pareto([]) == []


def tried(n: int = 40, noise: float = 0.0) -> pd.DataFrame:
    """Points whose value depends on alpha alone."""
    rng = np.random.default_rng(1)
    alpha, tau = rng.uniform(0.5, 1, n), rng.uniform(1, 8, n)
    value = 70 + 10 * (alpha if noise == 0 else 0) + noise * rng.normal(size=n)
    columns = {"alpha": alpha, "tau": tau, "beta": 0.9, "gamma": 0.1, "value": value, "state": "DONE"}
    return pd.DataFrame(columns).assign(order=np.arange(1, n + 1))


@pytest.mark.slow
def test_importance_finds_what_matters_and_calls_chance_chance() -> None:
    drawing = require_drawn(figures.importance(tried(), "loca on a pair", "importance"))
    told = drawing.alt.removeprefix("Importance: ").split(", ")
    assert told[0].startswith("alpha 0.")
    assert float(told[0].split()[1]) > 0.9
    assert "tau" in told[1]
    assert "within chance" in told[1]
    pure_noise = require_drawn(figures.importance(tried(noise=1.0), "loca on a pair", "importance"))
    assert pure_noise.alt.count("within chance") >= 1
    assert "cannot see that two matter only together" in drawing.caption
    assert figures.importance(tried(9), "loca on a pair", "importance") is None
    again = figures.importance(tried(), "loca on a pair", "importance")
    assert again is not None
    assert again.png == drawing.png


def test_contours_show_the_best_point_and_stand_points_on_a_line() -> None:
    drawing = require_drawn(figures.contours(tried(), "loca on a pair", "contours", "validation"))
    assert f"best at alpha {tried()['alpha'].max():.3g}" in drawing.alt
    line = tried().assign(tau=lambda frame: 2 * frame["alpha"])  # no triangle
    require_drawn(figures.contours(line, "loca on a pair", "contours", "validation"))
    assert figures.contours(tried().assign(tau=4.0), "loca on a pair", "contours", "validation") is None


def test_screening_curves_count_the_epochs_that_were_saved(store: str, write: Any, made: Any) -> None:
    runs = [
        made.Run("loca", 1, 80.0, 0.9, stage="search", screening=True, validation=True, epochs=10),
        made.Run("loca", 1, 70.0, 0.3, stage="search", screening=True, validation=True, state="PRUNED", epochs=4),
        made.Run("loca", 1, 60.0, 0.2, stage="search", screening=True, validation=True, state="PRUNED", epochs=4),
    ]
    write(made.study_record("stopped-early", mode="search", selection="validation"), runs)
    history = load_history(store, "stopped-early")
    drawing = require_drawn(figures.screening_curves(history, "digits/cnn32-cnn3", "screening", "val"))
    assert (
        "stopped 2 of 3 points, which trained 18 epochs instead of 30: 40 % of the screening was saved"
        in drawing.caption
    )
    assert figures.screening_curves(history[history["state"] == "DONE"], "digits/cnn32-cnn3", "s", "val") is None
