"""One run from a request in plain data to reports in plain data, whoever calls it.

A runner trains for a while at each call and reports the epochs that it finished. It keeps its own checkpoints, in a
folder of its attempt, and names the newest in each report: the caller's record of that name is where the run stands.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainables import data, engine, logits, protocol, splits, teachers
from trainables.files import read_stored
from trainables.storage import ARTIFACTS, PATIENCE_SECONDS, open_storage
from trainables.tasks import Dataset
from trainables.text import corpora
from trainables.text.group import Group
from trainables.text.store import TextStore

# Checkpoints may take this share of a run's time: the cheaper they are to write, the less a kill can cost.
CHECKPOINT_SHARE = 0.02
# How long a storage that is away is waited for where a run can also go on without its checkpoint.
SHORT_PATIENCE_SECONDS = 5.0


def load_data(source: dict[str, Any]) -> Dataset:
    """The data that a request describes: read, then cut to its classes and given its label noise.

    Raises:
        DataError: the node cannot read it.
    """
    return _loaded(json.dumps(source, sort_keys=True))


@lru_cache(maxsize=2)
def _loaded(source: str) -> Dataset:
    fields = json.loads(source)
    if fields["name"] in corpora.names():
        given = {name: fields[name] for name in ("name", "root", "models", "cache", "evaluate")}
        return corpora.load(**given)
    for name in ("models", "evaluate"):
        fields.pop(name, None)
    cut = {name: fields.pop(name) for name in ("classes", "label_noise", "noise_seed")}
    return data.restrict(data.load(**fields), **cut)


@lru_cache(maxsize=2)
def _teacher(home: str, reference: str, storage: str) -> teachers.Teacher:
    teachers.fetch(home, reference, storage)
    return teachers.load(Path(home), reference, lazy=True)


@lru_cache(maxsize=4)
def _logits(root: str, key: logits.Key) -> logits.LogitStore | None:
    return logits.open_store(Path(root), key)


def _store(stored: dict[str, Any]) -> logits.LogitStore | TextStore | None:
    """Where what a teacher said is kept, from what a request says of it."""
    if "top_k" in stored:
        return TextStore(Path(stored["root"]), stored["top_k"], stored["dtype"])
    return _logits(stored["root"], logits.Key(**stored["key"]))


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

    def __init__(self, request: dict[str, Any], group: Group | None = None) -> None:
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
            _teacher(taught["home"], taught["hash"], taught["storage"]) if taught else None,
            evaluate_test=request["evaluate_test"],
            device=request["device"],
            test_indices=None if limit is None else splits.stratified(dataset.test_labels, limit, split["split_seed"]),
            workers=request["workers"],
            execution=request["execution"],
            store=_store(stored) if stored else None,
            group=group,
        )
        self._storage = open_storage(request["checkpoints"])
        if (name := request["resume_from"]) is not None:
            where = f"{request['checkpoints']}/{name}"
            self._trainer.restore(read_stored(lambda: self._storage.read(name), where), where)
        self._attempt = f"attempt-{request['attempt']}"
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0
        self._saved: list[str] = []  # this attempt's checkpoints that are kept

    def accompany(self) -> None:
        """Train to the end beside the process of the group that measures and keeps checkpoints."""
        while not self._trainer.done:
            self._trainer.train_epoch()

    def advance(self, seconds: float) -> dict[str, Any]:
        """Train whole epochs until `seconds` have passed, a rung is reached or the run is done.

        Returns:
            `epochs` (metrics of each finished epoch, with `epoch` from 1), `checkpoint` (its name in the run's folder,
            where a new one was written, else None), `device_seconds`, `device`, `done`, `failed` (the reason, else
            None), `lost` (whether that is the node's fault, so that the run should go on elsewhere), and `warning`.
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
        for name, content in trainer.lessons.artifacts().items() if trainer.done and not failed else ():
            with suppress(OSError):  # they are shown, and nothing goes on from them
                self._storage.write(f"{ARTIFACTS}/{name}", content)
        rested = now - self._saved_at >= self._save_seconds / CHECKPOINT_SHARE
        needed = trainer.done or trainer.epoch in self.request["rungs"]
        checkpoint = lost = warning = None
        if (needed or rested) and epochs and not failed:
            try:
                checkpoint = self._save(PATIENCE_SECONDS if needed else SHORT_PATIENCE_SECONDS)
            except OSError as error:
                said = f"its checkpoint cannot be written: {error.strerror or error}"
                # The run has nothing the matter: it goes on without, or elsewhere from the checkpoint before.
                lost, warning = (said, None) if needed else (None, said)
                self._saved_at = now
        return {
            "run_id": self.request["run_id"],
            "attempt": self.request["attempt"],
            "epochs": epochs,
            "checkpoint": checkpoint,
            "device_seconds": now - began,
            "device": str(self.request["device"]),
            "host": socket.gethostname(),
            "done": trainer.done or failed is not None or lost is not None,
            "failed": failed or lost,
            "lost": lost is not None,
            "warning": warning,
        }

    def _save(self, patience: float) -> str:
        """Write a checkpoint; the one before it goes only when this one is kept. Its name in the run's folder."""
        began = time.monotonic()
        name = f"{self._attempt}/epoch-{self._trainer.epoch:04d}.pt"
        self._storage.write(name, self._trainer.checkpoint(), patience)
        self._saved.append(name)
        # The one before stays too: the caller may die before it has recorded the new name.
        for old in self._saved[:-2]:
            with suppress(OSError):  # it only takes room, until the run is over
                self._storage.delete(old)
        del self._saved[:-2]
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began
        return name


def forget(checkpoints: str, keep: str | None) -> None:
    """Remove a run's checkpoints, which are at this address, but the one of this name."""
    storage = open_storage(checkpoints)
    for name in storage.names():
        if name != keep and not name.startswith(f"{ARTIFACTS}/"):
            storage.delete(name)
