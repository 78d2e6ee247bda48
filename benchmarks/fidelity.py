"""May a search stop a run early? How well a cheap look at the points orders them as whole runs do, and what it loses.

    python -m benchmarks.fidelity                                the digits: a quarter of an hour
    python -m benchmarks.fidelity --data FOLDER --teacher FILE   CIFAR-100 as well: the better part of an hour

Random points in alpha, tau, beta and gamma are trained under a whole schedule, whose validation accuracy after each
epoch is kept, and under schedules of a ninth, a third and a half of the epochs. Two kinds of cheap look are compared:
a *rung*, the accuracy at an epoch of the whole run, and a *short* schedule's last epoch, whose milestones and warm-ups
are scaled in proportion (`protocol.epochs`).

Against: the accuracy after the last epoch of the whole run, of the same seed (what a pruner predicts) and of another
seed (what a search is after). The limit is what a whole run of one seed says of another seed's: no look at a part of
a run can be expected to tell more than all of it.

A run that has ended is a row of SETTING.csv; a command that was interrupted goes on with the others. The
CIFAR-100 data are those that docs/results/unseen_cifar100.py cuts out, FILE is a resnet20's state dict.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.fidelity_analysis import FRACTIONS, SEEDS, Runs, agreements, contrasts, draw, histories, losses
from benchmarks.measuring import Table
from benchmarks.setting import open_store
from trainables import data, engine, protocol, splits, teachers
from trainables.logits import LogitStore
from trainables.teachers import Teacher

POINTS = 16
FOLDER = Path("docs/results/fidelity")
_FIELDS = ("point", "alpha", "tau", "beta", "gamma", "seed", "epochs", "val_top1")


@dataclass(frozen=True)
class Point:
    """What varies, spread as a search's ranges are."""

    alpha: float
    tau: float
    beta: float
    gamma: float


def points(count: int) -> list[Point]:
    """Random points, the same each time; fewer are the first of more."""
    unit = np.random.default_rng(0).uniform(size=(count, 4))
    low, high = np.array([0.5, 0.0, np.log(0.1), np.log(0.1)]), np.array([1.05, np.log(8), np.log(20), np.log(2)])
    drawn = low + unit * (high - low)
    drawn[:, 1:] = np.exp(drawn[:, 1:])
    return [Point(*(round(float(value), 4) for value in row)) for row in drawn]


# What is trained


