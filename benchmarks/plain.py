"""The plain way to sweep alpha, which `benchmarks.sweep` measures kdstudy against: what one writes with Ray Tune.

    python -c "from benchmarks import plain; plain.main()" SETTINGS.json

Tune's defaults: a function trainable, a fresh process for each trial, the default loggers. A trial has its own copy of
the images, a DataLoader over Pillow pictures with torchvision's transforms, and asks the teacher at each step.

Initial weights, order and views are drawn as kdstudy draws them, or the runs would not be the same ones. Nothing else
is kdstudy's but the networks' definitions.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from ray import init, tune
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import functional as TF

from trainables import models
from trainables.streams import generator, stream_seed
from trainables.views import CropFlip

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Settings:
    """What is trained; `folder` has the images, which of them are used, and the teacher's weights (see `write`)."""

    folder: str
    teacher: str
    student: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    alphas: tuple[float, ...]
    seed: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]  # epochs from 1
    lr_decay: float
    tau: float
    beta: float
    gamma: float
    pad: int
    flip: bool
    concurrency: int
    loader_workers: int


class Pictures(Dataset[tuple[Tensor, int]]):
    """A part of the images as a Pillow data set, the way torchvision has CIFAR: pixels are (n, H, W, C) uint8."""

    def __init__(self, settings: Settings, part: str) -> None:
        folder = Path(settings.folder)
        self.pixels = np.load(folder / f"{part}-pixels.npy")
        self.labels = np.load(folder / f"{part}-labels.npy").tolist()
        self.indices = torch.from_numpy(np.load(folder / f"{part}-indices.npy"))
        self.settings = settings
        self.crops: dict[int, tuple[int, int, bool]] | None = None  # of each image in this epoch

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops and flips of an epoch."""
        views = CropFlip(self.settings.pad, self.settings.flip)
        drawn = views.offsets(views.view_ids(self.settings.seed, epoch, self.indices))
        crops = zip(*(values.tolist() for values in drawn), strict=True)
        self.crops = dict(zip(self.indices.tolist(), crops, strict=True))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels[index]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        if self.crops is not None:
            top, left, flipped = self.crops[index]
            width, height = picture.size
            picture = TF.crop(TF.pad(picture, self.settings.pad), top, left, height, width)
            picture = TF.hflip(picture) if flipped else picture
        return TF.normalize(TF.to_tensor(picture), self.settings.mean, self.settings.std), self.labels[index]


class Batches(Sampler[list[int]]):
    """The images of an epoch in kdstudy's order."""

    def __init__(self, indices: Tensor, settings: Settings) -> None:
        self.indices = indices
        self.settings = settings
        self.epoch = 1

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.indices), generator=generator(self.settings.seed, "order", self.epoch))
        return (batch.tolist() for batch in self.indices[order].split(self.settings.batch_size))

    def __len__(self) -> int:
        return -(-len(self.indices) // self.settings.batch_size)


def loca_loss(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, settings: Settings) -> Tensor:
    """LoCa with KD's loss, from its paper's formulas."""
    tau = settings.tau
    p = F.softmax(teacher / tau, dim=1)
    y = target[:, None]
    p_y = p.gather(1, y)
    p_k = p.scatter(1, y, 0.0).max(dim=1, keepdim=True).values
    s = alpha / (1 - p_y + p_k)
    calibrated = (s * p).scatter(1, y, 1 - s * (1 - p_y))
    p = torch.where(p_k >= p_y, calibrated, p)
    kd = F.kl_div(F.log_softmax(student / tau, dim=1), p, reduction="batchmean") * tau**2
    return settings.gamma * F.cross_entropy(student, target) + settings.beta * kd


def evaluate(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    hits = n = 0
    with torch.no_grad():
        for images, labels in loader:
            hits += int((model(images).argmax(1) == labels).sum())
            n += len(labels)
    return 100 * hits / n


def train(config: dict[str, Any]) -> None:
    """One trial."""
    settings = Settings(**config["settings"])
    training, testing = Pictures(settings, "train"), Pictures(settings, "test")
    batches = Batches(training.indices, settings)
    workers = settings.loader_workers
    loader = DataLoader(training, batch_sampler=batches, num_workers=workers)
    test_batches = [batch.tolist() for batch in testing.indices.split(EVALUATION_BATCH)]
    test_loader = DataLoader(testing, batch_sampler=test_batches, num_workers=workers)

    teacher = models.build(settings.teacher, settings.classes)
    teacher.load_state_dict(torch.load(Path(settings.folder) / "teacher.pt", weights_only=True))
    teacher.eval()
    torch.manual_seed(stream_seed(settings.seed, "init"))
    student = models.build(settings.student, settings.classes)
    optimiser = torch.optim.SGD(
        student.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    milestones = [epoch - 1 for epoch in settings.milestones]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, settings.lr_decay)

    for epoch in range(1, settings.epochs + 1):
        training.set_epoch(epoch)
        batches.epoch = epoch
        student.train()
        total = 0.0
        for images, labels in loader:
            with torch.no_grad():
                teacher_logits = teacher(images)
            loss = loca_loss(student(images), teacher_logits, labels, config["alpha"], settings)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(labels)
        scheduler.step()
        tune.report({"epoch": epoch, "train_loss": total / len(training), "test_top1": evaluate(student, test_loader)})


def main() -> None:
    """Sweep; of an imported module, since Ray cannot send all of this to its workers from a main program."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    init(num_cpus=settings.concurrency)
    folder = Path(settings.folder)
    tuner = tune.Tuner(
        tune.with_resources(train, {"CPU": 1}),
        param_space={"alpha": tune.grid_search(list(settings.alphas)), "settings": asdict(settings)},
        run_config=tune.RunConfig(name="plain", storage_path=str(folder / "tune")),
    )
    results = tuner.fit()
    columns = ["train_loss", "test_top1"]
    histories = {
        str(result.config["alpha"]): result.metrics_dataframe[columns].to_dict("records") for result in results
    }
    (folder / "results.json").write_text(json.dumps(histories), encoding="utf-8")
