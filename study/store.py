"""The store: one SQL database that holds the truth about studies, points, runs and results.

Our run rows are the truth; Optuna's trials and MLflow's runs follow from them. Results and states are written by a
study's driver alone; other commands leave a request row, which the driver obeys. Attempts are numbered, so a worker
that comes back after its run was given to another can no longer write. No transaction is held across a call into
Optuna, whose tables live in the same database. A server that is restarted delays a call and fails none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from study import schema
from study.database import insert, is_sqlite, make_engine, patient_methods, sqlite_file, without_password
from study.errors import RequestError

_CHUNK = 500  # rows that one statement names

WAITING, RUNNING, DONE, FAILED, PRUNED = "WAITING", "RUNNING", "DONE", "FAILED", "PRUNED"
OPEN, COMPLETE = "OPEN", "COMPLETE"  # a point's states, beside FAILED and PRUNED

_meta = sa.MetaData()

_studies = sa.Table(
    "kdstudy_studies",
    _meta,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column(
        "info", sa.JSON, nullable=False
    ),  # study.json of the tracker: data, teachers, versions, hardware, warnings
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("wall_seconds", sa.Float, nullable=False, default=0.0),
)

_points = sa.Table(
    "kdstudy_points",
    _meta,
    sa.Column("study", sa.ForeignKey("kdstudy_studies.name"), primary_key=True),
    sa.Column("stage", sa.String(10), primary_key=True),
    sa.Column("point_id", sa.String(16), primary_key=True),
    sa.Column("pair", sa.String(200), nullable=False),
    sa.Column("method", sa.String(100), nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("trial", sa.Integer),  # Optuna's number in the study of this pair and method; none in the final stage
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("value", sa.Float),
    sa.Column("origin", sa.String(200), nullable=False, server_default=""),  # who proposed it
    sa.Column("position", sa.Integer, nullable=False, server_default="0"),  # order of creation within the study
)

sa.Index("ix_kdstudy_points_position", _points.c.study, _points.c.position)

_runs = sa.Table(
    "kdstudy_runs",
    _meta,
    sa.Column("run_id", sa.String(16), primary_key=True),
    sa.Column("identity", sa.JSON, nullable=False),
    sa.Column("state", sa.String(10), nullable=False, index=True),
    sa.Column("owner", sa.String(100)),  # the study whose driver trains it, or trained it last
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("losses", sa.Integer, nullable=False, default=0),  # attempts whose worker died
    sa.Column("epochs", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("checkpoint", sa.Text),  # the newest one's name in the run's folder
    sa.Column("reason", sa.Text),
    sa.Column("device", sa.String(100)),
    sa.Column("device_seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("summary", sa.JSON),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
)

_study_runs = sa.Table(
    "kdstudy_study_runs",
    _meta,
    sa.Column("study", sa.ForeignKey("kdstudy_studies.name"), primary_key=True),
    sa.Column("stage", sa.String(10), primary_key=True),
    sa.Column("point_id", sa.String(16), primary_key=True),
    sa.Column("run_id", sa.ForeignKey("kdstudy_runs.run_id"), primary_key=True, index=True),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("screening", sa.Boolean, nullable=False, default=False),
    sa.Column("pruned", sa.Boolean, nullable=False, default=False),  # this study's pruner stopped it
    sa.Column("position", sa.BigInteger, nullable=False),  # order in which runs start
    # Counts the writes to a study's runs, so that whoever follows the study reads only what is newer than it has seen.
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
)
_by_revision = sa.Index("ix_kdstudy_study_runs_revision", _study_runs.c.study, _study_runs.c.revision)

_results = sa.Table(
    "kdstudy_results",
    _meta,
    sa.Column("run_id", sa.ForeignKey("kdstudy_runs.run_id"), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)

_requests = sa.Table(
    "kdstudy_requests",
    _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study", sa.String(100), nullable=False, index=True),
    sa.Column("kind", sa.String(10), nullable=False),  # stop or retry
    sa.Column("created", sa.Float, nullable=False),
)

_drivers = sa.Table(
    "kdstudy_drivers",
    _meta,
    sa.Column("study", sa.String(100), primary_key=True),
    # Who drives it, and where its runs stand by node and device; for people, and true only while the lock is held.
    sa.Column("who", sa.String(300), nullable=False),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
    sa.Column("about", sa.JSON, nullable=False),
)

_tracked = sa.Table(
    "kdstudy_tracked",
    _meta,
    sa.Column("study", sa.String(100), primary_key=True),
    # What the MLflow run shows: a run of a point, a group, a teacher.
    sa.Column("key", sa.String(300), primary_key=True),
    sa.Column("tracking_uri", sa.String(500), primary_key=True),
    sa.Column("mlflow_run_id", sa.String(64), nullable=False),
    sa.Column("cursor", sa.Integer, nullable=False, default=0),  # epochs that MLflow has
    sa.Column("shown", sa.Text),  # digest of the state, tags and finals that MLflow has
)


@dataclass(frozen=True)
class PointRow:
    """A point of a study and where it stands."""

    study: str
    stage: str
    point_id: str
    pair: str
    method: str
    parameters: dict[str, Any]
    trial: int | None
    state: str
    value: float | None
    origin: str = ""


_POINT = [_points.c[name] for name in PointRow.__dataclass_fields__]


@dataclass(frozen=True)
class NewRun:
    """A run that a study asks for."""

    stage: str
    point_id: str
    run_id: str
    seed: int
    identity: Mapping[str, Any]
    epochs: int
    position: int
    screening: bool = False


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as a study sees it: the run's own row and the study's use of it."""

    run_id: str
    stage: str
    point_id: str
    seed: int
    screening: bool
    taken_over: bool  # another study trained it to its end
    pruned: bool
    position: int
    revision: int  # of the study, when this row was written last
    pair: str
    method: str
    parameters: dict[str, Any]
    origin: str
    identity_text: str
    state: str
    owner: str | None
    attempt: int
    losses: int
    epochs: int
    epoch: int
    checkpoint: str | None
    reason: str | None
    device: str | None
    device_seconds: float
    summary: dict[str, float] | None
    started: float | None
    ended: float | None

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's id is made of. Decoded when asked for: thousands of rows are read by those who do not ask."""
        found: dict[str, Any] = json.loads(self.identity_text)
        return found

    @property
    def state_here(self) -> str:
        """The state as this study sees it: PRUNED where its pruner stopped the run, whoever goes on with it."""
        return PRUNED if self.pruned else self.state

    @property
    def ended_here(self) -> bool:
        """Whether this study has nothing more to wait for: the run ended, or this study's pruner stopped it."""
        return self.state in (DONE, FAILED) or self.pruned


