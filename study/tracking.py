"""MLflow shows what the store holds: filled from it in batches, at any time, as often as one likes.

Every MLflow run carries its key as a tag, so that it is found again; points carry the store's time stamps, so that
logging one twice changes nothing. A tracker that is down delays this and stops nothing: `sync` completes it later.
A pass reads what was written since the pass before, so it costs what happened and not what the study has.
"""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import logging
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from analysis.collector import uncollected
from search_spaces import pairs
from search_spaces.spaces import written
from study import mlflow_page, runlog
from study.errors import RequestError, one_line
from study.home import Home
from study.plan import CONFIRM, FINAL, TEACHER, digest
from study.store import DONE, FAILED, PRUNED, RUNNING, WAITING, RunRow, Store

log = logging.getLogger("kdstudy.tracking")

KEY = "kdstudy.key"
_TEACHER_METRICS = ("test_top1", "test_top5", "test_rouge_l", "mis_instruction_ratio")
_BATCH = 900  # MLflow takes at most 1,000 metrics at a call
_STATUS = {DONE: "FINISHED", FAILED: "FAILED", PRUNED: "KILLED"}


def configure() -> None:
    """Settings for MLflow's client; to be made before MLflow is imported."""
    # The defaults block for minutes when the server is away, and may make a run twice; the next pass tries again.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # It would print two lines for each run that ends on a server, and a bar for each file that a report reads.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    named = os.environ.get("MLFLOW_TRACKING_PASSWORD_FILE")
    if named and not os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        try:
            os.environ["MLFLOW_TRACKING_PASSWORD"] = Path(named).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RequestError(f"MLFLOW_TRACKING_PASSWORD_FILE: {named} cannot be read ({error.strerror})") from None


def probe(tracking_uri: str) -> None:
    """Check that an address can be a tracker's.

    Raises:
        RequestError: it is of a kind that cannot be used, or does not answer.
    """
    scheme = tracking_uri.partition(":")[0]
    if scheme in ("http", "https"):
        if urlsplit(tracking_uri).password:
            raise RequestError(
                "MLFLOW_TRACKING_URI: no password belongs into it; give MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_PASSWORD_FILE"
            )
        try:
            _ask(tracking_uri)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise RequestError(
                    f"MLFLOW_TRACKING_URI: {tracking_uri} lets nobody in without a password that it knows; set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_PASSWORD_FILE"
                ) from None
            return  # it answers; whether it lets us in shows when something is written
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RequestError(
                f"MLFLOW_TRACKING_URI: {tracking_uri} does not answer ({reason}); start it, unset the variable, "
                "or give --track-later and run `kdstudy sync` when it is back"
            ) from None
    elif scheme not in ("sqlite", "postgresql", "mysql", "mssql") and not scheme.startswith("postgresql+"):
        raise RequestError(
            f"MLFLOW_TRACKING_URI: {tracking_uri} is no tracker that can be used; give http://…, sqlite:///PATH or "
            "unset it"
        )


