"""The paper's table of times has all its figures, and the paper's beside them."""

from __future__ import annotations

import pytest

from benchmarks.table7 import QUANTITIES, measure


@pytest.mark.slow
def test_every_quantity_is_measured_beside_what_the_paper_prints() -> None:
    table = measure("cpu", 128, 1)
    assert len(table.rows) == len(QUANTITIES)
    assert all(row[1] > 0 and row[2] > 0 for row in table.rows)
    assert [row[4] for row in table.rows] == [0.32, 27.83, 25.32]
    assert table.rows[0][6] == pytest.approx(0.39 / 0.32)
