"""Results of others: checked row by row, written whole, marked in everything."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis
from study.errors import RequestError
from study.results import read
from tests.study.given import Command

HEADER = "dataset,teacher,student,method,seed,alpha,test_top1_last,test_top1_best\n"
ROWS = [
    "cifar100,resnet56,resnet20,kd,1,,70.4,70.6",
    "cifar100,resnet56,resnet20,kd,2,,70.9,71.0",
    "cifar100,resnet56,resnet20,loca,1,0.95,71.0,71.1",
    "cifar100,resnet56,resnet20,loca,2,0.95,71.2,71.4",
]


def csv_of(folder: Path, *rows: str, header: str = HEADER) -> Path:
    file = folder / "theirs.csv"
    file.write_text(header + "".join(f"{row}\n" for row in rows))
    return file


def test_imported_results_are_reported_beside_the_papers_and_marked(
    kdstudy: Command, tmp_path: Path, home: Path
) -> None:
    file = csv_of(tmp_path, *ROWS)
    done = kdstudy("import-results", file, "--study", "theirs", "--source", "a friend", "--protocol", "crd-240")
    assert done.code == 0, done.err
    assert "4 runs of a friend" in done.out
    uri = f"sqlite:///{home}/mlflow.db"
    runs = analysis.load_runs(uri, ["theirs"])
    assert set(runs["origin"]) == {"imported from theirs.csv"}
    assert runs["test_top1_last"].tolist() == [70.4, 70.9, 71.0, 71.2]
    assert kdstudy("report", "theirs", "-o", tmp_path / "out").code == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "Imported results of a friend, from theirs.csv: kdstudy has not run them" in page
    table = (tmp_path / "out/tables/paper-table-2.md").read_text()
    assert "71.10 ± 0.14 (2) \\| 71.08" in table  # the printed number of the same protocol
    again = kdstudy("import-results", file, "--study", "theirs", "--source", "a friend")
    assert (again.code, "theirs is there already" in again.err) == (2, True)


def test_json_lines_and_failed_runs(tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text(
        '{"dataset": "digits", "student": "cnn3", "method": "ce", "seed": 1, "test_top1_last": 71}\n\n'
        '{"dataset": "digits", "student": "cnn3", "method": "ce", "seed": 2, "state": "FAILED", "reason": "nan"}\n'
    )
    first, second = read(file)
    assert (first.pair, first.test_top1_last, second.state) == ("digits/none-cnn3", 71.0, "FAILED")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["cifar100,resnet56,resnet20,kd,1,,170.4,"], r"line 2: test_top1_last: .* less than or equal to 100"),
        (["cifar100,resnet56,resnet20,kd,one,,70.4,"], r"line 2: seed: .* integer"),
        (["cifar100,resnet56,resnet20,kd,1,,nan,"], r"line 2: test_top1_last: .* finite"),
        (["cifar100,resnet56,resnet20,kd,1,,,"], r"line 2: test_top1_last: a run that is done has an accuracy"),
        ([ROWS[0], ROWS[0]], r"line 3: the same point and seed stand there twice"),
        (["cifar100,resnet56,resnet20,kd"], r"line 2: as many cells as the header has"),
        ([], r"no result in it"),
    ],
)
def test_a_bad_row_is_named_with_its_line(rows: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said) as error:
        read(csv_of(tmp_path, *rows))
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_results_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\.csv or \.jsonl"):
        read(csv_of(tmp_path, *ROWS).rename(tmp_path / "theirs.xlsx"))
    with pytest.raises(RequestError, match=r"line 2: colour: Extra inputs"):
        read(csv_of(tmp_path, "digits,cnn3,ce,1,70,red", header="dataset,student,method,seed,test_top1_last,colour\n"))
    with pytest.raises(RequestError, match=r"cannot be read"):
        read(tmp_path / "nothing.csv")
