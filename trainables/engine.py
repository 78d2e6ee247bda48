"""One run: a student trained from its first epoch to its last, resumable after each.

Nothing random is drawn from a shared generator: initialisation, order, views and noise are functions of the seed and
the epoch (see `streams.py`). So a checkpoint needs no generator's state, and runs with the same seed meet the same
initial weights and the same views in the same order, whatever their method.

What a student is, what it is shown and how it is measured is its task's: see `lessons.py`.
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables import lessons, objectives, splits
from trainables.files import CheckpointError, checkpoint_bytes, read_checkpoint, write_atomic
from trainables.lessons import EXECUTIONS, RunSpec, batch_sizes
from trainables.logits import LogitStore
from trainables.precision import float32_products
from trainables.streams import drawing_from
from trainables.tasks import SCORES, Dataset
from trainables.teachers import Teacher
from trainables.text.group import Group
from trainables.text.store import TextStore

__all__ = ["EXECUTIONS", "NOT_FINITE", "NonFinite", "RunSpec", "Trainer", "batch_sizes", "summary"]

VERSION = 1  # raised when a fix changes what a run ends with

# What students are valued by, of each task.
_SCORES = tuple(dict.fromkeys(("top1", *SCORES.values())))

NOT_FINITE = "loss is not finite"
"""How the reason begins why such a run failed."""


class NonFinite(ArithmeticError):
    """The training loss is not a finite number any more."""


class Trainer:
    """A student in training.

    Args:
        run: what to train.
        dataset: to train it on.
        split_train: (n,) int64 indices into the training set: the student's part.
        split_validation: the validation part, or an empty tensor.
        teacher: None for a method that needs none; such a method does not ask it either.
        evaluate_test: measure test accuracy after each epoch.
        device: where everything happens, the data included.
        test_indices: a part of the test set; None: all of it.
        workers: processes that decode and distort images, where that is needed; 0: this one does it.
        store: the teacher's logits on these views; without one the teacher is asked each time.
        execution: how a step is run, one of `EXECUTIONS`; None: as graphs on a GPU, else eagerly.
        group: the processes that share the run's batches, of text; None: this one alone.

    Raises:
        ValueError: unknown student, method or execution, a parameter that the method refuses, no teacher where one is
            needed, or images that the protocol's views or the student cannot take.
    """

    def __init__(
        self,
        run: RunSpec,
        dataset: Dataset,
        split_train: Tensor,
        split_validation: Tensor,
        teacher: Teacher | None,
        evaluate_test: bool,
        device: torch.device | str = "cpu",
        test_indices: Tensor | None = None,
        workers: int = 0,
        store: LogitStore | TextStore | None = None,
        execution: str | None = None,
        group: Group | None = None,
    ) -> None:
        if execution is not None and execution not in EXECUTIONS:
            raise ValueError(f"execution is {execution!r}; it must be one of {', '.join(EXECUTIONS)}")
        method = objectives.get(run.method)
        if method.needs_teacher and teacher is None:
            raise ValueError(f"method {run.method} needs a teacher")
        self.run = run
        self.epoch = 0
        self._stopped = False
        self._device = torch.device(device)
        self._dataset = dataset
        self._train = split_train
        self.lessons = lessons.of(
            run,
            dataset,
            train=split_train,
            validation=split_validation,
            teacher=teacher if method.needs_teacher else None,
            evaluate_test=evaluate_test,
            test_indices=test_indices,
            device=self._device,
            workers=workers,
            store=store,
            execution=execution,
            **({} if group is None else {"group": group}),
        )
        with drawing_from(self._device, run.seed, "objective"):
            self.objective = objectives.build(run.method, **self._parameters(method)).to(self._device)
        self._optimiser = _optimiser(run, [*self.lessons.parameters(), *self.objective.parameters()])

    @property
    def done(self) -> bool:
        """Has the last epoch been trained, or the accuracy been reached at which to stop?"""
        return self._stopped or self.epoch >= self.run.protocol.epochs

    def train_epoch(self) -> dict[str, float]:
        """Train one more epoch and measure.

        Returns:
            `train_loss` and `train_top1` (percent; of the first view, if there are more) over the epoch's views; `lr`;
            `mis_instruction_ratio` and `capped_ratio` (0 to 1; with a teacher only); means of what else the method's
            objective returns; `val_top1`, `val_top5`, `test_top1`, `test_top5` (percent; where asked for);
            `skipped_images`, where images are decoded when they are shown and bad ones are skipped; `epoch_seconds`,
            training and measuring.

        Raises:
            NonFinite: the epoch's mean loss is infinite or not a number.
            DataError: an image does not decode, and such images are not to be skipped; or no image does.
        """
        started = time.perf_counter()
        epoch = self.epoch + 1
        lr = self.run.protocol.lr_at(epoch)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        with float32_products(self.run.protocol.precision):
            metrics = self.lessons.train(epoch, self.objective, self._optimiser)
            if not math.isfinite(metrics["train_loss"]):
                raise NonFinite(f"{NOT_FINITE} at epoch {epoch}")
            metrics |= {"lr": lr, **self.lessons.measure(epoch)}
        self.epoch = epoch
        stop_at = self.run.stop_at
        # A mean in float32 may miss 100 % by its last bits.
        self._stopped = self._stopped or (stop_at is not None and metrics["train_top1"] >= stop_at - 1e-3)
        return metrics | {"epoch_seconds": time.perf_counter() - started}

    def save(self, path: Path | str) -> None:
        """Write a checkpoint, whole or not at all."""
        write_atomic(Path(path), self.checkpoint())

    def checkpoint(self) -> bytes:
        """All that a run needs to go on from here."""
        content = {
            "version": VERSION,
            "identity": self._identity(),
            "epoch": self.epoch,
            "model": self.lessons.state(),
            "optimiser": self._optimiser.state_dict(),
            "objective": self.objective.state_dict(),
            "stopped": self._stopped,
        }
        return checkpoint_bytes(content)

    def load(self, path: Path | str) -> None:
        """Go on from a checkpoint of this run: on a CPU with as many threads, to the same last bit.

        Raises:
            CheckpointError: no such file, truncated, not a run's checkpoint, or that of another run.
        """
        self.restore(read_checkpoint(Path(path)), path)

    def restore(self, content: Any, path: Path | str) -> None:
        """Go on from what a checkpoint holds; `path` says which it is.

        Raises:
            CheckpointError: not a run's checkpoint, or that of another run.
        """
        if not isinstance(content, dict) or "identity" not in content:
            raise CheckpointError(f"checkpoint {path}: not a run's checkpoint")
        there, here = json.loads(content["identity"]), json.loads(self._identity())
        for key in here:
            if there.get(key) != here[key]:
                raise CheckpointError(
                    f"checkpoint {path}: another run's: its {key} is {there.get(key)}, not {here[key]}"
                )
        if content["version"] != VERSION:
            raise CheckpointError(f"checkpoint {path}: written by engine {content['version']}, this is {VERSION}")
        self.lessons.load_state(content["model"])
        self._optimiser.load_state_dict(content["optimiser"])
        self.objective.load_state_dict(content["objective"])
        self.epoch = content["epoch"]
        self._stopped = content.get("stopped", False)

    def student_state(self) -> dict[str, Tensor]:
        """A copy of what the student has learnt, on the CPU."""
        return {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in self.lessons.state().items()
        }

    def _parameters(self, method: objectives.Method) -> dict[str, float | str | bool]:
        """The method's own parameters: the point's, else the method's default, else the protocol's."""
        values: dict[str, float | str | bool] = {}
        for parameter in method.parameters:
            default = parameter.default
            values[parameter.name] = getattr(self.run.protocol, parameter.name) if default is None else default
        return values | self.run.parameters

    def _identity(self) -> str:
        """What a checkpoint must have in common with the run that goes on from it, as JSON."""
        run = asdict(self.run) | {"protocol": self.run.protocol.identity()}
        teacher = self.lessons.teacher_hash
        seen = splits.digest(self._train)
        return json.dumps(run | {"data": self._dataset.hash, "train_indices": seen, "teacher": teacher})


def _optimiser(run: RunSpec, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    protocol = run.protocol
    if protocol.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=protocol.lr, weight_decay=protocol.weight_decay, foreach=True)
    return torch.optim.SGD(
        parameters,
        lr=protocol.lr,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
        foreach=True,
    )


def summary(history: list[dict[str, float]]) -> dict[str, float]:
    """What a run comes to, from the metrics of its epochs in order, as far as they were measured.

    Returns:
        `test_top1_last`, `test_top5_last`, `val_top1_last` (percent): of the last epoch; `test_top1_best`,
        `val_top1_best`: the largest; `test_top1_at_best_val`: at the first epoch with the best validation accuracy. Of
        text the same of `rouge_l` (0 to 100), which not every epoch may have, and the last of `test_rouge_l.NAME`,
        `test_loss` and `val_loss`.
    """
    if not history:
        return {}
    last = history[-1]
    scored = [name for name in _SCORES if f"test_{name}" in last or f"val_{name}" in last]
    kept = [f"{part}_{name}" for part in ("test", "val") for name in (*scored, "loss")]
    kept += ["test_top5", *(name for name in last if name.startswith("test_rouge_l."))]
    result = {f"{name}_last": last[name] for name in kept if name in last}
    for name in scored:
        test, val = f"test_{name}", f"val_{name}"
        measured = [row for row in history if test in row or val in row]
        result |= {f"{each}_best": max(row[each] for row in measured) for each in (test, val) if each in last}
        if test in last and val in last:
            result[f"{test}_at_best_val"] = max(measured, key=lambda row, val=val: row[val])[test]  # type: ignore[misc]
    return result
