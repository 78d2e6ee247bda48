"""Frames read back from a store written as the contract says."""

import gc
import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import ReportError, load_history, load_runs, load_studies


def test_one_row_a_run_with_what_it_was_given_and_how_it_ended(store: str) -> None:
    runs = load_runs(store, "ablation")
    assert len(runs) == 21
    row = runs[(runs["method"] == "loca") & (runs["alpha"] == 0.5) & (runs["seed"] == 2)].iloc[0]
    assert (row["study"], row["pair"], row["dataset"], row["teacher"]) == (
        "ablation",
        "digits/cnn32-cnn3",
        "digits",
        "cnn32",
    )
    assert (row["tau"], row["beta"], row["gamma"], row["state"], row["stage"]) == (4.0, 0.9, 0.1, "DONE", "ablation")
    assert (row["test_top1_last"], row["test_top1_best"], row["device_seconds"]) == (75.0, 75.5, 5.5)
    assert (row["protocol_hash"], row["device"]) == ("p1", "cpu")


def test_columns_are_typed(store: str) -> None:
    runs = load_runs(store, ["ablation", "search"])
    assert runs["seed"].dtype == np.int64
    assert runs["screening"].dtype == bool
    assert runs["screening"].sum() == 3
    assert runs["method"].dtype == "string"
    assert all(runs[name].dtype == np.float64 for name in ("alpha", "tau", "val_top1_last", "test_top5_last"))
    assert isinstance(runs["started"].dtype, pd.DatetimeTZDtype)


def test_parameters_that_a_method_does_not_use_are_nan(store: str) -> None:
    runs = load_runs(store, "ablation").set_index("method")
    assert runs.loc["ce", ["alpha", "tau", "beta"]].isna().all(axis=None)
    assert runs.loc["kd", "alpha"].isna().all()
    assert (runs.loc["kd", "tau"] == 4.0).all()


def test_failed_runs_are_kept_with_their_reason(store: str) -> None:
    failed = load_runs(store, "ablation").query("state == 'FAILED'")
    assert list(failed["reason"]) == ["loss is not finite at epoch 3"]
    assert failed["test_top1_last"].isna().all()


def test_the_order_does_not_depend_on_the_order_of_writing(store: str) -> None:
    runs = load_runs(store, ["search", "ablation"])
    assert list(runs["study"].unique()) == ["ablation", "search"]
    ablation = runs[runs["study"] == "ablation"]
    assert list(ablation["method"].unique()) == ["ce", "kd", "kd_drop", "loca"]
    loca = ablation[ablation["method"] == "loca"]
    assert list(zip(loca["alpha"], loca["seed"], strict=True))[:4] == [(0.5, 1), (0.5, 2), (0.5, 3), (0.95, 1)]


def test_a_parameter_of_a_methods_own_is_a_column(write: Any, store: str, made: Any) -> None:
    own = {"tau": 4.0, "alpha_dkd": 1.0, "beta_dkd": 2.0}
    write(made.study_record("own-parameters"), [made.Run("dkd", 1, 70.0, parameters=own, epochs=1)])
    runs = load_runs(store, "own-parameters")
    history = load_history(store, "own-parameters")
    assert runs.loc[0, ["alpha_dkd", "beta_dkd"]].tolist() == [1.0, 2.0]
    assert math.isnan(runs.loc[0, "alpha"])
    assert history.loc[0, "beta_dkd"] == 2.0


def test_history_has_one_row_a_run_and_epoch(store: str) -> None:
    history = load_history(store, "ablation")
    assert len(history) == 20 * 4 + 2  # the failed run stopped after two epochs
    one = history[(history["method"] == "loca") & (history["alpha"] == 0.5) & (history["seed"] == 1)]
    assert one["epoch"].tolist() == [1, 2, 3, 4]
    assert one["epoch"].dtype == np.int64
    assert one["test_top1"].tolist() == [67.0, 69.0, 73.5, 73.0]
    assert one["train_loss"].tolist() == pytest.approx([2.0, 1.0, 2 / 3, 0.5])
    assert one["val_top1"].isna().all()


def test_a_run_without_a_history_file_is_read_metric_by_metric(store: str) -> None:
    history = load_history(store, "going-on").query("state == 'RUNNING'")
    assert history["epoch"].tolist() == [1, 2]
    assert history["test_top1"].tolist() == pytest.approx([40.0, math.pi])
    assert history["mis_instruction_ratio"].tolist() == [0.2, 0.2]


def test_studies_come_back_in_the_asked_order(store: str) -> None:
    found = load_studies(store, ["search", "ablation"])
    assert [each["study"] for each in found] == ["search", "ablation"]
    assert found[1]["counts"]["failed"] == 1


def test_an_unknown_study_is_told_with_the_nearest_names(store: str) -> None:
    for load in (load_runs, load_history, load_studies):
        with pytest.raises(
            ReportError, match=r"study 'ablatoin' is not in this MLflow; did you mean ablation"
        ) as error:
            load(store, "ablatoin")
        assert "\n" not in str(error.value)


def test_a_store_that_is_not_there_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such file"):
        load_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "any")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_told_soon_and_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a refused connection, whatever else runs here
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ReportError, match="does not answer") as error:
            load_runs(address, "any")
    assert time.monotonic() - started < 30
    assert "\n" not in str(error.value)
    assert address in str(error.value)


def test_a_study_without_its_record_says_how_to_complete_it(store: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=store).create_experiment("no-record")
    with pytest.raises(ReportError, match="kdstudy sync no-record"):
        load_studies(store, "no-record")


def test_importing_the_package_is_cheap_and_its_names_are_there() -> None:
    code = "import sys, analysis; assert not {'pandas', 'mlflow', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in analysis.__all__:
        assert getattr(analysis, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = analysis.nothing_like_it


def test_the_garbage_collector_is_left_as_it_was(store: str) -> None:
    load_runs(store, "ablation")
    assert gc.isenabled()
    gc.disable()
    try:
        load_runs(store, "ablation")
        assert not gc.isenabled()
    finally:
        gc.enable()
