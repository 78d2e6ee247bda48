"""Tables in their forms: what stands in them, and that any text stands there as itself."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import load_history, load_runs, load_studies, report, tables
from analysis.points import points
from analysis.statistics import estimate
from analysis.tables import Table, latex_escape, markdown_escape

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def ablation(store: str) -> Any:
    """The ablation table of a study of the store."""

    def of(name: str) -> Table:
        study = load_studies(store, name)[0]
        return tables.ablation(points(load_runs(store, name), load_history(store, name), study), study, "ablation")

    return of


def rows(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    """The CSV file's rows by method and alpha."""
    return {(row["method"], row["alpha"]): row for row in csv.DictReader(io.StringIO(table.csv()))}


def test_the_csv_file_holds_the_numbers_unrounded(ablation: Any) -> None:
    row = rows(ablation("ablation"))[("loca", "0.5")]
    assert (row["n"], row["asked"], row["failed"]) == ("3", "3", "0")
    assert (float(row["last_mean"]), float(row["last_sd"])) == (75.0, 2.0)
    assert float(row["best_mean"]) == 75.5
    assert float(row["difference_mean"]) == 4.0
    assert float(row["difference_low"]) == pytest.approx(1.5158623, abs=1e-6)
    assert float(row["mis_instruction_ratio"]) == pytest.approx(0.2)


def test_cells_without_numbers_are_empty_in_csv_and_a_dash_for_readers(ablation: Any) -> None:
    table = ablation("ablation")
    row = rows(table)[("kd", "")]
    assert row["difference_mean"] == row["difference_p"] == ""
    headings = [column.heading for column in table.columns]
    kd = table.cells()[1]
    assert kd[headings.index("Δ to kd (95 % interval)")] == "–"
    assert kd[headings.index("α")] == "–"


def test_last_and_best_are_told_apart(ablation: Any) -> None:
    cells = ablation("ablation").cells()[3]
    assert cells[:5] == ["loca", "0.5", "3", "75.00 ± 2.00", "75.50 ± 2.00"]
    assert cells[5] == "+4.00 (+1.52 to +6.48)"


def test_failed_runs_are_counted_in_the_row(ablation: Any) -> None:
    table = ablation("ablation")
    assert table.cells()[-1][2] == "2 of 3 (1 failed)"
    assert rows(table)[("loca", "1.2")]["failed"] == "1"


def test_published_numbers_stand_beside_the_same_protocol_only(ablation: Any) -> None:
    paper = rows(ablation("paper"))
    assert paper[("kd", "")]["published"] == "70.66 (LoCa, Table 1)"
    assert paper[("loca", "0.95")]["published"] == "71.08 (LoCa, Table 2)"
    assert paper[("loca", "1.05")]["published"] == "–"
    other = ablation("ablation")
    assert "published" not in other.csv()
    assert any("the papers have no numbers for digits" in note for note in other.notes)


def test_the_best_row_is_marked_in_every_form(ablation: Any) -> None:
    table = ablation("ablation")
    assert [row.label for row in table.rows if table.strong(row)] == ["loca α 0.5"]
    assert "| **loca** | **0.5** |" in table.markdown()
    assert r"\textbf{loca} & \textbf{0.5}" in table.latex()


def test_latex_uses_booktabs_and_has_the_same_cells_in_each_row(ablation: Any) -> None:
    text = ablation("paper").latex()
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {line.count(" & ") for line in lines} == {10}
    assert r"70.65 $\pm$ 0.21" in text


def test_varying_parameters_become_columns(write: Any, made: Any, store: str, ablation: Any) -> None:
    runs = [
        made.Run("loca", 1, 70.0 + tau, 0.9, parameters={"tau": tau, "beta": 0.9, "gamma": 0.1}, epochs=1)
        for tau in (2.0, 4.0)
    ]
    write(made.study_record("tau-varies"), runs)
    headings = [column.heading for column in ablation("tau-varies").columns]
    assert headings[:4] == ["method", "α", "τ", "n"]
    assert "β" not in headings


