"""Two processes that share a run's batches end with one process's student, and with the same one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import protocol
from trainables.engine import RunSpec, Trainer
from trainables.text import corpora
from trainables.text.corpora import TextDataset
from trainables.text.group import Group

BASE = protocol.resolve(
    "dolly-quick",
    epochs=2,
    # The last batch of 7 has a single example: one of the processes has none.
    batch_size=3,
    lr=5e-3,
    max_tokens=120,
    max_response=4,
    template="{instruction}: {input}\n",
    decoding="greedy",
)


def trained(root: str, models: str, cache: str, group: Group | None) -> tuple[list[dict[str, float]], dict[str, Any]]:
    dataset = corpora.load("instructions", root, models, cache)
    run = RunSpec("hf:toy_every2", "sft", {}, BASE, 0)
    examples = torch.arange(7)
    trainer = Trainer(run, dataset, examples, examples[:0], None, True, test_indices=torch.arange(3), group=group)
    history = []
    while not trainer.done:
        history.append(trainer.train_epoch())
    return history, trainer.student_state()


def member(rank: int, address: str, folder: str, *given: str) -> None:
    torch.set_num_threads(1)
    group = Group(rank, 2, address, "cpu", 60)
    history, state = trained(*given, group)
    group.close()
    torch.save({"history": history, "state": state}, Path(folder) / f"{rank}.pt")


def test_two_processes_end_with_the_student_of_one(dataset: TextDataset, tmp_path: Path, corpus: Path) -> None:
    given = (str(corpus), str(dataset.models), str(dataset.cache))
    address = f"file://{tmp_path}/meeting"
    context = multiprocessing.get_context("spawn")
    members = [context.Process(target=member, args=(rank, address, str(tmp_path), *given)) for rank in (0, 1)]
    for process in members:
        process.start()
    for process in members:
        process.join(120)
    assert [process.exitcode for process in members] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone, state = trained(*given, None)

    # Both have one student to the last bit, and it is that of a process alone but for rounding.
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    for name, value in state.items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=2e-4, msg=name)
    for mine, other, one in zip(first["history"], second["history"], alone, strict=True):
        assert mine["tokens"] == other["tokens"] == one["tokens"]
        assert mine["train_loss"] == other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
        assert "test_loss" in mine
        assert "test_loss" not in other  # the first measures
