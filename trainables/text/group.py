"""Several devices for one run: each has the whole student and a part of every batch, and their gradients are added up.

A batch's loss is a mean over all of its tokens, whoever has them, so the sum of the parts' gradients is the batch's, as
with micro-batches: the result differs from one device's in last bits alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


class Group:
    """The processes of a run; each of them makes one, and waits for the others.

    Args:
        rank, world: which of how many this process is; rank 0 measures and keeps checkpoints.
        address: where they meet: `tcp://HOST:PORT`, at which rank 0 listens, or `file://PATH`.
        device: the kind that they compute on.
        seconds: after so long without an answer from another the process gives up.
    """

    def __init__(self, rank: int, world: int, address: str, device: str, seconds: float) -> None:
        self.rank, self.world = rank, world
        if address.startswith(("tcp://127.0.0.1:", "file://")):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this host: nothing is heard beyond it
        distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=address,
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a batch."""
        return items[self.rank :: self.world]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        for tensor in tensors:
            distributed.all_reduce(tensor)

    def add_up_named(self, values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The sums over the processes of numbers that all of them have, by name."""
        names = sorted(values)
        together = torch.stack([values[name].detach().float().to(device) for name in names])
        distributed.all_reduce(together)
        return dict(zip(names, together, strict=True))

    def close(self) -> None:
        """Leave the group."""
        distributed.destroy_process_group()
