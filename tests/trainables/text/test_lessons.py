"""Runs on text: every method learns, resumes to the last bit, and nothing depends on how a batch is taken in parts."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import objectives, protocol, teachers
from trainables.data import DataError
from trainables.engine import RunSpec, Trainer, summary
from trainables.protocol import Protocol
from trainables.text.corpora import TextDataset
from trainables.text.lessons import GENERATIONS, TextLessons
from trainables.text.store import TextStore, stored
from trainables.text.teacher import TextTeacher

BASE = protocol.resolve(
    "dolly-quick",
    epochs=2,
    batch_size=8,
    lr=5e-3,
    max_tokens=120,
    max_response=6,
    template="{instruction}: {input}\n",
    decoding="greedy",
    score_every=1,
)
TRAIN, VALIDATION, TEST = torch.arange(24), torch.arange(30, 36), torch.arange(4)
METHODS = [name for name in objectives.names() if "text" in objectives.get(name).tasks]


def trainer(dataset: TextDataset, method: str = "sft", **given: Any) -> Trainer:
    chosen: Protocol = given.pop("protocol", BASE)
    student, parameters = given.pop("student", "hf:toy_every2"), given.pop("parameters", {})
    run = RunSpec(student, method, parameters, chosen, given.pop("seed", 0))
    teacher = given.pop("teacher", None)
    train = given.pop("train", TRAIN)
    return Trainer(run, dataset, train, VALIDATION, teacher, True, test_indices=TEST, **given)


def lessons(running: Trainer) -> TextLessons:
    assert isinstance(running.lessons, TextLessons)
    return running.lessons


@pytest.fixture(scope="session")
def teacher(dataset: TextDataset) -> TextTeacher:
    """The toy, fine-tuned on the training part, by its adapters."""
    running = trainer(dataset, "ce", student="hf:toy", protocol=replace(BASE, lora_rank=4, lr=2e-2))
    running.train_epoch()
    state = running.student_state()
    record = teachers.unmeasured_record("hf:toy", dataset, state, trained_on="all", origin="a test")
    return TextTeacher(replace(record, task="text"), lambda: state)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_learns_and_resumes_to_the_last_bit(
    method: str, dataset: TextDataset, teacher: TextTeacher, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"teacher": teacher, "store": TextStore(tmp_path, None, "float32")}
    whole = trainer(dataset, method, **given)
    first = whole.train_epoch()
    whole.save(tmp_path / "one.pt")
    second = whole.train_epoch()
    assert second["train_loss"] < first["train_loss"]
    assert set(second) >= {"train_top1", "val_loss", "val_top1", "val_rouge_l", "test_top1", "test_rouge_l", "tokens"}
    assert "test_rouge_l.self_inst" in second
    taught = objectives.get(method).needs_teacher and method != "seqkd"
    assert ("mis_instruction_ratio" in second) == taught
    resumed = trainer(dataset, method, **given)
    resumed.load(tmp_path / "one.pt")
    again = resumed.train_epoch()
    assert same(resumed.student_state(), whole.student_state())
    assert {k: v for k, v in again.items() if k != "epoch_seconds"} == {
        k: v for k, v in second.items() if k != "epoch_seconds"
    }


def test_methods_with_one_seed_share_their_initial_weights(dataset: TextDataset, teacher: TextTeacher) -> None:
    runs = [trainer(dataset, method, teacher=teacher, student="hf:toy_tiny") for method in ("sft", "kd", "loca")]
    assert all(same(runs[0].student_state(), other.student_state()) for other in runs[1:])
    other = trainer(dataset, seed=1, student="hf:toy_tiny")
    assert not same(runs[0].student_state(), other.student_state())


def test_the_loss_is_the_mean_over_a_batchs_response_tokens(dataset: TextDataset, teacher: TextTeacher) -> None:
    """One step by hand, with the whole model's logits and the plain objective."""
    one = replace(BASE, epochs=1, batch_size=24)
    running = trainer(dataset, "loca", teacher=teacher, protocol=one, parameters={"alpha": 0.9})
    by_hand = trainer(dataset, "loca", teacher=teacher, protocol=one, parameters={"alpha": 0.9})
    own = lessons(by_hand)
    student, asked = own.network.model.train(), own._asked().model
    logits, said, target = [], [], []
    for index in TRAIN.tolist():
        example = own.encoder.example(dataset.train[index])
        assert example is not None
        ids = torch.tensor([example.ids])
        counted = slice(example.start - 1, len(example.ids) - 1)
        logits.append(student(input_ids=ids, use_cache=False).logits[0, counted])
        with torch.no_grad():
            said.append(asked(input_ids=ids, use_cache=False).logits[0, counted])
        target.append(ids[0, example.start :])
    parts = by_hand.objective(torch.cat(logits), torch.cat(said), torch.cat(target), 1)
    metrics = running.train_epoch()
    assert metrics["train_loss"] == pytest.approx(parts["loss"].item(), rel=1e-4)
    assert metrics["mis_instruction_ratio"] == pytest.approx(float(parts["mis_instruction_ratio"]))
    assert metrics["tokens"] == len(torch.cat(target))


