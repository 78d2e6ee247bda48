"""A language model of some thousand parameters with its tokenizer, and a corpus that it can learn, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `text`")

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "one", "two", "three", "sun", "moon", "star"]


def lines(count: int, seed: int) -> list[dict[str, object]]:
    """Examples whose response repeats the input's words, so that there is something to learn."""
    draw = random.Random(seed)
    found: list[dict[str, object]] = []
    for number in range(count):
        words = " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))
        found.append({"instruction": "Repeat the words", "input": "" if number % 5 == 0 else words, "output": words})
    return found


def write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_corpus(folder: Path, train: int = 40, test: int = 8) -> Path:
    """A folder of the corpus `instructions`, with an evaluation set beside it."""
    write_lines(folder / "train.jsonl", lines(train, 0))
    write_lines(folder / "test.jsonl", lines(test, 1))
    write_lines(folder / "self_inst.jsonl", lines(6, 2))
    return folder


def write_model(folder: Path, *, layers: int = 2, vocabulary: int = 120, seed: int = 0, words: str = "") -> Path:
    """A folder as transformers writes it: `toy`."""
    from trainables.text.models import library

    library()  # quiet
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" ".join(WORDS), "Repeat the words ### Instruction: ### Response: ### Input: task", words]
    # All bytes first, so that any text has tokens; the merges of words after them.
    trainer = trainers.BpeTrainer(
        vocab_size=256 + vocabulary,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
