"""Tokens of prompts do not count, responses are cut where they must be, and packing changes nothing but the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.text import models
from trainables.text.corpora import TextDataset
from trainables.text.encoding import Encoded, Encoder, collate
from trainables.text.network import Network
from trainables.text.template import ALPACA


@pytest.fixture
def encoder(dataset: TextDataset) -> Encoder:
    return Encoder(models.tokenizer("hf:toy", dataset.models, dataset.cache), ALPACA, 200)


def test_what_counts_is_the_response_and_its_end(encoder: Encoder, dataset: TextDataset) -> None:
    example = dataset.train[1]
    found = encoder.example(example)
    assert found is not None
    tokenizer = encoder.tokenizer
    assert tokenizer.decode(found.ids[: found.start]) == encoder.tokenizer.decode(encoder.prompt(example))
    assert tokenizer.decode(found.ids[found.start : -1]) == example.outputs[0]
    assert found.ids[-1] == tokenizer.eos_token_id
    batch = collate([found], tokenizer.pad_token_id)
    # The logits of a position are about the token after it.
    assert batch.before.tolist() == list(range(found.start - 1, len(found.ids) - 1))
    assert batch.target.tolist() == list(found.ids[found.start :])


def test_a_long_response_is_cut_and_one_without_room_is_none(encoder: Encoder, dataset: TextDataset) -> None:
    example = dataset.train[1]
    prompt = len(encoder.prompt(example))
    short = Encoder(encoder.tokenizer, ALPACA, prompt + 1).example(example)
    assert short is not None
    assert short.counted == 1
    assert Encoder(encoder.tokenizer, ALPACA, prompt).example(example) is None


encoded = st.builds(
    lambda prompt, response: Encoded((*prompt, *response), len(prompt)),
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
)


@settings(deadline=None)
@given(examples=st.lists(encoded, min_size=1, max_size=8), row=st.integers(20, 40))
def test_packed_or_not_the_counted_tokens_are_the_same_in_the_same_order(examples: list[Encoded], row: int) -> None:
    plain, packed = collate(examples, 0), collate(examples, 0, row)
    assert torch.equal(plain.target, packed.target)
    assert len(packed.ids) <= len(plain.ids)
    assert packed.ids.shape[1] <= row
    for batch in (plain, packed):
        assert torch.equal(batch.ids.flatten()[batch.before + 1], batch.target)


def test_packed_rows_give_the_same_features(models_folder: Path, cache: Path) -> None:
    network = Network(models.build("hf:toy", models_folder, cache).eval())
    draw = torch.Generator().manual_seed(0)
    examples = [
        Encoded(tuple(torch.randint(1, 300, (n,), generator=draw).tolist()), n // 2) for n in (5, 17, 9, 30, 6, 11)
    ]
    with torch.no_grad():
        plain, packed = (network.features(collate(examples, 0, row)) for row in (None, 40))
        assert plain.shape == packed.shape
        torch.testing.assert_close(plain, packed, rtol=1e-4, atol=1e-5)


def test_decoder_and_head_are_the_model(models_folder: Path, cache: Path) -> None:
    network = Network(models.build("hf:toy", models_folder, cache).eval())
    batch = collate([Encoded((5, 6, 7, 8, 9), 2), Encoded((1, 2, 3), 1)], 0)
    with torch.no_grad():
        logits = network.model(input_ids=batch.ids, attention_mask=batch.mask).logits.flatten(0, 1)[batch.before]
        torch.testing.assert_close(network.project(network.features(batch)), logits)
