"""MLflow shows what the store holds, whatever happens to it in between."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from study import tracking
from study.errors import RequestError
from study.home import open_home
from study.store import PRUNED
from study.tracking import BackgroundTracker, Tracker
from tests.study.simulation import Simulation, spec_of

LISTS: dict[str, Any] = {
    "methods": {"ce": {}, "loca": {"alpha": [0.5, 1.0]}},
    "teacher": {"regime": "seen", "checkpoint": "given"},
}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    tracking.configure()
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def mlflow_home(home: Path, empty_database: Path) -> Path:
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    return home


def client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(open_home().tracking_uri)


def shown(kind: str = "run", study: str = "sim") -> list[Any]:
    """The MLflow runs of a kind."""
    mlflow = client()
    experiment = mlflow.get_experiment_by_name(study)
    return list(mlflow.search_runs([experiment.experiment_id], f"tags.`kdstudy.kind` = '{kind}'", max_results=1000))


def tracker(simulation: Simulation) -> Tracker:
    return Tracker(simulation.home, simulation.store, simulation.plan.spec.name)


@pytest.mark.usefixtures("mlflow_home")
def test_a_finished_study_is_shown_whole_with_parents_params_metrics_and_history() -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    tracker(simulation).sync(live=False)
    runs = shown()
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    groups = {run.info.run_id: run.data.params["method"] for run in shown("group")}
    assert sorted(groups.values()) == ["ce", "loca"]
    run = next(r for r in runs if r.data.params.get("alpha") == "0.5" and r.data.params["seed"] == "1")
    assert groups[run.data.tags["mlflow.parentRunId"]] == "loca"
    assert run.data.params["pair"] == "digits/cnn32-cnn3"
    assert run.data.params["protocol"] == "digits-quick"
    assert {name: run.data.metrics[f"hp.{name}"] for name in ("alpha", "tau", "beta", "gamma")} == {
        "alpha": 0.5,
        "tau": 4.0,
        "beta": 0.9,
        "gamma": 0.1,
    }
    assert run.data.metrics["test_top1_last"] == 60.0  # 50 + 10 alpha + seed 1 + epoch 4
    points = client().get_metric_history(run.info.run_id, "test_top1")
    assert [(point.step, point.value) for point in points] == [(1, 57.0), (2, 58.0), (3, 59.0), (4, 60.0)]
    history = Path(client().download_artifacts(run.info.run_id, "history.csv")).read_text().splitlines()
    assert history[0].startswith("epoch,train_loss,test_top1")
    assert len(history) == 5
    experiment = client().get_experiment_by_name("sim")
    view = json.loads(experiment.tags["mlflow.sharedViewState.kdstudy"])
    assert {f"params.`{name}`" for name in ("alpha", "tau", "beta", "gamma")} <= set(view["selectedColumns"])
    assert "metrics.`test_top1_last`" in view["selectedColumns"]
    (study,) = shown("study")
    overview = json.loads(Path(client().download_artifacts(study.info.run_id, "study.json")).read_text())
    assert overview["counts"]["done"] == 6


@pytest.mark.usefixtures("mlflow_home")
def test_syncing_again_adds_nothing_even_when_the_cursor_is_forgotten() -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    tracker(simulation).sync(live=False)
    before = {run.info.run_id: run.data.metrics for run in shown()}
    with simulation.store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM kdstudy_tracked")
    tracker(simulation).sync(live=False)
    assert {run.info.run_id: run.data.metrics for run in shown()} == before
    for run_id in before:
        assert len(client().get_metric_history(run_id, "test_top1")) == 4


@pytest.mark.usefixtures("mlflow_home")
def test_a_study_is_completed_after_its_driver_was_killed_in_the_middle_of_tracking() -> None:
    simulation = Simulation(spec_of(**LISTS))
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 2))
    tracker(simulation).sync(live=True)
    assert [run.info.status for run in shown()] == ["RUNNING"]
    # The driver is killed here; a `sync` from outside leaves nothing RUNNING.
    tracker(simulation).sync(live=False)
    assert [run.info.status for run in shown()] == ["KILLED"]
    again = Simulation(spec_of(**LISTS))
    again.finish()
    tracker(again).sync(live=False)
    runs = shown()
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert len(client().get_metric_history(run.info.run_id, "train_loss")) == 4


def test_runs_that_mlflow_lost_are_rebuilt(mlflow_home: Path) -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    tracker(simulation).sync(live=False)
    with sqlite3.connect(mlflow_home / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    assert shown() == []
    tracker(simulation).sync(live=False)
    assert len(shown()) == 6
    assert all(len(client().get_metric_history(run.info.run_id, "test_top1")) == 4 for run in shown())


@pytest.mark.usefixtures("mlflow_home")
def test_a_pass_looks_at_what_changed_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(spec_of(**LISTS))
    for _ in range(3):
        request = simulation.claim()
        assert request is not None
        simulation.train(request)
    mine = tracker(simulation)
    mine.sync(live=True)
    looked, logged = [], []
    show, log = Tracker._show_run, mine._client.log_batch
    monkeypatch.setattr(Tracker, "_show_run", lambda self, key, *rest: (looked.append(key), show(self, key, *rest)))
    monkeypatch.setattr(mine._client, "log_batch", lambda run, **what: (logged.append(run), log(run, **what)))
    mine.sync(live=True)
    assert (looked, logged) == ([], [])
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 2))
    mine.sync(live=True)
    assert [key.rpartition(":")[2] for key in looked] == [request["run_id"]]
    first = len(logged)
    assert set(logged) == {run.info.run_id for run in shown() if run.data.tags["kdstudy.run_id"] == request["run_id"]}
    mine.sync(live=True)
    assert (len(looked), len(logged)) == (1, first)
    mine.sync(live=False)  # nobody goes on with it
    assert len(looked) == 2
    assert [run.info.status for run in shown()].count("KILLED") == 1


@pytest.mark.usefixtures("mlflow_home")
def test_a_later_sync_reads_no_history_of_what_mlflow_has(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    tracker(simulation).sync(live=False)
    monkeypatch.setattr(simulation.store, "history", lambda *_, **__: pytest.fail("a history was read"))
    tracker(simulation).sync(live=False)


@pytest.mark.usefixtures("mlflow_home")
def test_a_run_that_was_stopped_here_and_goes_on_elsewhere_keeps_its_history_file() -> None:
    methods = {"loca": {"alpha": [1.05, 1.0, 0.9, 0.5]}}
    pruner = {"sampler": "grid", "pruner": "successive_halving", "first_rung": 1, "reduction": 2}
    same: dict[str, Any] = {**LISTS, "methods": methods, "seeds": 1}
    simulation = Simulation(spec_of(**same, search=pruner, selection="paper"))
    simulation.finish()
    Simulation(spec_of(**same, name="other")).claim()
    tracker(simulation).sync(live=False)
    stopped = [run for run in shown() if run.data.tags["kdstudy.state"] == "PRUNED"]
    assert stopped
    assert {run.info.status for run in stopped} == {"KILLED"}
    for run in stopped:
        assert Path(client().download_artifacts(run.info.run_id, "history.csv")).read_text().count("\n") > 1


@pytest.mark.usefixtures("mlflow_home")
def test_an_answer_that_was_lost_makes_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    create, calls = MlflowClient.create_run, []

    def lose_the_fifth(self: Any, *arguments: Any, **options: Any) -> Any:
        made = create(self, *arguments, **options)
        calls.append(made.info.run_id)
        if len(calls) == 5:
            raise ConnectionError("the answer was lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", lose_the_fifth)
    mine = tracker(simulation)
    with pytest.raises(ConnectionError):
        mine.sync(live=True)
    mine.sync(live=False)
    keys = [run.data.tags["kdstudy.key"] for kind in ("run", "group", "study") for run in shown(kind)]
    assert len(keys) == len(set(keys)) == 6 + 2 + 1
    assert len(calls) == 9


@pytest.mark.usefixtures("mlflow_home")
def test_a_run_that_was_made_twice_all_the_same_is_shown_once() -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    tracker(simulation).sync(live=False)
    twin = shown()[0]
    client().create_run(
        twin.info.experiment_id, tags={name: twin.data.tags[name] for name in ("kdstudy.key", "kdstudy.kind")}
    )
    assert len(shown()) == 7
    tracker(simulation).sync(live=False)
    runs = shown()
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.usefixtures("mlflow_home")
def test_failed_and_pruned_runs_say_so() -> None:
    simulation = Simulation(
        spec_of(
            methods={"loca": {"alpha": [1.05, 0.9, 0.5]}},
            teacher={"checkpoint": "given"},
            seeds=1,
            search={"pruner": "successive_halving", "reduction": 2},
        )
    )
    first = simulation.claim()
    assert first is not None
    simulation.driver.on_report(simulation.report(first, 1, 1, failed="loss is not finite at epoch 2", done=True))
    simulation.finish()
    tracker(simulation).sync(live=False)
    by_state = {run.data.tags["kdstudy.state"]: run for run in shown()}
    assert by_state["FAILED"].info.status == "FAILED"
    assert by_state["FAILED"].data.tags["kdstudy.reason"] == "loss is not finite at epoch 2"
    assert by_state[PRUNED].info.status == "KILLED"


@pytest.mark.usefixtures("mlflow_home")
def test_a_run_that_was_taken_over_has_its_own_mlflow_run_in_the_later_study() -> None:
    Simulation(spec_of(**LISTS)).finish()
    other = Simulation(spec_of(**LISTS, name="other"))
    other.finish()
    tracker(other).sync(live=False)
    runs = shown(study="other")
    assert len(runs) == 6
    assert {run.data.tags["kdstudy.taken_over"] for run in runs} == {"true"}


def test_an_address_that_does_not_answer_is_refused_before_a_study_begins() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(RequestError, match="does not answer"):
        tracking.probe(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "/tmp/mlruns", "databricks"])
def test_a_kind_of_tracker_that_cannot_be_used_is_refused(uri: str) -> None:
    with pytest.raises(RequestError, match="no tracker that can be used"):
        tracking.probe(uri)


class Failing:
    """A tracker that is down until it is told otherwise."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.down = True

    def sync(self, *, live: bool) -> None:
        self.calls.append(live)
        if self.down:
            raise ConnectionError("down")


