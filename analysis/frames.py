"""MLflow's runs as pandas frames with typed columns.

One experiment is one study. Runs are told apart by the tag `kdstudy.kind`; each `run` has its whole history as one
file, `history.csv`, so that reading costs one file a run and not one request a metric.
"""

import csv
import difflib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd

from analysis.collector import uncollected
from analysis.scores import ROUGE_L, is_score, score_of

PAGE = 1000  # runs a request: MLflow's server refuses more than 50,000, and answers of that size time out
READERS = 8  # history files fetched at the same time: they wait for the network, not for a core

TEXT = (
    "study",
    "run_id",
    "mlflow_run_id",
    "state",
    "stage",
    "point",
    "pair",
    "dataset",
    "teacher",
    "student",
    "method",
    "protocol",
    "protocol_hash",
    "teacher_hash",
    "data_hash",
    "device",
    "code_version",
    "origin",
    "reason",
)
FLAGS = ("screening", "taken_over")
PARAMETERS = ("alpha", "tau", "beta", "gamma")
RESULTS = (
    "test_top1_last",
    "test_top5_last",
    "test_top1_best",
    "test_top1_at_best_val",
    "val_top1_last",
    "val_top1_best",
    "device_seconds",
)
EPOCH_METRICS = (
    "train_loss",
    "train_top1",
    "lr",
    "mis_instruction_ratio",
    "capped_ratio",
    "epoch_seconds",
    "val_top1",
    "val_top5",
    "test_top1",
    "test_top5",
)
GENERATION_COLUMNS = (
    *("study", "run_id", "teacher_of", "set", "index", "decoding_seed"),
    *("instruction", "input", "reference", "response", "rouge_l"),
)
RUN_KEYS = ("study", "run_id", "state", "stage", "point", "pair", "method")
_PARAMS = ("pair", "dataset", "teacher", "student", "method", "protocol")
_UNFINISHED = ("RUNNING", "WAITING")
_COUNTS = ("asked", "done", "failed", "pruned", "taken_over", "waiting")
# What a study that is still running has not written yet.
_BLANK: dict[str, Any] = {
    "question": "",
    "protocol_changes": [],
    "cuts": [],
    "teachers": [],
    "versions": {},
    "hardware": dict.fromkeys(("cpu", "cores", "memory_gib", "devices")),
    "seeds": [],
    "counts": dict.fromkeys(_COUNTS),
    "wall_seconds": None,
    "device_seconds": None,
    "warnings": [],
    "code_version": None,
    "tracking_uri_hint": None,
}


class ReportError(ValueError):
    """A request that cannot be answered, in one line: what is wrong, where, and what would be right."""


