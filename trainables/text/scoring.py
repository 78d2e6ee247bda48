"""What a student writes, and how near it comes to what is right: ROUGE-L of generated responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from trainables.streams import drawing_from
from trainables.text.corpora import Example
from trainables.text.encoding import Encoder
from trainables.text.models import ModelError
from trainables.text.network import Network

ROWS = 32
"""Responses that are written at once."""


@dataclass(frozen=True)
class Decoding:
    """How responses are chosen.

    kind: `greedy`, the likeliest token each time, or `sample`, drawn from the likeliest that have `top_p` together.
    seeds: how often, with streams of their own; a greedy one is the same each time, so it is done once. max_response:
    tokens at most.
    """

    kind: str
    seeds: int
    top_p: float
    max_response: int


class Scorer:
    """ROUGE-L by the package `rouge-score`, with its stemmer; the best of an example's right responses, in percent."""

    def score(self, outputs: Sequence[str], response: str) -> float:
        """Of one response, 0 to 100.

        Raises:
            ModelError: the package is not installed.
        """
        found = (self._rouge.score(output, response)["rougeL"].fmeasure for output in outputs)
        return 100 * max(found, default=0.0)

    @cached_property
    def _rouge(self) -> Any:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise ModelError("ROUGE-L needs a further package: pip install 'kdstudy[text]'") from None
        return RougeScorer(["rougeL"], use_stemmer=True)


@torch.inference_mode()
def respond(
    network: Network, encoder: Encoder, examples: Sequence[Example], decoding: Decoding, device: torch.device, seed: int
) -> Iterator[tuple[int, list[int], str]]:
    """What a network responds to instructions, longest prompts first.

    Args:
        network: in evaluation mode.
        encoder: of its tokens. A prompt that is too long is cut at its beginning, so that there is room for a response.
        examples: whose responses are not looked at.
        decoding: how.
        device: where the network is.
        seed: of what is drawn.

    Yields:
        For each example its number, the response's tokens (with the end, where there is one) and its text.
    """
    tokenizer = encoder.tokenizer
    room = max(1, encoder.max_tokens - decoding.max_response)
    prompts = [encoder.prompt(example)[-room:] for example in examples]
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    options: dict[str, Any] = {"do_sample": False}
    if decoding.kind == "sample":
        options = {"do_sample": True, "temperature": 1.0, "top_p": decoding.top_p, "top_k": 0}
    with drawing_from(device, seed, "decoding"):
        for begin in range(0, len(order), ROWS):
            some = order[begin : begin + ROWS]
            longest = len(prompts[some[0]])
            ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompts[i])) + prompts[i] for i in some])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in some])
            written = network.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=decoding.max_response,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
                **options,
            )[:, longest:]
            for index, row in zip(some, written.tolist(), strict=True):
                ended = tokenizer.eos_token_id in row
                tokens = row[: row.index(tokenizer.eos_token_id) + 1] if ended else row
                yield index, tokens, tokenizer.decode(tokens, skip_special_tokens=True).strip()
