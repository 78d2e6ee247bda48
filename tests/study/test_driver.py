"""What runs next and what becomes of it, without a cluster and without training."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from study.search import open_storage
from study.store import COMPLETE, DONE, FAILED, OPEN, PRUNED, RUNNING, WAITING
from tests.study.simulation import Simulation, flat, spec_of

ALPHAS = [0.5, 0.9, 1.0]
SEARCH: dict[str, Any] = {
    "methods": {"ce": {}, "loca": {"alpha": {"range": [0.3, 1.05]}}},
    "teacher": {"regime": "seen", "checkpoint": "given"},
    "search": {"sampler": "random", "points": 5},
}


def lists(**changes: Any) -> Any:
    return spec_of(
        **{
            "methods": {"ce": {}, "kd": {}, "loca": {"alpha": ALPHAS}},
            "teacher": {"regime": "seen", "checkpoint": "given"},
            **changes,
        }
    )


def trials(simulation: Simulation, method: str) -> list[optuna.trial.FrozenTrial]:
    name = f"sim/digits/cnn32-cnn3/{method}"
    return optuna.load_study(storage=open_storage(simulation.store), study_name=name).trials


def test_a_study_of_lists_runs_each_point_once_with_each_seed() -> None:
    simulation = Simulation(lists())
    simulation.finish()
    asked = [(r["method"], r["parameters"].get("alpha"), r["seed"]) for r in simulation.requests]
    points = [("ce", None), ("kd", None), *(("loca", alpha) for alpha in ALPHAS)]
    assert sorted(asked, key=str) == sorted(((*point, seed) for point in points for seed in (0, 1)), key=str)
    assert set(simulation.states().values()) == {DONE}


def test_the_first_seed_of_all_points_runs_before_the_second_of_any() -> None:
    simulation = Simulation(lists())
    simulation.finish()
    assert [request["seed"] for request in simulation.requests] == [0] * 5 + [1] * 5


def test_optuna_hears_the_mean_over_the_seeds_of_each_point_once() -> None:
    simulation = Simulation(lists())
    simulation.finish()
    told = {trial.params["alpha"]: (trial.state, trial.value) for trial in trials(simulation, "loca")}
    # flat(): 50 + 10 alpha + seed + 4 epochs, so the mean over the seeds 0 and 1 is 54.5 + 10 alpha.
    assert told == {alpha: (optuna.trial.TrialState.COMPLETE, pytest.approx(54.5 + 10 * alpha)) for alpha in ALPHAS}


def test_a_failed_run_fails_its_point_and_no_other() -> None:
    simulation = Simulation(lists())
    first = simulation.claim()
    assert first is not None
    simulation.driver.on_report(
        simulation.report(first, 1, 2, failed="loss is not finite at epoch 3", done=True, checkpoint=None)
    )
    simulation.finish()
    states = [point.state for point in simulation.store.points("sim")]
    assert sorted(states) == [COMPLETE] * 4 + [FAILED]
    failed = next(run for run in simulation.store.runs("sim") if run.state == FAILED)
    assert (failed.run_id, failed.reason) == (first["run_id"], "loss is not finite at epoch 3")
    assert trials(simulation, "ce")[0].state == optuna.trial.TrialState.FAIL


def test_retry_begins_failed_runs_again_and_keeps_the_others() -> None:
    simulation = Simulation(lists())
    first = simulation.claim()
    assert first is not None
    simulation.driver.on_report(simulation.report(first, 1, 1, failed="boom", done=True, checkpoint=None))
    simulation.finish()
    done_before = len(simulation.requests)
    simulation.store.request("sim", "retry")
    again = Simulation(lists())
    again.finish()
    assert [request["run_id"] for request in again.requests] == [first["run_id"]]
    assert again.requests[0]["resume_from"] is None
    assert set(again.states().values()) == {DONE}
    assert done_before == 10
    assert [trial.state for trial in trials(again, "ce")][-1] == optuna.trial.TrialState.COMPLETE


@pytest.mark.parametrize("reports_before_the_kill", range(1, 40, 3))
def test_a_killed_driver_loses_no_run_and_runs_none_twice(reports_before_the_kill: int) -> None:
    """The driver dies after any number of reports; the next ends with the runs and histories of an undisturbed one."""
    simulation = Simulation(lists())
    left = reports_before_the_kill
    while left:
        request = simulation.claim()
        assert request is not None
        for epoch in range(1, 5):
            simulation.driver.on_report(simulation.report(request, epoch, epoch))
            left -= 1
            if not left:
                break
    # Nothing is released: the process is gone.
    again = Simulation(lists())
    again.finish()
    assert set(again.states().values()) == {DONE}
    assert len(again.states()) == 10
    for run in again.store.runs("sim"):
        history = again.store.history(run.run_id)
        request = next(r for r in simulation.requests + again.requests if r["run_id"] == run.run_id)
        assert [row["test_top1"] for row in history] == [flat(request, epoch) for epoch in range(1, 5)]
        assert run.attempt == 1 + (run.run_id == simulation.requests[-1]["run_id"] and reports_before_the_kill % 4 != 0)
    points = again.store.points("sim")
    assert len(points) == 5
    assert all(point.state == COMPLETE for point in points)


def test_a_resumed_run_starts_from_its_last_recorded_checkpoint() -> None:
    simulation = Simulation(lists())
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 2))
    simulation.driver.on_report(simulation.report(request, 3, 3, checkpoint=None))
    again = Simulation(lists())
    resumed = again.claim()
    assert resumed is not None
    assert resumed["run_id"] == request["run_id"]
    assert resumed["resume_from"].endswith("attempt-1/epoch-0002.pt")


def test_an_outdated_attempt_can_no_longer_write() -> None:
    simulation = Simulation(lists())
    old = simulation.claim()
    assert old is not None
    again = Simulation(lists())
    new = again.claim()
    assert new is not None
    assert (new["run_id"], new["attempt"]) == (old["run_id"], 2)
    assert simulation.driver.on_report(simulation.report(old, 1, 4)) is True  # told to stop
    assert again.store.history(old["run_id"]) == []
    again.train(new)
    assert again.states()[old["run_id"]] == DONE


def test_a_lost_worker_costs_its_run_an_attempt_and_three_fail_it() -> None:
    simulation = Simulation(spec_of(seeds=1))
    for attempt in (1, 2, 3):
        request = simulation.claim()
        assert request is not None
        assert request["attempt"] == attempt
        simulation.driver.on_lost(request["run_id"], attempt, "killed")
    assert simulation.claim() is None
    assert simulation.driver.finished
    (run,) = simulation.store.runs("sim")
    assert run.state == FAILED
    assert "lost 3 times" in (run.reason or "")


def test_a_run_of_another_study_is_taken_over_not_trained_again() -> None:
    Simulation(lists()).finish()
    other = Simulation(lists(name="other", methods={"ce": {}, "loca": {"alpha": [0.9, 0.95]}}))
    other.finish()
    trained = {(r["method"], r["parameters"].get("alpha")) for r in other.requests}
    assert trained == {("loca", 0.95)}
    taken = [run.taken_over for run in other.store.runs("other")]
    assert sorted(taken) == [False] * 2 + [True] * 4
    assert all(point.state == COMPLETE for point in other.store.points("other"))


def test_a_failed_run_of_another_study_is_trained_anew() -> None:
    simulation = Simulation(spec_of(seeds=1))
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 1, failed="boom", done=True, checkpoint=None))
    other = Simulation(spec_of(name="other", seeds=1))
    other.finish()
    (run,) = other.store.runs("other")
    assert (run.state, run.taken_over, run.reason) == (DONE, False, None)


def test_a_run_that_another_living_driver_trains_is_waited_for() -> None:
    first = Simulation(spec_of(seeds=1))
    request = first.claim()
    assert request is not None
    other = Simulation(spec_of(name="other", seeds=1), owner_alive=lambda study: True)
    assert other.claim() is None
    assert not other.driver.finished
    first.train(request)
    assert other.driver.finished
    (run,) = other.store.runs("other")
    assert run.taken_over
    assert other.store.points("other")[0].state == COMPLETE


def test_a_run_that_a_dead_driver_of_another_study_held_is_taken_up() -> None:
    first = Simulation(spec_of(seeds=1))
    assert first.claim() is not None
    other = Simulation(spec_of(name="other", seeds=1), owner_alive=lambda study: False)
    other.finish()
    assert set(other.states().values()) == {DONE}


def test_a_study_grows_by_seeds_and_list_values() -> None:
    Simulation(lists(seeds=1)).finish()
    grown = Simulation(lists(seeds=2, methods={"ce": {}, "kd": {}, "loca": {"alpha": [*ALPHAS, 1.05]}}))
    grown.finish()
    assert len(grown.requests) == 5 + 2  # a second seed for five points, two seeds for a sixth
    assert all(point.state == COMPLETE for point in grown.store.points("sim"))
    assert sorted(trial.params["alpha"] for trial in trials(grown, "loca")) == [*ALPHAS, 1.05]


def test_a_finished_study_has_nothing_to_run() -> None:
    Simulation(lists()).finish()
    again = Simulation(lists())
    assert again.driver.finished
    assert again.claim() is None


def test_a_budget_of_runs_stops_a_study_of_lists_and_raising_it_goes_on() -> None:
    simulation = Simulation(lists(budget={"runs": 4}))
    simulation.finish()
    assert len(simulation.requests) == 4
    assert "budget.runs" in (simulation.driver.stopping or "")
    again = Simulation(lists(budget={"runs": 10}))
    again.finish()
    assert len(again.requests) == 6
    assert set(again.states().values()) == {DONE}


def test_a_budget_of_device_hours_stops_a_study() -> None:
    simulation = Simulation(lists(budget={"device_hours": 5 / 3600}))  # a simulated epoch costs a second
    simulation.finish()
    assert len(simulation.requests) == 2


def test_a_requested_stop_is_obeyed() -> None:
    simulation = Simulation(lists())
    assert simulation.claim() is not None
    simulation.store.request("sim", "stop")
    simulation.driver._polled = 0.0
    assert simulation.claim() is None
    assert simulation.driver.stopping == "a stop was requested"
    simulation.driver.release()
    assert WAITING in simulation.states().values()
    assert RUNNING not in simulation.states().values()


# Search


def test_a_search_values_points_on_validation_and_never_looks_at_the_test_set() -> None:
    simulation = Simulation(spec_of(**SEARCH))
    simulation.finish()
    searched = [request for request in simulation.requests if request["seed"] < 100]
    assert searched
    assert not any(request["evaluate_test"] for request in searched)
    assert all(request["split"]["validation_fraction"] > 0 for request in searched)


def test_the_final_stage_trains_the_chosen_points_on_fresh_seeds_and_all_images() -> None:
    simulation = Simulation(spec_of(**SEARCH))
    simulation.finish()
    final = [request for request in simulation.requests if request["seed"] >= 1_000_000]
    best = max((p for p in simulation.store.points("sim", "search") if p.method == "loca"), key=lambda p: p.value or 0)
    assert {(r["method"], r["parameters"].get("alpha")) for r in final} == {
        ("ce", None),
        ("loca", best.parameters["alpha"]),
    }
    assert all(request["evaluate_test"] for request in final)
    assert all(request["split"]["keep_validation_in_train"] for request in final)
    assert len(final) == 4


def test_a_confirmation_trains_the_best_points_and_their_baseline_on_seeds_that_chose_nothing() -> None:
    Simulation(lists()).finish()
    again = Simulation(lists(confirm={"top": 2, "seeds": 3}))
    again.finish()
    asked = {(r["method"], r["parameters"].get("alpha"), r["seed"]) for r in again.requests}
    # flat() grows with alpha, so 1.0 and 0.9 are the best.
    points = [("kd", None), ("loca", 0.9), ("loca", 1.0)]
    assert asked == {(*point, seed) for point in points for seed in (2_000_000, 2_000_001, 2_000_002)}
    assert all(request["evaluate_test"] for request in again.requests)
    more = Simulation(lists(confirm={"top": 2, "seeds": 4}))
    more.finish()
    assert {r["seed"] for r in more.requests} == {2_000_003}
    assert len(more.requests) == 3


def test_a_search_confirms_after_its_final_stage() -> None:
    simulation = Simulation(spec_of(**SEARCH, confirm={"top": 1, "seeds": 2}))
    simulation.finish()
    seeds = [request["seed"] for request in simulation.requests]
    assert [seed >= 2_000_000 for seed in seeds] == [False] * (len(seeds) - 2) + [True] * 2
    confirmed = simulation.store.points("sim", "confirm")
    best = max((p for p in simulation.store.points("sim", "search")), key=lambda point: point.value or 0)
    assert [(point.method, point.parameters) for point in confirmed] == [(best.method, best.parameters)]
    assert all(request["split"]["keep_validation_in_train"] for request in simulation.requests[-2:])


def test_a_search_samples_the_asked_number_of_points_and_a_continued_one_no_more() -> None:
    simulation = Simulation(spec_of(**SEARCH))
    for _ in range(5):
        request = simulation.claim()
        assert request is not None
        simulation.train(request)
    again = Simulation(spec_of(**SEARCH))
    again.finish()
    points = [p for p in again.store.points("sim", "search") if p.method == "loca"]
    assert len(points) == 5
    assert len({p.parameters["alpha"] for p in points}) == 5
    assert all(p.state == COMPLETE for p in points)
    assert all(t.state.is_finished() for t in trials(again, "loca"))


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_every_sampler_proposes_points_inside_the_ranges(sampler: str) -> None:
    """The contract of samplers: asked one by one, told in between, over linear, logarithmic, margin and share axes."""
    space = {
        "alpha": {"margin": [0.001, 0.5], "log": True},
        "tau": {"range": [1, 8], "log": True},
        "share": {"range": [0.5, 1.0]},
    }
    simulation = Simulation(
        spec_of(
            methods={"loca": space},
            teacher={"checkpoint": "given"},
            search={"sampler": sampler, "points": 12},
            seeds=1,
        )
    )
    simulation.finish()
    points = simulation.store.points("sim", "search")
    assert len(points) == 12
    for point in points:
        assert 0.5 <= point.parameters["alpha"] <= 0.999
        assert 1 <= point.parameters["tau"] <= 8
        assert 0.5 <= point.parameters["beta"] <= 1
        assert point.parameters["beta"] + point.parameters["gamma"] == pytest.approx(1)
    assert len({p.parameters["alpha"] for p in points}) > 8


def test_selection_paper_is_valued_on_the_test_set_and_has_no_final_stage() -> None:
    simulation = Simulation(spec_of(**SEARCH, selection="paper"))
    simulation.finish()
    assert all(request["evaluate_test"] for request in simulation.requests)
    assert simulation.store.points("sim", "final") == []


def test_a_pruner_stops_weak_points_after_their_screening_seed_and_survivors_get_the_others() -> None:
    spec = spec_of(
        **{
            **SEARCH,
            "methods": {"loca": {"alpha": {"range": [0.3, 1.05]}}},
            "search": {"sampler": "random", "points": 9, "pruner": "successive_halving", "reduction": 2},
        },
        protocol={"base": "digits-quick", "epochs": 8},
        seeds=3,
    )
    simulation = Simulation(spec)
    simulation.finish()
    points = simulation.store.points("sim", "search")
    pruned = [point for point in points if point.state == PRUNED]
    complete = [point for point in points if point.state == COMPLETE]
    assert len(points) == 9
    assert pruned
    assert complete
    for point in points:
        runs = [r for r in simulation.store.runs("sim", "search") if r.point_id == point.point_id]
        screening = [run for run in runs if run.screening]
        assert [run.seed for run in screening] == [0]
        if point.state == PRUNED:
            assert len(runs) == 1
            assert runs[0].epoch < 8
        else:
            assert [run.seed for run in runs] == [0, 1, 2]
            others = [(run.summary or {})["val_top1_last"] for run in runs if not run.screening]
            assert point.value == pytest.approx(sum(others) / 2)  # the screening seed is left out
    told = {trial.number: trial.state for trial in trials(simulation, "loca")}
    for point in points:
        assert point.trial is not None
        assert told[point.trial].name == point.state


def test_a_run_that_another_studys_pruner_stopped_is_continued_where_it_is_needed() -> None:
    same: dict[str, Any] = {
        "methods": {"loca": {"alpha": [1.05, 1.0, 0.9, 0.5]}},  # falling accuracies, so the later ones are stopped
        "teacher": {"checkpoint": "given"},
        "seeds": 1,
        "protocol": {"base": "digits-quick", "epochs": 8},
    }
    pruner = {"sampler": "grid", "pruner": "successive_halving", "first_rung": 1, "reduction": 2}
    simulation = Simulation(spec_of(**same, search=pruner, selection="paper"))
    simulation.finish()
    stopped = {run.run_id: run.checkpoint for run in simulation.store.runs("sim") if run.pruned}
    assert stopped
    ablation = Simulation(spec_of(**same, name="other"))
    ablation.finish()
    assert {request["run_id"]: request["resume_from"] for request in ablation.requests} == stopped
    assert set(ablation.states().values()) == {DONE}
    assert [p.state for p in simulation.store.points("sim")].count(PRUNED) == len(stopped)


# Teachers


def test_a_study_without_a_named_teacher_trains_it_first_and_opens_its_points_after() -> None:
    adopted = []

    def adopt(pairs: list[str]) -> None:
        adopted.extend(pairs)

    simulation = Simulation(
        spec_of(methods={"kd": {}}, teacher={"regime": "held_out", "fraction": 0.1}, seeds=1), adopt=adopt
    )
    request = simulation.claim()
    assert request is not None
    assert (request["teaches"]["regime"], request["model"], request["method"]) == ("held_out", "cnn32", "ce")
    assert simulation.claim() is None
    assert not simulation.driver.finished
    simulation.train(request)
    student = simulation.claim()
    assert adopted == ["digits/cnn32-cnn3"]
    assert student is not None
    assert (student["teaches"], student["model"], student["method"]) == (None, "cnn3", "kd")


def test_a_teacher_that_cannot_be_trained_ends_the_study_with_the_reason() -> None:
    simulation = Simulation(
        spec_of(methods={"kd": {}}, teacher={"regime": "held_out", "fraction": 0.1}),
        adopt=lambda pairs: "the teacher could not be trained",
    )
    request = simulation.claim()
    assert request is not None
    simulation.driver.on_report(simulation.report(request, 1, 1, failed="boom", done=True, checkpoint=None))
    assert simulation.claim() is None
    assert simulation.driver.stopping == "the teacher could not be trained"
    assert [point.state for point in simulation.store.points("sim")] == [FAILED]


def test_a_study_of_ce_alone_needs_no_teacher() -> None:
    simulation = Simulation(spec_of(teacher={"regime": "held_out", "fraction": 0.1}))
    request = simulation.claim()
    assert request is not None
    assert request["teaches"] is None
    assert request["teacher"] is None


def test_open_points_stay_open_until_all_their_seeds_have_ended() -> None:
    simulation = Simulation(spec_of(seeds=2))
    request = simulation.claim()
    assert request is not None
    simulation.train(request)
    assert [point.state for point in simulation.store.points("sim")] == [OPEN]


# A teacher that exists, as far as a study without training can tell.
GIVEN = {"checkpoint": "given"}


# Cross-fitted teachers


def test_a_cross_fitted_teacher_is_one_run_a_fold_and_the_students_wait_for_all_of_them() -> None:
    simulation = Simulation(
        spec_of(methods={"kd": {}}, teacher={"regime": "cross_fitted", "folds": 3, "stop_at": 90}, seeds=1)
    )
    requests = [simulation.claim() for _ in range(3)]
    assert all(request is not None for request in requests)
    assert [request["teaches"]["fold"] for request in requests if request] == [0, 1, 2]
    assert {request["run_id"] for request in requests if request} == set(simulation.states())
    assert all(request["stop_at"] == 90 and request["parameters"] == {} for request in requests if request)
    for request in requests:
        assert simulation.claim() is None
        assert request is not None
        simulation.train(request)
    student = simulation.claim()
    assert student is not None
    assert (student["teaches"], student["stop_at"]) == (None, None)


# Several pairs


LABELLED = [
    {"pair": "cnn32-cnn3"},
    {"pair": "cnn32-cnn3", "label": "half", "data": {"train_limit": 500}},
]


def test_pairs_take_turns_whether_their_points_are_listed_or_sampled() -> None:
    listed = Simulation(spec_of(pairs=LABELLED, methods={"loca": {"alpha": [0.5, 0.9]}}, teacher=GIVEN, seeds=1))
    turns = [(request["run_id"], request["split"]["train_limit"]) for _ in range(4) if (request := listed.claim())]
    assert [limit for _, limit in turns] == [None, 500, None, 500]
    sampled = Simulation(
        spec_of(
            name="sampled",
            pairs=LABELLED,
            methods={"loca": {"alpha": {"range": [0.5, 1.0]}}},
            teacher=GIVEN,
            search={"sampler": "random", "points": 2},
            seeds=1,
        )
    )
    limits = [request["split"]["train_limit"] for _ in range(4) if (request := sampled.claim())]
    assert limits == [None, 500, None, 500]


def test_two_pairs_that_need_the_same_teacher_train_it_once() -> None:
    simulation = Simulation(spec_of(pairs=LABELLED, methods={"kd": {}}, seeds=1))
    assert len(simulation.states()) == 1


# What a search tries first


def searched(name: str = "sim", **changes: Any) -> Simulation:
    raw: dict[str, Any] = {
        "methods": {"loca": {"alpha": {"range": [0.3, 1.05]}, "tau": {"range": [1, 8], "log": True}}},
        "teacher": GIVEN,
        "search": {"sampler": "random", "points": 4},
        "seeds": 1,
    }
    return Simulation(spec_of(**{**raw, "name": name, **changes}))


def origins(simulation: Simulation) -> list[str]:
    return [point.origin for point in simulation.store.points(simulation.driver.study, "search")]


def test_the_protocols_own_values_are_tried_before_the_sampler_is_asked() -> None:
    simulation = searched()
    simulation.finish()
    first, *others = simulation.store.points("sim", "search")
    assert first.parameters == {"alpha": 0.95, "tau": 4.0, "beta": 0.9, "gamma": 0.1}
    assert first.origin == "the protocol's own values"
    assert [point.origin for point in others] == ["random"] * 3


def test_a_range_without_the_protocols_own_values_begins_with_the_sampler() -> None:
    simulation = searched(methods={"loca": {"alpha": {"range": [0.3, 0.9]}}})
    simulation.claim()
    assert origins(simulation) == ["random"]
    other = searched("asked", search={"sampler": "random", "points": 4, "defaults_first": False})
    other.claim()
    assert origins(other) == ["random"]


def test_a_search_starts_warm_from_the_best_points_of_pairs_searched_before() -> None:
    searched("before").finish()
    best = max(searched_points := searched("before").store.points("before", "search"), key=lambda p: p.value or 0)
    assert len(searched_points) == 4
    simulation = searched(
        "after",
        pairs=[{"pair": "cnn32-cnn3", "label": "other"}],
        search={"sampler": "random", "points": 4, "warm_start": 2},
    )
    simulation.finish()
    points = simulation.store.points("after", "search")
    warm = [point for point in points if point.origin == "warm start from digits/cnn32-cnn3 in before"]
    assert len(warm) in (1, 2)  # the protocol's own values may be among the best two
    assert best.parameters in [point.parameters for point in points[:3]]
    assert len(points) == 4
    assert len(simulation.store.runs("after", "search")) == 4


def test_a_search_that_goes_on_does_not_try_its_first_points_again() -> None:
    begun = searched()
    request = begun.claim()
    assert request is not None
    begun.train(request)
    begun.driver.release()
    again = searched()
    again.finish()
    assert origins(again) == ["the protocol's own values", "random", "random", "random"]


def test_an_options_list_may_grow_in_a_study_that_exists() -> None:
    for choices in (["wrong"], ["wrong", "all"]):
        simulation = Simulation(
            spec_of(methods={"loca": {"alpha": [0.9], "apply_to": choices}}, teacher=GIVEN, seeds=1)
        )
        simulation.finish()
    parameters = [point.parameters for point in simulation.store.points("sim")]
    assert [each.get("apply_to") for each in parameters] == [None, "all"]


# Studies without methods


def test_a_study_without_methods_trains_its_teachers_and_nobody_else() -> None:
    simulation = Simulation(spec_of(methods={}, teacher={"regime": "held_out", "fraction": 0.1}))
    simulation.finish()
    assert [run.stage for run in simulation.store.runs("sim")] == ["teacher"]
    assert simulation.driver.finished


# What an event costs


class Work:
    """Counts the SQL statements of a simulation's store, and SQLite's steps."""

    def __init__(self, simulation: Simulation) -> None:
        self.statements = self.steps = 0
        engine = simulation.store.engine
        sa.event.listen(engine, "before_cursor_execute", self._statement)
        sa.event.listen(engine, "checkout", lambda connection, *_: connection.set_progress_handler(self._step, 1))

    def _statement(self, *_: Any) -> None:
        self.statements += 1

    def _step(self) -> None:
        self.steps += 1

    def of(self, event: Any) -> tuple[int, int]:
        before = self.statements, self.steps
        event()
        return self.statements - before[0], self.steps - before[1]


def event_costs(simulation: Simulation) -> list[tuple[int, int]]:
    """Of a claim, a report within a run, its last report, and the question whether all is over."""
    work = Work(simulation)
    costs = []
    for _ in range(3):
        claimed: list[dict[str, Any]] = []
        simulation.driver._polled = float("inf")  # the look for requests comes once a second
        costs.append(work.of(lambda to=claimed: to.append(simulation.claim())))
        (request,) = claimed
        costs.append(work.of(lambda r=request: simulation.driver.on_report(simulation.report(r, 1, 2))))
        costs.append(work.of(lambda r=request: simulation.driver.on_report(simulation.report(r, 3, 4))))
        costs.append(work.of(lambda: simulation.driver.finished))
    return costs


def half_done(points: int) -> Simulation:
    """A study of lists of which half of the runs have ended, some of them in another study."""
    alphas = [round(0.5 + 0.4 * index / points, 6) for index in range(points)]
    Simulation(lists(name="other", methods={"loca": {"alpha": alphas[::4]}}, seeds=1)).finish()
    simulation = Simulation(lists(methods={"loca": {"alpha": alphas}}, seeds=2))
    for _ in range(points - len(alphas[::4])):
        request = simulation.claim()
        assert request is not None
        simulation.driver.on_report(simulation.report(request, 1, 4))
    return simulation


def test_an_event_costs_the_same_in_a_study_of_many_runs(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = event_costs(half_done(8))
    monkeypatch.setenv("KDSTUDY_HOME", str(home.with_name("larger")))
    large = event_costs(half_done(40))
    assert [statements for statements, _ in large] == [statements for statements, _ in small]
    assert all(0 < statements < 30 for statements, _ in small)
    # A row of the runs takes some 50 steps; a run that another study shares, one more row or two.
    assert all(abs(a - b) < 150 for (_, a), (_, b) in zip(large, small, strict=True))


def test_proposing_a_point_costs_the_same_after_many(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []
    for points in (4, 24):
        monkeypatch.setenv("KDSTUDY_HOME", str(home.with_name(f"of-{points}")))
        simulation = searched(search={"sampler": "random", "points": points + 1})
        for _ in range(points):
            request = simulation.claim()
            assert request is not None
            simulation.driver.on_report(simulation.report(request, 1, 4))
        simulation.driver._polled = float("inf")
        costs.append(Work(simulation).of(simulation.claim))
    assert costs[0][0] == costs[1][0]
    assert abs(costs[0][1] - costs[1][1]) < 150


def test_a_study_of_lists_has_no_trial_before_a_point_has_ended_and_one_for_each_after() -> None:
    simulation = Simulation(lists())
    assert trials(simulation, "loca") == []
    simulation.finish()
    points = {p.trial: p.parameters["alpha"] for p in simulation.store.points("sim") if p.method == "loca"}
    assert {trial.number: trial.params["alpha"] for trial in trials(simulation, "loca")} == points


@pytest.mark.parametrize("table", ["trials", "points"])
def test_a_kill_between_a_points_end_and_its_trial_is_mended(table: str) -> None:
    """Optuna was not told yet; or it was, and the point does not know its trial."""
    simulation = Simulation(lists())
    simulation.finish()
    before = [(trial.params, trial.value) for trial in trials(simulation, "loca")]
    with simulation.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE kdstudy_points SET trial = NULL")
        if table == "trials":
            for name in ("trial_values", "trial_params", "trial_user_attributes", "trials"):
                connection.exec_driver_sql(f"DELETE FROM {name}")
    again = Simulation(lists())
    assert sorted((str(trial.params), trial.value) for trial in trials(again, "loca")) == sorted(
        (str(params), value) for params, value in before
    )
    assert all(point.trial is not None for point in again.store.points("sim"))


def test_a_run_that_another_studys_pruner_stops_is_continued_by_a_study_that_waits_for_it() -> None:
    same: dict[str, Any] = {
        "methods": {"loca": {"alpha": [1.05, 0.5]}},
        "teacher": {"checkpoint": "given"},
        "seeds": 1,
        "protocol": {"base": "digits-quick", "epochs": 8},
    }
    pruner = {"sampler": "grid", "pruner": "successive_halving", "first_rung": 1, "reduction": 2}
    pruning = Simulation(spec_of(**same, search=pruner, selection="paper"))
    strong = pruning.claim()
    assert strong is not None
    pruning.train(strong)
    weak = pruning.claim()
    assert weak is not None
    for_all = Simulation(spec_of(**same, name="other"), owner_alive=lambda study: True)
    assert for_all.claim() is None  # the other driver is at it
    pruning.train(weak)
    assert [run.pruned for run in pruning.store.runs("sim")].count(True) == 1
    for_all.finish()
    assert set(for_all.states().values()) == {DONE}
    assert [request["run_id"] for request in for_all.requests] == [weak["run_id"]]
    assert for_all.requests[0]["resume_from"] is not None


def test_a_node_that_fails_a_run_costs_an_attempt_and_no_more() -> None:
    simulation = Simulation(spec_of(seeds=1))
    request = simulation.claim()
    assert request is not None
    lost = {"failed": "its checkpoint cannot be written: No space left on device", "lost": True, "checkpoint": None}
    assert simulation.driver.on_report(simulation.report(request, 1, 4, **lost))
    (run,) = simulation.store.runs("sim")
    assert (run.state, run.losses, run.epoch) == (WAITING, 1, 4)
    simulation.finish()
    (run,) = simulation.store.runs("sim")
    assert (run.state, run.attempt) == (DONE, 2)
    assert [row["epoch"] for row in simulation.store.history(run.run_id)] == [1, 2, 3, 4]


def test_a_run_that_takes_too_long_on_its_device_has_failed() -> None:
    simulation = Simulation(spec_of(seeds=1, budget={"run_hours": 1.0}))
    request = simulation.claim()
    assert request is not None
    assert not simulation.driver.on_report(simulation.report(request, 1, 1, device_seconds=3000.0))
    assert simulation.driver.on_report(simulation.report(request, 2, 2, device_seconds=3000.0))
    (run,) = simulation.store.runs("sim")
    assert (run.state, run.reason) == (FAILED, "budget.run_hours: it was not done after 1 hours on its device")


def test_failures_alike_stop_a_study_and_other_failures_do_not() -> None:
    def failing(*reasons: str) -> Simulation:
        simulation = Simulation(spec_of(name=f"of-{len(reasons)}", seeds=10, budget={"same_failures": 3}))
        for reason in reasons:
            request = simulation.claim()
            assert request is not None
            failed = None if reason == "done" else reason
            simulation.driver.on_report(simulation.report(request, 1, 4, failed=failed))
        return simulation

    stopped = failing("disk 1 is gone", "disk 2 is gone", "disk 3 is gone").driver.stopping
    assert stopped == "budget.same_failures: the last 3 runs failed alike: disk 3 is gone"
    assert failing("a", "b", "a", "b").driver.stopping is None
    assert failing("a", "a", "done", "a", "a").driver.stopping is None
    diverged = "loss is not finite at epoch 2"
    assert failing(diverged, diverged, diverged, diverged, diverged, diverged).driver.stopping is None


def test_a_claim_whose_answer_was_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(spec_of(seeds=1))
    claim, answers = simulation.store.claim, iter([False, True])

    def claimed(run_id: str, study: str) -> int | None:
        attempt = claim(run_id, study)
        return attempt if next(answers) else None

    monkeypatch.setattr(simulation.store, "claim", claimed)
    request = simulation.claim()
    assert request is not None
    assert request["attempt"] == 2
    simulation.train(request)
    assert simulation.states() == {request["run_id"]: DONE}


def test_a_driver_that_has_lost_its_study_starts_nothing_more() -> None:
    held = [True]
    simulation = Simulation(spec_of(), held=lambda: held[0])
    assert simulation.claim() is not None
    held[0] = False
    simulation.driver._polled = 0.0
    assert simulation.claim() is None
    assert simulation.driver.stopping == "another driver has taken the study over"