@dataclass(frozen=True)
class DriverRow:
    """Who drives a study: a line for people, the host, when it was last heard of, and what it said of its nodes."""

    study: str
    who: str
    host: str
    seen: float
    about: dict[str, Any]


@patient_methods
class Store:
    """Access to one store. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._write = self.engine.execution_options(kdstudy_write=True)
        self._migrate()

    def _migrate(self) -> None:
        where = str(sqlite_file(self.url)) if is_sqlite(self.url) else without_password(self.url)
        try:
            with self._write.begin() as connection:
                schema.bring_up(connection, _meta, where)
        except sa.exc.DatabaseError as error:
            remedy = "move it away, or set KDSTUDY_HOME elsewhere" if is_sqlite(self.url) else "set KDSTUDY_STORE right"
            said = " ".join(str(error.orig).split())
            raise RequestError(f"{where}: cannot be opened as a store ({said}); {remedy}") from None

    # Studies

    def create_study(self, name: str, spec: Mapping[str, Any]) -> None:
        """Add a study; its name must be new."""
        with self._write.begin() as connection:
            connection.execute(
                sa.insert(_studies).values(name=name, spec=dict(spec), info={}, created=time.time(), wall_seconds=0.0)
            )

    def study_names(self) -> list[str]:
        """Names of all studies, oldest first."""
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(_studies.c.name).order_by(_studies.c.created)))

    def spec(self, study: str) -> dict[str, Any] | None:
        """The stored spec of a study; None where there is no such study."""
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(_studies.c.spec).where(_studies.c.name == study))

    def update_spec(self, study: str, spec: Mapping[str, Any]) -> None:
        """Replace the stored spec by one that the study grew to."""
        with self._write.begin() as connection:
            connection.execute(sa.update(_studies).where(_studies.c.name == study).values(spec=dict(spec)))

    def info(self, study: str) -> dict[str, Any]:
        """What was recorded about a study as a whole."""
        with self.engine.connect() as connection:
            row = connection.execute(
                sa.select(_studies.c.info, _studies.c.wall_seconds, _studies.c.created).where(_studies.c.name == study)
            ).one()
        return {**row.info, "wall_seconds": row.wall_seconds, "created": row.created}

    def update_info(self, study: str, **values: Any) -> None:
        """Merge values into what is recorded about a study."""
        with self._write.begin() as connection:
            info = connection.scalar(sa.select(_studies.c.info).where(_studies.c.name == study))
            connection.execute(
                sa.update(_studies).where(_studies.c.name == study).values(info={**(info or {}), **values})
            )

    def add_wall_seconds(self, study: str, seconds: float) -> None:
        """Count the time that a driver spent on a study."""
        with self._write.begin() as connection:
            connection.execute(
                sa.update(_studies)
                .where(_studies.c.name == study)
                .values(wall_seconds=_studies.c.wall_seconds + seconds)
            )

    # Points

    def add_points(self, points: Iterable[PointRow]) -> None:
        """Add points where their study does not have them yet."""
        rows = [vars(point) for point in points]
        if not rows:
            return
        with self._write.begin() as connection:
            newest = sa.select(sa.func.max(_points.c.position)).where(_points.c.study == rows[0]["study"])
            first = (connection.scalar(newest) or 0) + 1
            numbered = [{**row, "position": first + number} for number, row in enumerate(rows)]
            connection.execute(insert(connection, _points).on_conflict_do_nothing(), numbered)

    def point(self, study: str, stage: str, point_id: str) -> PointRow:
        """One point of a study; it is there."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(*_POINT).where(_is_point(study, stage, point_id))).one()
        return PointRow(**row._mapping)

    def points(self, study: str, stage: str | None = None) -> list[PointRow]:
        """The points of a study, in the order of their creation."""
        query = sa.select(*_POINT).where(_points.c.study == study).order_by(_points.c.position)
        if stage is not None:
            query = query.where(_points.c.stage == stage)
        with self.engine.connect() as connection:
            return [PointRow(**row._mapping) for row in connection.execute(query)]

    def end_point(self, study: str, stage: str, point_id: str, state: str, value: float | None) -> None:
        """Record how a point ended."""
        self._set_point(study, stage, point_id, state=state, value=value)

    def reopen_point(self, study: str, stage: str, point_id: str) -> None:
        """A point has runs to wait for again."""
        self._set_point(study, stage, point_id, state=OPEN, value=None)

    def set_trial(self, study: str, stage: str, point_id: str, trial: int) -> None:
        """Record which of Optuna's trials is a point's."""
        self._set_point(study, stage, point_id, trial=trial)

    def _set_point(self, study: str, stage: str, point_id: str, **values: Any) -> None:
        with self._write.begin() as connection:
            connection.execute(sa.update(_points).where(_is_point(study, stage, point_id)).values(**values))

    # Runs

    def add_runs(self, study: str, asked: Sequence[NewRun]) -> list[NewRun]:
        """Let a study ask for runs: new rows, or rows that another study made. Those that it had not asked for before.

        A run that is done is taken over. A failed one is not: it begins again. One that another study's pruner stopped
        is continued from its checkpoint.
        """
        if not asked:
            return []
        added: list[NewRun] = []
        with self._write.begin() as connection:
            for begin in range(0, len(asked), _CHUNK):
                added += _add_runs(connection, study, asked[begin : begin + _CHUNK])
        return added

    def runs(
        self, study: str, stage: str | None = None, point_id: str | None = None, since: int | None = None
    ) -> list[RunRow]:
        """The runs that a study uses, in the order in which they start.

        Args:
            study: its name.
            stage, point_id: only these.
            since: only rows that were written after this revision of the study.
        """
        query = _run_query().where(_study_runs.c.study == study)
        if stage is not None:
            query = query.where(_study_runs.c.stage == stage)
        if point_id is not None:
            query = query.where(_study_runs.c.point_id == point_id)
        if since is not None:
            query = query.where(_study_runs.c.revision > since)
        with self.engine.connect() as connection:
            return [RunRow(*row) for row in connection.execute(query)]

    def run(self, study: str, run_id: str) -> RunRow:
        """A run that a study uses, as its first use of it."""
        query = _run_query().where(_study_runs.c.run_id == run_id, _study_runs.c.study == study).limit(1)
        with self.engine.connect() as connection:
            return RunRow(*connection.execute(query).one())

    def find_runs(self, prefix: str) -> list[tuple[str, RunRow]]:
        """Runs whose id begins with `prefix`, each with every study that uses it."""
        query = _run_query().add_columns(_study_runs.c.study).where(_runs.c.run_id.startswith(prefix, autoescape=True))
        with self.engine.connect() as connection:
            rows = [dict(row._mapping) for row in connection.execute(query)]
        return [(row.pop("study"), RunRow(**row)) for row in rows]

    # Drivers

    def set_driver(self, study: str, who: str, host: str, about: Mapping[str, Any]) -> None:
        """Say who drives a study, from which host, and how its runs stand on nodes and devices."""
        values = {"who": who, "host": host, "seen": time.time(), "about": dict(about)}
        with self._write.begin() as connection:
            connection.execute(
                insert(connection, _drivers)
                .values(study=study, **values)
                .on_conflict_do_update(index_elements=[_drivers.c.study], set_=values)
            )

    def driver(self, study: str) -> DriverRow | None:
        """Who drives a study, or drove it last."""
        query = sa.select(*(_drivers.c[name] for name in DriverRow.__dataclass_fields__))
        with self.engine.connect() as connection:
            row = connection.execute(query.where(_drivers.c.study == study)).one_or_none()
        return None if row is None else DriverRow(*row)

    def drivers(self) -> list[DriverRow]:
        """Who drives, or drove last, each of the studies."""
        query = sa.select(*(_drivers.c[name] for name in DriverRow.__dataclass_fields__))
        with self.engine.connect() as connection:
            return [DriverRow(*row) for row in connection.execute(query)]

    def remove_driver(self, study: str) -> None:
        """Nobody drives a study any more."""
        with self._write.begin() as connection:
            connection.execute(sa.delete(_drivers).where(_drivers.c.study == study))

    # Attempts

    def claim(self, run_id: str, study: str) -> int | None:
        """Take a waiting run for a study's driver; the number of its new attempt, or None where another took it."""
        with self._write.begin() as connection:
            changed = connection.execute(
                sa.update(_runs)
                .where(_runs.c.run_id == run_id, _runs.c.state == WAITING)
                .values(
                    state=RUNNING,
                    owner=study,
                    attempt=_runs.c.attempt + 1,
                    reason=None,
                    started=sa.func.coalesce(_runs.c.started, time.time()),
                )
            )
            if changed.rowcount == 0:
                return None
            _touch(connection, _study_runs.c.run_id == run_id)
            return connection.scalar(sa.select(_runs.c.attempt).where(_runs.c.run_id == run_id))

    def record(
        self,
        run_id: str,
        attempt: int,
        epochs: Sequence[Mapping[str, float]],
        *,
        checkpoint: str | None,
        device: str,
        device_seconds: float,
    ) -> bool:
        """Add an attempt's results; an epoch that is there already stays. False if the attempt is outdated."""
        now = time.time()
        with self._write.begin() as connection:
            values: dict[str, Any] = {"device": device, "device_seconds": _runs.c.device_seconds + device_seconds}
            if epochs:
                values["epoch"] = int(epochs[-1]["epoch"])
            if checkpoint is not None:
                values["checkpoint"] = checkpoint
            changed = connection.execute(
                sa.update(_runs)
                .where(_runs.c.run_id == run_id, _runs.c.attempt == attempt, _runs.c.state == RUNNING)
                .values(**values)
            )
            if changed.rowcount == 0:
                return False
            _touch(connection, _study_runs.c.run_id == run_id)
            if epochs:
                connection.execute(
                    insert(connection, _results).on_conflict_do_nothing(),
                    [
                        {"run_id": run_id, "epoch": int(metrics["epoch"]), "metrics": dict(metrics), "time": now}
                        for metrics in epochs
                    ],
                )
        return True

    def end_run(
        self,
        run_id: str,
        attempt: int,
        state: str,
        *,
        reason: str | None = None,
        summary: Mapping[str, float] | None = None,
        study: str | None = None,
    ) -> bool:
        """Record how an attempt ended. False if the attempt is outdated."""
        with self._write.begin() as connection:
            changed = connection.execute(
                sa.update(_runs)
                .where(_runs.c.run_id == run_id, _runs.c.attempt == attempt, _runs.c.state == RUNNING)
                .values(state=state, reason=reason, summary=dict(summary) if summary else None, ended=time.time())
            )
            if changed.rowcount and state == PRUNED:
                connection.execute(
                    sa.update(_study_runs)
                    .where(_study_runs.c.run_id == run_id, _study_runs.c.study == study)
                    .values(pruned=True)
                )
            if changed.rowcount:
                _touch(connection, _study_runs.c.run_id == run_id)
            return changed.rowcount > 0

    def requeue(self, run_id: str, attempt: int, *, lost: bool) -> bool:
        """Let an attempt's run wait again, from its last checkpoint; `lost` counts a worker that died."""
        with self._write.begin() as connection:
            changed = connection.execute(
                sa.update(_runs)
                .where(_runs.c.run_id == run_id, _runs.c.attempt == attempt, _runs.c.state == RUNNING)
                .values(state=WAITING, owner=None, losses=_runs.c.losses + int(lost))
            )
            if changed.rowcount:
                _touch(connection, _study_runs.c.run_id == run_id)
            return changed.rowcount > 0

    def resume_pruned(self, run_id: str) -> None:
        """Let a run wait again that another study's pruner stopped."""
        with self._write.begin() as connection:
            _resume_pruned(connection, [run_id])

    def requeue_owned(self, study: str) -> int:
        """Let the runs wait again that a driver of this study left running; only for the one who holds its lock."""
        left = sa.and_(_runs.c.owner == study, _runs.c.state == RUNNING)
        with self._write.begin() as connection:
            _touch(connection, _study_runs.c.run_id.in_(sa.select(_runs.c.run_id).where(left)))
            return connection.execute(sa.update(_runs).where(left).values(state=WAITING, owner=None)).rowcount

    def retry_failed(self, study: str) -> int:
        """Let the failed runs of a study begin again; how many there are. Their points are open again."""
        with self._write.begin() as connection:
            failed = connection.scalars(
                sa.select(_runs.c.run_id)
                .join(_study_runs, _study_runs.c.run_id == _runs.c.run_id)
                .where(_study_runs.c.study == study, _runs.c.state == FAILED)
                .distinct()
            ).all()
            _reset(connection, failed)
            return len(failed)

    def history(self, run_id: str, after: int = 0) -> list[dict[str, float]]:
        """Metrics of a run by epoch, from those beyond `after`, each with its `time` (seconds since 1970)."""
        query = (
            sa.select(_results.c.metrics, _results.c.time)
            .where(_results.c.run_id == run_id, _results.c.epoch > after)
            .order_by(_results.c.epoch)
        )
        with self.engine.connect() as connection:
            return [{**row.metrics, "time": row.time} for row in connection.execute(query)]

    # Requests to a driver

    def request(self, study: str, kind: str) -> None:
        """Leave a request (`stop`, `retry`) for the study's driver."""
        with self._write.begin() as connection:
            connection.execute(sa.insert(_requests).values(study=study, kind=kind, created=time.time()))

    def take_requests(self, study: str) -> list[str]:
        """Take the requests left for a study; each is answered once."""
        with self._write.begin() as connection:
            rows = connection.execute(sa.select(_requests).where(_requests.c.study == study)).all()
            connection.execute(sa.delete(_requests).where(_requests.c.id.in_([row.id for row in rows])))
        return [row.kind for row in rows]

    # What MLflow has

    def tracked(self, study: str, tracking_uri: str) -> dict[str, tuple[str, int, str | None]]:
        """By key: the MLflow run's id, the epochs that it has, and a digest of what else it shows."""
        query = sa.select(_tracked).where(_tracked.c.study == study, _tracked.c.tracking_uri == tracking_uri)
        with self.engine.connect() as connection:
            return {row.key: (row.mlflow_run_id, row.cursor, row.shown) for row in connection.execute(query)}

    def set_tracked(
        self, study: str, tracking_uri: str, key: str, mlflow_run_id: str, cursor: int, shown: str | None
    ) -> None:
        """Remember what MLflow has of one of a study's runs."""
        with self._write.begin() as connection:
            values = {"mlflow_run_id": mlflow_run_id, "cursor": cursor, "shown": shown}
            connection.execute(
                insert(connection, _tracked)
                .values(study=study, tracking_uri=tracking_uri, key=key, **values)
                .on_conflict_do_update(index_elements=_tracked.primary_key.columns, set_=values)
            )

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Close the store's connections at the end of a block."""
        try:
            yield self
        finally:
            self.engine.dispose()


