"""A language model that teaches: what fine-tuning made of its source, put back onto the source when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trainables.files import CheckpointError
from trainables.teachers import Teacher, TeacherRecord
from trainables.text import models
from trainables.text.network import Network

BASE = "base.sha256"
"""The name under which a state holds the hash of the files that its model is made from."""


def stamped(network: Network, base: str) -> dict[str, Tensor]:
    """What a network has learnt: all weights, or its adapters alone; with the hash of what it was made from."""
    found = network.trained() if network.adapted else network.model.state_dict()
    return {**untouched(base), **found}


def untouched(base: str) -> dict[str, Tensor]:
    """The state of a model that is what its files say and no more."""
    return {BASE: torch.tensor(list(bytes.fromhex(base)), dtype=torch.uint8)}


def put_back(network: Network, state: dict[str, Tensor], base: str, where: str) -> None:
    """Load what `stamped` gave into a network of the same name.

    Raises:
        CheckpointError: it was made from other files, or belongs to another network.
    """
    if bytes(state[BASE].tolist()).hex() != base:
        raise CheckpointError(f"{where}: made from other model files than those here; their hash is not {base[:16]}")
    given = {name: value for name, value in state.items() if name != BASE}
    if not given:
        return  # as it was
    own: dict[str, Tensor] = dict(network.trained()) if network.adapted else network.model.state_dict()
    if given.keys() != own.keys() or any(given[name].shape != own[name].shape for name in own):
        raise CheckpointError(f"{where}: not the weights of this model, or of adapters of another rank")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def adapter_rank(state: dict[str, Tensor]) -> int:
    """The rank of the adapters in a state; 0 where it has whole weights."""
    ranks = {len(value) for name, value in state.items() if "lora_A" in name}
    return max(ranks, default=0)


class TextTeacher(Teacher):
    """A teacher of tokens.

    Args:
        record: what is known of it.
        read: its state, as `stamped` gave it; read when it is asked for the first time.
    """

    def __init__(self, record: TeacherRecord, read: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__(record, ())
        self._read_state = read
        self._network: Network | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The model, where it was built."""
        return [] if self._network is None else [self._network.model]

    def network(self, models_folder: Path, cache: Path, device: torch.device) -> Network:
        """Its network on a device, in evaluation mode and without gradients.

        Raises:
            ModelError: the model's files are not there.
            CheckpointError: they are not those that it was made from.
        """
        if self._network is None:
            state, name = self._read_state(), self.record.model
            network = Network(models.build(name, models_folder, cache), adapter_rank(state))
            put_back(network, state, models.base_hash(name, models_folder), f"teacher {self.record.name}")
            network.model.requires_grad_(False).eval()
            self._network = network
        self._network.model.to(device)
        return self._network
