"""Results of others into MLflow, where a report finds them beside one's own; marked as imported in everything.

One row a run, as CSV with a header or as JSON lines. Nothing of it goes into the store: kdstudy did not train it, and
no study takes it over.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from analysis.frames import PARAMETERS
from study.errors import RequestError, one_line
from study.home import Home, check_name
from study.plan import digest
from study.tracking import KEY, configure, probe
from trainables import data

IDENTITY = ("pair", "dataset", "teacher", "student", "method", "seed")
RESULTS = ("test_top1_last", "test_top5_last", "test_top1_best", "mis_instruction_ratio", "device_seconds")


class Result(BaseModel):
    """One imported run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1)
    teacher: str = ""
    student: str = Field(min_length=1)
    method: str = Field(min_length=1)
    seed: int = Field(ge=0)
    alpha: float | None = None
    tau: float | None = Field(None, gt=0)
    beta: float | None = None
    gamma: float | None = None
    state: Literal["DONE", "FAILED"] = "DONE"
    reason: str = ""
    test_top1_last: float | None = Field(None, ge=0, le=100)
    test_top5_last: float | None = Field(None, ge=0, le=100)
    test_top1_best: float | None = Field(None, ge=0, le=100)
    mis_instruction_ratio: float | None = Field(None, ge=0, le=1)
    device: str = ""
    device_seconds: float | None = Field(None, ge=0)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any, info: Any) -> Any:
        # An empty cell of a CSV file: the field's own default.
        return cls.model_fields[info.field_name].get_default() if value == "" else value

    @property
    def pair(self) -> str:
        """Data set, teacher and student, as studies name pairs."""
        return f"{self.dataset}/{self.teacher or 'none'}-{self.student}"

    def given(self, names: Sequence[str]) -> dict[str, float]:
        """Those of these numbers that it has."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def key(self) -> str:
        """What tells it apart from the file's other rows."""
        return json.dumps([self.pair, self.method, [getattr(self, name) for name in PARAMETERS], self.seed])


def read(file: Path) -> list[Result]:
    """The results of a file.

    Raises:
        RequestError: it cannot be read, a row is not valid (with its line), or two rows are of the same run.
    """
    found: dict[str, Result] = {}
    for line, raw in _rows(file):
        try:
            result = Result.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            raise RequestError(f"{file}: line {line}: {where}: {first['msg']}") from None
        if result.state == "DONE" and result.test_top1_last is None:
            raise RequestError(f"{file}: line {line}: test_top1_last: a run that is done has an accuracy, in percent")
        if result.key in found:
            raise RequestError(f"{file}: line {line}: the same point and seed stand there twice")
        found[result.key] = result
    if not found:
        raise RequestError(f"{file}: no result in it")
    return list(found.values())


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read ({one_line(error)})") from None
    if file.suffix == ".csv":
        reader = csv.DictReader(text.splitlines())
        for row in reader:
            if None in row or None in row.values():
                raise RequestError(f"{file}: line {reader.line_num}: as many cells as the header has, no more or fewer")
            yield reader.line_num, row
    elif file.suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise RequestError(f"{file}: line {number}: no JSON ({error.msg})") from None
    else:
        raise RequestError(f"{file}: give a file that ends in .csv or .jsonl")


