"""What is kept of a teacher's logits: exact where all are, exact in what LoCa asks for, and its loss is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.calibration import mis_instructed
from trainables.text.answers import LOST_AT, AnswerKey, AnswerStore, Kept, dense, keep_largest, lost_at


def drawn(rows: int, classes: int, seed: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=draw), torch.randint(classes, (rows,), generator=draw)


@settings(deadline=None)
@given(rows=st.integers(1, 9), classes=st.integers(2, 80), k=st.integers(1, 90), seed=st.integers(0, 200))
def test_what_is_kept_is_exact(rows: int, classes: int, k: int, seed: int) -> None:
    logits, target = drawn(rows, classes, seed)
    read = dense(keep_largest(logits, target, k), target, classes)
    exact, found = logits.softmax(-1), read.softmax(-1)
    kept = logits.topk(min(k, classes)).indices
    torch.testing.assert_close(found.gather(1, kept), exact.gather(1, kept), rtol=1e-4, atol=1e-6)
    y = target.unsqueeze(1)
    torch.testing.assert_close(found.gather(1, y), exact.gather(1, y), rtol=1e-4, atol=1e-6)
    assert torch.equal(mis_instructed(read, target), mis_instructed(logits, target))
    torch.testing.assert_close(found.sum(1), torch.ones(rows))
    if k >= classes:
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(seed=st.integers(0, 50), k=st.integers(1, 40), tau=st.sampled_from(LOST_AT))
def test_the_loss_of_truncation_is_the_distance_of_the_two_distributions(seed: int, k: int, tau: float) -> None:
    logits, target = drawn(5, 50, seed)
    kept = keep_largest(logits, target, k)
    read = dense(kept, target, 50)
    distance = ((logits / tau).double().softmax(-1) - (read / tau).double().softmax(-1)).abs().sum(-1) / 2
    torch.testing.assert_close(lost_at(kept, tau).double(), distance, rtol=1e-3, atol=1e-6)
    if k < 49:
        more = lost_at(keep_largest(logits, target, k + 1), 1.0).mean()
        assert more <= lost_at(kept, 1.0).mean() + 1e-6
    # Between the temperatures it is told for the next one, which is no less; beyond the last for that.
    assert torch.equal(lost_at(kept, 0.5), lost_at(kept, 1.0))
    assert torch.equal(lost_at(kept, 3.0), lost_at(kept, 4.0))
    assert torch.equal(lost_at(kept, 50.0), lost_at(kept, 8.0))


def test_a_vocabulary_and_extreme_logits() -> None:
    logits, target = drawn(4, 49_152, 1, scale=400.0)
    for dtype in (torch.float32, torch.float16):
        kept = keep_largest(logits.to(torch.bfloat16), target, 64, dtype)
        read = dense(kept, target, 49_152)
        assert torch.isfinite(read.log_softmax(-1).gather(1, target.unsqueeze(1))).all()
        assert (read.argmax(1) == logits.to(torch.bfloat16).float().argmax(1)).all()


def test_files_come_back_and_damaged_ones_are_asked_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, AnswerKey("t", "d", "x", 5, "float32", "float32", "cpu"))
    logits, target = drawn(7, 30, 0)
    kept = keep_largest(logits, target, 5)
    assert not store.has(3)
    assert store.read(3) is None
    store.write(3, kept)
    back = store.read(3)
    assert store.has(3)
    assert back is not None
    assert all(torch.equal(a, b) for a, b in zip(back, kept, strict=True))
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    assert store.read(3) is None


def test_another_teacher_k_or_limit_has_a_folder_of_its_own() -> None:
    key = AnswerKey("t", "d", "x", 5, "float32", "float32", "cpu")
    others = [
        AnswerKey(**{**key.__dict__, **change})
        for change in ({"teacher": "u"}, {"top_k": 6}, {"tokens": "y"}, {"precision": "bf16"}, {"dtype": "float16"})
    ]
    assert len({key.name, *(other.name for other in others)}) == 6


def test_a_full_disk_costs_a_question_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = AnswerStore(blocked, AnswerKey("t", "d", "x", 5, "float32", "float32", "cpu"))
    logits, target = drawn(2, 9, 0)
    store.write(0, keep_largest(logits, target, 5))
    assert "the teacher is asked each time" in caplog.text
    assert isinstance(keep_largest(logits, target, 5), Kept)
