"""Where a pruner is asked, and that it decides there as it says."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search_spaces.spaces import parse_method
from study.search import PointSearch, rungs
from study.spec import SearchSpec
from trainables import protocol


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ("crd-240", {}, (151,)),
        ("digits-quick", {}, (25,)),
        ("digits-quick", {"epochs": 90}, (55,)),  # moved with the schedule
        ("digits-quick", {"milestones": []}, (20,)),
        ("digits-quick", {"epochs": 2}, (1,)),  # its only drop is the last epoch
        ("digits-quick", {"epochs": 1}, ()),
    ],
)
def test_a_rung_is_placed_by_the_schedule(base: str, changes: dict[str, Any], expected: tuple[int, ...]) -> None:
    found = protocol.resolve(base, **changes)
    assert rungs(SearchSpec(pruner="successive_halving"), found) == expected
    assert rungs(SearchSpec(), found) == ()


def test_rungs_lie_where_the_spec_says_and_before_the_last_epoch() -> None:
    given = SearchSpec(pruner="successive_halving", first_rung=4, reduction=3)
    assert rungs(given, protocol.resolve("digits-quick")) == (4, 12, 36)
    assert rungs(given, protocol.resolve("digits-quick", epochs=12)) == (4,)


@pytest.mark.parametrize(("first_rung", "rung"), [(None, 25), (4, 4)])
def test_one_of_so_many_goes_on_from_a_rung(first_rung: int | None, rung: int) -> None:
    search = SearchSpec(sampler="random", points=9, pruner="successive_halving", first_rung=first_rung, reduction=3)
    space = parse_method("loca", {"alpha": {"range": [0.5, 1.0]}})
    storage = optuna.storages.InMemoryStorage()
    proposed = PointSearch(storage, "made", space, search, protocol.resolve("digits-quick"))
    stopped = [proposed.report(proposed.sample()[0], rung, value) for value in (9, 8, 7, 6, 5, 8.5, 4, 8.6, 8.7)]
    # The best third so far goes on: of nine the best three.
    assert stopped == [False, True, True, True, True, False, True, False, False]


def test_a_rung_that_is_passed_again_after_a_resume_is_not_decided_again() -> None:
    search = SearchSpec(sampler="random", points=3, pruner="successive_halving", first_rung=1, reduction=2)
    space = parse_method("loca", {"alpha": {"range": [0.5, 1.0]}})
    storage = optuna.storages.InMemoryStorage()

    def opened() -> PointSearch:
        return PointSearch(storage, "made", space, search, protocol.resolve("digits-quick", epochs=8))

    first = opened()
    trials = [first.sample()[0] for _ in range(3)]
    assert not first.report(trials[0], 1, 50.0)
    assert not first.report(trials[1], 1, 60.0)
    again = opened()  # another driver, whose run begins anew
    assert not again.report(trials[0], 1, 50.0)
    assert again.report(trials[0], 2, 50.0) is False  # the first at this rung
    assert again.report(trials[2], 1, 40.0)
