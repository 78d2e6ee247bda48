"""A run's log: what its driver heard, to be read when the worker is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from study import runlog, tracking
from study.home import open_home
from tests.study.given import Command
from tests.study.simulation import Simulation, spec_of


def test_a_log_has_attempts_epochs_hosts_losses_and_tracebacks() -> None:
    simulation = Simulation(spec_of(seeds=1))
    first = simulation.claim()
    assert first is not None
    simulation.driver.on_report(simulation.report(first, 1, 2, host="node-a"))
    simulation.driver.on_lost(first["run_id"], 1, "its worker died")
    second = simulation.claim()
    assert second is not None
    simulation.driver.on_report(
        simulation.report(second, 3, 3, host="node-b", warning="its checkpoint cannot be written: no room")
    )
    failed = {"failed": "ValueError: no", "traceback": "Traceback:\n  in f\nValueError: no", "done": True}
    simulation.driver.on_report(simulation.report(second, 4, 4, host="node-b", **failed))
    said = runlog.read(simulation.home, first["run_id"]) or ""
    lines = [line.split(" ", 2)[2] for line in said.splitlines()]
    assert lines[0] == "attempt 1: ce {} seed 0, from the beginning"
    assert lines[1].startswith("attempt 1: [node-a] epoch 1: train_loss 1, test_top1 51, ")
    assert "attempt 1: lost: its worker died" in lines
    assert "attempt 2: ce {} seed 0, from attempt-1/epoch-0002.pt" in lines
    assert "attempt 2: [node-b] warning: its checkpoint cannot be written: no room" in lines
    assert lines[-4:] == [
        "attempt 2: [node-b] failed: ValueError: no",
        "attempt 2: [node-b] Traceback:",
        "attempt 2: [node-b]   in f",
        "attempt 2: [node-b] ValueError: no",
    ]


def test_a_long_log_keeps_its_beginning_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "MOST_BYTES", 4000)
    home = open_home()
    for number in range(1000):
        runlog.write(home, "r", 1, f"line {number}")
    said = runlog.read(home, "r") or ""
    assert len(said) < 5000
    assert "line 0\n" in said
    assert "line 999\n" in said
    assert "… left out …" in said


def test_a_disk_that_takes_no_log_stops_nothing(tmp_path: Path) -> None:
    home = open_home()
    home.logs.parent.mkdir(parents=True, exist_ok=True)
    home.logs.write_text("a file in the folder's place")
    runlog.write(home, "r", 1, "line")
    assert runlog.read(home, "r") is None


def test_show_has_the_end_of_it_and_mlflow_all_of_it(kdstudy: Command) -> None:
    simulation = Simulation(spec_of(seeds=1, protocol={"base": "digits-quick", "epochs": 20}))
    simulation.finish()
    (run,) = simulation.store.runs("sim")
    shown = kdstudy("show", run.run_id)
    assert "log, the last 8 of" in shown.out
    assert "attempt 1: done" in shown.out
    assert "from the beginning" not in shown.out
    assert "from the beginning" in kdstudy("show", run.run_id, "--log").out
    simulation.store.update_info("sim", protocol={"base": "digits-quick"}, teachers=[])
    tracking.Tracker(simulation.home, simulation.store, "sim").sync(live=False)
    (kept,) = simulation.home.artifacts.rglob("run.log")
    assert kept.read_text() == runlog.read(simulation.home, run.run_id)
    runlog.path_of(simulation.home, run.run_id).unlink()
    assert "not on this host" in kdstudy("show", run.run_id).out
