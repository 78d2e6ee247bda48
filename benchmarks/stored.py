"""Studies with thousands of ended runs, made without training: the store, Optuna's trials and MLflow.

What the store and Optuna hold is made by kdstudy's own code, but for the ends of the runs, which are written in bulk.
What MLflow holds is what the tracker logs, through a client that writes rows into MLflow's tables at once: by MLflow's
own client it takes a quarter of an hour for 10,000 runs.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from search_spaces.spaces import Value
from study import record, tracking
from study.home import Home, open_home
from study.plan import Plan
from study.search import PointSearch, open_storage
from study.service import describe, open_study
from study.spec import Spec, parse_spec
from study.store import COMPLETE, DONE, NewRun, PointRow, Store
from trainables import engine

STUDY = "stored"
EPOCHS = 10
SEEDS = 3
MORE = 30  # points that are asked for and have not begun
_METRICS = ("train_loss", "train_top1", "lr", "mis_instruction_ratio", "capped_ratio", "test_top1", "test_top5")


def spec_of(points: int, sampled: bool, epochs: int = EPOCHS) -> Spec:
    """A study of alpha and tau of which so many points have ended and some are left: listed, or drawn by TPE."""
    asked = points + MORE
    listed = {"alpha": [0.5 + 0.5 * index / asked for index in range(asked)]}
    ranges = {"alpha": {"range": [0.5, 1.0]}, "tau": {"range": [1, 8], "log": True}}
    raw: dict[str, Any] = {
        "name": STUDY,
        "protocol": {"base": "digits-quick", "epochs": epochs},
        "data": {"name": "digits"},
        "teacher": {"checkpoint": "given"},
        "pairs": ["cnn32-cnn3"],
        "methods": {"loca": ranges if sampled else listed},
        "seeds": SEEDS,
    }
    if sampled:
        raw |= {"search": {"sampler": "tpe", "points": asked, "defaults_first": False}, "selection": "paper"}
    return parse_spec(raw, "benchmark")


def plan_of(spec: Spec) -> Plan:
    """The study's plan in the home that the environment names, with a teacher that is nowhere."""
    plan = Plan(spec, open_home())
    plan.teacher_hashes = dict.fromkeys(plan.pairs, "0" * 64)
    return plan


def fill(points: int, sampled: bool, epochs: int = EPOCHS) -> Spec:
    """Make the study with its ended points in the home that the environment names."""
    spec = spec_of(points, sampled, epochs)
    plan = plan_of(spec)
    ((pair, of_pair),) = plan.pairs.items()
    (space,) = spec.spaces().values()
    with Store(plan.home.store_url).opened() as store:
        open_study(store, spec)
        store.update_info(STUDY, **describe(plan), versions=record.versions(), hardware=record.hardware())
        search = PointSearch(
            open_storage(store), f"{STUDY}/{pair}/{space.method}", space, spec.search, of_pair.protocol
        )
        drawn = random.Random(0)
        values: list[dict[str, Value]] = (
            [{"alpha": drawn.uniform(0.5, 1), "tau": drawn.uniform(1, 8)} for _ in range(points)]
            if sampled
            else list(space.grid())[:points]
        )
        rows, runs, ends = [], [], []
        for number, given in enumerate(values):
            parameters = of_pair.resolve(space, given)
            row = PointRow(
                study=STUDY,
                stage=plan.first_stage,
                point_id=plan.point_id(pair, space.method, parameters),
                pair=pair,
                method=space.method,
                parameters=parameters,
                trial=None if sampled else number,  # whoever drives lists asks Optuna about no trial that is told
                state=COMPLETE,
                value=50 + 10 * float(parameters["alpha"]),
                origin="benchmark",
            )
            rows.append(_told(row, search) if sampled else row)
            for index, seed in enumerate(spec.seeds):
                run = plan.student_run(pair, row.stage, row.method, row.parameters, seed)
                position = index * 100_000 + number
                runs.append(NewRun(row.stage, row.point_id, run.run_id, seed, run.identity, run.epochs, position))
                ends.append((run.run_id, _history(float(parameters["alpha"]), seed, epochs)))
        store.add_points(rows)
        store.add_runs(STUDY, runs)
        _end(store, ends)
    return spec


def _told(row: PointRow, search: PointSearch) -> PointRow:
    return PointRow(**{**vars(row), "trial": search.tell(row)})


def _history(alpha: float, seed: int, epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, **{name: alpha + seed + epoch / (number + 1) for number, name in enumerate(_METRICS)}}
        for epoch in range(1, epochs + 1)
    ]


