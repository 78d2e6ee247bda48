"""The table of a running study says what the store holds."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from study.progress import Progress
from tests.study.simulation import Simulation, spec_of

LISTS: dict[str, Any] = {
    "methods": {"ce": {}, "loca": {"alpha": [0.5, 1.0]}},
    "teacher": {"checkpoint": "given"},
}


def text(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(progress.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(shown: str, method: str) -> list[str]:
    return next(line for line in shown.splitlines() if line.split()[:1] == [method]).split()


def test_counts_and_the_best_point_of_each_method_are_shown_within_80_columns() -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    shown = text(Progress(simulation.store, "sim", "test_top1_last"))
    assert row(shown, "ce")[1:5] == ["2", "2", "0", "0"]
    loca = row(shown, "loca")
    assert loca[1:5] == ["4", "4", "0", "0"]
    assert "64.50" in loca  # 50 + 10 alpha + mean seed 0.5 + epoch 4
    assert "alpha 1 (n 2)" in shown
    assert "6 of 6 runs ended" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_runs_that_a_killed_driver_left_behind_are_not_called_running() -> None:
    simulation = Simulation(spec_of(**LISTS))
    assert simulation.claim() is not None
    assert row(text(Progress(simulation.store, "sim", "test_top1_last")), "ce")[3] == "1"
    left = Progress(simulation.store, "sim", "test_top1_last", driven=lambda: False)
    assert row(text(left), "ce")[3] == "0"


def test_failures_with_their_reasons_stand_below_and_who_drives_it_where_that_is_known() -> None:
    simulation = Simulation(spec_of(**LISTS))
    for reason in ("loss is not finite at epoch 1", "loss is not finite at epoch 1", "no such disk"):
        request = simulation.claim()
        assert request is not None
        simulation.driver.on_report(simulation.report(request, 1, 1, failed=reason))
    shown = text(Progress(simulation.store, "sim", "test_top1_last", where=lambda: "driven by process 7 on host"))
    lines = shown.splitlines()
    assert "failed (2): loss is not finite at epoch 1" in shown
    assert "failed (1): no such disk" in shown
    assert lines[-1].startswith("driven by process 7")
    simulation.store.retry_failed("sim")
    assert "failed (" not in text(Progress(simulation.store, "sim", "test_top1_last"))


def test_the_rate_is_of_what_ended_since_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(spec_of(**LISTS))
    now = [0.0]
    monkeypatch.setattr("study.progress.time.monotonic", lambda: now[0])
    progress = Progress(simulation.store, "sim", "test_top1_last")
    assert "an hour" not in text(progress)
    simulation.finish()
    now[0] = 60.0
    assert "360 runs an hour" in text(progress)  # six in a minute


def test_the_time_left_is_said_once_epochs_were_seen() -> None:
    simulation = Simulation(spec_of(**LISTS))
    progress = Progress(simulation.store, "sim", "test_top1_last")
    assert "left" not in text(progress)
    request = simulation.claim()
    assert request is not None
    simulation.train(request)
    assert "left" in text(progress)
    simulation.finish()
    assert "left" not in text(progress)


def test_pruned_runs_are_shown_where_there_are_any() -> None:
    simulation = Simulation(
        spec_of(
            methods={"loca": {"alpha": [1.05, 0.9, 0.5]}},
            teacher={"checkpoint": "given"},
            seeds=1,
            search={"pruner": "successive_halving", "reduction": 2},
        )
    )
    simulation.finish()
    shown = text(Progress(simulation.store, "sim", "val_top1_last"))
    assert "pruned" in shown
    assert int(row(shown, "loca")[5]) > 0


def test_a_table_that_followed_a_study_says_what_one_drawn_anew_says() -> None:
    """The counts are kept up by the rows that changed, through ends, failures and retries."""
    simulation = Simulation(spec_of(**LISTS))
    followed = Progress(simulation.store, "sim", "test_top1_last")
    for number in range(6):
        request = simulation.claim()
        assert request is not None
        simulation.driver.on_report(simulation.report(request, 1, 2))
        if number % 3 == 1:
            simulation.driver.on_report(simulation.report(request, 3, 3, failed="boom", done=True))
        else:
            simulation.train(request)
        anew = Progress(simulation.store, "sim", "test_top1_last")
        # But for the line on what was seen since one looks.
        tables = [[line for line in text(each).splitlines() if "runs ended" not in line] for each in (followed, anew)]
        assert tables[0] == tables[1]
    assert row(text(followed), "loca")[1:5] == ["4", "2", "0", "2"]
    simulation.store.retry_failed("sim")
    assert row(text(followed), "loca")[1:5] == ["4", "2", "0", "0"]
    assert "4 of 6 runs ended" in text(followed)
    simulation.finish()
    assert "6 of 6 runs ended" in text(followed)
    assert "alpha 1 (n 2)" in text(followed)
