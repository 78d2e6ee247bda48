"""The benchmark of large studies: what it measures is there, and its studies are what kdstudy makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from benchmarks import scale, stored
from study.home import open_home
from study.store import DONE, Store
from study.tracking import Tracker


@pytest.mark.slow
def test_every_row_has_figures_for_each_size() -> None:
    always, once, memory = scale.measure(quick=True)
    assert [row[0] for row in always.rows] == list(scale.ALWAYS)
    assert [row[0] for row in once.rows] == list(scale.ONCE)
    assert all(value > 0 for table in (always, once) for row in table.rows for value in row[1:])
    store, mlflow = memory.rows[-2:]
    assert (store[0], mlflow[0]) == ("store.db", "mlflow.db")
    assert store[2] > store[1] > 0
    assert mlflow[2] > mlflow[1] > 0


@pytest.mark.slow
def test_mlflow_filled_at_once_is_what_the_tracker_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []
    for name in ("at-once", "one-by-one"):
        monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / name))
        monkeypatch.setattr(stored.time, "time", lambda: 1.0e9)
        stored.fill(3, sampled=False)
        if name == "at-once":
            stored.track()
        else:
            with Store(open_home().store_url).opened() as store:
                store.update_info(stored.STUDY, teachers=[], code_version="benchmark")
                Tracker(open_home(), store, stored.STUDY).sync(live=False)
        uri = open_home().tracking_uri
        frames.append((analysis.load_runs(uri, stored.STUDY), analysis.load_history(uri, stored.STUDY)))
    for made, logged in zip(*frames, strict=True):
        pd.testing.assert_frame_equal(
            made.drop(columns="mlflow_run_id", errors="ignore"), logged.drop(columns="mlflow_run_id", errors="ignore")
        )


@pytest.mark.parametrize("sampled", [False, True])
def test_a_made_study_goes_on_where_its_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path))
    stored.fill(4, sampled)
    driver = scale._opened(4, sampled)
    ended = [run for run in driver.store.runs(stored.STUDY) if run.state == DONE]
    assert len(ended) == 4 * stored.SEEDS
    request: dict[str, Any] | None = driver.next_request()
    assert request is not None
    assert request["run_id"] not in {run.run_id for run in ended}
