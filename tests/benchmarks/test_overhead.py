"""The benchmark of the framework's own cost: both ways do their runs, and its parts are what they are called."""

from __future__ import annotations

import pytest

from benchmarks import overhead


@pytest.mark.slow
def test_both_ways_have_figures_and_kdstudys_are_told_apart() -> None:
    both, parts = overhead.measure(quick=True)
    run, _epoch, whole = both.rows
    assert all(value > 0 for value in (run[1], run[3], run[4].value, whole[1], whole[3]))
    found = {row[0]: row[1:] for row in parts.rows}
    assert tuple(found) == overhead.PARTS
    for one, many in found.values():
        assert one >= 0
        assert many >= 0
    # What is a part of the driver's reports takes no longer than they do.
    assert found["of which Optuna"][0] < found["driver: reports"][0]


def test_the_time_between_ends_leaves_the_first_run_out() -> None:
    assert overhead._between([10.0, 11.0, 13.0, 16.0]) == [2.0, 3.0]
