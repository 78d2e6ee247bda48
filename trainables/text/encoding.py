"""From examples to tokens: prompts, responses, and batches of both, of which the response's tokens alone count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainables.text.corpora import Example
from trainables.text.template import fill


class Encoded(NamedTuple):
    """An example as tokens: those of the prompt, then from `start` on those of the response."""

    ids: tuple[int, ...]
    start: int

    @property
    def counted(self) -> int:
        """How many tokens count."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Encoder:
    """Makes tokens of examples.

    tokenizer: of the pair. template: of the prompt. max_tokens: of prompt and response together; a longer response is
    cut, and then has no end.
    """

    tokenizer: Any
    template: str
    max_tokens: int

    def prompt(self, example: Example) -> list[int]:
        """The prompt's tokens, all of them."""
        text = fill(self.template, example.instruction, example.input)
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found

    def example(self, example: Example) -> Encoded | None:
        """Prompt and first right response; None where the prompt leaves no room for a token of it."""
        ids = self.tokenizer(example.outputs[0], add_special_tokens=False)["input_ids"]
        return self.joined(self.prompt(example), [*ids, self.tokenizer.eos_token_id])

    def joined(self, prompt: Sequence[int], response: Sequence[int]) -> Encoded | None:
        """The same of tokens that are there already."""
        if len(prompt) >= self.max_tokens or not response:
            return None
        return Encoded((*prompt, *response)[: self.max_tokens], len(prompt))


class Batch(NamedTuple):
    """Rows of tokens as a model takes them.

    ids: (R, T) int64. mask: (R, T) int64 of real tokens, or (R, 1, T, T) bool of what each token sees, where rows are
    packed. places: (R, T) int64, each token's place in its example. before: (N,) int64 into R * T, the position whose
    logits are about each counted token, in the order of the examples. target: (N,) int64, these tokens.
    """

    ids: Tensor
    mask: Tensor
    places: Tensor
    before: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Batch:
        """It on a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


def collate(examples: Sequence[Encoded], pad: int, row_tokens: int | None = None) -> Batch:
    """A batch.

    Args:
        examples: at least one.
        pad: the token that fills up rows.
        row_tokens: several examples share a row of so many tokens; None: each has a row of its own.
    """
    rows: list[list[Encoded]] = []
    for each in examples:
        # The next row when this one is full: so the examples keep their order.
        if row_tokens is None or not rows or sum(len(other.ids) for other in rows[-1]) + len(each.ids) > row_tokens:
            rows.append([])
        rows[-1].append(each)
    longest = max(sum(len(each.ids) for each in row) for row in rows)
    shape = len(rows), longest
    ids, places = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    owner = torch.full(shape, -1)
    before, target = [], []
    for number, row in enumerate(rows):
        begin = 0
        for index, each in enumerate(row):
            end = begin + len(each.ids)
            ids[number, begin:end] = torch.tensor(each.ids)
            places[number, begin:end] = torch.arange(len(each.ids))
            owner[number, begin:end] = index
            counted = torch.arange(begin + each.start, end)
            before.append(number * longest + counted - 1)
            target.append(ids[number, counted])
            begin = end
    if row_tokens is None:
        mask = (owner >= 0).long()
    else:
        same = owner[:, :, None] == owner[:, None, :]
        # A token of the filling sees its like: a row of attention without anything would be no number.
        mask = (same & torch.ones(longest, longest, dtype=torch.bool).tril()).unsqueeze(1)
    return Batch(ids, mask, places, torch.cat(before), torch.cat(target))