@dataclass(frozen=True)
class Setting:
    """A data set with its parts, a teacher and a student under a protocol of `epochs`."""

    name: str
    base: str
    epochs: int
    points: int
    seeds: int
    student: str
    dataset: data.ImageDataset
    split: splits.Split
    teacher: Teacher
    precision: str = "float32"

    def protocol(self, epochs: int) -> protocol.Protocol:
        """The whole schedule, or one scaled down to fewer epochs."""
        return protocol.resolve(self.base, self.student, epochs=epochs, precision=self.precision)

    @property
    def schedules(self) -> list[int]:
        """The whole schedule's epochs and those of the short ones."""
        return [self.epochs, *(self.epochs // fraction for fraction in FRACTIONS)]


def teacher_of(dataset: data.ImageDataset, model: str, weights: dict[str, Tensor]) -> Teacher:
    """A network with these weights as a teacher."""
    record = teachers.unmeasured_record(model, dataset, weights, trained_on="part", origin="benchmarks.fidelity")
    return Teacher(record, [teachers.load_into(model, dataset.num_classes, weights, model)])


def digits(epochs: int = 90, points: int = POINTS, seeds: int = SEEDS) -> Setting:
    """The quick start's teacher and student, with 300 of the 1,000 training images for validation."""
    dataset = data.load("digits")
    split = splits.make_split(dataset.train_labels, split_seed=0, validation_fraction=0.3, teacher_fraction=0.08)
    recipe = protocol.resolve("digits-quick", "cnn32", epochs=30, lr=0.1)
    nothing = split.validation[:0]
    run = engine.RunSpec("cnn32", "ce", {}, recipe, seed=0)
    trainer = engine.Trainer(run, dataset, split.teacher, nothing, None, evaluate_test=False)
    while not trainer.done:
        trainer.train_epoch()
    teacher = teacher_of(dataset, "cnn32", trainer.student_state())
    return Setting("digits", "digits-quick", epochs, points, seeds, "cnn3", dataset, split, teacher)


def cifar100(folder: Path, checkpoint: Path, epochs: int, points: int = 12, seeds: int = SEEDS) -> Setting:
    """The published resnet20 teaches a resnet8 on 2,000 images that it has not seen; 2,000 others for validation."""
    named = data.load("parquet", root=folder)
    cifar = data.get("cifar100")
    dataset = replace(named, mean=cifar.mean, std=cifar.std)
    labels = dataset.train_labels
    split = splits.make_split(labels, split_seed=0, validation_fraction=2000 / len(labels), train_limit=2000)
    teacher = teacher_of(dataset, "resnet20", teachers.read_state_dict(checkpoint))
    return Setting("cifar100", "crd-240", epochs, points, seeds, "resnet8", dataset, split, teacher, "bf16")


# Training


def train(setting: Setting, file: Path) -> None:
    """Train what is missing in a file of histories: seed by seed, so that what is there early can be used early."""
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    mend(file, _FIELDS)
    there = histories(file)
    wanted = [
        (number, seed, epochs)
        for group in ((1, *FRACTIONS[:2]), FRACTIONS[2:])  # the dearest of the short ones last
        for seed in range(setting.seeds)
        for number in range(setting.points)
        for epochs in dict.fromkeys(setting.epochs // fraction for fraction in group)
    ]
    drawn = points(setting.points)
    missing = [run for run in wanted if run not in there]
    with TemporaryDirectory() as folder:
        # The same views come again for each point.
        store = open_store(Path(folder), setting.teacher, setting.dataset, setting.protocol(setting.epochs), "cpu")
        for number, seed, epochs in missing:
            history = _history(setting, store, drawn[number], seed, epochs)
            with file.open("a", encoding="utf-8", newline="") as stream:
                row = [number, *astuple(drawn[number]), seed, epochs, " ".join(f"{value:.2f}" for value in history)]
                csv.writer(stream, lineterminator="\n").writerow(row)
            print(f"{setting.name}: point {number} seed {seed}, {epochs} epochs: {history[-1]:.2f} %", file=sys.stderr)


def mend(file: Path, fields: Sequence[str]) -> None:
    """Begin the file, or cut off a last row that a kill tore."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text or not text:
        file.write_text(whole or ",".join(fields) + "\n", encoding="utf-8")


def _history(setting: Setting, store: LogitStore, point: Point, seed: int, epochs: int) -> list[float]:
    """Validation accuracy after each epoch, in percent; 0 from where a run's loss was not finite any more."""
    run = engine.RunSpec(setting.student, "loca", asdict(point), setting.protocol(epochs), seed)
    split = setting.split
    trainer = engine.Trainer(
        run, setting.dataset, split.train, split.validation, setting.teacher, evaluate_test=False, store=store
    )
    history: list[float] = []
    while not trainer.done:
        try:
            history.append(trainer.train_epoch()["val_top1"])
        except engine.NonFinite:
            break
    return history + [0.0] * (epochs - len(history))


def measure(quick: bool, folder: Path, settings: Sequence[Setting] = ()) -> list[Table]:
    """Train what is missing of these settings, then say what all the histories in a folder say.

    Args:
        quick: the digits alone, in a few epochs of a few points.
        folder: of the histories and figures.
        settings: to train.
    """
    for setting in [digits(9, points=4, seeds=2)] if quick else settings:
        train(setting, folder / f"{setting.name}.csv")
    tables = []
    for name, base in (("digits", "digits-quick"), ("cifar100", "crd-240")):
        file = folder / f"{name}.csv"
        if file.is_file():
            runs = Runs.read(name, base, file)
            tables += [agreements(runs), contrasts(runs), losses(runs, draws=20 if quick else 1000)]
            draw(runs, folder / name)
    return tables


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of the histories and figures ({FOLDER})")
    parser.add_argument("--epochs", type=int, default=90, help="of the digits' whole schedule (90)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-100 images that the teacher has not seen")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a resnet20's state dict")
    parser.add_argument("--cifar-epochs", type=int, default=18, help="of CIFAR-100's whole schedule (18)")
    options = parser.parse_args()
    if (options.data is None) != (options.teacher is None):
        parser.error("--data and --teacher go together")
    if options.quick:
        with TemporaryDirectory() as folder:
            tables = measure(True, Path(folder))
    else:
        settings = [digits(options.epochs)]
        if options.data:
            settings.append(cifar100(options.data, options.teacher, options.cifar_epochs))
        tables = measure(False, options.folder, settings)
    measuring.show("fidelity", tables, options)


if __name__ == "__main__":
    main()