@settings(deadline=None)
@given(TEXT)
def test_markdown_cells_never_break_the_table_or_become_html(text: str) -> None:
    escaped = markdown_escape(text)
    assert "\n" not in escaped
    assert "<" not in escaped
    assert ">" not in escaped
    assert not re.search(r"(?<!\\)(\\\\)*[|`*_]", re.sub(r"\\[\\`*_\[\]{}#|~$]", "", escaped))


def test_latex_special_characters_print_as_themselves() -> None:
    assert latex_escape(r"a_b & 50 % #1 ~^ {x} \y $") == (
        r"a\_b \& 50 \% \#1 \textasciitilde{}\textasciicircum{} \{x\} \textbackslash{}y \$"
    )
    assert latex_escape("−1.2 ± 0.3, α") == r"$-$1.2 $\pm$ 0.3, $\alpha$"


@settings(deadline=None)
@given(TEXT)
def test_no_bare_latex_special_survives(text: str) -> None:
    left = re.sub(r"\\text[a-z]+\{\}|\\ldots\{\}|\$\\[a-zA-Z]+\$|\$-\$|\\[{}$&#%_]", "", latex_escape(text))
    assert not set(left) & set('\\{}$&#%_~^<>|"\n\r')


def test_numbers_read_as_numbers_should() -> None:
    assert tables.fixed(-0.004) == "0.00"
    assert tables.fixed(-1.5) == "−1.50"
    assert tables.fixed(None) == tables.fixed(float("nan")) == "–"
    assert tables.signed(1.5) == "+1.50"
    assert tables.signed(-1.5) == "−1.50"
    assert tables.signed(0.001) == "0.00"
    assert tables.share(0.0001) == "< 0.1 %"
    assert tables.share(0.0) == "0.0 %"
    assert tables.share(0.274) == "27.4 %"
    assert tables.p_value(0.0002) == "< 0.001"
    assert tables.mean_sd(estimate([70.0])) == "70.00"


def test_search_points_are_listed_in_the_order_of_their_start(store: str) -> None:
    tried = tables.searched(load_runs(store, "search"), load_history(store, "search"))
    assert tried["state"].tolist() == ["DONE", "PRUNED", "DONE"]
    assert tried["method"].tolist() == ["loca", "loca", "kd"]
    # the screening seed (80) is left out where another seed follows; the pruned one shows where it was stopped
    assert tried["value"].tolist() == [81.0, 70.0, 79.0]
    assert len(tables.searched(load_runs(store, "ablation"), load_history(store, "ablation"))) == 0


@pytest.mark.parametrize("selection", ["validation", "paper"])
def test_no_table_has_a_number_of_a_run_that_was_stopped_early(
    selection: str, write: Any, made: Any, store: str, tmp_path: Path
) -> None:
    name = f"stopped-by-{selection}"
    searched = {"stage": "search", "validation": selection == "validation"}
    stopped = {**searched, "state": "PRUNED", "curve": (98.75, 98.75)}
    runs = [
        made.Run("kd", 1, 70.0, screening=True, **searched),
        made.Run("kd", 2, 71.0, **searched),
        made.Run("loca", 1, 72.0, 0.9, screening=True, **searched),
        made.Run("loca", 2, 98.75, 0.9, **stopped),
        made.Run("loca", 1, 98.75, 0.5, screening=True, **stopped),
    ]
    if selection == "validation":
        runs += made.sweep({("kd", None): (70.0, 71.0)}, stage="final")
    write(made.study_record(name, mode="search", selection=selection), runs)
    folder = report(store, name, tmp_path / "out").parent / "tables"
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert any("PRUNED" in text for text in texts.values())
    assert not [name for name, text in texts.items() if "98.75" in text]


def test_runs_without_a_result_are_listed_with_their_reason(store: str) -> None:
    lost = tables.lost_runs(load_runs(store, "ablation"), "lost")
    assert lost is not None
    assert [(row["state"], row["alpha"], row["seed"], row["reason"]) for row in lost.rows] == [
        ("FAILED", 1.2, 3, "loss is not finite at epoch 3")
    ]
    assert tables.lost_runs(load_runs(store, "paper"), "lost") is None
