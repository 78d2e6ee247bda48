"""Whole studies through the real parts: the command line, Ray, Optuna, MLflow, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analysis
from study.store import COMPLETE, DONE, RunRow, Store

pytestmark = pytest.mark.slow

Kdstudy = Callable[..., subprocess.CompletedProcess[str]]
CUT = ["--set", "protocol.epochs=4", "--set", "seeds=2", "--set", "methods.loca.alpha=[0.8,1.0]"]


def commands(folder: Path) -> Kdstudy:
    def kdstudy(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "kdstudy"), *arguments],
            cwd=folder,
            env={**os.environ, "KDSTUDY_HOME": str(folder / "home"), "COLUMNS": "120", **environment},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return kdstudy


def store(folder: Path) -> Store:
    return Store(f"sqlite:///{folder}/home/store.db")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `quickstart` was run, cut to seconds."""
    made = tmp_path_factory.mktemp("quickstart")
    done = commands(made)("run", "quickstart", *CUT, "--report")
    assert "13 of 13 runs ended" in done.stdout  # six points on two seeds, and the teacher
    assert "13 of 13 runs done" in done.stdout
    assert str(made / "home/reports/quickstart/report.html") in done.stdout.replace("\n", "")
    return made


def test_the_teacher_is_trained_first_on_images_that_no_student_sees(folder: Path) -> None:
    with store(folder).opened() as opened:
        (teacher,) = opened.info("quickstart")["teachers"]
        assert opened.info("quickstart")["data"]["train_images"] == 940
    assert teacher["trained_on"] == "part"
    assert 0.05 < teacher["mis_instruction_ratio"] < 0.3
    assert teacher["test_top1"] > 80


def test_mlflow_alone_holds_what_the_report_needs(folder: Path) -> None:
    uri = f"sqlite:///{folder}/home/mlflow.db"
    runs = analysis.load_runs(uri, ["quickstart"])
    assert len(runs) == 12
    assert set(runs["state"]) == {"DONE"}
    assert sorted(runs["alpha"].dropna().unique()) == [0.8, 1.0]
    history = analysis.load_history(uri, ["quickstart"])
    assert len(history) == 12 * 4
    loca = history[history["method"] == "loca"]
    assert loca["mis_instruction_ratio"].between(0.05, 0.4).all()
    with store(folder).opened() as opened:
        for run in opened.runs("quickstart", "ablation"):
            mine = history[history["run_id"] == run.run_id].sort_values("epoch")
            assert mine["test_top1"].tolist() == [row["test_top1"] for row in opened.history(run.run_id)]