def test_an_outage_is_reported_once_and_retried_until_it_is_over() -> None:
    import threading

    failing, states = Failing(), []
    changed = threading.Event()

    def on_state(up: bool) -> None:
        states.append(up)
        failing.down = False
        if up:
            changed.set()

    with BackgroundTracker(failing, seconds=0.01, on_state=on_state):  # type: ignore[arg-type]
        assert changed.wait(10)
    assert states == [False, True]


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_costs_nothing_but_delay(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, kill = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", start())
    simulation = Simulation(spec_of(**LISTS))
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 2))
    mine = tracker(simulation)
    mine.sync(live=True)
    kill()
    simulation.driver.on_report(simulation.report(request, 3, 4))
    simulation.finish()
    with pytest.raises(Exception, match=r".+"):
        mine.sync(live=True)
    start()
    mine.sync(live=False)
    runs = shown()
    assert len(runs) == 6
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert [p.step for p in client().get_metric_history(run.info.run_id, "test_top1")] == [1, 2, 3, 4]


@pytest.mark.usefixtures("mlflow_home")
def test_a_run_carries_its_teachers_hash_accuracy_and_ratio_and_who_proposed_its_point() -> None:
    simulation = Simulation(spec_of(**LISTS))
    simulation.finish()
    teacher = {
        "pair": "digits/cnn32-cnn3",
        "name": "given",
        "model": "cnn32",
        "hash": "0" * 64,
        "regime": "held_out",
        "trained_on": "part",
        "test_top1": 73.0,
        "test_top5": 95.0,
        "mis_instruction_ratio": 0.21,
    }
    simulation.store.update_info("sim", teachers=[teacher])
    tracker(simulation).sync(live=False)
    taught = [run for run in shown() if run.data.params["method"] == "loca"]
    assert all(run.data.metrics["teacher_test_top1"] == 73.0 for run in taught)
    assert all(run.data.metrics["teacher_mis_instruction_ratio"] == 0.21 for run in taught)
    assert all(run.data.tags["kdstudy.teacher_trained_on"] == "held_out, part" for run in taught)
    assert all(run.data.tags["kdstudy.teacher_hash"] == "0" * 64 for run in taught)
    assert {run.data.tags["kdstudy.origin"] for run in shown()} == {"the spec's list"}
    plain = [run for run in shown() if run.data.params["method"] == "ce"]
    assert not any("teacher_test_top1" in run.data.metrics for run in plain)