def _ask(tracking_uri: str) -> None:
    """Ask a server for its experiments: what every user may who may use it at all."""
    configure()
    request = urllib.request.Request(f"{tracking_uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    urllib.request.urlopen(request, timeout=10).close()


class Tracker:
    """Brings one study's MLflow experiment to what the store holds."""

    def __init__(self, home: Home, store: Store, study: str) -> None:
        self._home = home
        self._store = store
        self._study = study
        self._client: Any = None
        self._experiment = ""
        self._known: dict[str, str] = {}  # MLflow's runs, by key
        self._tracked: dict[str, tuple[str, int, str | None]] = {}  # the store's memory of them
        self._revision = -1  # of the study: what was written up to it, MLflow has
        self._begun: dict[str, RunRow] = {}  # runs that MLflow has as they are now and will have otherwise, by key
        self._groups: dict[tuple[str, str], _Group] = {}
        self._teachers: dict[tuple[str, int | None], RunRow] = {}  # the runs that train them, by pair and fold
        self._lock = threading.Lock()  # the background's last pass may still be waiting for a slow server

    def connect(self) -> None:
        """Find the study's experiment, or make it; `sync` does so too where it was not done before.

        To be called before a study's threads begin: whoever imports MLflow, or lets it make its tables, beside a
        thread that imports or migrates something else breaks both now and then, for the rest of the process.

        Raises:
            Exception: whatever MLflow raises where it does not answer.
        """
        with self._lock:
            self._connect()

    def sync(self, *, live: bool) -> None:
        """One pass. With `live` a driver is at work, so runs that wait or run stay RUNNING in MLflow.

        Raises:
            Exception: whatever MLflow raises where it does not answer; what was logged before stays.
        """
        with self._lock:
            try:
                self._sync(live)
            except Exception:
                # An answer may have been lost on its way: the next pass looks at what MLflow really has.
                self._client = None
                raise

    def _sync(self, live: bool) -> None:
        self._connect()
        changed = self._store.runs(self._study, since=self._revision)
        overview = overview_of(self._store, self._study)
        if not live:
            # What changes by the second waits for the end, or every pass would write it again.
            overview |= totals_of(self._store, self._study)
        self._show(
            "study",
            name=f"study {self._study}",
            tags={"kdstudy.kind": "study", "kdstudy.warnings": "; ".join(overview.get("warnings", ()))[:4000]},
            status=None if live else "FINISHED",
            texts={"study.json": json.dumps(overview, indent=2)},
        )
        for run in changed:
            if run.stage == TEACHER:
                if run.attempt > 0:
                    self._teachers[run.pair, run.parameters.get("fold")] = run
            else:
                self._groups.setdefault((run.pair, run.method), _Group()).take(run)
        parents = {
            (pair, method): self._show(
                f"group:{pair}/{method}",
                name=f"{pair} {method}",
                tags={"kdstudy.kind": "group"},
                params={"pair": pair, "method": method},
                status=None if live else "FINISHED",
                started=group.started,
                ended=None if live else group.ended,
            )
            for (pair, method), group in self._groups.items()
        }
        self._show_teachers(overview, live)
        shown = {_key(run): run for run in changed if run.stage != TEACHER and (run.attempt > 0 or run.state == DONE)}
        if not live:
            shown = self._begun | shown  # nobody goes on with them now
        for key, run in shown.items():
            self._show_run(key, run, overview, parents[run.pair, run.method], live)
            if run.state_here in _STATUS:
                self._begun.pop(key, None)
            else:
                self._begun[key] = run
        self._revision = max([self._revision, *(run.revision for run in changed)])

    def _connect(self) -> None:
        if self._client is not None:
            return
        configure()
        from mlflow.tracking import MlflowClient

        uri = self._home.tracking_uri
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self._study)
        if experiment is None:
            folder = (self._home.artifacts / self._study).as_uri() if self._home.own_tracking else None
            self._experiment = client.create_experiment(self._study, artifact_location=folder)
        else:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            self._experiment = experiment.experiment_id
        score = self._store.info(self._study).get("score", "top1")
        for name, value in mlflow_page.experiment_tags(score).items():
            client.set_experiment_tag(self._experiment, name, value)
        # What MLflow really has, rather than what we remember of it: its database may have been replaced.
        self._known = {}
        token = None
        while True:
            with uncollected():
                page = client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                key = run.data.tags.get(KEY)
                if key in self._known:
                    client.delete_run(self._known[key])  # made twice, since the first answer was lost
                if key is not None:
                    self._known[key] = run.info.run_id
            token = page.token
            if not token:
                break
        self._tracked = self._store.tracked(self._study, uri)
        self._client = client

    def _show(
        self,
        key: str,
        *,
        name: str,
        tags: dict[str, str],
        params: Mapping[str, str] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
        status: str | None,
        texts: Mapping[str, str] = MappingProxyType({}),
        run: RunRow | None = None,
        over: bool = False,
        started: float | None = None,
        ended: float | None = None,
    ) -> str:
        """Bring one MLflow run to this state; returns its id.

        Args:
            key: what it shows.
            name, tags, params, metrics, texts: all that it says; `metrics` without those by epoch.
            status: MLflow's; None means RUNNING.
            run: whose epochs it shows; they are read only where MLflow lacks something.
            over: whether no epoch will come, so that they are all written to a file.
            started, ended: seconds since 1970.
        """
        from mlflow.entities import Metric, Param, RunTag

        run_id, cursor, shown = self._tracked.get(key, ("", 0, None))
        if self._known.get(key) != run_id or not run_id:
            run_id, cursor, shown = self._known.get(key, ""), 0, None
        if not run_id:
            made = self._client.create_run(
                self._experiment,
                start_time=_milliseconds(started),
                tags={KEY: key, "kdstudy.study": self._study},
                run_name=name,
            )
            run_id = self._known[key] = made.info.run_id
        face = digest([name, tags, dict(params), dict(metrics), status, ended, sorted(texts.items())])
        if face == shown and (run is None or run.epoch <= cursor):
            return run_id
        whole = over and face != shown
        history = self._store.history(run.run_id, after=0 if whole else cursor) if run else []
        if whole and history:
            texts = {**texts, "history.csv": _csv(history)}
        if whole and run and (said := runlog.read(self._home, run.run_id)):
            texts = {**texts, "run.log": said}
        if whole and run and "text" in run.identity:  # only runs of text leave any
            texts = {**texts, **self._home.artifacts_of(run.run_id)}
        if face != shown:
            self._client.log_batch(
                run_id,
                params=[Param(k, v) for k, v in params.items()],
                tags=[RunTag(k, v) for k, v in {**tags, "mlflow.runName": name}.items()],
            )
        new = [row for row in history if row["epoch"] > cursor]
        stamp = _milliseconds(ended or started) or 0
        points = [Metric(k, v, stamp, 0) for k, v in metrics.items() if math.isfinite(v)] if face != shown else []
        points += [
            Metric(k, v, _milliseconds(row["time"]) or 0, int(row["epoch"]))
            for row in new
            for k, v in row.items()
            if k not in ("epoch", "time") and math.isfinite(v)
        ]
        for begin in range(0, len(points), _BATCH):
            self._client.log_batch(run_id, metrics=points[begin : begin + _BATCH])
        if face != shown:
            for file, text in texts.items():
                self._client.log_text(run_id, text, file)
            if status is None:
                self._client.update_run(run_id, status="RUNNING")
            else:
                self._client.set_terminated(run_id, status=status, end_time=_milliseconds(ended))
        cursor = max([cursor, *(int(row["epoch"]) for row in new)])
        self._store.set_tracked(self._study, self._home.tracking_uri, key, run_id, cursor, face)
        self._tracked[key] = run_id, cursor, face
        return run_id

    def _show_run(self, key: str, run: RunRow, overview: Mapping[str, Any], parent: str, live: bool) -> None:
        state = run.state_here
        ended = state in _STATUS
        identity = run.identity
        teacher = identity["teacher"]
        architectures = run.pair.partition("/")[2].partition("@")[0]
        known: dict[str, Any] = next((e for e in overview["teachers"] if teacher and e["pair"] == run.pair), {})
        self._show(
            key,
            name=_run_name(run),
            tags={
                "kdstudy.kind": "run",
                "kdstudy.run_id": run.run_id,
                "kdstudy.point": run.point_id,
                "kdstudy.state": state,
                "kdstudy.stage": run.stage,
                "kdstudy.screening": _text(run.screening),
                "kdstudy.taken_over": _text(run.taken_over),
                "kdstudy.reason": (run.reason or "")[:4000],
                "kdstudy.data_hash": identity["data"],
                "kdstudy.teacher_hash": teacher or "",
                "kdstudy.teacher_trained_on": f"{known['regime']}, {known['trained_on']}" if known else "",
                "kdstudy.origin": run.origin,
                "kdstudy.protocol_hash": digest(identity["protocol"]),
                "kdstudy.device": run.device or "",
                "kdstudy.code_version": str(overview.get("code_version", "")),
                "mlflow.parentRunId": parent,
            },
            params={
                "pair": run.pair,
                "dataset": identity["dataset"],
                "teacher": pairs.get(architectures).teacher if teacher else "",
                "student": identity["student"],
                "method": run.method,
                "seed": str(run.seed),
                "protocol": str(overview["protocol"]["base"]),
                **{name: _param(value) for name, value in run.parameters.items()},
            },
            metrics={
                **{f"hp.{name}": value for name, value in run.parameters.items() if isinstance(value, float)},
                **({f"teacher_{name}": known[name] for name in _TEACHER_METRICS if name in known}),
                **((run.summary or {}) if ended else {}),
                **({"device_seconds": run.device_seconds} if ended else {}),
            },
            status=_STATUS[state] if ended else None if live else "KILLED",
            run=run,
            over=ended,
            started=run.started,
            ended=run.ended,
        )

    def _show_teachers(self, overview: Mapping[str, Any], live: bool) -> None:
        known = {teacher["pair"]: teacher for teacher in overview["teachers"]}
        trained = {pair for pair, _ in self._teachers}
        runs: dict[tuple[str, int | None], RunRow | None] = {**self._teachers}
        runs |= {(pair, None): None for pair in known if pair not in trained}
        for (pair, fold), run in runs.items():
            teacher = known.get(pair, {})
            state = run.state if run else DONE
            which = "" if fold is None else f" without fold {fold}"
            self._show(
                f"teacher:{pair}{'' if fold is None else f':{fold}'}",
                name=f"teacher of {pair}{which}",
                tags={
                    "kdstudy.kind": "teacher",
                    "kdstudy.state": state,
                    "kdstudy.teacher_hash": str(teacher.get("hash", "")),
                    "kdstudy.run_id": run.run_id if run else "",
                    "kdstudy.ratio_on": str(teacher.get("ratio_on", "")),
                },
                params={
                    name: str(teacher[name]) for name in ("model", "dataset", "regime", "trained_on") if name in teacher
                },
                metrics={name: teacher[name] for name in _TEACHER_METRICS if name in teacher},
                status=_STATUS.get(state) or (None if live else "KILLED"),
                run=run,
                over=state in _STATUS,
                started=run.started if run else None,
                ended=run.ended if run else None,
            )


