"""Accuracy, and how often a teacher mis-instructs."""

import dataclasses

import pytest
import torch
from torch import nn

from trainables import data, measures
from trainables.pipeline import Pipeline
from trainables.protocol import resolve
from trainables.teachers import Teacher, TeacherRecord
from trainables.teaching import Teaching
from trainables.views import CropFlip

DIGITS = data.load("digits")


def batches(images, labels, batch):
    indices = torch.arange(len(images))
    return zip(images.split(batch), labels.split(batch), indices.split(batch), strict=True)


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_accuracies_are_percentages_of_all_images_whatever_the_batches(batch):
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, 10, generator=draw), torch.randint(10, (30,), generator=draw)
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    found = measures.evaluate(lambda x: logits[x.flatten().long()], batches(images, labels, batch))
    assert found == pytest.approx((100 * (ranks < 1).double().mean().item(), 100 * (ranks < 5).double().mean().item()))


def test_fewer_than_five_classes_count_as_five():
    images, labels = torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert measures.evaluate(lambda x: logits.expand(len(x), 3), batches(images, labels, 2)) == (50.0, 100.0)


def test_batches_without_images_count_for_nothing_and_no_image_at_all_is_one_line():
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    images, labels = torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1])
    with_empty = [(images[:0], labels[:0], labels[:0]), *batches(images, labels, 1)]
    assert measures.evaluate(lambda x: logits.expand(len(x), 3), with_empty) == (50.0, 100.0)
    with pytest.raises(ValueError, match="no image to evaluate on"):
        measures.evaluate(lambda x: logits, with_empty[:1])


def record(**fields):
    values = dict.fromkeys((field.name for field in dataclasses.fields(TeacherRecord)), "")
    return TeacherRecord(**(values | {"num_classes": 10, "mean": (0.3,), "std": (0.4,)} | fields))


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_ratio_counts_every_view_of_the_first_epochs_once():
    asked, views = Teacher(record(), [network(0)]), CropFlip(1, False)
    pipeline, indices = Pipeline(DIGITS, resolve("digits-quick")), torch.arange(3, 300, 7)
    wrong = 0
    for epoch in (1, 2, 3):
        for i in indices.tolist():
            one = torch.tensor([i])
            shown = views.apply(DIGITS.train_images.pixels[one], views.view_ids(5, epoch, one))
            z, label = asked.logits(shown)[0], DIGITS.train_labels[i]
            wrong += bool(torch.cat([z[:label], z[label + 1 :]]).max() >= z[label])
    ratio = measures.mis_instruction_ratio(Teaching(asked, pipeline), indices, 3, 5)
    assert ratio == pytest.approx(wrong / (3 * len(indices)))
    assert 0 < ratio < 1


def test_a_cross_fitted_teacher_is_asked_about_each_image_by_its_number():
    """One network is always right about the images of the other's fold, and wrong about its own."""

    class Knows(nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, images):
            # The test's pixels are the labels.
            label = (images[:, 0, 0, 0] * 255).round().long()
            return nn.functional.one_hot(label if self.right else (label + 1) % 10, 10).float()

    labels = DIGITS.train_labels
    pixels = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    dataset = dataclasses.replace(DIGITS, train_images=data.ResidentImages(pixels))
    folds = torch.arange(1000) % 2
    teacher = Teacher(record(fold_top1=(0.0, 0.0), mean=(0.0,), std=(1.0,)), [Knows(True), Knows(False)], folds)
    pipeline = Pipeline(dataset, resolve("digits-quick", pad=0))
    assert measures.mis_instruction_ratio(Teaching(teacher, pipeline), torch.arange(0, 1000, 2), 1, 0) == 0.0
    assert measures.mis_instruction_ratio(Teaching(teacher, pipeline), torch.arange(1, 1000, 2), 1, 0) == 1.0
    assert measures.mis_instruction_ratio(Teaching(teacher, pipeline), torch.arange(1000), 1, 0) == 0.5


def test_the_ratio_of_no_image_is_one_line():
    asked, pipeline = Teacher(record(), [network(0)]), Pipeline(DIGITS, resolve("digits-quick"))
    with pytest.raises(ValueError, match="no image to ask the teacher about"):
        measures.mis_instruction_ratio(Teaching(asked, pipeline), torch.arange(0), 1, 0)
