"""The histories are kept, go on where they were cut off, and give tables and figures."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import fidelity, fidelity_analysis

FIELDS = "point,alpha,tau,beta,gamma,seed,epochs,val_top1\n"


def test_points_are_spread_as_a_search_would_and_fewer_are_the_first_of_more() -> None:
    found = fidelity.points(200)
    assert found[:5] == fidelity.points(5)
    for name, low, high in (("alpha", 0.5, 1.05), ("tau", 1, 8), ("beta", 0.1, 20), ("gamma", 0.1, 2)):
        values = np.array([getattr(point, name) for point in found])
        assert low <= values.min() < values.max() <= high
        middle = (low + high) / 2 if name == "alpha" else np.sqrt(low * high)
        assert 0.4 < (values < middle).mean() < 0.6


def write(file: Path, schedules: dict[int, int], points: int = 3) -> None:
    """Made histories: point n reaches n percent times the epoch; so many seeds of each schedule."""
    rows = [
        f"{n},0.9,4,1,1,{seed},{epochs},{' '.join(str(float(n * e)) for e in range(1, epochs + 1))}\n"
        for epochs, seeds in schedules.items()
        for seed in range(seeds)
        for n in range(points)
    ]
    file.write_text(FIELDS + "".join(rows), encoding="utf-8")


def test_histories_are_read_by_schedule_with_the_drops_of_the_whole_one(tmp_path: Path) -> None:
    write(tmp_path / "made.csv", {40: 2, 13: 2, 4: 1})
    runs = fidelity_analysis.Runs.read("made", "digits-quick", tmp_path / "made.csv")
    assert (runs.epochs, runs.drops, runs.short) == (40, (25, 33), [13])  # of 4 epochs one seed is missing
    assert runs.end.tolist() == [[0, 0], [40, 40], [80, 80]]
    assert runs.rung(10)[:, 0].tolist() == [0, 10, 20]
    assert runs.rung(10, 3)[:, 0].tolist() == [0, 9, 18]
    assert {24, 25, 32, 33} <= set(runs.rungs)


def test_an_order_that_every_look_sees_costs_nothing_to_prune_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity_analysis, "_ORDERS", 10)
    write(tmp_path / "made.csv", {40: 3, 13: 3}, points=9)
    runs = fidelity_analysis.Runs.read("made", "digits-quick", tmp_path / "made.csv")
    assert all(
        estimate.value == pytest.approx(1) for row in fidelity_analysis.agreements(runs).rows for estimate in row[2:6]
    )
    rows = fidelity_analysis.losses(runs, draws=20).rows
    assert all(row[4] == 1 and row[5].value == 0 for row in rows)
    assert all(0 < row[3] < 1 for row in rows)


def test_a_row_that_a_kill_tore_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "made.csv"
    write(file, {4: 1})
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + "0,0.9,4,1,1,1,4,1.0 2.0 3.0 4", encoding="utf-8")
    fidelity.mend(file, fidelity._FIELDS)
    assert file.read_text(encoding="utf-8") == whole
    fidelity.mend(tmp_path / "new.csv", fidelity._FIELDS)
    assert fidelity_analysis.histories(tmp_path / "new.csv") == {}


@pytest.mark.slow
def test_a_quick_measurement_trains_once_and_draws(tmp_path: Path) -> None:
    tables = fidelity.measure(True, tmp_path)
    assert [len(table.columns) for table in tables] == [7, 3, 6]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert all(0 < row[3] < 1 for row in tables[2].rows)  # every plan saves something
    assert {"digits.csv", "digits.svg", "digits.png"} == {file.name for file in tmp_path.iterdir()}
    found = fidelity_analysis.histories(tmp_path / "digits.csv")
    assert len(found) == 4 * 2 * 4
    assert all(len(history) == epochs for (_, _, epochs), history in found.items())
    text = (tmp_path / "digits.csv").read_text(encoding="utf-8")
    fidelity.measure(True, tmp_path)
    assert (tmp_path / "digits.csv").read_text(encoding="utf-8") == text