@contextmanager
def _tracking(tracking_uri: str) -> Iterator[Any]:
    """An MLflow client that gives up soon; whatever its store throws becomes one line.

    MLflow retries for 250 s by default; a report says at once that nobody answers. A user's own settings stand.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if tracking_uri.startswith("sqlite:"):
        path = unquote(tracking_uri.removeprefix("sqlite:///"))
        if not Path(path).is_file():  # MLflow would make an empty store there
            raise ReportError(
                f"tracking store {tracking_uri}: there is no such file; give the address of a study's MLflow"
            )
    limits = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one for each of a thousand files
    }
    added = [name for name in limits if name not in os.environ]
    os.environ.update({name: limits[name] for name in added})
    try:
        yield MlflowClient(tracking_uri=tracking_uri)
    except ReportError:
        raise
    except (MlflowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise ReportError(f"tracking server {tracking_uri} does not answer as MLflow does: {reason}") from error
    finally:
        for name in added:
            os.environ.pop(name, None)


def _names(studies: str | Sequence[str]) -> list[str]:
    return [studies] if isinstance(studies, str) else list(dict.fromkeys(studies))


def _experiment(client: Any, study: str) -> Any:
    found = client.get_experiment_by_name(study)
    if found is not None and found.lifecycle_stage == "active":
        return found
    known = sorted(each.name for each in client.search_experiments() if each.name != "Default")
    near = difflib.get_close_matches(study, known, n=3, cutoff=0.5) or known[:5]
    hint = f"did you mean {', '.join(near)}?" if near else "it holds no study yet; `kdstudy run` makes one"
    raise ReportError(f"study {study!r} is not in this MLflow; {hint}")


def _kind(client: Any, study: str, kind: str) -> list[Any]:
    """All active runs of one kind, oldest first."""
    experiment = _experiment(client, study)
    found: list[Any] = []
    token = None
    while True:
        with uncollected():
            page = client.search_runs(
                [experiment.experiment_id],
                filter_string=f"tags.`kdstudy.kind` = '{kind}'",
                order_by=["attributes.start_time ASC"],
                max_results=PAGE,
                page_token=token,
            )
        found.extend(page)
        token = page.token
        if not token:
            return found


def _artifact(client: Any, run: Any, name: str) -> str | None:
    """Text of a run's artifact, None where the run has none of that name."""
    from mlflow.exceptions import MlflowException

    address = urlparse(run.info.artifact_uri)
    if address.scheme in ("", "file"):
        path = Path(unquote(address.path)) / name
        return path.read_text(encoding="utf-8") if path.is_file() else None
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run.info.run_id, name, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            if any(each.path == name for each in client.list_artifacts(run.info.run_id)):
                raise
            return None


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _identity(study: str, run: Any) -> dict[str, Any]:
    """Tags, params and hyperparameters of one run."""
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    row: dict[str, Any] = {name: tags.get(f"kdstudy.{name}", "") for name in TEXT}
    row |= {name: params.get(name, "") for name in _PARAMS}
    row |= {"study": study, "mlflow_run_id": run.info.run_id}
    row |= {name: tags.get(f"kdstudy.{name}", "false") == "true" for name in FLAGS}
    row["seed"] = int(params["seed"])
    row |= {name: _number(params.get(name)) for name in PARAMETERS}
    row |= {name.removeprefix("hp."): value for name, value in metrics.items() if name.startswith("hp.")}
    return row | _options(run)


def _options(run: Any) -> dict[str, str]:
    """The named choices of a run's method that are not the default: params that are no number and nothing else."""
    known = {*_PARAMS, *PARAMETERS, "seed"}
    params, metrics = run.data.params, run.data.metrics
    return {name: value for name, value in params.items() if name not in known and f"hp.{name}" not in metrics}


def load_runs(tracking_uri: str, studies: str | Sequence[str]) -> pd.DataFrame:
    """One row a run: who it was, what it was given, how it ended.

    Args:
        tracking_uri: MLflow's address, `sqlite:///…` or a server's.
        studies: one study's name, or several.

    Returns:
        Text columns (an empty text where nothing is known; a method's named choices among them), `seed` int64,
        `screening` and `taken_over` bool, `started` (UTC), and float64 columns: `alpha`, `tau`, `beta`, `gamma`, any
        parameter of a method's own, the final results in percent (of text also ROUGE-L, from 0 to 100),
        `mis_instruction_ratio` and `capped_ratio` of the last epoch, `device_seconds`; nan where a run has no such
        number. Rows are in order of study, pair, method, parameters and seed.

    Raises:
        ReportError: unknown study, or an MLflow that does not answer.
    """
    rows = []
    numbers = (*RESULTS, "mis_instruction_ratio", "capped_ratio")
    options: set[str] = set()
    with _tracking(tracking_uri) as client:
        for study in _names(studies):
            for run in _kind(client, study, "run"):
                row = _identity(study, run)
                row["started"] = run.info.start_time
                options |= _options(run).keys()
                row |= {name: run.data.metrics.get(name, math.nan) for name in numbers}
                row |= {name: value for name, value in run.data.metrics.items() if is_score(name)}
                rows.append(row)
    known = {*TEXT, *FLAGS, *PARAMETERS, *numbers, *options, "seed", "started"}
    extra = sorted({name for row in rows for name in row} - known)
    chosen = sorted(options)
    columns = [*TEXT, "seed", *FLAGS, "started", *PARAMETERS, *extra, *chosen, *numbers]
    frame = pd.DataFrame(rows, columns=columns)
    frame[chosen] = frame[chosen].fillna("")
    types: dict[str, Any] = dict.fromkeys([*TEXT, *chosen], "string") | dict.fromkeys(FLAGS, "bool") | {"seed": "int64"}
    types |= dict.fromkeys([*PARAMETERS, *extra, *numbers], "float64")
    frame = frame.astype(types)
    frame["started"] = pd.to_datetime(frame["started"], unit="ms", utc=True)
    order = ["study", "pair", "method", *PARAMETERS, *extra, *chosen, "stage", "seed", "run_id"]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)


