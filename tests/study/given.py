"""What tests of the service are given: teachers that are there before a study begins, answers of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from study.home import open_home
from trainables import data, models, splits, teachers
from trainables.teachers import TeacherRecord

DIGITS = data.load("digits")


def keep_teacher(
    trained_on: str = "all", indices: torch.Tensor | None = None, *, folds: int = 0, scale: float = 1.0, **changes: Any
) -> TeacherRecord:
    """An untrained network for digits, kept in the home as the teacher `given`; it is wrong on most images.

    Args:
        trained_on, indices: what its record says that it saw.
        folds: of a cross-fitted set; 0: a single network.
        scale: of its logits.
        changes: of its record.
    """
    states = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(max(1, folds)):
            state = models.build("cnn32", 10).state_dict()
            states.append({key: value * scale if key.startswith("fc") else value for key, value in state.items()})
    hashes = [teachers.content_hash("cnn32", DIGITS.mean, DIGITS.std, state) for state in states]
    of_images = splits.make_folds(DIGITS.train_labels, max(2, folds), 0)
    record = TeacherRecord(
        name="given",
        hash=teachers.cross_fitted_hash(hashes, of_images) if folds else hashes[0],
        dataset="digits",
        dataset_hash=DIGITS.hash,
        model="cnn32",
        num_classes=10,
        mean=DIGITS.mean,
        std=DIGITS.std,
        trained_on=trained_on,
        indices_digest=None,
        test_top1=10.0,
        test_top5=50.0,
        mis_instruction_ratio=0.9,
        ratio_on="test",
        origin="test",
        created="",
        fold_top1=(10.0,) * folds,
    )
    record = dataclasses.replace(record, **changes)
    teachers.save(open_home().root, record, {"members": states, "folds": of_images} if folds else states[0], indices)
    return record


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]
"""Calls the command line with these words."""
