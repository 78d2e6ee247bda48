"""A causal model as a decoder and a head, so that a vocabulary of logits need not be there all at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainables.objectives.chunks import ROWS
from trainables.text.encoding import Batch
from trainables.text.models import ModelError


class Network:
    """A causal model of transformers.

    Args:
        model: the model.
        lora_rank: above 0: adapters of that rank on its linear layers (peft; the head and embeddings apart) are what is
            trained, and drawn from torch's global generator.

    Raises:
        ModelError: adapters are asked for and peft is not installed.
    """

    def __init__(self, model: Any, lora_rank: int = 0) -> None:
        self.model = model
        self.adapted = lora_rank > 0
        if lora_rank:
            try:
                import peft
            except ImportError:
                raise ModelError("protocol.lora_rank needs peft: pip install 'kdstudy[text]'") from None
            given = peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", bias="none")
            model.requires_grad_(False)
            # all-linear leaves out the head, which makes logits.
            given.target_modules = _linear(model)
            peft.inject_adapter_in_model(given, model)
        self._whole: bool | None = None

    def merged(self) -> Any:
        """The model with its adapters, where it has some, merged into its weights."""
        if not self.adapted:
            return self.model
        from peft.tuners.lora import LoraLayer

        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                above, _, own = name.rpartition(".")
                setattr(self.model.get_submodule(above), own, layer.get_base_layer())
        self.adapted = False
        return self.model

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def features(self, batch: Batch) -> Tensor:
        """(N, D): what `project` makes the logits of the counted tokens from."""
        if self._whole is None:
            self._whole = not self._has_a_plain_head(batch)
        called = self.model if self._whole else self.model.get_decoder()
        # Rows without packing have their places by default.
        packed = {"position_ids": batch.places} if batch.mask.dim() == 4 else {}
        found = called(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **packed)[0]
        return found.reshape(-1, found.shape[-1])[batch.before]

    def project(self, features: Tensor) -> Tensor:
        """(n, D) to (n, C) logits."""
        return features if self._whole else self.model.get_output_embeddings()(features)

    def logits(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits of the counted tokens, (n, C) float32, and these, (n,), a few rows at a time."""
        features = self.features(batch)
        for rows, target in zip(features.split(ROWS), batch.target.split(ROWS), strict=True):
            yield self.project(rows).float(), target

    @torch.no_grad()
    def _has_a_plain_head(self, batch: Batch) -> bool:
        """Whether logits are the head's output and nothing else: some kinds scale or bound them afterwards."""
        ids = batch.ids[:1, :8]
        try:
            hidden = self.model.get_decoder()(input_ids=ids, use_cache=False)[0]
            logits = self.model(input_ids=ids, use_cache=False)[0]
            return torch.allclose(self.model.get_output_embeddings()(hidden), logits, rtol=1e-3, atol=1e-3)
        except (AttributeError, NotImplementedError, TypeError):
            return False


def _linear(model: Any) -> list[str]:
    """The names of the linear layers but for the head."""
    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
