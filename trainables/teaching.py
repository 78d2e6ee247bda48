"""A teacher's answers to the views of training images: from its store of logits, or from the teacher itself."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from trainables.logits import LogitStore
from trainables.pipeline import Pipeline
from trainables.precision import arithmetic
from trainables.teachers import Teacher
from trainables.views import CropFlip

# On a CPU the last bits of a network's logits vary with the size of the batch, and with nothing else of it. So batches
# of one size, filled up with blank images, make an answer a function of the view alone.
BATCH = 64
# A GPU is idle at such a batch, and not reproducible to the last bit at any.
_BATCH_CUDA = 512
# Other views cannot be enumerated.
STORED_KIND = "weak"
# Images that one process claims at a time, to ask the teacher about.
_CLAIMED = 512
# How long to wait for rows that another process computes. It would have died or been stopped: then they are done here.
_PATIENCE = 60.0


class Teaching:
    """What a teacher says to the training views of a pipeline.

    Args:
        teacher: whose networks are read when it is asked for the first time.
        pipeline: shows the images.
        store: its logits by view, for these views; None: it is asked each time.
    """

    def __init__(self, teacher: Teacher, pipeline: Pipeline, store: LogitStore | None = None) -> None:
        self.teacher = teacher
        self.store = store
        self.asked = 0
        """How many images the teacher itself was asked about."""
        self._ready: Tensor | None = None  # the stored answers of the epoch that was begun
        self._rows = torch.zeros(0, dtype=torch.int64)  # each image's row in them
        self.pipeline = pipeline
        self._device = pipeline.device

    def begin(self, seed: int, epoch: int, indices: Tensor) -> None:
        """Have the answers to an epoch's views of these images, (n,) int64 on the CPU, at hand if they are stored."""
        if self.store is None:
            return
        ordered = indices.sort().values
        self._ready = None  # one epoch's answers at a time: they may be large
        self._ready, _ = self.epoch(seed, epoch, ordered)
        if not len(self._rows):
            rows = torch.zeros(self.store.key.images, dtype=torch.int64)
            rows[ordered] = torch.arange(len(ordered))
            self._rows = rows.to(self._device)

    def answers(self, kind: str, pixels: Tensor, indices: Tensor) -> Tensor:
        """What the teacher says to a batch of the epoch that was begun.

        Args:
            kind: of the views; those of one kind are stored.
            pixels: (n, C, H, W) uint8 on the device.
            indices: (n,) int64 on the device, which training images they show.

        Returns:
            (n, classes) float32 on the device.
        """
        if self._ready is not None and kind == STORED_KIND:
            return self._ready[self._rows[indices]]
        return self.ask(pixels, indices)

    def ask(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """The teacher's own answers.

        Args:
            pixels: (n, C, H, W) uint8.
            indices: (n,) int64, which training images they show.

        Returns:
            (n, classes) float32, on the pipeline's device.
        """
        self.asked += len(pixels)
        batch = BATCH if self._device.type == "cpu" else _BATCH_CUDA
        with arithmetic(self.pipeline.precision, self._device):
            return self.teacher.to(self._device).logits(pixels, indices, batch=batch)

    def epoch(self, seed: int, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The answers to the (weak) views of images in an epoch of the runs with a seed.

        What the store lacks is asked and kept. Processes that need the same at the same time share the work.

        Args:
            seed: the run's seed.
            epoch: from 1.
            indices: (n,) int64 into the full training set, ascending, on the CPU.

        Returns:
            (n, classes) float32 on the pipeline's device, and (n,) bool on the CPU, False for an image that does not
            decode and is to be skipped.
        """
        if self.store is None:
            logits = torch.zeros(len(indices), self.teacher.record.num_classes)
            there = torch.zeros(len(indices), dtype=torch.bool)
            self._ask_for(seed, epoch, indices, None, torch.arange(len(indices)), logits, there)
        else:
            views = self.pipeline.views
            assert isinstance(views, CropFlip)  # or there would be no store
            ids = views.view_ids(seed, epoch, indices)
            logits, there = self.store.read(indices, ids)
            if not there.all():
                self._fill(self.store, seed, epoch, indices, ids, logits, there)
            self.store.touch()
        return logits.to(self._device), there

    def _fill(
        self, store: LogitStore, seed: int, epoch: int, indices: Tensor, ids: Tensor, logits: Tensor, there: Tensor
    ) -> None:
        """Ask for what is missing, block by block of images; what others are asking for comes last."""
        blocks = [block for block in torch.arange(len(indices)).split(_CLAIMED) if not bool(there[block].all())]
        last = time.monotonic()
        while blocks:
            overdue = time.monotonic() - last > _PATIENCE
            claimed, missing, later = list[Tensor](), list[Tensor](), list[Tensor]()
            for block in blocks:
                if sum(map(len, missing)) >= _CLAIMED or not (store.claim(int(indices[block[0]])) or overdue):
                    later.append(block)
                    continue
                claimed.append(block)
                rest = block[~there[block]]
                logits[rest], there[rest] = store.read(indices[rest], ids[rest])  # filled by another since
                missing.append(rest[~there[rest]])
            if claimed:
                self._ask_for(seed, epoch, indices, ids, torch.cat(missing), logits, there)
                for block in claimed:
                    store.release(int(indices[block[0]]))
                last = time.monotonic()
            else:
                time.sleep(0.01)
            blocks = later

    def _ask_for(
        self, seed: int, epoch: int, indices: Tensor, ids: Tensor | None, rows: Tensor, logits: Tensor, there: Tensor
    ) -> None:
        """Ask the teacher about some rows, and keep its answers."""
        for shown in self.pipeline.training(seed, epoch, indices[rows].split(_CLAIMED) if len(rows) else ()):
            if not len(shown.indices):
                continue
            answers = self.ask(shown.views[0], shown.indices).cpu()
            found = torch.searchsorted(indices, shown.indices.cpu())
            if self.store is not None and ids is not None:
                answers = self.store.rounded(answers)
                self.store.write(indices[found], ids[found], answers)
            logits[found], there[found] = answers, True
