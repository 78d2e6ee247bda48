"""One run from a request in plain data to reports in plain data, whoever calls it.

A runner trains for a while at each call and reports the epochs that it finished. It keeps its own checkpoints, in a
folder of its attempt, and names the newest in each report: the caller's record of that name is where the run stands.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainables import data, engine, logits, protocol, splits, teachers

# Checkpoints may take this share of a run's time: the cheaper they are to write, the less a kill can cost.
CHECKPOINT_SHARE = 0.02


def load_data(source: dict[str, Any]) -> data.ImageDataset:
    """The data that a request describes: read, then cut to its classes and given its label noise.

    Raises:
        DataError: the node cannot read it.
    """
    return _loaded(json.dumps(source, sort_keys=True))


@lru_cache(maxsize=2)
def _loaded(source: str) -> data.ImageDataset:
    fields = json.loads(source)
    cut = {name: fields.pop(name) for name in ("classes", "label_noise", "noise_seed")}
    return data.restrict(data.load(**fields), **cut)


@lru_cache(maxsize=2)
def _teacher(home: str, reference: str) -> teachers.Teacher:
    return teachers.load(Path(home), reference, lazy=True)


@lru_cache(maxsize=4)
def _logits(root: str, key: logits.Key) -> logits.LogitStore | None:
    return logits.open_store(Path(root), key)


class Runner:
    """Trains one attempt of a run.

    Args:
        request: as `study.plan.Plan.request` makes it: the run's id and attempt, model, method and parameters,
            protocol, seed, data and split, teacher and the store of its logits, where checkpoints go and which to
            resume from, the epochs after which to report at once (`rungs`), device, threads, worker processes and how
            steps are run. `teaches` is None for a student; for a teacher it has the regime, and the fold that it never
            sees.

    Raises:
        DataError, CheckpointError: the node cannot read the data, the teacher or the checkpoint.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        torch.set_num_threads(request["threads"])
        dataset = load_data(request["data"])
        if dataset.hash != request["data_hash"]:
            where = request["data"]["root"] or request["data"]["name"]
            raise data.DataError(f"{where}: the data on this node differ from the study's")
        labels, split, teaches = dataset.train_labels, request["split"], request["teaches"]
        if teaches is None:
            parts = splits.make_split(labels, **split)
            train, validation = parts.train, parts.validation
        else:
            train = splits.teacher_images(labels, split, **teaches)
            validation = train[:0]
        fields = dict(request["protocol"])
        limit = request["test_limit"]
        taught, stored = request["teacher"], request["logits"]
        self._trainer = engine.Trainer(
            engine.RunSpec(
                student=request["model"],
                method=request["method"],
                parameters=request["parameters"],
                protocol=protocol.resolve(fields.pop("base"), **fields),
                seed=request["seed"],
                stop_at=request["stop_at"],
            ),
            dataset,
            train,
            validation,
            _teacher(taught["home"], taught["hash"]) if taught else None,
            evaluate_test=request["evaluate_test"],
            device=request["device"],
            test_indices=None if limit is None else splits.stratified(dataset.test_labels, limit, split["split_seed"]),
            workers=request["workers"],
            execution=request["execution"],
            store=_logits(stored["root"], logits.Key(**stored["key"])) if stored else None,
        )
        if request["resume_from"] is not None:
            self._trainer.load(Path(request["checkpoints"]) / request["resume_from"])
        self._attempt = f"attempt-{request['attempt']}"
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def advance(self, seconds: float) -> dict[str, Any]:
        """Train whole epochs until `seconds` have passed, a rung is reached or the run is done.

        Returns:
            `epochs` (metrics of each finished epoch, with `epoch` from 1), `checkpoint` (its name in the run's folder,
            where a new one was written, else None), `device_seconds`, `device`, `done`, and `failed` (the reason, else
            None).
        """
        began = time.monotonic()
        epochs: list[dict[str, float]] = []
        failed = None
        trainer = self._trainer
        while not trainer.done:
            try:
                metrics = trainer.train_epoch()
            except engine.NonFinite as error:
                failed = str(error)
                break
            epochs.append({"epoch": trainer.epoch, **metrics})
            if trainer.epoch in self.request["rungs"] or time.monotonic() - began >= seconds:
                break
        now = time.monotonic()
        rested = now - self._saved_at >= self._save_seconds / CHECKPOINT_SHARE
        due = trainer.done or trainer.epoch in self.request["rungs"] or rested
        return {
            "run_id": self.request["run_id"],
            "attempt": self.request["attempt"],
            "epochs": epochs,
            "checkpoint": self._save() if due and epochs and not failed else None,
            "device_seconds": now - began,
            "device": str(self.request["device"]),
            "done": trainer.done or failed is not None,
            "failed": failed,
        }

    def _save(self) -> str:
        """Write a checkpoint; the one before it goes only when this one is on disk. Its name in the run's folder."""
        began = time.monotonic()
        folder = Path(self.request["checkpoints"]) / self._attempt
        name = f"epoch-{self._trainer.epoch:04d}.pt"
        self._trainer.save(folder / name)
        # The one before stays too: the caller may die before it has recorded the new name.
        for old in sorted(folder.glob("epoch-*.pt"))[:-2]:
            old.unlink()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began
        return f"{self._attempt}/{name}"


def forget(folder: Path, keep: str | None) -> None:
    """Remove the checkpoints in a run's folder but the one of this name."""
    kept = None if keep is None else folder / keep
    for attempt in folder.glob("attempt-*"):
        for path in attempt.glob("epoch-*.pt"):
            if path != kept:
                path.unlink(missing_ok=True)
        if kept is None or attempt != kept.parent:
            shutil.rmtree(attempt, ignore_errors=True)
