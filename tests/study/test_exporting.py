"""Students go home as checkpoints that say how to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from study.errors import RequestError
from study.exporting import export_student
from study.service import describe
from tests.study.simulation import Simulation, spec_of
from trainables import models
from trainables.files import checkpoint_bytes, write_atomic

LISTS: dict[str, Any] = {
    "methods": {"ce": {}, "loca": {"alpha": [0.5, 1.0]}},
    "teacher": {"checkpoint": "given"},
}


def finished(**changes: Any) -> Simulation:
    """A simulated study whose runs have real checkpoint files, each with weights of its own."""
    simulation = Simulation(spec_of(**{**LISTS, **changes}))
    simulation.finish()
    for number, run in enumerate(simulation.store.runs("sim")):
        torch.manual_seed(number)
        weights = models.build("cnn3", 10).state_dict()
        path = Path(simulation.home.checkpoints(run.run_id)) / str(run.checkpoint)
        write_atomic(path, checkpoint_bytes({"model": weights}))
    simulation.store.update_info("sim", **describe(simulation.plan))
    return simulation


def weights_of(simulation: Simulation, run_id: str) -> dict[str, torch.Tensor]:
    run = next(run for run in simulation.store.runs("sim") if run.run_id == run_id)
    path = Path(simulation.home.checkpoints(run_id)) / str(run.checkpoint)
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def test_an_ablation_exports_the_first_seed_of_the_best_mean_and_says_that_test_accuracy_chose_it(
    tmp_path: Path,
) -> None:
    simulation = finished()
    path, sentence = export_student(simulation.home, simulation.store, "sim", None, tmp_path / "best.pt")
    content = torch.load(path, weights_only=True)
    # flat(): accuracy grows with alpha, so alpha 1.0 is the best point.
    assert content["parameters"]["alpha"] == 1.0
    assert "seed 0" in sentence
    assert "chosen by test accuracy" in sentence
    expected = weights_of(simulation, content["run_id"])
    assert all(torch.equal(content["state_dict"][key], expected[key]) for key in expected)
    models.build(content["student"], content["num_classes"]).load_state_dict(content["state_dict"], strict=True)


def test_a_search_exports_the_point_that_validation_chose(tmp_path: Path) -> None:
    simulation = finished(
        methods={"loca": {"alpha": {"range": [0.3, 1.05]}}}, search={"sampler": "random", "points": 4}, seeds=1
    )
    path, sentence = export_student(simulation.home, simulation.store, "sim", None, tmp_path / "best.pt")
    best = max(simulation.store.points("sim", "search"), key=lambda point: point.value or 0)
    assert torch.load(path, weights_only=True)["parameters"] == best.parameters
    assert "chosen by validation accuracy" in sentence


def test_a_named_run_is_exported_as_asked(tmp_path: Path) -> None:
    simulation = finished()
    wanted = simulation.store.runs("sim")[0].run_id
    path, sentence = export_student(simulation.home, simulation.store, "sim", wanted[:8], tmp_path / "this.pt")
    assert torch.load(path, weights_only=True)["run_id"] == wanted
    assert sentence.endswith("as asked")


def test_an_exported_student_can_be_brought_in_as_a_teacher(tmp_path: Path) -> None:
    from study.importing import import_teacher

    simulation = finished()
    path, _ = export_student(simulation.home, simulation.store, "sim", None, tmp_path / "best.pt")
    record = import_teacher(
        simulation.home, path, model="cnn3", dataset="digits", root=None, name="pupil", mean=None, std=None,
        trained_on="all", protocol="digits-quick",
    )  # fmt: skip
    assert (record.model, record.trained_on) == ("cnn3", "all")


@pytest.mark.parametrize(
    ("run_id", "says"),
    [("zzzz", "no finished run that begins with 'zzzz'"), (None, "checkpoint .*: there is no such file")],
)
def test_what_cannot_be_exported_is_one_line(tmp_path: Path, run_id: str | None, says: str) -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    with pytest.raises(RequestError, match=says):
        export_student(simulation.home, simulation.store, "sim", run_id, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_a_study_without_finished_runs_has_nothing_to_export(tmp_path: Path) -> None:
    simulation = Simulation(spec_of(**LISTS))
    with pytest.raises(RequestError, match="no finished runs"):
        export_student(simulation.home, simulation.store, "sim", None, tmp_path / "x.pt")
