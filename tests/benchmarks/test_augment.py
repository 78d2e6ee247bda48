from pathlib import Path

import pytest
import torch

from benchmarks import augment
from benchmarks.measuring import Ratio
from trainables.views import CropFlip

pytest.importorskip("torchvision")
NOWHERE = Path("there-is-no-such-folder")


def test_the_pixels_are_torchvisions_for_the_same_draws():
    augment.check_pixels(augment.images(NOWHERE, 64), 64)


def test_other_pixels_are_noticed(monkeypatch):
    whole = CropFlip.apply

    def shifted(self, images, ids):
        return whole(self, images, ids).roll(1, -1)

    monkeypatch.setattr(CropFlip, "apply", shifted)
    with pytest.raises(AssertionError):
        augment.check_pixels(augment.images(NOWHERE, 8), 8)


def test_an_epoch_shows_each_image_once_as_float32():
    dataset = augment.images(NOWHERE, 100)
    batches = list(augment.shown(dataset, augment.Pipeline(dataset, augment._PROTOCOL), 100, 32))
    assert [tuple(batch.shape) for batch in batches] == [(32, 3, 32, 32)] * 3 + [(4, 3, 32, 32)]
    assert all(batch.dtype == torch.float32 for batch in batches)


@pytest.mark.slow
def test_the_tables_have_every_way():
    for table, size in zip(augment.measure(quick=True, root=NOWHERE), (64, 256), strict=True):
        ways = [row[0] for row in table.rows if "cuda" not in row[0]]
        assert ways == ["torchvision, 0 workers", "torchvision, 2 workers", "kdstudy, cpu", "uint8 to float32, cpu"]
        assert all(row[1] > 0 and row[2] > 0 and isinstance(row[3], Ratio) for row in table.rows)
        assert str(size) in table.title
        assert table.limits