@dataclass
class _Group:
    """When the runs of one pair and method began and ended."""

    started: float | None = None
    ended: float | None = None

    def take(self, run: RunRow) -> None:
        """Count a run in."""
        self.started = min((time for time in (self.started, run.started) if time), default=None)
        self.ended = max((time for time in (self.ended, run.ended) if time), default=None)


class BackgroundTracker:
    """Syncs in a thread while a study runs. An outage is logged once and retried; nothing waits for it."""

    def __init__(
        self, tracker: Tracker, seconds: float = 3.0, on_state: Callable[[bool], None] = lambda up: None
    ) -> None:
        self._tracker = tracker
        self._seconds = seconds
        self._on_state = on_state
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kdstudy-tracker", daemon=True)

    def __enter__(self) -> BackgroundTracker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=60)

    def _loop(self) -> None:
        wait, up = self._seconds, True
        while True:
            over = self._end.wait(wait)
            if over:
                return
            try:
                self._tracker.sync(live=True)
                wait, now_up = self._seconds, True
            except Exception as error:
                wait, now_up = min(60.0, 2 * wait), False
                if up:
                    log.warning("MLflow does not take results (%s); they stay in the store", one_line(error))
            if now_up != up:
                up = now_up
                self._on_state(up)


def overview_of(store: Store, study: str) -> dict[str, Any]:
    """The study as a whole, as `study.json` shows it while runs go on."""
    spec, info = store.spec(study), store.info(study)
    return {
        "study": study,
        "spec": spec,
        "teachers": [],
        "protocol": {"base": (spec or {})["protocol"]["base"]},
        **{key: value for key, value in info.items() if key not in ("created", "wall_seconds")},
        "seeds": (spec or {})["seeds"],
    }


