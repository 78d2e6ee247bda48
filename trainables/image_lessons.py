"""Image classification: views of images through a network, whose logits have one row a view; measured by accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainables import models, objectives
from trainables.data import DataError, EncodedImages, ImageDataset
from trainables.graphs import GraphedStep
from trainables.lessons import PARTS, RunSpec, batch_sizes
from trainables.logits import LogitStore
from trainables.measures import evaluate
from trainables.pipeline import Pipeline, Shown
from trainables.precision import autocast
from trainables.streams import drawing_from, generator
from trainables.teachers import Teacher
from trainables.teaching import Teaching
from trainables.views import normalise


class ImageLessons:
    """Lessons on images; `trainables.engine.Trainer` has the arguments and `trainables.lessons.Lessons` the methods."""

    def __init__(
        self,
        run: RunSpec,
        dataset: ImageDataset,
        *,
        train: Tensor,
        validation: Tensor,
        teacher: Teacher | None,
        evaluate_test: bool,
        test_indices: Tensor | None,
        device: torch.device,
        workers: int,
        store: LogitStore | None,
        execution: str | None,
    ) -> None:
        self._run, self._dataset, self._train, self._device = run, dataset, train, device
        self._kinds = objectives.get(run.method).views
        self.pipeline = Pipeline(dataset, run.protocol, device, workers)
        models.get(run.student).require(self.pipeline.shape)
        self.teaching: Teaching | None = None
        """Where the teacher's answers come from; None for a method without a teacher."""
        if teacher is not None:
            self.teaching = Teaching(teacher, self.pipeline, store)
        self.measured: dict[str, tuple[str, Tensor | None]] = {}
        """Which images of which part are measured, by the name of the metric."""
        if len(validation):
            self.measured["val"] = ("train", validation)
        if evaluate_test:
            self.measured["test"] = ("test", test_indices)
        with drawing_from(device, run.seed, "init"):
            self.model = models.build(run.student, dataset.num_classes)
        # Channels last: a third less time a step on a CPU, and what tensor cores want.
        self.model.to(device).to(memory_format=torch.channels_last)
        self._execution = execution or ("graphs" if device.type == "cuda" else "eager")
        # A compiled function is made for one size of batch; a last short one is run eagerly.
        self._compiled = torch.compile(self.model, dynamic=False) if self._execution == "compiled" else None

    @property
    def teacher_hash(self) -> str | None:
        return None if self.teaching is None else self.teaching.teacher.record.hash

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def state(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def artifacts(self) -> dict[str, bytes]:
        return {}

    def train(self, epoch: int, objective: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Train an epoch; `Lessons.train` says more.

        `train_top1` is that of the first view, if there are more. `skipped_images`: where images are decoded when they
        are shown and bad ones are skipped.

        Raises:
            DataError: an image does not decode, and such images are not to be skipped; or no image does.
        """
        sums: Tensor | None = None
        extra: list[str] = []
        seen = asked = 0

        def step(target: Tensor, teacher_logits: Tensor | None, *views: Tensor) -> Tensor:
            """Train on a batch; the sums over it of loss, hits and what else the objective returns."""
            nonlocal extra
            full = len(target) == self._run.protocol.batch_size
            model = self._compiled if self._compiled is not None and full else self.model
            with self.autocast():
                logits = _stacked([model(self.normalised(pixels)).float() for pixels in views])
            parts = objective(logits, teacher_logits, target, epoch)
            optimiser.zero_grad()
            parts["loss"].backward()
            optimiser.step()
            first = logits.detach() if len(views) == 1 else logits.detach()[0]
            hit = (first.argmax(1) == target).float().mean()
            extra = [name for name in parts if name not in PARTS]
            names = ("mis_instruction_ratio", "capped_ratio", *extra)
            found = [parts["loss"].detach(), hit, *(parts[name].detach() for name in names)]
            return torch.stack(found) * len(target)

        # The learning rate and what else follows the epoch are constants of a graph, hence one an epoch.
        run = GraphedStep(step) if self._execution == "graphs" else step
        self.model.train()
        with drawing_from(self._device, self._run.seed, "noise", epoch):
            for shown, teacher_logits, size in self.batches(epoch):
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
        metrics = {**dict(zip(extra, others, strict=True)), "train_loss": loss, "train_top1": 100 * hits}
        if self.teaching is not None:
            metrics |= {"mis_instruction_ratio": mis_instructed, "capped_ratio": capped}
        if self._dataset.bad_images == "skip" and isinstance(self._dataset.train_images, EncodedImages):
            metrics["skipped_images"] = float(asked - seen)
        return metrics

    def measure(self, epoch: int) -> dict[str, float]:
        """`val_top1`, `val_top5`, `test_top1`, `test_top5` (percent), where asked for."""
        self.model.eval()
        metrics: dict[str, float] = {}
        for name, (part, indices) in self.measured.items():
            top1, top5 = evaluate(self.logits, self.pipeline.evaluation(part, indices))
            metrics |= {f"{name}_top1": top1, f"{name}_top5": top5}
        return metrics

    def batches(self, epoch: int) -> Iterator[tuple[Shown, Tensor | None, int]]:
        """Each batch, the teacher's logits on it, and how many images there should be."""
        n, protocol, seed = len(self._train), self._run.protocol, self._run.seed
        order = self._train[torch.randperm(n, generator=generator(seed, "order", epoch))]
        sizes = batch_sizes(n, protocol.batch_size, protocol.drop_last)
        batches = order[: sum(sizes)].split(sizes)
        if self.teaching is not None:
            self.teaching.begin(seed, epoch, self._train)
        for shown, size in zip(self.pipeline.training(seed, epoch, batches, self._kinds), sizes, strict=True):
            teacher_logits = None
            if self.teaching is not None and len(shown.indices):
                asked = zip(self._kinds, shown.views, strict=True)
                teacher_logits = _stacked([self.teaching.answers(kind, p, shown.indices) for kind, p in asked])
            yield shown, teacher_logits, size

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 pixels as the student takes them."""
        return normalise(pixels, self._dataset.mean, self._dataset.std)

    def logits(self, images: Tensor) -> Tensor:
        """The student's logits, float32, on uint8 pixels."""
        with self.autocast():
            return self.model(self.normalised(images)).float()

    def autocast(self) -> torch.autocast:
        """The precision of the student's forward passes."""
        return autocast(self._run.protocol.precision, self._device)


def _stacked(logits: list[Tensor]) -> Tensor:
    """(B, C) of one view as they are, those of V views as (V, B, C)."""
    return logits[0] if len(logits) == 1 else torch.stack(logits)
