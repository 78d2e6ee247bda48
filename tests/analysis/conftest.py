"""A small MLflow store, written as the service writes it, with numbers whose statistics can be worked out by hand."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HOSTILE = 'x<script>alert("1")</script>&_%$a_{b$#|{}~^`*\\'


@dataclass(frozen=True)
class Run:
    """One run to write: `accuracy` is its last test top-1, the epochs before lead up to it."""

    method: str
    seed: int
    accuracy: float
    alpha: float | None = None
    state: str = "DONE"
    stage: str = "ablation"
    screening: bool = False
    taken_over: bool = False
    reason: str = ""
    ratio: float = 0.2
    capped: float = 0.0
    best_gain: float = 0.5
    epochs: int = 4
    parameters: Mapping[str, float | str] = field(default_factory=lambda: {"tau": 4.0, "beta": 0.9, "gamma": 0.1})
    curve: Sequence[float] | None = None
    validation: bool = False
    pair: str = "digits/cnn32-cnn3"
    protocol_hash: str = "p1"

    def given(self) -> dict[str, float | str]:
        """The parameters that the method uses."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return alpha | ({} if self.method == "ce" else dict(self.parameters))

    def identity(self) -> str:
        """A run id, as unique as a hash."""
        parts = [self.method, *self.given().values(), self.stage, self.screening, self.seed, self.pair]
        return "-".join(map(str, parts))

    def rows(self) -> list[dict[str, float]]:
        """The run's epochs."""
        if self.curve is not None:
            accuracies = list(self.curve)
        else:
            steps = [self.accuracy - 2.0 * (self.epochs - i) for i in range(1, self.epochs + 1)]
            accuracies = (
                [*steps[:-2], self.accuracy + self.best_gain, self.accuracy] if self.epochs > 1 else [self.accuracy]
            )
        measure = "val_top1" if self.validation else "test_top1"
        rows = []
        for epoch, accuracy in enumerate(accuracies, 1):
            row = {"epoch": epoch, "train_loss": 2.0 / epoch, "lr": 0.05, measure: accuracy}
            if self.method != "ce":
                row |= {"mis_instruction_ratio": self.ratio, "capped_ratio": self.capped}
            rows.append(row)
        return rows