def _read_history(client: Any, run: Any) -> dict[str, np.ndarray]:
    """A run's epochs by column, from its history file, or metric by metric while it has none."""
    state = run.data.tags.get("kdstudy.state", "")
    text = None if state in _UNFINISHED else _artifact(client, run, "history.csv")
    if text is not None:
        header, *lines = csv.reader(io.StringIO(text))
        return {
            name: np.array(list(map(_number, cells)))
            for name, cells in zip(header, zip(*lines, strict=True), strict=False)
        }
    epochs: dict[int, dict[str, float]] = {}
    measured = (*EPOCH_METRICS, *(name for name in run.data.metrics if "rouge_l" in name and not is_score(name)))
    for name in measured:
        if name in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, name):
                epochs.setdefault(point.step, {"epoch": float(point.step)})[name] = point.value
    rows = [epochs[epoch] for epoch in sorted(epochs)]
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in ("epoch", *measured)}


def load_history(tracking_uri: str, studies: str | Sequence[str]) -> pd.DataFrame:
    """One row a run and epoch.

    Args: as for `load_runs`.

    Returns:
        The run's identity (text columns study, run_id, state, stage, point, pair, method; `screening`; `seed` int64;
        its parameters), `epoch` (int64, from 1) and the metrics of each epoch as float64, nan where a run did not
        measure one.

    Raises:
        ReportError: unknown study, or an MLflow that does not answer.
    """
    # By column, not as a record for each epoch: thousands of runs of hundreds of epochs would take gigabytes.
    runs: list[dict[str, Any]] = []
    epochs: list[dict[str, np.ndarray]] = []
    parameters: set[str] = set()
    with _tracking(tracking_uri) as client, ThreadPoolExecutor(READERS) as pool:
        for study in _names(studies):
            found = _kind(client, study, "run")
            epochs += pool.map(lambda run: _read_history(client, run), found)
            for run in found:
                identity = _identity(study, run)
                given = {name.removeprefix("hp.") for name in run.data.metrics if name.startswith("hp.")}
                parameters |= given - set(PARAMETERS)
                runs.append(
                    {key: identity[key] for key in (*RUN_KEYS, "screening", "seed", *PARAMETERS, *sorted(given))}
                )
    own = sorted(parameters)
    columns = list(dict.fromkeys([*RUN_KEYS, "screening", "seed", *PARAMETERS, *own]))
    types: dict[str, Any] = dict.fromkeys(RUN_KEYS, "string") | {"screening": "bool", "seed": "int64"}
    types |= dict.fromkeys([*PARAMETERS, *own], "float64")
    order = ["study", "pair", "method", *PARAMETERS, *own, "stage", "seed", "run_id"]
    each = pd.DataFrame(runs, columns=columns).astype(types).sort_values(order, kind="stable", na_position="first")
    ordered = [epochs[index] for index in each.index]
    lengths = [len(columns.get("epoch", ())) for columns in ordered]
    frame = each.loc[each.index.repeat(lengths)].reset_index(drop=True)
    metrics = sorted({name for columns in ordered for name in columns} - {"epoch", *EPOCH_METRICS})
    frame["epoch"] = _joined(ordered, lengths, "epoch").astype("int64")
    return pd.concat(
        [frame, pd.DataFrame({name: _joined(ordered, lengths, name) for name in (*EPOCH_METRICS, *metrics)})], axis=1
    )