@pytest.mark.parametrize("change", [{"packing": True}, {"micro": 3}])
def test_packing_and_micro_batches_change_nothing_but_the_last_bits(
    change: dict[str, Any], dataset: TextDataset, teacher: TextTeacher
) -> None:
    plain = trainer(dataset, "loca", teacher=teacher)
    other = trainer(dataset, "loca", teacher=teacher, protocol=replace(BASE, packing=change.get("packing", False)))
    lessons(other)._micro = change.get("micro", BASE.batch_size)
    one, two = plain.train_epoch(), other.train_epoch()
    for name in ("train_loss", "mis_instruction_ratio", "tokens", "val_loss"):
        assert two[name] == pytest.approx(one[name], rel=2e-3), name
    assert two.get("micro_batch") == change.get("micro")


def test_without_memory_the_micro_batch_is_halved_and_the_step_accumulated(
    dataset: TextDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running, plain = trainer(dataset), trainer(dataset)
    network = lessons(running).network
    features = network.features

    def limited(batch: Any) -> torch.Tensor:
        if network.model.training and len(batch.ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features(batch)

    monkeypatch.setattr(network, "features", limited)
    with caplog.at_level(logging.WARNING, "kdstudy"):
        found = running.train_epoch()
    assert found["micro_batch"] == 2
    assert "from now on 4 examples at a time" in caplog.text
    assert found["train_loss"] == pytest.approx(plain.train_epoch()["train_loss"], rel=1e-3)


def test_an_error_that_is_none_of_memory_is_not_swallowed(
    dataset: TextDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = trainer(dataset)

    def broken(batch: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(lessons(running).network, "features", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        running.train_epoch()


def test_kept_answers_are_the_teachers_where_all_are_kept_and_are_asked_for_once(
    dataset: TextDataset, teacher: TextTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = trainer(dataset, "loca", teacher=teacher).train_epoch()
    store = TextStore(tmp_path, 10_000, "float32")
    kept = trainer(dataset, "loca", teacher=teacher, store=store).train_epoch()
    assert kept["lost_teacher_mass"] == pytest.approx(0, abs=1e-6)
    assert kept["train_loss"] == pytest.approx(online["train_loss"], rel=1e-4)
    assert kept["mis_instruction_ratio"] == pytest.approx(online["mis_instruction_ratio"])
    few = trainer(dataset, "loca", teacher=teacher, store=TextStore(tmp_path, 4, "float16")).train_epoch()
    assert few["lost_teacher_mass"] > 0.01
    assert few["mis_instruction_ratio"] == pytest.approx(online["mis_instruction_ratio"])

    def never(*_: Any) -> Any:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(TextTeacher, "network", never)
    again = trainer(dataset, "kd", seed=1, teacher=teacher, store=store)
    assert again.train_epoch()["lost_teacher_mass"] == pytest.approx(0, abs=1e-6)

    # What is kept can be listed and dropped.
    found = {one.what: one for one in stored(tmp_path)}
    assert set(found) == {"10000 logits a token, float32", "4 logits a token, float16"}
    whole, part = found.values()
    assert all((one.teacher, one.examples) == (teacher.record.hash, 24) for one in (whole, part))
    assert found["4 logits a token, float16"].bytes < found["10000 logits a token, float32"].bytes
    whole.drop()
    assert len(stored(tmp_path)) == 1


def test_seqkd_learns_the_teachers_responses_which_a_second_run_finds(
    dataset: TextDataset, teacher: TextTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TextStore(tmp_path, None, "float32")
    first = trainer(dataset, "seqkd", teacher=teacher, store=store)
    metrics = first.train_epoch()
    (file,) = tmp_path.glob("responses-*.jsonl")
    (kept,) = stored(tmp_path)
    assert (kept.what, kept.examples, kept.teacher) == ("responses", 24, teacher.record.hash)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == TRAIN.tolist()
    assert metrics["tokens"] == sum(len(row["tokens"]) for row in rows)

    def never(*_: Any) -> Any:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(TextTeacher, "network", never)
    again = trainer(dataset, "seqkd", teacher=teacher, store=store)
    assert again.train_epoch()["train_loss"] == metrics["train_loss"]


def test_responses_that_are_cut_to_nothing_are_counted_and_named(
    dataset: TextDataset, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = [len(lessons(trainer(dataset)).encoder.prompt(dataset.train[index])) for index in TRAIN.tolist()]
    limit = sorted(lengths)[12]
    short = replace(BASE, max_tokens=limit, max_response=2)
    with caplog.at_level(logging.WARNING, "kdstudy"):
        metrics = trainer(dataset, protocol=short).train_epoch()
    gone = sum(length >= limit for length in lengths)
    assert metrics["left_out_examples"] == gone
    assert f"{gone} of 24 responses are cut to nothing by protocol.max_tokens; the first is of example" in caplog.text
    with pytest.raises(DataError, match="leaves none of the 24 responses a token"):
        trainer(dataset, protocol=replace(short, max_tokens=2, max_response=1))


def test_responses_are_scored_when_the_protocol_says_and_kept_after_the_last_epoch(dataset: TextDataset) -> None:
    running = trainer(dataset, protocol=replace(BASE, epochs=3, score_every=2))
    history = []
    while not running.done:
        history.append(running.train_epoch())
        assert bool(running.lessons.artifacts()) == running.done
    assert ["test_rouge_l" in row for row in history] == [False, True, True]
    rows = [json.loads(line) for line in running.lessons.artifacts()[GENERATIONS].decode().splitlines()]
    assert [row["set"] for row in rows].count("instructions") == 4
    assert [row["set"] for row in rows].count("self_inst") == 4  # a limit holds for each set
    own = [row["rouge_l"] for row in rows if row["set"] == "instructions"]
    assert sum(own) / 4 == pytest.approx(history[-1]["test_rouge_l"], abs=1e-3)
    found = summary(history)
    assert found["test_rouge_l_last"] == history[2]["test_rouge_l"]
    assert found["test_rouge_l_best"] == max(history[1]["test_rouge_l"], history[2]["test_rouge_l"])
    assert found["test_rouge_l.self_inst_last"] == history[2]["test_rouge_l.self_inst"]


def test_decoding_seeds_are_averaged(dataset: TextDataset) -> None:
    sampled = replace(BASE, epochs=1, decoding="sample", decoding_seeds=3, top_p=0.9)
    running = trainer(dataset, protocol=sampled)
    metrics = running.train_epoch()
    rows = [json.loads(line) for line in running.lessons.artifacts()[GENERATIONS].decode().splitlines()]
    own = [row for row in rows if row["set"] == "instructions"]
    assert {row["decoding_seed"] for row in own} == {0, 1, 2}
    assert metrics["test_rouge_l"] == pytest.approx(sum(row["rouge_l"] for row in own) / 12, abs=1e-3)


def test_adapters_train_a_small_part_and_leave_the_rest(dataset: TextDataset) -> None:
    adapted = trainer(dataset, student="hf:toy", protocol=replace(BASE, lora_rank=2))
    whole = trainer(dataset, student="hf:toy")
    state = adapted.student_state()
    assert all("lora_" in name for name in state if name != "base.sha256")
    trained = sum(value.numel() for value in state.values())
    assert trained < 0.3 * sum(value.numel() for value in whole.student_state().values())
    before = {name: value.clone() for name, value in lessons(adapted).network.model.state_dict().items()}
    adapted.train_epoch()
    after = lessons(adapted).network.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_what_does_not_fit_text_is_refused(dataset: TextDataset, teacher: TextTeacher) -> None:
    with pytest.raises(ValueError, match="mlkd is not for text"):
        trainer(dataset, "mlkd", teacher=teacher)
    with pytest.raises(ValueError, match="needs a teacher"):
        trainer(dataset, "kd")
    with pytest.raises(ValueError, match="is one of images"):
        trainer(dataset, protocol=protocol.resolve("crd-240"))
