"""One run: a student trained from its first epoch to its last, resumable after each.

Nothing random is drawn from a shared generator: initialisation, order, views and noise are functions of the seed and
the epoch (see `streams.py`). So a checkpoint needs no generator's state, and runs with the same seed meet the same
initial weights and the same views in the same order, whatever their method.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables import models, objectives, splits
from trainables.data import DataError, EncodedImages, ImageDataset
from trainables.files import CheckpointError, checkpoint_bytes, read_checkpoint, write_atomic
from trainables.graphs import GraphedStep
from trainables.logits import LogitStore
from trainables.measures import evaluate
from trainables.pipeline import Pipeline, Shown
from trainables.precision import autocast, float32_products
from trainables.protocol import Protocol
from trainables.streams import generator, stream_seed
from trainables.teachers import Teacher
from trainables.teaching import Teaching
from trainables.views import normalise

VERSION = 1  # raised when a fix changes what a run ends with

# How a step is run: as it is written; as a CUDA graph, so that a GPU does not wait for Python; or with the network's
# passes compiled. All give the same numbers but for their last bits, so this is not part of what a run is.
EXECUTIONS = ("eager", "graphs", "compiled")

# What every objective returns, and is either known to be a metric or not one.
_PARTS = ("loss", "ce", "kd", "mis_instruction_ratio", "capped_ratio")


NOT_FINITE = "loss is not finite"
"""How the reason begins why such a run failed."""


class NonFinite(ArithmeticError):
    """The training loss is not a finite number any more."""


@dataclass(frozen=True)
class RunSpec:
    """What is trained and how.

    `parameters` are those of the method that the point names, numbers and options; the protocol gives the others.
    `stop_at`: training ends after the first epoch whose `train_top1` reaches so many percent; None: after the last.
    """

    student: str
    method: str
    parameters: dict[str, float | str | bool]
    protocol: Protocol
    seed: int
    stop_at: float | None = None


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

    Raises:
        ValueError: unknown student, method or execution, a parameter that the method refuses, no teacher where one is
            needed, or images that the protocol's views or the student cannot take.
    """

    def __init__(
        self,
        run: RunSpec,
        dataset: ImageDataset,
        split_train: Tensor,
        split_validation: Tensor,
        teacher: Teacher | None,
        evaluate_test: bool,
        device: torch.device | str = "cpu",
        test_indices: Tensor | None = None,
        workers: int = 0,
        store: LogitStore | None = None,
        execution: str | None = None,
    ) -> None:
        if execution is not None and execution not in EXECUTIONS:
            raise ValueError(f"execution is {execution!r}; it must be one of {', '.join(EXECUTIONS)}")
        method = objectives.get(run.method)
        if method.needs_teacher and teacher is None:
            raise ValueError(f"method {run.method} needs a teacher")
        self.run = run
        self.epoch = 0
        self._device = torch.device(device)
        self._dataset = dataset
        self._train = split_train
        self._kinds = method.views
        self._stopped = False
        self._pipeline = Pipeline(dataset, run.protocol, self._device, workers)
        models.get(run.student).require(self._pipeline.shape)
        self.teaching: Teaching | None = None
        """Where the teacher's answers come from; None for a method without a teacher."""
        if teacher is not None and method.needs_teacher:
            self.teaching = Teaching(teacher, self._pipeline, store)
        # Which images of which part are measured, by the name of the metric.
        self._measured: dict[str, tuple[str, Tensor | None]] = {}
        if len(split_validation):
            self._measured["val"] = ("train", split_validation)
        if evaluate_test:
            self._measured["test"] = ("test", test_indices)
        with self._drawing_from("init"):
            self._model = models.build(run.student, dataset.num_classes)
        # Channels last: a third less time a step on a CPU, and what tensor cores want.
        self._model.to(self._device).to(memory_format=torch.channels_last)
        self._execution = execution or ("graphs" if self._device.type == "cuda" else "eager")
        # A compiled function is made for one size of batch; a last short one is run eagerly.
        self._compiled = torch.compile(self._model, dynamic=False) if self._execution == "compiled" else None
        with self._drawing_from("objective"):
            self._objective = objectives.build(run.method, **self._parameters(method)).to(self._device)
        self._optimiser = torch.optim.SGD(
            [*self._model.parameters(), *self._objective.parameters()],
            lr=run.protocol.lr,
            momentum=run.protocol.momentum,
            nesterov=run.protocol.nesterov,
            weight_decay=run.protocol.weight_decay,
            foreach=True,
        )

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
            metrics = self._trained(epoch, lr)
            self._model.eval()
            for name, (part, indices) in self._measured.items():
                top1, top5 = evaluate(self._logits, self._pipeline.evaluation(part, indices))
                metrics |= {f"{name}_top1": top1, f"{name}_top5": top5}
        self.epoch = epoch
        stop_at = self.run.stop_at
        # A mean in float32 may miss 100 % by its last bits.
        self._stopped = self._stopped or (stop_at is not None and metrics["train_top1"] >= stop_at - 1e-3)
        return metrics | {"epoch_seconds": time.perf_counter() - started}

    def _trained(self, epoch: int, lr: float) -> dict[str, float]:
        """Train an epoch; its metrics."""
        sums: Tensor | None = None
        extra: list[str] = []
        seen = asked = 0

        def step(target: Tensor, teacher_logits: Tensor | None, *views: Tensor) -> Tensor:
            """Train on a batch; the sums over it of loss, hits and what else the objective returns."""
            nonlocal extra
            full = len(target) == self.run.protocol.batch_size
            model = self._compiled if self._compiled is not None and full else self._model
            with self._autocast():
                logits = _stacked([model(self._normalised(pixels)).float() for pixels in views])
            parts = self._objective(logits, teacher_logits, target, epoch)
            self._optimiser.zero_grad()
            parts["loss"].backward()
            self._optimiser.step()
            first = logits.detach() if len(views) == 1 else logits.detach()[0]
            hit = (first.argmax(1) == target).float().mean()
            extra = [name for name in parts if name not in _PARTS]
            names = ("mis_instruction_ratio", "capped_ratio", *extra)
            found = [parts["loss"].detach(), hit, *(parts[name].detach() for name in names)]
            return torch.stack(found) * len(target)

        # The learning rate and what else follows the epoch are constants of a graph, hence one an epoch.
        run = GraphedStep(step) if self._execution == "graphs" else step
        self._model.train()
        with self._drawing_from("noise", epoch):
            for shown, teacher_logits, size in self._batches(epoch):
                asked += size
                if not len(shown.labels):
                    continue
                seen += len(shown.labels)
                found = run(shown.labels, teacher_logits, *shown.views)
                # Summed on the device: reading a number in each step would make the device wait for Python.
                sums = found if sums is None else sums + found
        if sums is None:
            raise DataError(f"data set {self._dataset.name}: not one of its images decodes")
        loss, hits, mis_instructed, capped, *others = (sums / seen).tolist()
        if not math.isfinite(loss):
            raise NonFinite(f"{NOT_FINITE} at epoch {epoch}")
        metrics = {**dict(zip(extra, others, strict=True)), "train_loss": loss, "train_top1": 100 * hits, "lr": lr}
        if self.teaching is not None:
            metrics |= {"mis_instruction_ratio": mis_instructed, "capped_ratio": capped}
        if self._dataset.bad_images == "skip" and isinstance(self._dataset.train_images, EncodedImages):
            metrics["skipped_images"] = float(asked - seen)
        return metrics

    def save(self, path: Path | str) -> None:
        """Write a checkpoint, whole or not at all."""
        write_atomic(Path(path), self.checkpoint())

    def checkpoint(self) -> bytes:
        """All that a run needs to go on from here."""
        content = {
            "version": VERSION,
            "identity": self._identity(),
            "epoch": self.epoch,
            "model": self._model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "objective": self._objective.state_dict(),
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
        self._model.load_state_dict(content["model"])
        self._optimiser.load_state_dict(content["optimiser"])
        self._objective.load_state_dict(content["objective"])
        self.epoch = content["epoch"]
        self._stopped = content.get("stopped", False)

    def student_state(self) -> dict[str, Tensor]:
        """A copy of the student's state dict, on the CPU."""
        return {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in self._model.state_dict().items()
        }

    def _batches(self, epoch: int) -> Iterator[tuple[Shown, Tensor | None, int]]:
        """Each batch, the teacher's logits on it, and how many images there should be."""
        n = len(self._train)
        order = self._train[torch.randperm(n, generator=generator(self.run.seed, "order", epoch))]
        sizes = batch_sizes(n, self.run.protocol.batch_size, self.run.protocol.drop_last)
        batches = order[: sum(sizes)].split(sizes)
        if self.teaching is not None:
            self.teaching.begin(self.run.seed, epoch, self._train)
        for shown, size in zip(self._pipeline.training(self.run.seed, epoch, batches, self._kinds), sizes, strict=True):
            teacher_logits = None
            if self.teaching is not None and len(shown.indices):
                asked = zip(self._kinds, shown.views, strict=True)
                teacher_logits = _stacked([self.teaching.answers(kind, p, shown.indices) for kind, p in asked])
            yield shown, teacher_logits, size

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self._dataset.mean, self._dataset.std)

    def _logits(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._model(self._normalised(images)).float()

    def _autocast(self) -> torch.autocast:
        return autocast(self.run.protocol.precision, self._device)

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
        teacher = self.teaching.teacher.record.hash if self.teaching else None
        seen = splits.digest(self._train)
        return json.dumps(run | {"data": self._dataset.hash, "train_indices": seen, "teacher": teacher})

    @contextmanager
    def _drawing_from(self, *stream: str | int) -> Iterator[None]:
        """Torch's own generators stand at the start of this stream inside, and where they were afterwards."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(stream_seed(self.run.seed, *stream))
            yield


def batch_sizes(n: int, batch_size: int, drop_last: bool = False) -> list[int]:
    """How many images each step of an epoch over `n` images has.

    Every image comes once. A last short batch is kept, but for one that would hold a single image: it joins the batch
    before, since batch norm may have nothing to average over. With `drop_last` a short batch is left out, unless it is
    the only one.
    """
    whole, rest = divmod(n, batch_size)
    sizes = [batch_size] * whole
    if rest and not (drop_last and whole):
        sizes.append(rest)
    if len(sizes) > 1 and batch_size > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def _stacked(logits: list[Tensor]) -> Tensor:
    """(B, C) of one view as they are, those of V views as (V, B, C)."""
    return logits[0] if len(logits) == 1 else torch.stack(logits)


def summary(history: list[dict[str, float]]) -> dict[str, float]:
    """What a run comes to, from the metrics of its epochs in order (percent), as far as they were measured.

    Returns:
        `test_top1_last`, `test_top5_last`, `val_top1_last`: of the last epoch; `test_top1_best`, `val_top1_best`: the
        largest; `test_top1_at_best_val`: at the first epoch with the best validation accuracy.
    """
    if not history:
        return {}
    last = history[-1]
    result = {f"{name}_last": last[name] for name in ("test_top1", "test_top5", "val_top1") if name in last}
    result |= {f"{name}_best": max(row[name] for row in history) for name in ("test_top1", "val_top1") if name in last}
    if "test_top1" in last and "val_top1" in last:
        result["test_top1_at_best_val"] = max(history, key=lambda row: row["val_top1"])["test_top1"]
    return result