def _end(store: Store, ends: Sequence[tuple[str, list[dict[str, float]]]]) -> None:
    """Let runs have been trained."""
    now = time.time()
    done = sa.text(
        "UPDATE kdstudy_runs SET state = :state, owner = :study, attempt = 1, epoch = epochs, device = 'cpu', "
        "checkpoint = 'attempt-1/epoch-0010.pt', device_seconds = 1.0, summary = :summary, started = :began, "
        "ended = :ended WHERE run_id = :run"
    )
    result = sa.text(
        "INSERT INTO kdstudy_results (run_id, epoch, metrics, time) VALUES (:run, :epoch, :metrics, :time)"
    )
    with store.engine.begin() as connection:
        connection.execute(
            done,
            [
                {
                    "state": DONE,
                    "study": STUDY,
                    "summary": json.dumps(engine.summary(history)),
                    "began": now + number,
                    "ended": now + number + 1,
                    "run": run_id,
                }
                for number, (run_id, history) in enumerate(ends)
            ],
        )
        connection.execute(
            result,
            [
                {"run": run_id, "epoch": row["epoch"], "metrics": json.dumps(row), "time": now + number}
                for number, (run_id, history) in enumerate(ends)
                for row in history
            ],
        )


def track() -> None:
    """Bring MLflow to what the store holds."""
    home = open_home()
    with Store(home.store_url).opened() as store:
        store.update_info(STUDY, teachers=[], code_version="benchmark")
        tracker = tracking.Tracker(home, store, STUDY)
        tracker._connect()
        tracker._client = client = _Bulk(home, tracker._experiment)
        tracker.sync(live=False)
        client.flush()


class _Bulk:
    """The part of MLflow's client that a tracker uses, writing thousands of runs in one transaction."""

    def __init__(self, home: Home, experiment: str) -> None:
        self._engine = sa.create_engine(home.tracking_uri)
        self._experiment = experiment
        self._artifacts = home.artifacts / STUDY
        self._rows: dict[str, list[dict[str, Any]]] = {"params": [], "tags": [], "metrics": []}
        self._runs: dict[str, dict[str, Any]] = {}
        self._latest: dict[tuple[str, str], dict[str, Any]] = {}

    def create_run(self, experiment: str, start_time: int | None, tags: Mapping[str, str], run_name: str) -> Any:
        run_id = uuid.uuid4().hex
        self._runs[run_id] = {
            "run_uuid": run_id,
            "name": run_name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "",
            "status": "RUNNING",
            "start_time": start_time or int(time.time() * 1000),
            "end_time": None,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": (self._artifacts / run_id / "artifacts").as_uri(),
            "experiment_id": int(experiment),
        }
        self._rows["tags"] += [{"key": key, "value": value, "run_uuid": run_id} for key, value in tags.items()]
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(
        self, run_id: str, metrics: Iterable[Any] = (), params: Iterable[Any] = (), tags: Iterable[Any] = ()
    ) -> None:
        for kind, entries in (("params", params), ("tags", tags)):
            self._rows[kind] += [{"key": e.key, "value": e.value, "run_uuid": run_id} for e in entries]
        for metric in metrics:
            row = {
                "key": metric.key,
                "value": metric.value,
                "timestamp": metric.timestamp,
                "step": metric.step,
                "is_nan": False,
                "run_uuid": run_id,
            }
            self._rows["metrics"].append(row)
            latest = self._latest.get((run_id, metric.key))
            if latest is None or metric.step >= latest["step"]:
                self._latest[run_id, metric.key] = row

    def log_text(self, run_id: str, text: str, file: str) -> None:
        folder = self._artifacts / run_id / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")

    def set_terminated(self, run_id: str, status: str, end_time: int | None) -> None:
        self._runs[run_id] |= {"status": status, "end_time": end_time}

    def flush(self) -> None:
        """Write everything."""
        from mlflow.store.tracking.dbmodels import models

        with self._engine.begin() as connection:
            for model, rows in (
                (models.SqlRun, list(self._runs.values())),
                (models.SqlParam, self._rows["params"]),
                (models.SqlTag, self._rows["tags"]),
                (models.SqlMetric, self._rows["metrics"]),
                (models.SqlLatestMetric, list(self._latest.values())),
            ):
                connection.execute(sa.insert(model.__table__), rows)
        self._engine.dispose()


def megabytes(path: Path) -> float:
    """The size of a database with its log."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 2**20