def study_record(name: str, **changes: Any) -> dict[str, Any]:
    """A study.json; keyword arguments replace its top-level values."""
    record = {
        "study": name,
        "question": "Which alpha suits this pair?",
        "mode": "ablation",
        "selection": "none",
        "spec": {"name": name, "seeds": 3},
        "protocol": {"base": "digits-quick", "epochs": 30, "batch_size": 64, "lr": 0.05, "milestones": [16, 22]},
        "protocol_changes": [],
        "cuts": [],
        "data": {
            "name": "digits", "hash": "d" * 64, "num_classes": 10, "train_images": 900, "validation_images": 0,
            "test_images": 797, "full_train_images": 1000, "full_test_images": 797,
        },
        "teachers": [
            {
                "pair": "digits/cnn32-cnn3", "model": "cnn32", "hash": "a" * 64, "regime": "held_out",
                "trained_on": "part", "test_top1": 73.2, "mis_instruction_ratio": 0.21,
                "ratio_on": "900 images, 1 view each",
            }
        ],
        "versions": {"kdstudy": "0.1.0", "python": "3.11.2", "torch": "2.15.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 23.5, "devices": ["cpu"]},
        "seeds": [1, 2, 3],
        "counts": {"asked": 0, "done": 0, "failed": 0, "pruned": 0, "taken_over": 0, "waiting": 0},
        "wall_seconds": 125.0,
        "device_seconds": 240.5,
        "warnings": [],
        "code_version": "abc1234",
        "tracking_uri_hint": "sqlite:///mlflow.db",
    }  # fmt: skip
    return record | changes


class Writer:
    """Writes studies into one MLflow store."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.folder = folder
        self.client = MlflowClient(tracking_uri=self.uri)

    def write(self, record: Mapping[str, Any], runs: Sequence[Run], counts: bool = True) -> None:
        """One study: its record, its groups and its runs; the record of one that still runs has no counts."""
        name = record["study"]
        ended = {
            "asked": len(runs),
            "done": sum(run.state == "DONE" for run in runs),
            "failed": sum(run.state == "FAILED" for run in runs),
            "pruned": sum(run.state == "PRUNED" for run in runs),
            "taken_over": sum(run.taken_over for run in runs),
            "waiting": sum(run.state in ("WAITING", "RUNNING") for run in runs),
        }
        kept = {name: value for name, value in record.items() if name != "counts"}
        number = len(self.client.search_experiments())
        self.experiment = self.client.create_experiment(
            name, artifact_location=str(self.folder / f"artifacts-{number}")
        )
        study = self._start({"kdstudy.kind": "study", "kdstudy.study": name}, 0)
        self._artifact(study, "study.json", json.dumps(kept | ({"counts": ended} if counts else {})))
        groups: dict[tuple[str, str], str] = {}
        for order, run in enumerate(runs, 1):
            key = (run.pair, run.method)
            if key not in groups:
                groups[key] = self._start(
                    {"kdstudy.kind": "group", "kdstudy.run_id": f"group:{run.pair}/{run.method}"}, 0
                )
            self._run(name, run, groups[key], order)

    def _start(self, tags: Mapping[str, str], order: int) -> str:
        created = self.client.create_run(self.experiment, start_time=1_700_000_000_000 + 1000 * order, tags=dict(tags))
        return created.info.run_id

    def _artifact(self, run_id: str, name: str, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_text(text, encoding="utf-8")
            self.client.log_artifact(run_id, str(file))

    def _run(self, study: str, run: Run, parent: str, order: int) -> None:
        from mlflow.entities import Metric, Param

        dataset, models = run.pair.split("/", 1)
        teacher, student = models.partition("@")[0].split("-", 1)
        if run.method == "ce":
            teacher = ""
        point = run.given()
        run_id = self._start(
            {
                "kdstudy.kind": "run", "kdstudy.study": study, "kdstudy.run_id": run.identity(),
                "kdstudy.point": f"{run.pair}/{run.method}/{point}", "kdstudy.state": run.state,
                "kdstudy.stage": run.stage,
                "kdstudy.screening": str(run.screening).lower(), "kdstudy.taken_over": str(run.taken_over).lower(),
                "kdstudy.reason": run.reason, "kdstudy.data_hash": "d", "kdstudy.teacher_hash": "t",
                "kdstudy.protocol_hash": run.protocol_hash, "kdstudy.device": "cpu", "kdstudy.code_version": "abc1234",
                "mlflow.parentRunId": parent,
            },
            order,
        )  # fmt: skip
        params = {
            "pair": run.pair, "dataset": dataset, "teacher": teacher, "student": student, "method": run.method,
            "seed": str(run.seed), "protocol": "digits-quick", **{name: str(value) for name, value in point.items()},
        }  # fmt: skip
        rows = run.rows()
        metrics = [Metric(f"hp.{name}", value, 0, 0) for name, value in point.items() if not isinstance(value, str)]
        metrics += [
            Metric(name, value, 0, int(row["epoch"])) for row in rows for name, value in row.items() if name != "epoch"
        ]
        if run.state == "DONE":
            tested = [row["test_top1"] for row in rows if "test_top1" in row]
            final = {"test_top1_last": tested[-1], "test_top1_best": max(tested)} if tested else {}
            valued = [row["val_top1"] for row in rows if "val_top1" in row]
            final |= {"val_top1_last": valued[-1], "val_top1_best": max(valued)} if valued else {}
            metrics += [Metric(name, value, 0, 0) for name, value in {**final, "device_seconds": 5.5}.items()]
        self.client.log_batch(run_id, metrics=metrics, params=[Param(name, value) for name, value in params.items()])
        if run.state in ("DONE", "PRUNED") or (run.state == "FAILED" and rows):
            names = list(dict.fromkeys(name for row in rows for name in row))
            lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
            self._artifact(run_id, "history.csv", "\n".join(lines) + "\n")
        if run.state not in ("RUNNING", "WAITING"):
            self.client.set_terminated(run_id, "FAILED" if run.state == "FAILED" else "FINISHED")


def sweep(accuracies: Mapping[tuple[str, float | None], Sequence[float]], **changes: Any) -> list[Run]:
    """Runs from (method, alpha) -> accuracies of the seeds 1, 2, …"""
    return [
        Run(method, seed, accuracy, alpha, **changes)
        for (method, alpha), values in accuracies.items()
        for seed, accuracy in enumerate(values, 1)
    ]


# Differences to kd by seed: loca 0.5 +3, +4, +5; loca 0.95 +1, +1, +1.
ABLATION = {
    ("ce", None): (60.0, 62.0, 64.0),
    ("kd", None): (70.0, 71.0, 72.0),
    ("kd_drop", None): (70.5, 71.0, 72.5),
    ("loca", 0.5): (73.0, 75.0, 77.0),
    ("loca", 0.95): (71.0, 72.0, 73.0),
    ("loca", 1.0): (70.0, 71.5, 71.5),
}


def _write_all(writer: Writer) -> None:
    unlucky = [
        Run("loca", 1, 66.0, 1.2, capped=0.125),
        Run("loca", 2, 67.0, 1.2, capped=0.125),
        Run("loca", 3, 0.0, 1.2, state="FAILED", reason="loss is not finite at epoch 3", curve=(40.0, 41.0)),
    ]
    writer.write(study_record("ablation", cuts=["epochs 30 -> 4"]), [*sweep(ABLATION), *unlucky])
    one = {key: values[:1] for key, values in ABLATION.items() if key[0] in ("kd", "loca")}
    writer.write(study_record("one-seed", seeds=[1]), sweep(one, epochs=2))
    writer.write(
        study_record("nothing-finished"), [Run("kd", 1, 0.0, state="FAILED", reason="loss is not finite", curve=())]
    )
    search = [
        Run("loca", 11, 80.0, 0.9, stage="search", screening=True, validation=True),
        Run("loca", 12, 81.0, 0.9, stage="search", validation=True),
        Run("loca", 11, 70.0, 0.3, stage="search", screening=True, validation=True, state="PRUNED", epochs=2),
        Run("kd", 11, 78.0, stage="search", screening=True, validation=True),
        Run("kd", 12, 79.0, stage="search", validation=True),
        *sweep({("loca", 0.9): (75.0, 76.0), ("kd", None): (74.0, 74.5)}, stage="final"),
    ]
    writer.write(study_record("search", mode="search", selection="validation"), search)
    hostile_pair = f"digits/{HOSTILE}-cnn3"
    teacher = {**study_record("x")["teachers"][0], "pair": hostile_pair, "model": HOSTILE}
    writer.write(
        study_record(HOSTILE, question=HOSTILE, teachers=[teacher], warnings=[HOSTILE], cuts=[HOSTILE]),
        [
            *sweep({("kd", None): (70.0, 71.0), ("loca", 0.9): (71.0, 72.0)}, pair=hostile_pair, epochs=2),
            Run("kd", 3, 0.0, state="FAILED", reason=HOSTILE, pair=hostile_pair, curve=(1.0,)),
        ],
    )
    paper = study_record(
        "paper",
        protocol={"base": "crd-240", "epochs": 240},
        data={
            "name": "cifar100", "hash": "c" * 64, "num_classes": 100, "train_images": 50000, "validation_images": 0,
            "test_images": 10000, "full_train_images": 50000, "full_test_images": 10000,
        },
        teachers=[],
    )  # fmt: skip
    published = {("kd", None): (70.5, 70.8), ("loca", 0.95): (71.0, 71.3), ("loca", 1.05): (70.0, 70.2)}
    writer.write(paper, sweep(published, pair="cifar100/resnet56-resnet20", epochs=2, ratio=0.002))
    writer.write(
        study_record("going-on"),
        [
            *sweep({("kd", None): (70.0, 71.0)}, epochs=2),
            Run("loca", 1, 0.0, 0.9, state="RUNNING", curve=(40.0, math.pi)),
        ],
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking address of a store with the studies of `_write_all`."""
    writer = Writer(tmp_path_factory.mktemp("mlflow"))
    _write_all(writer)
    return writer.uri


@pytest.fixture(scope="session")
def write(store: str) -> Callable[[Mapping[str, Any], Sequence[Run]], None]:
    """Adds a study of a test's own to the store."""
    return Writer(Path(store.removeprefix("sqlite:///")).parent).write


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What a test needs to write a study of its own."""
    return SimpleNamespace(Run=Run, study_record=study_record, sweep=sweep, HOSTILE=HOSTILE, ABLATION=ABLATION)