def test_a_run_is_tagged_with_what_its_teacher_saw(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/home/mlflow.db")
    experiment = client.get_experiment_by_name("quickstart")
    found = client.search_runs(
        [experiment.experiment_id], "tags.`kdstudy.teacher_trained_on` = 'held_out, part'", max_results=100
    )
    assert len(found) == 10  # all but the two runs of ce, which have no teacher


def test_the_report_says_that_the_study_was_cut(folder: Path) -> None:
    page = (folder / "home/reports/quickstart/report.html").read_text()
    assert "epochs 40 → 4" in page
    assert (folder / "home/reports/quickstart/figures/alpha-curve.svg").exists()


def test_running_it_again_trains_nothing(folder: Path) -> None:
    with store(folder).opened() as opened:
        before = [(run.run_id, run.attempt, run.ended) for run in opened.runs("quickstart")]
    done = commands(folder)("run", "quickstart")
    assert "13 of 13 runs done" in done.stdout
    with store(folder).opened() as opened:
        assert [(run.run_id, run.attempt, run.ended) for run in opened.runs("quickstart")] == before


def test_list_status_show_and_export_speak_of_it(folder: Path) -> None:
    kdstudy = commands(folder)
    assert "quickstart" in kdstudy("list").stdout
    assert "finished" in kdstudy("status", "quickstart").stdout
    with store(folder).opened() as opened:
        run = opened.runs("quickstart", "ablation")[0]
    shown = kdstudy("show", run.run_id[:10]).stdout
    assert run.run_id in shown
    assert "test_top1_last" in shown
    assert "chosen by test accuracy" in kdstudy("export", "quickstart", "-o", "best.pt").stdout
    assert (folder / "best.pt").stat().st_size > 1000
    assert "digits-cnn32" in kdstudy("teacher", "list").stdout


def test_preflight_knows_the_trained_teacher_and_the_measured_spread(folder: Path) -> None:
    said = commands(folder)("preflight", "quickstart").stdout
    assert "12 runs (12 done)" in said
    assert "measured over the seeds of 6 points" in said.replace("\n", " ")
    assert "moved where the teacher is wrong" in said


def test_another_study_takes_over_what_it_shares_and_tracks_it_later(folder: Path) -> None:
    kdstudy = commands(folder)
    done = kdstudy(
        "run", "quickstart", *CUT, "--set", "name=second", "--set", "methods.loca.alpha=[0.8]", "--track-later"
    )
    assert "11 of 11 runs done, 11 taken over from other studies" in done.stdout
    assert "kdstudy sync second" in done.stdout
    kdstudy("sync", "second")
    assert len(analysis.load_runs(f"sqlite:///{folder}/home/mlflow.db", ["second"])) == 10


def test_a_study_grows_and_refuses_what_would_change_its_results(folder: Path) -> None:
    kdstudy = commands(folder)
    grow = ["--set", "name=grown", "--set", "methods={ce: {}}"]
    kdstudy("run", "quickstart", *CUT, *grow, "--set", "seeds=1")
    done = kdstudy("run", "grown", "--set", "seeds=2")
    assert "2 of 2 runs done" in done.stdout
    refused = kdstudy("run", "grown", "--set", "protocol.lr=0.2", code=2)
    assert "protocol.lr: 0.05 -> 0.2" in refused.stderr


def test_a_search_prunes_chooses_on_validation_and_tests_the_choice_on_fresh_seeds(tmp_path: Path) -> None:
    kdstudy = commands(tmp_path)
    kdstudy(
        "run", "quick-search", "--set", "protocol.epochs=6", "--set", "search.points=5", "--set", "seeds=2", "--report"
    )
    with store(tmp_path).opened() as opened:
        search, final = opened.runs("quick-search", "search"), opened.runs("quick-search", "final")
        points = opened.points("quick-search", "search")
    assert all("test_top1_last" not in (run.summary or {}) for run in search)
    assert {run.method for run in final} == {"ce", "kd", "loca"}
    assert {run.seed for run in final} == {1_000_000, 1_000_001}
    assert all(run.state == DONE for run in final)
    best = max((p for p in points if p.method == "loca" and p.state == COMPLETE), key=lambda p: p.value or 0)
    assert all(run.parameters == best.parameters for run in final if run.method == "loca")
    runs = analysis.load_runs(f"sqlite:///{tmp_path}/home/mlflow.db", ["quick-search"])
    assert set(runs["stage"]) == {"search", "final"}


def test_a_run_whose_loss_is_not_finite_fails_with_a_reason_and_can_be_retried(tmp_path: Path) -> None:
    kdstudy = commands(tmp_path)
    wild = ["--set", "methods={ce: {}}", "--set", "protocol.lr=1e30", "--set", "protocol.epochs=2", "--set", "seeds=1"]
    done = kdstudy("run", "quickstart", *wild, code=1)
    assert "failed (1): loss is not finite at epoch 1" in done.stdout
    with store(tmp_path).opened() as opened:
        assert [run.state for run in opened.runs("quickstart")] == ["FAILED"]
    assert "1 failed runs of quickstart will begin again" in kdstudy("retry", "quickstart").stdout
    kdstudy("run", "quickstart", code=1)
    with store(tmp_path).opened() as opened:
        assert [run.attempt for run in opened.runs("quickstart")] == [2]


def test_a_study_goes_on_without_a_tracker_that_died_and_sync_completes_it(tmp_path: Path, server: Any) -> None:
    start, kill = server
    uri = start()
    environment = {**os.environ, "KDSTUDY_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": uri}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "kdstudy"), "run", "quickstart", *CUT],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(run.state == DONE and run.stage != "teacher" for run in _runs(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "13 of 13 runs done" in output
    assert "MLflow does not have all of it yet" in output
    assert "Traceback" not in output
    start()
    commands(tmp_path)("sync", "quickstart", MLFLOW_TRACKING_URI=uri)
    runs = analysis.load_runs(uri, ["quickstart"])
    assert len(runs) == 12
    assert set(runs["state"]) == {"DONE"}
    assert len(analysis.load_history(uri, ["quickstart"])) == 12 * 4


def _runs(folder: Path) -> list[RunRow]:
    if not (folder / "home/store.db").exists():
        return []
    with store(folder).opened() as opened:
        return opened.runs("quickstart")


def test_the_python_entry_returns_a_summary(tmp_path: Path) -> None:
    script = (
        "import study, json, dataclasses\n"
        "spec = study.load_spec('quickstart', ['methods={ce: {}}', 'protocol.epochs=1', 'seeds=1'])\n"
        "print(json.dumps(dataclasses.asdict(study.run(spec))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**os.environ, "KDSTUDY_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["state"], summary["done"], summary["untracked"]) == ("finished", 1, "")
