"""What differs between kinds of data in a run, behind one small interface: the seam between the engine and its tasks.

The engine knows epochs, the schedule, the optimiser and checkpoints. A run's `Lessons` know the rest: the student and
how it is loaded, batches, where the classes lie and which positions count, what the teacher says to them, and how a
student is measured. Objectives, searches, the store, tracking and statistics know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainables.data import ImageDataset
from trainables.protocol import Protocol as TrainingProtocol

# How a step is run: as it is written; as a CUDA graph, so that a GPU does not wait for Python; or with the network's
# passes compiled. All give the same numbers but for their last bits, so this is not part of what a run is.
EXECUTIONS = ("eager", "graphs", "compiled")

PARTS = ("loss", "ce", "kd", "mis_instruction_ratio", "capped_ratio")
"""What every objective returns, and is either known to be a metric or not one; what else it returns is one too."""


@dataclass(frozen=True)
class RunSpec:
    """What is trained and how.

    `parameters` are those of the method that the point names, numbers and options; the protocol gives the others.
    `stop_at`: training ends after the first epoch whose `train_top1` reaches so many percent; None: after the last.
    """

    student: str
    method: str
    parameters: dict[str, float | str | bool]
    protocol: TrainingProtocol
    seed: int
    stop_at: float | None = None


class Lessons(Protocol):
    """One student's lessons on one kind of data."""

    @property
    def teacher_hash(self) -> str | None:
        """The teacher's content hash; None for a method without one."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained of the student."""

    def state(self) -> dict[str, Tensor]:
        """What the student has learnt: enough, with its name, to have it again."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""

    def train(self, epoch: int, objective: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Train an epoch, counted from 1.

        Returns:
            `train_loss` and `train_top1` (percent); `mis_instruction_ratio` and `capped_ratio` (0 to 1; with a teacher
            only); means of what else the objective returns, and what else the task has to say of an epoch.
        """

    def measure(self, epoch: int) -> dict[str, float]:
        """What the student is worth after an epoch, on the parts that are to be measured: `val_…` and `test_…`."""

    def artifacts(self) -> dict[str, bytes]:
        """Files that are kept with a run when it has ended, by name."""


def of(run: RunSpec, dataset: Any, **given: Any) -> Lessons:
    """A run's lessons, by the kind of its data.

    Args:
        run: what to train.
        dataset: an `ImageDataset` or a `trainables.text.TextDataset`.
        given: `train`, `validation`, `teacher`, `evaluate_test`, `test_indices`, `device`, `workers`, `store` and
            `execution`, as `trainables.engine.Trainer` takes them.

    Raises:
        ValueError: the student is unknown, or cannot be trained on these data.
    """
    if isinstance(dataset, ImageDataset):
        from trainables.image_lessons import ImageLessons

        return ImageLessons(run, dataset, **given)
    from trainables.text.lessons import TextLessons  # here, since images do not need its libraries

    return TextLessons(run, dataset, **given)


def batch_sizes(n: int, batch_size: int, drop_last: bool = False) -> list[int]:
    """How many examples each step of an epoch over `n` of them has.

    Every one comes once. A last short batch is kept, but for one that would hold a single image: it joins the batch
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
