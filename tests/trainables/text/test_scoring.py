"""ROUGE-L as its package counts it, and responses that are what the model would say one token at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainables.text import models
from trainables.text.corpora import TextDataset
from trainables.text.encoding import Encoder
from trainables.text.network import Network
from trainables.text.scoring import Decoding, Scorer, respond

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("reference", "response", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 100.0),
        ("the cat sat on the mat", "", 0.0),
        # LCS 3 of 6 and of 4 words: P = 3/4, R = 3/6, F = 2PR / (P + R).
        ("the cat sat on the mat", "the cat the dog", 100 * 2 * 0.75 * 0.5 / 1.25),
        ("running dogs", "run dog", 100.0),  # its stemmer
    ],
)
def test_rouge_l_by_hand(reference: str, response: str, score: float) -> None:
    assert Scorer().score([reference], response) == pytest.approx(score)


def test_of_several_right_responses_the_nearest_counts() -> None:
    assert Scorer().score(["one two", "three four"], "three four") == pytest.approx(100.0)
    assert Scorer().score([], "x") == 0.0


@pytest.fixture(scope="module")
def parts(models_folder: Path, cache: Path, dataset: TextDataset) -> tuple[Network, Encoder]:
    torch.manual_seed(0)
    network = Network(models.build("hf:toy", models_folder, cache).eval())
    return network, Encoder(models.tokenizer("hf:toy", models_folder, cache), "{instruction} {input}", 120)


def test_greedy_responses_are_the_likeliest_token_each_time(
    parts: tuple[Network, Encoder], dataset: TextDataset
) -> None:
    network, encoder = parts
    examples = dataset.train[:5]
    found = {i: tokens for i, tokens, _ in respond(network, encoder, examples, Decoding("greedy", 1, 1.0, 8), CPU, 0)}
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index, tokens in found.items():
        ids = encoder.prompt(examples[index])
        for token in tokens:
            with torch.no_grad():
                logits = network.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            # Beside others in a batch the last bits differ: among near ties any may be taken.
            assert logits[token] >= logits.max() - 1e-4
            ids = [*ids, token]


def test_samples_are_a_function_of_the_seed_and_leave_torchs_generator_alone(
    parts: tuple[Network, Encoder], dataset: TextDataset
) -> None:
    network, encoder = parts

    def said(seed: int) -> list[list[int]]:
        decoding = Decoding("sample", 2, 0.9, 6)
        return [tokens for _, tokens, _ in respond(network, encoder, dataset.train[:4], decoding, CPU, seed)]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert said(0) == said(0)
    assert said(0) != said(1)
    assert torch.equal(torch.get_rng_state(), before)
