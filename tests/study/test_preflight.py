"""What a study will cost and whether it can show anything, said before its first run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from study import preflight
from study.home import open_home
from study.plan import Plan
from tests.study.given import keep_teacher
from tests.study.simulation import Simulation, spec_of
from trainables import models


def forecast(**changes: Any) -> preflight.Forecast:
    spec = spec_of(**{"teacher": {"checkpoint": "given"}, **changes})
    return preflight.forecast(Plan(spec, open_home()), None, device="cpu", concurrency=2)


def test_runs_time_and_disk_are_added_up_from_a_measured_step() -> None:
    keep_teacher(scale=1.0)
    methods = {"ce": {}, "kd": {}, "loca": {"alpha": [0.5, 0.9]}}
    online = {"checkpoint": "given", "logits": "online"}
    found = forecast(methods=methods, seeds=3, teacher=online)
    assert (found.points, found.runs, found.known) == (4, 12, 0)
    (pair,) = found.pairs
    assert pair.seconds_taught > pair.seconds_plain > 0
    assert pair.seconds_logits == found.logit_bytes == 0
    assert "asked at each step (teacher.logits: online)" in pair.logits
    # A quarter of the points has no teacher; two runs go at a time.
    mean = (pair.seconds_plain + 3 * pair.seconds_taught) / 4
    assert found.seconds == pytest.approx(12 * mean / 2)
    assert found.disk_bytes > 12 * 8 * models.count_parameters(models.build("cnn3", 10))


def test_a_teacher_whose_logits_are_stored_is_asked_about_each_view_once() -> None:
    keep_teacher(scale=1.0)
    found = forecast(methods={"kd": {}, "loca": {"alpha": [0.5, 0.9]}}, seeds=3)
    (pair,) = found.pairs
    assert pair.seconds_taught == pair.seconds_plain
    assert found.seconds == pytest.approx((9 * pair.seconds_taught + pair.seconds_logits) / 2)
    assert pair.seconds_logits > 0
    assert found.logit_bytes > 0
    assert "is asked about once" in pair.logits


def test_a_teacher_that_several_pairs_need_is_paid_for_once() -> None:
    pairs = ["cnn32-cnn3", {"pair": "cnn32-cnn3", "label": "few", "data": {"train_limit": 100}}]
    found = forecast(methods={}, pairs=pairs, teacher={"regime": "held_out", "fraction": 0.1})
    first, second = found.pairs
    assert found.seconds == pytest.approx(second.seconds_teacher)
    assert first.seconds_teacher > 0


def test_each_alpha_says_how_far_it_moves_the_targets_and_less_towards_the_tie() -> None:
    keep_teacher(scale=20.0)
    (pair,) = forecast(methods={"loca": {"alpha": [0.5, 0.9, 1.0]}}).pairs
    assert [effect.alpha for effect in pair.effects] == [0.5, 0.9, 1.0]
    moved = [effect.moved for effect in pair.effects]
    assert moved == sorted(moved, reverse=True)
    assert 0 < moved[-1] < moved[0] < 1
    assert pair.ratio is not None
    assert pair.ratio > 0.5


def test_an_alpha_that_leaves_the_simplex_on_many_views_is_warned_of() -> None:
    keep_teacher(scale=1.0)
    found = forecast(methods={"loca": {"alpha": [0.9, 1.5]}})
    assert any("alpha 1.5 leaves the simplex" in note and "1.111" in note for note in found.warnings)
    assert not any("alpha 0.9" in note for note in found.warnings)


def test_a_teacher_that_is_never_wrong_is_warned_of() -> None:
    keep_teacher(scale=1.0)
    spec = spec_of(methods={"loca": {"alpha": [0.9]}}, teacher={"checkpoint": "given"})
    plan = Plan(spec, open_home())
    low = dataclasses.replace(preflight.forecast(plan, None, device="cpu", concurrency=1).pairs[0], ratio=0.002)
    notes = preflight._warnings(
        plan, dataclasses.replace(preflight.forecast(plan, None, device="cpu", concurrency=1), pairs=(low,))
    )
    assert any("wrong on 0.20 %" in note and "held_out" in note for note in notes)


def test_one_seed_resolves_nothing_and_more_seeds_resolve_more() -> None:
    keep_teacher(scale=1.0)
    one = forecast(seeds=1)
    assert one.resolvable is None
    assert any(note.startswith("one seed") for note in one.warnings)
    three, twelve = forecast(seeds=3).resolvable, forecast(seeds=12).resolvable
    assert three is not None
    assert twelve is not None
    assert three > 2 * twelve


def test_the_spread_over_seeds_is_taken_from_the_store_where_it_was_measured() -> None:
    keep_teacher(scale=1.0)
    # flat(): seeds 0 to 3 differ by one point each, so the SD of each point is sqrt(5/3).
    simulation = Simulation(spec_of(methods={"ce": {}, "kd": {}}, teacher={"checkpoint": "given"}, seeds=4))
    simulation.finish()
    found = preflight.forecast(simulation.plan, simulation.store, device="cpu", concurrency=1)
    assert found.sd == pytest.approx((5 / 3) ** 0.5)
    assert found.known == 8
    assert found.seconds == 0
    assert "measured" in found.sd_from


def test_a_teacher_that_is_not_there_yet_is_trained_first_and_its_cost_said() -> None:
    found = forecast(methods={"loca": {"alpha": [0.9]}}, teacher={"regime": "held_out", "fraction": 0.06})
    (pair,) = found.pairs
    assert pair.teacher == "trained first"
    assert pair.ratio is None
    assert pair.seconds_teacher > 0


def test_a_budget_below_the_studys_runs_is_said() -> None:
    keep_teacher(scale=1.0)
    found = forecast(methods={"kd": {}}, seeds=3, budget={"runs": 2})
    assert found.runs == 2
    assert any("budget.runs 2" in note for note in found.warnings)
