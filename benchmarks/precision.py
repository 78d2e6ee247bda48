"""Do bfloat16 arithmetic, or a teacher's logits in half precision, change what a study finds?

    python -m benchmarks.precision                 the digits: some minutes
    python -m benchmarks.precision --root FOLDER --teacher FILE   CIFAR-100 as well: half an hour

The same points are trained on the same seeds under float32 and under each variant, one CPU thread a run. What counts is
the last epoch's validation accuracy. Seeds are the unit: the difference to float32 is averaged over the points of a
seed first, since points of one seed share initial weights and views. The yardstick is float32 once more, on two
threads: nothing but the order of its sums differs.

A variant is called equivalent where two one-sided t tests (TOST) at 5 % put its difference within `MARGIN` points. That
it could not be shown to differ is not that.

Limit: what float32 differs from itself by. TF32 needs a GPU; its row is measured where one is.
"""

from __future__ import annotations

import csv
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import torch
from scipy import stats

from benchmarks import fidelity, measuring
from benchmarks.fidelity import Setting
from benchmarks.measuring import Table
from trainables import data, engine, objectives, protocol, splits, teachers
from trainables.logits import LogitStore, key_of
from trainables.pipeline import Pipeline
from trainables.teaching import Teaching

FOLDER = Path("docs/results/precision")
MARGIN = 0.5  # percentage points: most of what the papers find between methods is less, none of it much less
_FIELDS = ("variant", "point", "seed", "first_loss", "val_top1")

POINTS: dict[str, tuple[str, dict[str, float]]] = {
    "kd": ("kd", {}),
    "loca 0.8": ("loca", {"alpha": 0.8}),
    "loca 0.95": ("loca", {"alpha": 0.95}),
    "loca 1": ("loca", {"alpha": 1.0}),
}


@dataclass(frozen=True)
class Variant:
    """How a run is computed: precision of its arithmetic, of its teacher's stored logits, and CPU threads."""

    precision: str = "float32"
    logits: str = "float32"
    threads: int = 1


BASE = "float32"
VARIANTS = {
    BASE: Variant(),
    "float32, other sums": Variant(threads=2),
    "bf16": Variant(precision="bf16"),
    "float16 logits": Variant(logits="float16"),
}

Run = tuple[str, str, int]  # variant, point, seed
Runs = dict[Run, tuple[float, float]]  # the first epoch's loss, and the last epoch's accuracy in percent


def cifar100(root: Path, checkpoint: Path, epochs: int, seeds: int) -> Setting:
    """The published resnet20 teaches a resnet8 on 2,000 images of CIFAR-100; 2,000 others are for validation."""
    dataset = data.load("cifar100", root)
    split = splits.make_split(dataset.train_labels, split_seed=0, validation_fraction=0.04, train_limit=2000)
    weights = teachers.read_state_dict(checkpoint)
    teacher = fidelity.teacher_of(dataset, "resnet20", weights)
    return Setting("cifar100", "crd-240", epochs, len(POINTS), seeds, "resnet8", dataset, split, teacher)