def _joined(runs: Sequence[Mapping[str, np.ndarray]], lengths: Sequence[int], name: str) -> np.ndarray:
    """A column of all runs' epochs, nan where a run has none of that name."""
    values = np.full(sum(lengths), np.nan)
    begin = 0
    for columns, length in zip(runs, lengths, strict=True):
        if name in columns:
            values[begin : begin + length] = columns[name]
        begin += length
    return values


def generations_of(tracking_uri: str, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    """The generations of those studies that are of text; None where there is none.

    Args:
        tracking_uri: MLflow's address.
        records: as `load_studies` returns them.
    """
    of_text = [record["study"] for record in records if score_of(record) is ROUGE_L]
    return load_generations(tracking_uri, of_text) if of_text else None


def load_generations(tracking_uri: str, studies: str | Sequence[str]) -> pd.DataFrame:
    """What the students and teachers of text responded to the evaluation sets after their last epoch.

    Args: as for `load_runs`.

    Returns:
        One row a response: study, run_id, `teacher_of` (the pair, of a teacher's; else empty), set, index,
        decoding_seed, instruction, input, reference, response, rouge_l; empty where no run has left any.

    Raises:
        ReportError: unknown study, or an MLflow that does not answer.
    """
    rows: list[dict[str, Any]] = []
    with _tracking(tracking_uri) as client:
        for study in _names(studies):
            for kind in ("run", "teacher"):
                for run in _kind(client, study, kind):
                    text = _artifact(client, run, "generations.jsonl")
                    of = run.data.tags.get("kdstudy.key", "").removeprefix("teacher:") if kind == "teacher" else ""
                    run_id = run.data.tags.get("kdstudy.run_id", "")
                    for line in (text or "").splitlines():
                        rows.append({"study": study, "run_id": run_id, "teacher_of": of, **json.loads(line)})
    return pd.DataFrame(rows, columns=list(GENERATION_COLUMNS))


def teachers_only(study: Mapping[str, Any]) -> bool:
    """Whether a study measures its teachers and trains nobody: it was asked without methods."""
    return not (study.get("spec") or {}).get("methods", True)


def section(study: Mapping[str, Any], pair: str) -> dict[str, Any]:
    """A study's record as it is for one pair: its own protocol, data and cuts, where the record tells them apart."""
    return {**study, **study.get("pairs", {}).get(pair, {})}


def load_studies(tracking_uri: str, studies: str | Sequence[str]) -> list[dict[str, Any]]:
    """What each study was: its `study.json` (question, protocol, cuts, data, teachers, versions, counts), in order.

    What a study that is still running has not written yet (its counts, its cost) is None or empty.

    Args: as for `load_runs`.

    Raises:
        ReportError: unknown study, an MLflow that does not answer, or a study whose record is not there yet.
    """
    found = []
    with _tracking(tracking_uri) as client:
        for study in _names(studies):
            text = next((_artifact(client, run, "study.json") for run in _kind(client, study, "study")), None)
            if text is None:
                raise ReportError(
                    f"study {study!r} has no study.json in MLflow yet: `kdstudy sync {study}` completes it"
                )
            # Pages of a server can be linked to; a database file has none until `kdstudy ui` shows it.
            server = tracking_uri.rstrip("/") if urlparse(tracking_uri).scheme in ("http", "https") else None
            experiment = _experiment(client, study).experiment_id
            found.append(_BLANK | json.loads(text) | {"mlflow": {"server": server, "experiment": experiment}})
    return found


def finished(runs: pd.DataFrame, studies: Iterable[Mapping[str, Any]]) -> None:
    """Refuse studies that have nothing to report. One without methods reports its teachers.

    Raises:
        ReportError: a study without one finished run, with what its runs are instead.
    """
    for record in studies:
        study = record["study"]
        states = runs.loc[runs["study"] == study, "state"]
        if not (states == "DONE").any() and not (teachers_only(record) and record["teachers"]):
            counts = ", ".join(f"{n} {state}" for state, n in sorted(states.value_counts().items())) or "none at all"
            raise ReportError(f"study {study!r} has no finished runs (runs: {counts}); `kdstudy run` goes on with it")
