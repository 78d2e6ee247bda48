"""Where a study's runs stand, as its driver follows them: what has not ended, kept up by the rows that changed.

The store stays the truth. A look reads what was written since the last one, by whomever, so it costs what happened
and not what the study has.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from study.plan import TEACHER
from study.store import PRUNED, RUNNING, WAITING, RunRow

Point = tuple[str, str]  # stage and id


class Standing:
    """A study's runs that have not ended.

    Attributes:
        revision: of the newest row that was taken in.
        elsewhere: runs that other studies' drivers train, by id.
        dropped: ids of runs that another study's pruner stopped and this study waits for.
    """

    def __init__(self, study: str) -> None:
        self._study = study
        self.revision = -1
        self.elsewhere: dict[str, RunRow] = {}
        self.dropped: set[str] = set()
        self._left: dict[str, dict[str, set[str]]] = {}  # by stage and point: its runs that have not ended
        self._waiting: dict[bool, dict[str, RunRow]] = {True: {}, False: {}}  # those that train teachers, and others
        # In the order in which runs start. An entry may be outdated; `_waiting` decides.
        self._order: dict[bool, list[tuple[int, str]]] = {True: [], False: []}

    def take(self, rows: Iterable[RunRow]) -> set[Point]:
        """Take in changed rows; the points of theirs that have nothing left to wait for."""
        touched = set()
        for row in rows:
            touched.add((row.stage, row.point_id))
            self._take(row)
        return {(stage, point_id) for stage, point_id in touched if point_id not in self._left.get(stage, {})}

    def _take(self, row: RunRow) -> None:
        self.revision = max(self.revision, row.revision)
        left, run_id = self._left.setdefault(row.stage, {}), row.run_id
        if row.ended_here:
            of_point = left.get(row.point_id, set())
            of_point.discard(run_id)
            if not of_point:
                left.pop(row.point_id, None)
        else:
            left.setdefault(row.point_id, set()).add(run_id)
        live = not row.ended_here
        _keep(self.elsewhere, row, live and row.state == RUNNING and row.owner != self._study)
        (self.dropped.add if live and row.state == PRUNED else self.dropped.discard)(run_id)
        trains = row.stage == TEACHER
        # A run that several points share starts once, where the first of them has it.
        if _keep(self._waiting[trains], row, live and row.state == WAITING):
            heapq.heappush(self._order[trains], (row.position, run_id))

    def next(self, *, teachers: bool) -> RunRow | None:
        """The waiting run that starts next: of those that train teachers, or of the others."""
        order, waiting = self._order[teachers], self._waiting[teachers]
        while order:
            if order[0][1] in waiting:
                return waiting[order[0][1]]
            heapq.heappop(order)
        return None

    @property
    def waiting(self) -> int:
        """How many runs of points wait."""
        return len(self._waiting[False])

    def left(self, stage: str) -> set[str]:
        """Ids of a stage's runs that have not ended."""
        return set().union(*self._left.get(stage, {}).values())

    def is_over(self, stage: str) -> bool:
        """Whether no run of a stage is left."""
        return not self._left.get(stage)


def _keep(rows: dict[str, RunRow], row: RunRow, wanted: bool) -> bool:
    """Let a row stand for its run, unless one of a lower position does, or nothing; whether it does now."""
    known = rows.get(row.run_id)
    if not wanted:
        rows.pop(row.run_id, None)
    elif known is None or row.position <= known.position:
        rows[row.run_id] = row
        return True
    return False