@pytest.mark.usefixtures("mlflow_home")
def test_a_methods_named_choice_is_a_param_and_no_number() -> None:
    methods = {"loca": {"alpha": [0.9], "apply_to": ["wrong", "all"], "tau_squared": [True, False]}}
    simulation = Simulation(spec_of(**{**LISTS, "methods": methods}, seeds=1))
    simulation.finish()
    tracker(simulation).sync(live=False)
    choices = {(run.data.params.get("apply_to"), run.data.params.get("tau_squared")) for run in shown()}
    assert choices == {(None, None), ("all", None), (None, "false"), ("all", "false")}
    assert not any("hp.apply_to" in run.data.metrics for run in shown())
    assert {run.info.run_name for run in shown()} >= {"loca alpha=0.9 apply_to=all tau_squared=false seed=0"}


@pytest.mark.usefixtures("mlflow_home")
def test_each_network_of_a_cross_fitted_teacher_is_a_run_of_its_own() -> None:
    simulation = Simulation(spec_of(methods={"kd": {}}, teacher={"regime": "cross_fitted", "folds": 3}, seeds=1))
    simulation.finish()
    tracker(simulation).sync(live=False)
    names = sorted(run.info.run_name for run in shown("teacher"))
    assert names == [f"teacher of digits/cnn32-cnn3 without fold {fold}" for fold in range(3)]


@pytest.mark.usefixtures("mlflow_home")
def test_a_labelled_pair_is_shown_under_its_label_with_its_architectures() -> None:
    labelled = {"pair": "cnn32-cnn3", "label": "few", "data": {"train_limit": 100}}
    simulation = Simulation(spec_of(**{**LISTS, "pairs": [labelled]}, seeds=1))
    simulation.finish()
    tracker(simulation).sync(live=False)
    run = next(run for run in shown() if run.data.params["method"] == "loca")
    assert run.data.params["pair"] == "digits/cnn32-cnn3@few"
    assert (run.data.params["teacher"], run.data.params["student"]) == ("cnn32", "cnn3")