def totals_of(store: Store, study: str) -> dict[str, Any]:
    """What `study.json` has beside that when a study is left: how many runs ended how, and what they cost."""
    runs = {(run.stage, run.run_id): run for run in store.runs(study) if run.stage != TEACHER}.values()
    states = [run.state_here for run in runs]
    return {
        "wall_seconds": store.info(study)["wall_seconds"],
        "counts": {
            "asked": len(states),
            "done": states.count(DONE),
            "failed": states.count(FAILED),
            "pruned": states.count(PRUNED),
            "taken_over": sum(run.taken_over for run in runs),
            "waiting": states.count(WAITING) + states.count(RUNNING),
        },
        "device_seconds": sum(run.device_seconds for run in runs if not run.taken_over),
    }


def _key(run: RunRow) -> str:
    return f"run:{run.stage}:{run.point_id}:{run.run_id}"


def _param(value: float | str | bool) -> str:
    """A parameter as MLflow's params have it, which are text."""
    return repr(value) if isinstance(value, float) else written(value)


def _csv(history: Sequence[Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row if name not in ("epoch", "time")))
    out = io.StringIO()
    writer = csv.DictWriter(out, ["epoch", *names], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**row, "epoch": int(row["epoch"])} for row in history)
    return out.getvalue()


def _run_name(run: RunRow) -> str:
    shown = [f"{name}={written(value)}" for name, value in _own(run)]
    return " ".join([run.method, *shown, f"seed={run.seed}", *([run.stage] if run.stage in (FINAL, CONFIRM) else [])])


def _own(run: RunRow) -> Iterator[tuple[str, float | str | bool]]:
    """The parameters worth a name: alpha and a method's own, rather than what all methods share."""
    for name, value in run.parameters.items():
        if name not in ("tau", "beta", "gamma"):
            yield name, value


def _text(value: bool) -> str:
    return "true" if value else "false"


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