def import_results(
    home: Home, taken: list[str], file: Path, *, study: str, source: str, protocol: str, classes: int | None
) -> int:
    """Write a file's results into MLflow as a study of its own; how many runs it has.

    Args:
        home: whose MLflow.
        taken: names of the studies of this home's store.
        file: the results.
        study: what to call them.
        source: whose they are; shown in every report.
        protocol: the protocol that they were made with; the papers' numbers stand beside them if it is the papers'.
        classes: number of classes; by default the data set's.

    Raises:
        RequestError: a file that is not valid, a name that is taken, or an MLflow that does not answer.
    """
    check_name(study)
    results = read(file)
    datasets = {result.dataset for result in results}
    if len(datasets) > 1:
        raise RequestError(
            f"{file}: of several data sets ({', '.join(sorted(datasets))}); import each as its own study"
        )
    known = next(iter(datasets))
    if classes is None:
        if known not in data.names():
            raise RequestError(f"--classes: {known} is none of `kdstudy datasets`; say how many classes it has")
        classes = data.get(known).num_classes
    if classes is None:
        raise RequestError(f"--classes: say how many classes {known} has")
    probe(home.tracking_uri)
    configure()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    record = _record(results, study, file, source, protocol, known, classes)
    try:
        client = MlflowClient(tracking_uri=home.tracking_uri)
        if study in taken or client.get_experiment_by_name(study) is not None:
            raise RequestError(f"--study: {study} is there already; give another name")
        folder = (home.artifacts / study).as_uri() if home.own_tracking else None
        experiment = client.create_experiment(study, artifact_location=folder)
        of_study = client.create_run(
            experiment, tags={KEY: "study", "kdstudy.kind": "study", "kdstudy.study": study, "kdstudy.imported": "true"}
        )
        for result in results:
            _log(client, experiment, result, study, file, protocol)
        # Last, since a report asks for it first: an import that was broken off is no study.
        client.log_text(of_study.info.run_id, json.dumps(record, indent=2), "study.json")
        client.set_terminated(of_study.info.run_id)
    except MlflowException as error:
        raise RequestError(f"MLflow at {home.tracking_uri} does not take {study}: {one_line(error)}") from None
    return len(results)


def _log(client: Any, experiment: str, result: Result, study: str, file: Path, protocol: str) -> None:
    """Write one run."""
    from mlflow.entities import Metric, Param, RunTag

    values, measured = result.given(PARAMETERS), result.given(RESULTS)
    numbers = {f"hp.{name}": value for name, value in values.items()} | measured
    params = {name: getattr(result, name) for name in IDENTITY} | {"protocol": protocol} | values
    tags = {
        "kind": "run",
        "study": study,
        "imported": "true",
        "run_id": digest([study, result.key]),
        "point": digest([result.pair, result.method, values]),
        "state": result.state,
        "stage": "ablation",
        "screening": "false",
        "taken_over": "false",
        "reason": result.reason,
        "origin": f"imported from {file.name}",
        "protocol_hash": digest(["imported", study, protocol]),
        "device": result.device,
    }
    run_id = client.create_run(experiment, tags={KEY: f"run:{result.key}"}).info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, 0, 1) for name, value in numbers.items()],
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(f"kdstudy.{name}", value) for name, value in tags.items()],
    )
    client.set_terminated(run_id, "FINISHED" if result.state == "DONE" else "FAILED")


def _record(
    results: list[Result], study: str, file: Path, source: str, protocol: str, dataset: str, classes: int
) -> dict[str, Any]:
    """What a study's record says where a study was not run here."""
    done = sum(result.state == "DONE" for result in results)
    counts = {"asked": len(results), "done": done, "failed": len(results) - done}
    whose = f"Imported results of {source}, from {file.name}: kdstudy has not run them and vouches for none."
    described = {
        "protocol": {"base": protocol},
        "protocol_changes": [],
        "cuts": [],
        "data": {
            "name": dataset,
            "hash": "",
            "num_classes": classes,
            **dict.fromkeys(
                ("train_images", "validation_images", "test_images", "full_train_images", "full_test_images")
            ),
            "label_noise": 0.0,
            "classes_of": None,
        },
    }
    return {
        "study": study,
        "question": f"Results of {source}",
        "mode": "ablation",
        "selection": "none",
        "imported": {"source": source, "file": file.name},
        "spec": {"name": study, "methods": {result.method: {} for result in results}},
        "pairs": dict.fromkeys(dict.fromkeys(result.pair for result in results), described),
        **described,
        "seeds": sorted({result.seed for result in results}),
        "counts": {**counts, **dict.fromkeys(("pruned", "taken_over", "waiting"), 0)},
        "device_seconds": sum(result.device_seconds or 0.0 for result in results) or None,
        "warnings": [whose],
    }