def _run_query() -> sa.Select[Any]:
    use, point, run = _study_runs.c, _points.c, _runs.c
    return (
        sa.select(
            run.run_id,
            use.stage,
            use.point_id,
            use.seed,
            use.screening,
            sa.and_(run.state == DONE, run.owner != use.study).label("taken_over"),
            use.pruned,
            use.position,
            use.revision,
            point.pair,
            point.method,
            point.parameters,
            point.origin,
            sa.cast(run.identity, sa.Text).label("identity_text"),
            run.state,
            run.owner,
            run.attempt,
            run.losses,
            run.epochs,
            run.epoch,
            run.checkpoint,
            run.reason,
            run.device,
            run.device_seconds,
            run.summary,
            run.started,
            run.ended,
        )
        .join(_runs, run.run_id == use.run_id)
        .join(
            _points,
            sa.and_(point.study == use.study, point.stage == use.stage, point.point_id == use.point_id),
        )
        .order_by(use.position, run.run_id)
    )


def _is_point(study: str, stage: str, point_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(_points.c.study == study, _points.c.stage == stage, _points.c.point_id == point_id)


def _touch(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Give the uses of runs that were written to a new revision, in each study that has them."""
    other = _study_runs.alias()
    newest = sa.select(sa.func.max(other.c.revision)).where(other.c.study == _study_runs.c.study).scalar_subquery()
    connection.execute(sa.update(_study_runs).where(which).values(revision=newest + 1))


def _add_runs(connection: sa.Connection, study: str, asked: Sequence[NewRun]) -> list[NewRun]:
    """`Store.add_runs`, of as many as one statement can name."""
    ids = list({run.run_id for run in asked})
    use = _study_runs.c
    uses = sa.select(use.stage, use.point_id, use.run_id).where(use.run_id.in_(ids), use.study == study)
    known = {tuple(row) for row in connection.execute(uses)}
    added = {key: run for run in asked if (key := (run.stage, run.point_id, run.run_id)) not in known}
    if not added:
        return []
    wanted = {run.run_id: run for run in added.values()}
    rows = connection.execute(sa.select(_runs.c.run_id, _runs.c.state).where(_runs.c.run_id.in_(wanted)))
    states: dict[str, str] = {row.run_id: row.state for row in rows}
    _reset(connection, [run_id for run_id, state in states.items() if state == FAILED])
    _resume_pruned(connection, [run_id for run_id, state in states.items() if state == PRUNED])
    now = time.time()
    new = [
        {
            "run_id": run_id,
            "identity": dict(run.identity),
            "state": WAITING,
            "attempt": 0,
            "losses": 0,
            "epochs": run.epochs,
            "epoch": 0,
            "device_seconds": 0.0,
            "created": now,
        }
        for run_id, run in wanted.items()
        if run_id not in states
    ]
    if new:
        connection.execute(sa.insert(_runs), new)
    newest = connection.scalar(sa.select(sa.func.max(use.revision)).where(use.study == study)) or 0
    connection.execute(
        sa.insert(_study_runs),
        [
            {
                "study": study,
                "stage": run.stage,
                "point_id": run.point_id,
                "run_id": run.run_id,
                "seed": run.seed,
                "screening": run.screening,
                "pruned": False,
                "position": run.position,
                "revision": newest + 1,
            }
            for run in added.values()
        ],
    )
    return list(added.values())


def _resume_pruned(connection: sa.Connection, run_ids: Sequence[str]) -> None:
    """Runs that a study's pruner stopped go on for another, from their checkpoints."""
    if run_ids:
        pruned = sa.and_(_runs.c.run_id.in_(run_ids), _runs.c.state == PRUNED)
        changed = connection.execute(sa.update(_runs).where(pruned).values(state=WAITING, ended=None))
        if changed.rowcount:
            _touch(connection, _study_runs.c.run_id.in_(run_ids))


def _reset(connection: sa.Connection, run_ids: Sequence[str]) -> None:
    """Runs that failed begin again, from nothing; their numbers of attempts go on.

    Their points are open again, in each study that uses them. Optuna's trial of a point that failed has ended, so the
    point is told as another trial.
    """
    for begin in range(0, len(run_ids), _CHUNK):
        ids = run_ids[begin : begin + _CHUNK]
        use, point = _study_runs.c, _points.c
        uses = sa.select(use.study, use.stage, use.point_id).where(use.run_id.in_(ids))
        for study, stage, point_id in connection.execute(uses).all():
            connection.execute(
                sa.update(_points)
                .where(_is_point(study, stage, point_id))
                .values(state=OPEN, value=None, trial=sa.case((point.state == FAILED, None), else_=point.trial))
            )
        connection.execute(sa.delete(_results).where(_results.c.run_id.in_(ids)))
        connection.execute(
            sa.update(_runs)
            .where(_runs.c.run_id.in_(ids))
            .values(
                state=WAITING, owner=None, losses=0, epoch=0, checkpoint=None, reason=None, summary=None, ended=None
            )
        )
        _touch(connection, use.run_id.in_(ids))


def canonical(value: Any) -> str:
    """JSON text of a value that does not depend on the order of keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
