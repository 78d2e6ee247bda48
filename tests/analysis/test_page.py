"""The report as a whole: self-contained, safe, the same each time, never half replaced."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from analysis import ReportError, changed, load_history, load_runs, load_studies, page, report, write_report


class Reader(HTMLParser):
    """Collects a page's tags, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the study `ablation`."""
    return report(store, "ablation", tmp_path_factory.mktemp("report") / "out").parent


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


@pytest.mark.slow
def test_a_stored_report_is_checked_against_its_runs(store: str, write: Any, made: Any, tmp_path: Path) -> None:
    write(made.study_record("checked"), made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0, 73.0)}))
    out = tmp_path / "out"
    report(store, "checked", out)
    assert changed(store, "checked", out) == []
    table = out / "tables" / "ablation.csv"
    table.write_text(table.read_text().replace("70.5", "70.6"))
    (out / "figures" / "more.svg").write_text("left over")
    assert changed(store, "checked", out) == ["figures/more.svg", "tables/ablation.csv"]
    with pytest.raises(ReportError, match="there is no report to check"):
        changed(store, "checked", tmp_path / "nothing")


@pytest.mark.slow
def test_a_number_that_changes_in_the_store_changes_the_report(
    store: str, write: Any, made: Any, tmp_path: Path
) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0, 73.0)})
    write(made.study_record("broken"), runs)
    report(store, "broken", tmp_path / "out")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("broken")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`kdstudy.run_id` = '" + runs[-1].identity() + "'")
    client.log_metric(run.info.run_id, "test_top1_last", 74.0)
    found = changed(store, "broken", tmp_path / "out")
    assert {"report.html", "report.md", "tables/ablation.csv", "tables/paper-table-2.csv"} <= set(found)
    assert {"figures/alpha-curve.svg", "figures/alpha-curve.png"} <= set(found)
    assert "tables/teachers.csv" not in found


def test_the_report_has_every_part(folder: Path) -> None:
    assert sorted(files(folder)) == sorted(
        [
            "report.html",
            "report.md",
            *(
                f"figures/{name}.{end}"
                for name in ("alpha-curve", "cost", "learning-curves", "mis-instruction")
                for end in ("svg", "png")
            ),
            *(
                f"tables/{name}.{end}"
                for name in (
                    "ablation",
                    "resolution",
                    *(f"paper-table-{n}" for n in (1, 2, 6)),
                    "runs-without-result",
                    "teachers",
                )
                for end in ("csv", "md", "tex")
            ),
            "tables/runs.csv",
        ]
    )


def test_the_runs_of_a_server_are_linked_to(store: str, tmp_path: Path) -> None:
    frames = load_runs(store, "ablation"), load_history(store, "ablation"), load_studies(store, "ablation")
    frames[2][0]["mlflow"] = {"server": "http://mlflow:5000", "experiment": "7"}
    page = write_report(*frames, tmp_path / "out").read_text(encoding="utf-8")
    run = frames[0]["mlflow_run_id"].iloc[0]
    assert f'<a href="http://mlflow:5000/#/experiments/7/runs/{run}">{run}</a>' in page
    assert (tmp_path / "out/tables/runs.csv").read_text().count("\n") == len(frames[0]) + 1


