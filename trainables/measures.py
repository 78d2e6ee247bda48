"""What is measured of networks: accuracy, and how often a teacher mis-instructs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from trainables.calibration import mis_instructed
from trainables.teaching import Teaching


@torch.inference_mode()
def evaluate(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent (of all images), where fewer than five classes count as five.

    Args:
        logits_of: (n, C, H, W) uint8 images to (n, classes) logits, on any device.
        batches: images, their labels, (n,) int64, and their indices, as `Pipeline.evaluation` yields them.

    Raises:
        ValueError: there is no image.
    """
    hits, n = [], 0
    for images, labels, _ in batches:
        if not len(images):
            continue
        logits = logits_of(images)
        best = logits.topk(min(5, logits.shape[1])).indices == labels.to(logits.device)[:, None]
        hits.append(torch.stack([best[:, 0].sum(), best.sum()]))
        n += len(images)
    if not n:
        raise ValueError("there is no image to evaluate on")
    top1, top5 = torch.stack(hits).sum(0).tolist()
    return 100 * top1 / n, 100 * top5 / n


@torch.inference_mode()
def mis_instruction_ratio(teaching: Teaching, indices: Tensor, n_views: int, seed: int) -> float:
    """Share (0 to 1) of views on which the teacher mis-instructs, over the views that a run with this seed sees.

    Args:
        teaching: of the teacher in question, on the views in question.
        indices: (n,) int64, which training images.
        n_views: of each image: those of the epochs 1 to `n_views`.
        seed: of the views.

    Raises:
        ValueError: there is no image.
    """
    wrong = n = 0
    ordered = indices.sort().values
    labels = teaching.pipeline.dataset.train_labels[ordered]
    for epoch in range(1, n_views + 1):
        logits, there = teaching.epoch(seed, epoch, ordered)
        wrong += int(mis_instructed(logits.cpu(), labels)[there].sum())
        n += int(there.sum())
    if not n:
        raise ValueError("there is no image to ask the teacher about")
    return wrong / n
