"""What is measured of a teacher of text before its students: on how many tokens it mis-instructs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.calibration import mis_instructed
from trainables.protocol import Protocol
from trainables.text.corpora import TextDataset
from trainables.text.encoding import collate
from trainables.text.lessons import encoder_of
from trainables.text.teacher import TextTeacher


@torch.no_grad()
def answers(
    teacher: TextTeacher, dataset: TextDataset, protocol: Protocol, indices: Tensor, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """A teacher's logits on the counted tokens of training examples, (n, C), and those tokens, (n,), part by part."""
    where = torch.device(device)
    encoder = encoder_of(teacher.record.model, dataset, protocol)
    network = teacher.network(dataset.models, dataset.cache, where)
    for index in indices.tolist():
        example = encoder.example(dataset.train[index])
        if example is None:
            continue
        batch = collate([example], encoder.tokenizer.pad_token_id).to(where)
        yield from network.logits(batch)


def mis_instruction_ratio(
    teacher: TextTeacher, dataset: TextDataset, protocol: Protocol, indices: Tensor
) -> tuple[float, int]:
    """Share (0 to 1) of the response tokens of training examples on which the teacher mis-instructs, and how many.

    Raises:
        ValueError: none of these responses has a token within the length limit.
    """
    wrong = n = 0
    for logits, target in answers(teacher, dataset, protocol, indices):
        wrong += int(mis_instructed(logits, target).sum())
        n += len(target)
    if not n:
        raise ValueError("there is no response to ask the teacher about")
    return wrong / n, n