def test_the_page_asks_for_nothing_outside_itself(folder: Path) -> None:
    reader = Reader((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.addresses
    assert all(each.startswith(("#", "data:")) for each in reader.addresses)
    assert not {"script", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert reader.tags.count("link") == 1  # the empty icon, which keeps a browser from asking for one
    assert len(reader.ids) == len(set(reader.ids))
    assert {each[1:] for each in reader.addresses if each.startswith("#")} <= set(reader.ids)


def test_the_answer_comes_first_and_every_section_is_there(folder: Path) -> None:
    text = Reader((folder / "report.html").read_text(encoding="utf-8")).text
    parts = [
        "This study was cut.",
        "LoCa at alpha 0.5 came out 4.00 ± 2.48 points above KD",
        "What to keep in mind",
        "Test top-1 of the last epoch against α",
        "75.00 ± 2.00",
        "Accuracy by epoch",
        "Share of training views",
        "loss is not finite at epoch 3",
        "digits-quick, without any deviation",
        "900 images, 1 view each",
        "a processor",
        "2.1 min",
        "2.15.0",
        "kdstudy report ablation -o DIR",
    ]
    places = [text.index(part) for part in parts]
    assert places[0] < places[1] < places[2] < places[3] < places[4] < places[5] < places[6]


def test_markdown_says_the_same(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "**LoCa at alpha 0.5 came out 4.00 ± 2.48 points above KD for digits/cnn32-cnn3: a lead" in text
    assert "| **loca** | **0.5** | **3** | **75.00 ± 2.00** |" in text
    for drawn in ("alpha-curve", "learning-curves", "mis-instruction"):
        assert f"(figures/{drawn}.svg)" in text


def test_the_same_store_gives_the_same_bytes(folder: Path, store: str, tmp_path: Path) -> None:
    again = report(store, "ablation", tmp_path / "elsewhere").parent
    assert files(again) == files(folder)


def test_deviations_from_the_protocol_are_marked(write: Any, made: Any, store: str, tmp_path: Path) -> None:
    changes = [{"field": "epochs", "base": 30, "value": 4}]
    protocol = {"base": "digits-quick", "epochs": 4}
    write(
        made.study_record("deviates", protocol=protocol, protocol_changes=changes),
        made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0, 73.0)}, epochs=2),
    )
    text = Reader(report(store, "deviates", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "with 1 deviation, marked below" in text
    assert "4 (instead of 30)" in text
    assert "This study was cut" not in text


def test_a_search_shows_its_history_and_tabulates_the_final_stage(store: str, tmp_path: Path) -> None:
    out = report(store, "search", tmp_path / "out").parent
    text = Reader((out / "report.html").read_text(encoding="utf-8")).text
    assert "Search history" in text
    assert "Final stage" in text
    assert "75.50 ± 0.71" in text
    assert (out / "figures" / "search-history.svg").is_file()
    assert "81.0" in (out / "tables" / "search.csv").read_text(encoding="utf-8")
    assert "81.0" not in (out / "tables" / "ablation.csv").read_text(encoding="utf-8")


def test_a_search_without_a_final_stage_says_that_there_is_no_result_yet(
    write: Any, made: Any, store: str, tmp_path: Path
) -> None:
    runs = [made.Run("loca", 11, 80.0, 0.9, stage="search", validation=True)]
    write(made.study_record("searching", mode="search"), runs)
    text = Reader(report(store, "searching", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "No run of the final stage has finished yet" in text


def test_a_search_that_chose_by_test_accuracy_says_so_and_shows_test_values(
    write: Any, made: Any, store: str, tmp_path: Path
) -> None:
    runs = made.sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0, 73.0)}, stage="search", epochs=1)
    write(made.study_record("by-test-page", mode="search", selection="paper"), runs)
    text = Reader(report(store, "by-test-page", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "search, chosen by test accuracy" in text
    assert "Points were chosen by test accuracy, as the papers do" in text
    assert "Last-epoch test accuracy" in text
    assert "72.00 ± 1.41" in text


def test_a_study_that_still_runs_can_be_reported(write: Any, made: Any, store: str, tmp_path: Path) -> None:
    record = made.study_record("still-running")
    for name in ("wall_seconds", "device_seconds", "teachers", "hardware", "versions", "code_version"):
        del record[name]
    runs = [*made.sweep({("kd", None): (70.0,)}, epochs=1), made.Run("loca", 1, 60.0, 0.9, state="RUNNING", epochs=1)]
    write(record, runs, counts=False)
    text = Reader(report(store, "still-running", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "1 of 2 runs is still running." in text
    assert "not known" in text


def test_names_with_html_in_them_are_text(made: Any, store: str, tmp_path: Path) -> None:
    out = report(store, made.HOSTILE, tmp_path / "out").parent
    reader = Reader((out / "report.html").read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert made.HOSTILE in reader.text
    for markdown in out.rglob("*.md"):
        prose = re.sub(r"^```$.*?^```$", "", markdown.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert "<script" not in prose


def test_published_numbers_are_beside_the_papers_protocol(store: str, tmp_path: Path) -> None:
    text = Reader(report(store, "paper", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "71.08 (LoCa, Table 2)" in text
    assert "not drawn because the protocol differs" not in text


def test_published_points_of_a_cut_study_are_mentioned_and_not_drawn(
    write: Any, made: Any, store: str, tmp_path: Path
) -> None:
    runs = made.sweep(
        {("kd", None): (17.0, 17.5), ("loca", 0.95): (17.1, 17.2)}, pair="cifar100/resnet56-resnet20", epochs=1
    )
    write(made.study_record("cut-paper", cuts=["epochs 240 -> 1"], protocol={"base": "crd-240", "epochs": 1}), runs)
    text = Reader(report(store, "cut-paper", tmp_path / "out").read_text(encoding="utf-8")).text
    assert "not drawn because the protocol differs" in text
    assert "71.08 at α 0.95 (LoCa, Table 2)" in text


def test_several_studies_share_a_page_and_their_files_do_not_collide(store: str, tmp_path: Path) -> None:
    out = report(store, ["ablation", "one-seed"], tmp_path / "out").parent
    names = {each.name for each in (out / "tables").iterdir()}
    assert {"ablation-ablation.csv", "one-seed-ablation.csv"} <= names
    reader = Reader((out / "report.html").read_text(encoding="utf-8"))
    assert len(reader.ids) == len(set(reader.ids))
    assert "kdstudy report ablation one-seed -o DIR" in reader.text


def test_a_study_without_finished_runs_is_refused_with_what_it_has(store: str, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"study 'nothing-finished' has no finished runs \(runs: 1 FAILED\)") as error:
        report(store, "nothing-finished", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_older_report_is_replaced_and_other_files_stay(store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report(store, "search", out)
    (out / "notes.txt").write_text("mine")
    report(store, "one-seed", out)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "tables" / "search.csv").exists()
    assert "one-seed" in (out / "report.html").read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_failed_swap_leaves_the_older_report_whole(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report(store, "one-seed", out)
    before = files(out)
    rename = os.rename
    calls = []

    def fails_late(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 6:  # the third entry's way in
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(page.os, "rename", fails_late)
    with pytest.raises(ReportError, match="No space left on device"):
        report(store, "search", out)
    assert files(out) == before
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_someone_elses_files_of_these_names_is_refused(store: str, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    with pytest.raises(ReportError, match="which are no report; name another folder"):
        report(store, "one-seed", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["tables"]
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="it is a file"):
        report(store, "one-seed", tmp_path / "file")


def test_durations_read_well() -> None:
    assert [page.duration(each) for each in (None, 5.2, 125.0, 9000.0)] == ["not known", "5 s", "2.1 min", "2.50 h"]