def read(file: Path) -> Runs:
    """The runs of a file."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["val_top1"]]
    return {
        (row["variant"], row["point"], int(row["seed"])): (float(row["first_loss"]), float(row["val_top1"]))
        for row in rows
    }


def train(setting: Setting, file: Path) -> None:
    """Train what is missing in a file, seed by seed and in each seed all variants of a point."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fidelity.mend(file, _FIELDS)
    there = read(file)
    wanted = [(v, point, seed) for seed in range(setting.seeds) for point in POINTS for v in VARIANTS]
    with TemporaryDirectory() as folder:
        for run in wanted:
            if run in there:
                continue
            first, last = _trained(setting, Path(folder), *run)
            with file.open("a", encoding="utf-8", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerow([*run, f"{first:.9g}", f"{last:.4f}"])
            print(f"{setting.name}: {', '.join(map(str, run))}: {last:.2f} %", file=sys.stderr)


def _trained(setting: Setting, folder: Path, variant: str, point: str, seed: int) -> tuple[float, float]:
    """The first epoch's loss and the last epoch's accuracy."""
    chosen, (method, parameters) = VARIANTS[variant], POINTS[point]
    torch.set_num_threads(chosen.threads)
    recipe = protocol.resolve(setting.base, setting.student, epochs=setting.epochs, precision=chosen.precision)
    key = key_of(setting.teacher.record.hash, setting.dataset, recipe, chosen.logits, "cpu")
    assert key is not None  # these views can be enumerated
    run = engine.RunSpec(setting.student, method, {**parameters}, recipe, seed)
    trainer = engine.Trainer(
        run,
        setting.dataset,
        setting.split.train,
        setting.split.validation,
        setting.teacher,
        evaluate_test=False,
        store=LogitStore(folder, key),
    )
    history = []
    while not trainer.done:
        history.append(trainer.train_epoch())
    return history[0]["train_loss"], history[-1]["val_top1"]


# What the runs say


@dataclass(frozen=True)
class Agreement:
    """A variant against float32, over seeds (n): in points of accuracy but for `loss`.

    mean, low, high: the difference and its 95 % t interval; spread: its SD over seeds; largest: of a single run;
    p_equivalent: of the two one-sided tests against `MARGIN`; loss: largest relative difference of a first epoch's.
    """

    n: int
    mean: float
    low: float
    high: float
    spread: float
    largest: float
    p_equivalent: float
    loss: float


def agreement(runs: Runs, variant: str) -> Agreement:
    """Compare a variant's runs with those of float32 that have the same point and seed.

    Raises:
        ValueError: fewer than two seeds have all points under both.
    """
    pairs = {
        (point, seed): (runs[BASE, point, seed], found)
        for (name, point, seed), found in runs.items()
        if name == variant and (BASE, point, seed) in runs
    }
    by_seed: dict[int, list[float]] = {}
    for (_, seed), ((_, base), (_, other)) in pairs.items():
        by_seed.setdefault(seed, []).append(other - base)
    most = max((len(found) for found in by_seed.values()), default=0)
    differences = [fmean(found) for found in by_seed.values() if len(found) == most]
    n = len(differences)
    if n < 2:
        raise ValueError(f"{variant}: {n} seeds with all points; a difference needs two at least")
    mean, spread = fmean(differences), stdev(differences)
    error = spread / n**0.5
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return Agreement(
        n=n,
        mean=mean,
        low=mean - half,
        high=mean + half,
        spread=spread,
        largest=max(abs(other - base) for (_, base), (_, other) in pairs.values()),
        p_equivalent=_tost(mean, error, n),
        loss=max(abs(other - base) / abs(base) for (base, _), (other, _) in pairs.values()),
    )


def _tost(mean: float, error: float, n: int) -> float:
    """The larger p of two one-sided t tests, against -`MARGIN` and +`MARGIN`."""
    if error == 0:
        return 0.0 if abs(mean) < MARGIN else 1.0
    below, above = (mean + MARGIN) / error, (mean - MARGIN) / error
    return float(max(stats.t.sf(below, n - 1), stats.t.cdf(above, n - 1)))


def seeds_spread(runs: Runs) -> float:
    """SD over seeds of float32's accuracy, the mean over the points of their variances."""
    of_point: dict[str, list[float]] = {}
    for (variant, point, _), (_, accuracy) in runs.items():
        if variant == BASE:
            of_point.setdefault(point, []).append(accuracy)
    return fmean(stdev(values) ** 2 for values in of_point.values()) ** 0.5


def compared(name: str, runs: Runs) -> Table:
    """Each variant of a setting against float32."""
    rows: list[tuple[object, ...]] = []
    for variant in VARIANTS:
        if variant != BASE:
            found = agreement(runs, variant)
            verdict = "equivalent" if found.p_equivalent < 0.05 else "not shown to be"
            interval = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
            p = f"{found.p_equivalent:.2g}"
            rows.append((variant, found.n, interval, found.spread, found.largest, p, verdict, found.loss))
    rows.append(("tf32", None, None, None, None, None, None, None))
    columns = (
        *("variant", "seeds", "difference, points (95 %)", "SD over seeds", "largest of a run"),
        *(f"p, within {MARGIN} points", "verdict", "first loss, relative"),
    )
    text = f"SD of a run's accuracy over seeds under float32: {seeds_spread(runs):.2g} points. tf32 needs a GPU."
    return Table(f"Against float32, {name}", columns, tuple(rows), text)


def of_logits(setting: Setting) -> Table:
    """What half precision does to the teacher's logits and to the losses on them, on one batch of 256 views."""
    images = setting.split.train[:256]
    target = setting.dataset.train_labels[images]
    recipe = protocol.resolve(setting.base, setting.student)
    pipeline = Pipeline(setting.dataset, recipe)
    teaching = Teaching(setting.teacher, pipeline, None)
    (shown,) = pipeline.training(0, 1, [images], ("weak",))
    teaching.begin(0, 1, images)
    with torch.no_grad():
        whole = teaching.answers("weak", shown.views[0], images)
    halves = whole.half().float()
    student = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0)) * whole.std()
    difference = (whole - halves).abs()
    rows: list[tuple[object, ...]] = [
        ("logits, largest", difference.max().item()),
        ("logits, mean", difference.mean().item()),
        ("top class changed, of 256", int((whole.argmax(1) != halves.argmax(1)).sum())),
    ]
    for name, (method, parameters) in POINTS.items():
        given = {"tau": recipe.tau, "beta": recipe.beta, "gamma": recipe.gamma} | parameters
        objective = objectives.build(method, **given)
        exact, near = (objective(student, logits, target)["loss"].item() for logits in (whole, halves))
        rows.append((f"loss of {name}, relative", abs(exact - near) / abs(exact)))
    limit = "Limit: half precision has 11 bits, a relative 4.9e-4 at most of each logit."
    return Table(f"Logits in half precision, {setting.name}", ("what", "difference"), tuple(rows), limit)


def measure(quick: bool, folder: Path, settings: Sequence[Setting] = ()) -> list[Table]:
    """Train what is missing of these settings, then compare all that a folder has."""
    chosen = [fidelity.digits(3, seeds=2)] if quick else list(settings)
    for setting in chosen:
        train(setting, folder / f"{setting.name}.csv")
    tables = [compared(file.stem, read(file)) for file in sorted(folder.glob("*.csv"))]
    return tables + [of_logits(setting) for setting in chosen]


def _settings(options: Namespace) -> list[Setting]:
    found = [fidelity.digits(30, seeds=options.seeds)]
    if options.root:
        found.append(cifar100(options.root, options.teacher, options.cifar_epochs, options.cifar_seeds))
    return found


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of the runs ({FOLDER})")
    parser.add_argument("--seeds", type=int, default=20, help="of the digits (20)")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="of CIFAR-100")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="a resnet20's state dict")
    parser.add_argument("--cifar-epochs", type=int, default=8, help="(8)")
    parser.add_argument("--cifar-seeds", type=int, default=5, help="(5)")
    options = parser.parse_args()
    if (options.root is None) != (options.teacher is None):
        parser.error("--root and --teacher go together")
    if options.quick:
        with TemporaryDirectory() as folder:
            tables = measure(True, Path(folder))
    else:
        tables = measure(False, options.folder, _settings(options))
    measuring.show("precision", tables, options)


if __name__ == "__main__":
    main()
