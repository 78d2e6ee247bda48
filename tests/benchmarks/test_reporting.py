"""The benchmark of a report has all its rows."""

from __future__ import annotations

import pytest

from benchmarks.reporting import PARTS, measure


@pytest.mark.slow
def test_every_part_is_measured() -> None:
    table = measure(4, 12)
    assert [row[0] for row in table.rows] == [*PARTS, "both frames"]
    assert all(row[1] > 0 for row in table.rows)
    assert table.rows[-1][1] == pytest.approx(table.rows[0][1] + table.rows[1][1])
