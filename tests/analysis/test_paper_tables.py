"""The paper's tables from one's own runs: its layout, its numbers only where the protocol is its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from analysis import load_history, load_runs, load_studies
from analysis.paper_tables import CONTRADICTIONS, OUTSIDE, paper_tables
from analysis.points import points
from analysis.tables import Table

RESNET = "cifar100/resnet56-resnet20"
WRN = "cifar100/wrn_40_2-wrn_40_1"


@pytest.fixture
def tables(store: str, write: Any, made: Any) -> Any:
    """The tables of a study with these runs, under the paper's protocol."""
    paper = load_studies(store, "paper")[0]

    def of(name: str, runs: Any, **record: Any) -> dict[str, Table]:
        write({**paper, "study": name, **record}, runs)
        frames = load_runs(store, name), load_history(store, name)
        studies = load_studies(store, name)
        return {each.name: each for each in paper_tables(points(*frames, studies[0]), studies, frames[1])}

    return of


def cell(table: Table, row: str, column: int = 1) -> str:
    return next(cells[column] for cells in table.cells() if cells[0].startswith(row))


def test_table_2_has_the_printed_numbers_of_its_own_cells(tables: Any, made: Any) -> None:
    runs = made.sweep(
        {
            ("ce", None): (69.0, 69.3),
            ("kd", None): (70.5, 70.8),
            ("loca", 0.95): (75.0, 75.1),
            ("loca", 0.97): (71.0, 71.2),
        },
        pair=RESNET,
    )
    table = tables("tables-2", runs)["paper-table-2"]
    assert table.columns[1].heading == "resnet56 → resnet20"
    assert cell(table, "Student") == "69.15 ± 0.21 (2) | 69.06"
    assert cell(table, "KD") == "70.65 ± 0.21 (2) | 70.66"
    # 75.05 ± 0.64: what is printed lies outside.
    assert cell(table, "LoCa (α = 0.95)") == f"75.05 ± 0.07 (2) | 71.08{OUTSIDE}"
    assert cell(table, "LoCa (α = 0.97)") == "71.10 ± 0.14 (2)"  # the paper has no such row
    # Of the three contradictions one is of the whole table; the other two are of pairs that are not shown.
    assert [note in table.notes for _, note in CONTRADICTIONS[2]] == [False, True, False]
    assert "\\textbf" not in table.latex()
    assert r"\toprule" in table.latex()


def test_another_protocol_has_no_printed_numbers_and_no_footnotes_on_them(tables: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (70.5, 70.8), ("loca", 0.95): (71.0, 71.1)}, pair=RESNET)
    table = tables("tables-cut", runs, cuts=["epochs 240 -> 12"])["paper-table-2"]
    assert cell(table, "KD") == "70.65 ± 0.21 (2)"
    assert not {note for _, note in CONTRADICTIONS[2]} & set(table.notes)
    assert "another protocol" in " ".join(table.notes)


def test_what_was_not_measured_stays_empty(tables: Any, made: Any) -> None:
    runs = [
        *made.sweep({("kd", None): (70.5, 70.8), ("loca", 0.95): (71.0, 71.1)}, pair=RESNET),
        *made.sweep({("kd", None): (73.5, 73.6), ("loca", 0.98): (73.9, 73.8)}, pair=WRN),
        made.Run("loca", 9, 0.0, 0.98, state="FAILED", reason="nan", pair=RESNET, curve=(1.0,)),
    ]
    table = tables("tables-empty", runs)["paper-table-2"]
    labels = [cells[0] for cells in table.cells()]
    assert labels == ["KD", "LoCa (α = 0.95)", "LoCa (α = 0.98)"]  # nobody trained without a teacher
    assert table.cells()[1][2] == ""
    assert table.cells()[2][1] == ""
    assert "nan" not in table.csv()


def test_runs_of_two_protocols_are_two_tables(tables: Any, made: Any) -> None:
    runs = made.sweep({("kd", None): (70.5, 70.8), ("loca", 0.95): (71.0, 71.1)}, pair=RESNET)
    other = [replace(run, seed=run.seed + 10, accuracy=50.0, protocol_hash="p2") for run in runs]
    found = tables("tables-split", [*runs, *other])
    assert {"paper-table-2-1", "paper-table-2-2"} <= found.keys()
    assert cell(found["paper-table-2-1"], "KD").startswith("70.65")
    assert cell(found["paper-table-2-2"], "KD").startswith("50.00")
    assert any("never averaged: this is part 2 of 2" in note for note in found["paper-table-2-2"].notes)


def test_the_tables_of_dropping_of_dkd_and_of_the_tie(tables: Any, made: Any) -> None:
    runs = made.sweep(
        {
            ("kd", None): (70.6, 70.7),
            ("kd_drop", None): (70.8, 70.9),
            ("loca", 0.995): (71.0, 71.1),
            ("loca", 1.0): (70.9, 71.0),
            ("loca", 0.5): (60.0, 61.0),
            ("dkd", None): (71.8, 71.9),
            ("loca_dkd", 0.95): (71.9, 72.0),
        },
        pair=RESNET,
    )
    found = tables("tables-others", runs)
    assert cell(found["paper-table-1"], "KD, dropping") == "70.85 ± 0.07 (2) | 70.88"
    assert [cells[0] for cells in found["paper-table-6"].cells()] == ["KD", "LoCa (α = 0.995)", "LoCa (α = 1)"]
    assert cell(found["paper-table-8"], "LoCa on DKD (α = 0.95)") == "71.95 ± 0.07 (2)"  # not one of its pairs
    assert "paper-table-3" not in found


def test_imagenets_tables_have_both_metrics(store: str, write: Any, made: Any) -> None:
    runs = made.sweep(
        {("kd", None): (70.6, 70.7), ("loca", 0.95): (71.0, 71.1)}, pair="imagenet/resnet34-resnet18", epochs=2
    )
    record = made.study_record("tables-imagenet", protocol={"base": "imagenet-100"})
    write(record, runs)
    frame = load_runs(store, "tables-imagenet").assign(test_top5_last=90.0)
    studies = load_studies(store, "tables-imagenet")
    history = load_history(store, "tables-imagenet")
    (table,) = (
        each
        for each in paper_tables(points(frame, history, studies[0]), studies, history)
        if each.name == "paper-table-3"
    )
    assert [cells[0] for cells in table.cells()] == [
        "KD, top-1", "LoCa (α = 0.95), top-1", "KD, top-5", "LoCa (α = 0.95), top-5",
    ]  # fmt: skip
    assert table.cells()[2][1].startswith("90.00")


def test_the_time_of_an_epoch_is_the_runs_own_median_without_the_first(store: str, made: Any) -> None:
    frames = load_runs(store, "paper"), load_history(store, "paper")
    studies = load_studies(store, "paper")
    found = points(*frames, studies[0])
    kd, loca = (next(each for each in found if each.method == method) for method in ("kd", "loca"))
    seconds = [(run, 30.0) for run in kd.run_ids] + [(run, 31.0) for run in loca.run_ids]
    rows = [
        {"run_id": run, "epoch": epoch, "epoch_seconds": 99.0 if epoch == 1 else each}
        for run, each in seconds
        for epoch in (1, 2, 3)
    ]
    (table,) = (each for each in paper_tables(found, studies, pd.DataFrame(rows)) if each.name == "paper-table-7")
    assert [cells[1:] for cells in table.cells()] == [["KD", "30.00 ± 0.00 (2)"], ["LoCa", "31.00 ± 0.00 (2)"]]
    assert any("781 steps" in note for note in table.notes)
