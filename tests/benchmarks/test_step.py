"""The benchmark of a training step: its parts are a step, and its ways train the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import setting, step
from benchmarks.measuring import Ratio


@pytest.mark.slow
def test_the_parts_of_a_step_are_what_a_run_does(tmp_path: Path) -> None:
    """A student trained in parts has the weights of one that a run trains on the same batches."""
    from trainables import engine, protocol
    from trainables.streams import drawing_from

    torch.set_num_threads(1)
    indices = torch.arange(step.BATCH)
    dataset = setting.images(None, train=len(indices), test=10)
    teacher = setting.random_teacher("resnet8x4", dataset)
    chosen = protocol.resolve("crd-240", "resnet20")
    store = setting.open_store(tmp_path, teacher, dataset, chosen, "cpu")
    setting.fill(store, epochs=1)
    run = engine.RunSpec("resnet20", "loca", {"alpha": 0.95}, chosen, seed=0)
    trainer = engine.Trainer(run, dataset, indices, indices[:0], teacher, evaluate_test=False, store=store)
    trainer.train_epoch()
    parts = step.Steps("resnet20", dataset, teacher, store, "cpu")
    with drawing_from(torch.device("cpu"), 0, "init"):
        parts.model.load_state_dict(step.models.build("resnet20", 100).state_dict())
    (order,) = [shown.indices for shown, _, _ in trainer.lessons.batches(1)]
    seconds = parts.take(order)
    assert set(seconds) == {*step.PARTS, step.ONLINE}
    assert min(seconds.values()) > 0
    for name, value in trainer.student_state().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_the_tables_have_every_part_and_way() -> None:
    parts, arithmetic, ways, evaluation = step.measure(quick=True)
    rows = {row[0]: row for row in parts.rows}
    assert list(rows)[: len(step.PARTS)] == list(step.PARTS)
    assert sum(rows[part][2] for part in step.PARTS) == pytest.approx(100)
    assert all(row[1] > 0 for row in parts.rows)
    forward, backward, both = arithmetic.rows
    assert (backward[1], both[1]) == (pytest.approx(2 * forward[1]), pytest.approx(3 * forward[1]))
    assert all(row[2] > 0 and 0 < row[3] < 200 for row in arithmetic.rows)
    ratios = {row[0]: row[2] for row in ways.rows}
    assert set(ratios) == {"as a run takes it", "plain torch", "SGD in a loop"}
    assert ratios["as a run takes it"] == Ratio(1, 1, 1)
    same = {row[0]: row[3] for row in ways.rows}
    assert same["SGD in a loop"] == "the same to the last bit"
    assert same["plain torch"].startswith("differ by")
    assert [row[0] for row in evaluation.rows] == [25, 50]
    assert all(table.limits for table in (parts, arithmetic, ways, evaluation))


@pytest.mark.parametrize(
    ("weights", "others", "says"),
    [([1.0, 2.0], [1.0, 2.0], "the same to the last bit"), ([1.0, 2.0], [1.0, 1.5], "differ by 0.5 at most")],
)
def test_weights_are_compared_in_words(weights: list[float], others: list[float], says: str) -> None:
    assert step._same(weights, others) == says
