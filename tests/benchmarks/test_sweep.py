"""The sweep benchmark: its two ways train the same runs, and it notices where they do not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import sweep
from benchmarks.measuring import Ratio
from benchmarks.plain import Batches, Settings, loca_loss
from benchmarks.sweep import Difference, Disagreement, Sweep
from trainables import objectives

SWEEP = Sweep("resnet56-resnet20", "cifar100", None, "crd-240", 2, 2000, 400, sweep.ALPHAS, sweep.OTHERS)


def settings(**fields: Any) -> Settings:
    given: dict[str, Any] = {
        "folder": "",
        "teacher": "cnn32",
        "student": "cnn3",
        "classes": 10,
        "mean": (0.5,),
        "std": (0.25,),
        "alphas": (0.9,),
        "seed": 0,
        "epochs": 2,
        "batch_size": 4,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "milestones": (),
        "lr_decay": 0.1,
        "tau": 4.0,
        "beta": 0.9,
        "gamma": 0.1,
        "pad": 1,
        "flip": False,
        "concurrency": 2,
        "loader_workers": 0,
    }
    return Settings(**(given | fields))


@pytest.mark.parametrize("alpha", [0.8, 1.0, 1.01])
def test_the_plain_loss_is_kdstudys(alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(64, 100, generator=draw) * 4 for _ in range(2))
    target = torch.randint(100, (64,), generator=draw)
    target[:16] = teacher[:16].argmax(1)  # on some views the teacher is right
    ours = objectives.build("loca", alpha=alpha, tau=4.0, beta=0.9, gamma=0.1)(student, teacher, target)["loss"]
    torch.testing.assert_close(loca_loss(student, teacher, target, alpha, settings()), ours, rtol=1e-5, atol=1e-5)


def test_an_epochs_batches_hold_each_image_once_in_an_order_of_its_own() -> None:
    batches = Batches(torch.arange(10, 20), settings())
    first = list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(index for batch in first for index in batch) == list(range(10, 20))
    batches.epoch = 2
    assert list(batches) != first


def history(loss: float, top1: float) -> list[dict[str, float]]:
    return [{"train_loss": loss, "test_top1": 1.0}, {"train_loss": 0.0, "test_top1": top1}]


def test_difference() -> None:
    one = {0.9: history(4.0, 10.0), 1.0: history(2.0, 20.0)}
    other = {0.9: history(4.1, 12.0), 1.0: history(2.0, 19.0)}
    found = sweep.difference(one, other)
    assert (found.loss, found.point, found.mean) == pytest.approx((0.025, 2.0, 0.5))


def test_other_points_or_epochs_are_a_disagreement() -> None:
    one = {0.9: history(4.0, 10.0)}
    with pytest.raises(Disagreement, match="not the same"):
        sweep.difference(one, {0.95: history(4.0, 10.0)})
    with pytest.raises(Disagreement, match="not the same"):
        sweep.difference(one, {0.9: history(4.0, 10.0)[:1]})


AGREES = Difference(sweep.LOSS_TOLERANCE / 2, sweep.POINT_TOLERANCE / 2, sweep.MEAN_TOLERANCE / 2)


def test_ways_that_agree() -> None:
    sweep.require_agreement(AGREES, "cold")


@pytest.mark.parametrize(
    "far",
    [{"loss": 2 * sweep.LOSS_TOLERANCE}, {"point": 2 * sweep.POINT_TOLERANCE}, {"mean": 2 * sweep.MEAN_TOLERANCE}],
)
def test_ways_that_differ_are_refused(far: dict[str, float]) -> None:
    with pytest.raises(Disagreement, match="cold did not train the plain way's runs"):
        sweep.require_agreement(replace(AGREES, **far), "cold")


def test_bounds_are_those_of_the_multiply_adds() -> None:
    # 125.75 and 40.81 million of them: (T + 3.2 S) / (T / 8 + 3.2 S) and (T + 3.2 S) / 3.2 S.
    assert sweep.bounds(SWEEP) == pytest.approx((1.752, 1.963), abs=0.005)
    cold, warm = sweep.bounds(replace(SWEEP, pair="resnet32x4-resnet8x4"))
    assert 1 < cold < warm


def test_without_the_data_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sweep", "--root", str(tmp_path / "none")])
    sweep.main()
    assert "skipped: there is no CIFAR-100" in capsys.readouterr().out


@pytest.mark.slow
def test_both_ways_train_the_same_runs(tmp_path: Path) -> None:
    table, spent = sweep.measure(quick=True, work=tmp_path)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["way"] for row in rows] == list(sweep.WAYS)
    assert all(row["seconds"] > 0 and isinstance(row["plain / this"], Ratio) for row in rows)
    # Digits in a few steps: float32 sums in another order change next to nothing yet.
    assert all(row["last accuracy differs by"] <= 2.5 for row in rows if row["way"] in ("cold", "warm"))
    assert [row[1] for row in spent.rows] == list(sweep.WAYS[1:])
    for row, (_, way, *parts) in zip(rows[1:], spent.rows, strict=True):
        assert row["way"] == way
        assert all(isinstance(part, float) and part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(row["seconds"], abs=0.05)
    assert not list(tmp_path.iterdir())
