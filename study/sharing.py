"""How many of a study's runs share a GPU: as many as fit into its memory, by a measurement of the largest of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from study.errors import one_line
from study.launcher import python_path
from study.plan import TEACHER, PairPlan, Plan
from study.store import WAITING, RunRow
from trainables import objectives
from trainables.memory import Memory, ProbeError, probe, same_need

log = logging.getLogger("kdstudy.sharing")

# Of a GPU's free memory, so much stays free: runs differ a little, and allocators fragment.
MARGIN = 0.1
# How long a cluster's GPU is waited for.
_PATIENCE_SECONDS = 600.0

_measured: dict[str, Memory] = {}


def runs_a_gpu(plan: Plan, measure: Callable[[dict[str, Any]], Memory] | None = None) -> int:
    """How many of a study's runs share a GPU; one where that cannot be measured, with a warning in the log.

    What was measured once is remembered for as long as this process lasts.

    Args:
        plan: the study; its teachers need not be there.
        measure: the memory of a request's run; by default `trainables.memory.probe`.
    """
    fits = []
    for request in requests(plan):
        key = same_need(request)
        if key not in _measured:
            try:
                _measured[key] = (measure or _probe)(request)
            except ProbeError as error:
                log.warning("the memory of a run could not be measured, one run a GPU: %s", error)
                return 1
            log.info("%s on a batch of %d: %s", request["model"], request["protocol"]["batch_size"], _measured[key])
        fits.append(_measured[key].runs(MARGIN))
    return min(fits, default=1)


def requests(plan: Plan) -> Iterator[dict[str, Any]]:
    """The largest runs of each pair, as `trainables.memory.probe` takes them: of its student, and of its teacher."""
    for name, pair in plan.pairs.items():
        spaces = plan.spec.spaces()
        if spaces:
            # Losses take next to nothing beside networks: what counts is how many views go through which of them.
            method = max(map(objectives.get, spaces), key=lambda method: (len(method.views), method.needs_teacher))
            request = plan.request(_run(name, plan.first_stage, {}), 1, device="cuda", threads=1, workers=0, rungs=())
            teacher = {"model": pair.pair.teacher, "folds": _folds(pair)} if method.needs_teacher else None
            parameters = pair.resolve(spaces[method.name], {})
            yield request | {"method": method.name, "parameters": parameters, "teacher": teacher}
        if plan.spec.trains_teacher_of(pair.spec):
            fold = {} if pair.folds[0] is None else {"fold": pair.folds[0]}
            yield plan.request(_run(name, TEACHER, fold), 1, device="cuda", threads=1, workers=0, rungs=())


def _folds(pair: PairPlan) -> int:
    return pair.teacher.folds if pair.teacher.regime == "cross_fitted" else 0


def measured_on_a_node(request: dict[str, Any]) -> Memory:
    """The memory of a request's run, measured on a node of the cluster that this process has joined.

    The first GPU that is free stands for all of them: what does not fit on a smaller one halves the share when it
    happens.

    Raises:
        ProbeError: the run failed there, or no GPU was free for ten minutes.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=1, max_retries=0)(probe).remote(request)
    try:
        found: Memory = ray.get(task, timeout=_PATIENCE_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise ProbeError(one_line(error.cause)) from None
    except (ray.exceptions.RayError, TimeoutError) as error:
        ray.cancel(task, force=True)
        raise ProbeError(one_line(error) or "no GPU was free") from None
    return found


def _probe(request: dict[str, Any]) -> Memory:
    return probe(request, {**os.environ, "PYTHONPATH": python_path()})


def _run(pair: str, stage: str, parameters: dict[str, Any]) -> RunRow:
    """A run that is in no store: without a teacher, so that none needs to be there."""
    return RunRow(
        run_id="probe",
        stage=stage,
        point_id="",
        seed=0,
        screening=False,
        taken_over=False,
        pruned=False,
        position=0,
        revision=0,
        pair=pair,
        method="ce",
        parameters=parameters,
        origin="",
        identity_text="{}",
        state=WAITING,
        owner=None,
        attempt=0,
        losses=0,
        epochs=0,
        epoch=0,
        checkpoint=None,
        reason=None,
        device=None,
        device_seconds=0.0,
        summary=None,
        started=None,
        ended=None,
    )
