"""A teacher's logits on the tokens of responses, kept: the k largest of each, and what the others come to together.

A response's tokens are always the same, and so is what a teacher says to them, but a row of 49,152 float32 numbers a
token is 0.2 MB. Kept are the k largest logits, that of the right token, and the logsumexp of all others, whose mass is
spread evenly over them when they are read: at temperature 1 every kept probability is exact, and so is whether the
teacher is mis-instructed and by how much. With k = C nothing is lost. What is lost otherwise is measured when it is
kept: the total-variation distance between the teacher's distribution and what is read, at each of some temperatures.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.files import write_atomic

VERSION = 1  # raised when what is kept, or how, changes

KEY = "answers.json"
"""The file that says what a folder's logits are of."""

LOST_AT = (1.0, 2.0, 4.0, 8.0)
"""The temperatures at which what is lost is measured: the higher, the more the tail counts."""

log = logging.getLogger("kdstudy.logits")


class Kept(NamedTuple):
    """The teacher's logits on an example's n counted tokens.

    classes: (n, k) int32, the k likeliest. logits: (n, k), theirs. label: (n,), the right token's. rest: (n,), the
    logsumexp of those that are neither; -inf where there are none. lost: (n, 4), at the temperatures LOST_AT.
    """

    classes: Tensor
    logits: Tensor
    label: Tensor
    rest: Tensor
    lost: Tensor


def keep_largest(logits: Tensor, target: Tensor, k: int, dtype: torch.dtype = torch.float32) -> Kept:
    """What is kept of logits.

    Args:
        logits: (n, C).
        target: (n,) int64.
        k: at most C.
        dtype: of what is kept. Logits are known but for a constant: the largest is made 0, where halves are finest.
    """
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    largest, classes = z.topk(min(k, z.shape[-1]))
    label = z.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    others = z.scatter(-1, classes, -math.inf).scatter(-1, target.unsqueeze(-1), -math.inf)
    kept = Kept(classes.int(), largest.to(dtype), label.to(dtype), others.logsumexp(-1), torch.zeros(len(z)))
    read = dense(kept, target, z.shape[-1])
    lost = [((z / tau).softmax(-1) - (read / tau).softmax(-1)).abs().sum(-1) / 2 for tau in LOST_AT]
    return kept._replace(lost=torch.stack(lost, -1))


def lost_at(kept: Kept, tau: float) -> Tensor:
    """(n,) what is lost at the least of LOST_AT that is not below tau, or at the last of them."""
    place = next((index for index, each in enumerate(LOST_AT) if each >= tau), len(LOST_AT) - 1)
    return kept.lost[:, place]


def dense(kept: Kept, target: Tensor, num_classes: int) -> Tensor:
    """(n, C) float32 logits from what was kept."""
    k = kept.classes.shape[1]
    y = target.unsqueeze(-1)
    inside = (kept.classes == y).any(-1)
    others = (num_classes - k - (~inside).long()).clamp_min(1)
    level = kept.rest - others.log()
    z = level.unsqueeze(-1).repeat(1, num_classes)
    z.scatter_(-1, kept.classes.long(), kept.logits.float())
    return z.scatter_(-1, y, kept.label.float().unsqueeze(-1))


@dataclass(frozen=True)
class AnswerKey:
    """What decides the kept logits of an example: teacher and its arithmetic, data, tokens, k, and type."""

    teacher: str
    data: str
    tokens: str
    top_k: int
    dtype: str
    precision: str
    device: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return "text-" + hashlib.sha256(json.dumps([VERSION, asdict(self)]).encode()).hexdigest()[:16]


class AnswerStore:
    """A file an example, each written whole or not at all; two processes that write the same write the same."""

    def __init__(self, root: Path, key: AnswerKey) -> None:
        self.key = key
        self._folder = root / key.name
        self._full = False

    def has(self, index: int) -> bool:
        """Whether an example's logits are there."""
        return (self._folder / f"{index:07d}.npz").is_file()

    def read(self, index: int) -> Kept | None:
        """An example's logits; None where they are not there, or damaged."""
        try:
            with np.load(self._folder / f"{index:07d}.npz") as arrays:
                return Kept(*(torch.from_numpy(arrays[name]) for name in Kept._fields))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, index: int, kept: Kept) -> None:
        """Keep them; where there is no room the teacher is asked again."""
        if self._full:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **{name: value.cpu().numpy() for name, value in kept._asdict().items()})
        try:
            if not (self._folder / KEY).is_file():
                write_atomic(self._folder / KEY, json.dumps(asdict(self.key)).encode())
            write_atomic(self._folder / f"{index:07d}.npz", buffer.getvalue())
        except OSError as error:
            self._full = True
            log.warning("%s: %s; the teacher is asked each time", self._folder, error)
