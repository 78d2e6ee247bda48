"""An eight-point alpha sweep: kdstudy against the plain way, the same runs with the same results.

    python -m benchmarks.sweep            two pairs on CIFAR-100 and short trials: about 25 minutes on two CPU cores
    python -m benchmarks.sweep --root FOLDER --teachers FOLDER

Each way is a command of its own, timed from its start to its end, Ray's start and all imports included; the ways take
turns. The plain way is `benchmarks.plain`: each trial a process of its own under Tune's defaults, a DataLoader, and the
teacher asked at each step. kdstudy is `kdstudy run` on a spec: *cold*, in a new home that has no logits, so that the
first run to need a view asks the teacher; *warm*, in a new home with the logits of the cold one; and *other alphas*, a
second study in that home. It also keeps checkpoints, its store and MLflow, which the plain way does not.

Limits: arithmetic alone, T a view for the teacher's forward pass, S for the student's, 2 S for its backward pass, and
S for each test image: plain T + 3 S a view, cold T/8 + 3 S, warm 3 S. A student's own step that is faster than the
plain one's goes beyond them. Short trials have no such limit: what they cost is the framework.

No ratio is shown unless the ways agree. They differ by the order of float32 sums alone, but training amplifies that: a
network whose initial weights are changed by 1e-7 of themselves has another loss after a dozen steps. So there is first
a probe of two steps, not timed, whose mean loss agrees to `PROBE_TOLERANCE` of itself; then the timed runs' loss of
the first epoch agrees to `LOSS_TOLERANCE`, the last test accuracy of a point to `POINT_TOLERANCE` percentage points,
and the mean over the points to `MEAN_TOLERANCE`.

The cut protocol is CRD's with fewer epochs, on a sample of the images; test images are in the full set's proportion,
one to five. A teacher without a checkpoint has random weights, and the statistics of its batch norms from images: it
costs what a trained one costs.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from torch import nn

from benchmarks import measuring
from benchmarks.measuring import Table, ratio
from benchmarks.plain import Settings
from search_spaces import pairs
from study.home import Home
from study.plan import ABLATION, Plan
from study.spec import parse_spec
from study.store import Store
from trainables import data, models, teachers
from trainables.data import ImageDataset, ResidentImages
from trainables.protocol import resolve
from trainables.teachers import TeacherRecord
from trainables.views import normalise

ALPHAS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0, 1.01)
OTHERS = (0.75, 0.85, 0.92, 0.96, 0.985, 0.992, 0.998, 1.005)

PROBE_TOLERANCE = 1e-4
LOSS_TOLERANCE = 0.01
POINT_TOLERANCE = 6.0
MEAN_TOLERANCE = 2.0

# What each pair is to reach on two CPU cores: cold and warm.
TARGETS = {"resnet56-resnet20": (1.6, 1.8), "resnet32x4-resnet8x4": (2.0, 2.5)}

_ROOT = Path("../shared/data/cifar100")
_TEACHERS = Path("../shared/data/teachers")
_REPOSITORY = Path(__file__).resolve().parent.parent

# By alpha, the metrics of each epoch: `train_loss` and `test_top1`.
Histories = dict[float, list[dict[str, float]]]


class Disagreement(RuntimeError):
    """The ways did not train the same runs."""


@dataclass(frozen=True)
class Sweep:
    """One sweep: the pair, how it is cut, and the points."""

    pair: str
    dataset: str
    root: Path | None
    base: str
    epochs: int
    images: int
    test_images: int
    alphas: tuple[float, ...]
    others: tuple[float, ...]
    teachers: Path | None = None  # a folder of `DATASET_MODEL.pth`

    def spec(self, name: str, alphas: tuple[float, ...]) -> dict[str, object]:
        """The study's spec."""
        return {
            "name": name,
            "protocol": {"base": self.base, "epochs": self.epochs},
            "data": {
                "name": self.dataset,
                "root": None if self.root is None else str(self.root.absolute()),
                "train_limit": self.images,
                "test_limit": self.test_images,
            },
            "teacher": {"checkpoint": pairs.get(self.pair).teacher},
            "pairs": [self.pair],
            "methods": {"loca": {"alpha": list(alphas)}},
            "seeds": 1,
        }


# What is there before the clock starts


@dataclass(frozen=True)
class Prepared:
    """A home with the teacher and the decoded images, and the plain way's folder."""

    sweep: Sweep
    home: Path
    plain: Settings


def prepare(sweep: Sweep, home: Home, folder: Path, concurrency: int, loader_workers: int) -> Prepared:
    """Do what is done once and not timed: decode the images, keep the teacher, write what the plain way reads.

    Raises:
        ValueError: a last batch would hold a single image.
    """
    folder.mkdir(parents=True)
    dataset = data.load(sweep.dataset, root=sweep.root, cache=home.data)
    pair = pairs.get(sweep.pair)
    weights = _weights(sweep, pair.teacher, dataset)
    teachers.save(home.root, _record(pair.teacher, dataset, weights), weights)

    plan = Plan(parse_spec(sweep.spec("sweep", sweep.alphas), "sweep"), home)
    (planned,) = plan.pairs.values()
    protocol = planned.protocol
    if sweep.images % protocol.batch_size == 1:
        raise ValueError(f"--images {sweep.images}: the last batch would hold one image, nothing to normalise by")
    parts = {
        "train": (dataset.train_images, dataset.train_labels, planned.split(ABLATION).train),
        "test": (dataset.test_images, dataset.test_labels, planned.test_indices()),
    }
    for part, (images, labels, indices) in parts.items():
        assert isinstance(images, ResidentImages)
        np.save(folder / f"{part}-pixels.npy", images.pixels.permute(0, 2, 3, 1).contiguous().numpy())
        np.save(folder / f"{part}-labels.npy", labels.numpy())
        np.save(folder / f"{part}-indices.npy", indices.numpy())
    torch.save(weights, folder / "teacher.pt")
    settings = Settings(
        folder=str(folder),
        teacher=pair.teacher,
        student=pair.student,
        classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
        alphas=sweep.alphas,
        seed=0,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        lr=protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        milestones=protocol.milestones,
        lr_decay=protocol.lr_decay,
        tau=protocol.tau,
        beta=protocol.beta,
        gamma=protocol.gamma,
        pad=protocol.pad,
        flip=protocol.flip,
        concurrency=concurrency,
        loader_workers=loader_workers,
    )
    return Prepared(sweep, home.root, settings)


def _weights(sweep: Sweep, model: str, dataset: ImageDataset) -> dict[str, torch.Tensor]:
    """A checkpoint's, or random ones under which the network's activations are of ordinary size."""
    file = _checkpoint(sweep, model)
    if file is not None:
        return teachers.read_state_dict(file)
    torch.manual_seed(0)
    network = models.build(model, dataset.num_classes)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics over all that is shown
    assert isinstance(dataset.train_images, ResidentImages)
    with torch.no_grad():
        network(normalise(dataset.train_images.pixels[:256], dataset.mean, dataset.std))
    return network.state_dict()


def _checkpoint(sweep: Sweep, model: str) -> Path | None:
    file = None if sweep.teachers is None else sweep.teachers / f"{sweep.dataset}_{model}.pth"
    return file if file is not None and file.is_file() else None


def _record(model: str, dataset: ImageDataset, weights: dict[str, torch.Tensor]) -> TeacherRecord:
    record = teachers.unmeasured_record(model, dataset, weights, trained_on="unknown", origin="benchmarks.sweep")
    return replace(record, test_top1=0.0, test_top5=0.0, mis_instruction_ratio=0.0)  # a study prints them


# The ways


@dataclass(frozen=True)
class Outcome:
    """How long a way took, in seconds, what came out, and where the time went, where the way can say so (`SPENT`)."""

    seconds: float
    histories: Histories
    spent: tuple[float, ...] = ()


def run_plain(prepared: Prepared) -> Outcome:
    """The plain way."""
    folder = Path(prepared.plain.folder)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    (folder / "settings.json").write_text(json.dumps(asdict(prepared.plain)), encoding="utf-8")
    command = ["-c", "from benchmarks import plain; plain.main()", str(folder / "settings.json")]
    seconds = _timed(command, folder / "plain.log", {})
    histories = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Outcome(seconds, {float(alpha): history for alpha, history in histories.items()})


def run_kdstudy(prepared: Prepared, home: Path, logits: Path, name: str, alphas: tuple[float, ...]) -> Outcome:
    """A study in a home, with the logits that are in a folder."""
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump(prepared.sweep.spec(name, alphas)), encoding="utf-8")
    where = {"KDSTUDY_HOME": str(home), "KDSTUDY_LOGITS": str(logits)}
    concurrency = prepared.plain.concurrency
    began = time.time()
    command = ["-m", "kdstudy", "run", str(file), "--concurrency", str(concurrency)]
    seconds = _timed(command, home / f"{name}.out", where)
    with Store(f"sqlite:///{home / 'store.db'}").opened() as store:
        rows = store.runs(name)
        if taken := sum(row.taken_over for row in rows):
            raise Disagreement(f"{taken} of the {len(rows)} runs were not trained but taken over")
        histories = {row.parameters["alpha"]: store.history(row.run_id) for row in rows}
    first, last = min(row.started or 0.0 for row in rows) - began, max(row.ended or 0.0 for row in rows) - began
    busy = sum(row.device_seconds for row in rows) / concurrency
    return Outcome(seconds, histories, (first, busy, last - first - busy, seconds - last))


def _timed(arguments: list[str], log: Path, variables: dict[str, str]) -> float:
    """Run a Python command line; wall seconds from its start to its end.

    Raises:
        RuntimeError: it fails; the end of what it said.
    """
    apart = ("KDSTUDY_", "MLFLOW_", "RAY_", "TUNE_", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(apart)}
    # Ray's requests to the world outside would wait where there is none, and a token in a file is not ours to write.
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Ray's workers are of a low priority; where something else runs too, that would stretch one way more than another.
    environment |= {"RAY_worker_niceness": "0", "PYTHONPATH": str(_REPOSITORY)} | variables
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)}: {log.read_text(encoding='utf-8')[-2000:]}")
    return seconds


def _new_home(prepared: Prepared, folder: Path) -> Path:
    """A home with the teacher and the images, and nothing else; the files are linked, since nobody writes to them."""
    shutil.copytree(prepared.home, folder, copy_function=os.link)
    return folder


# What is compared


@dataclass(frozen=True)
class Difference:
    """Between the same points by two ways: the first epoch's loss (a share of it), the last test accuracy (points)."""

    loss: float
    point: float
    mean: float


def difference(one: Histories, other: Histories) -> Difference:
    """The largest over the points, and that of the mean accuracy.

    Raises:
        Disagreement: other points or epochs.
    """
    if one.keys() != other.keys() or any(len(one[alpha]) != len(other[alpha]) for alpha in one):
        raise Disagreement(f"points {sorted(one)} and {sorted(other)}, or epochs of them, are not the same")
    firsts = [(one[alpha][0]["train_loss"], other[alpha][0]["train_loss"]) for alpha in one]
    lasts = [(one[alpha][-1]["test_top1"], other[alpha][-1]["test_top1"]) for alpha in one]
    return Difference(
        loss=max(abs(a - b) / abs(a) for a, b in firsts),
        point=max(abs(a - b) for a, b in lasts),
        mean=abs(fmean(a for a, _ in lasts) - fmean(b for _, b in lasts)),
    )


def require_agreement(found: Difference, way: str) -> None:
    """Refuse a way that did not train the plain way's runs.

    Raises:
        Disagreement: the difference is larger than float32 explains.
    """
    if found.loss > LOSS_TOLERANCE or found.point > POINT_TOLERANCE or found.mean > MEAN_TOLERANCE:
        raise Disagreement(
            f"{way} did not train the plain way's runs: the first epoch's loss differs by {100 * found.loss:.2g} % "
            f"(allowed: {100 * LOSS_TOLERANCE:g}), a point's accuracy by {found.point:.2g} (allowed: "
            f"{POINT_TOLERANCE:g}), the mean accuracy by {found.mean:.2g} (allowed: {MEAN_TOLERANCE:g})"
        )


def probe(prepared: Prepared, folder: Path) -> float:
    """Train two steps of the first and the last point by both ways; how much the loss differs, as a share of it.

    Raises:
        Disagreement: by more than `PROBE_TOLERANCE`.
    """
    found = difference(
        run_plain(prepared).histories,
        run_kdstudy(prepared, _new_home(prepared, folder), folder / "logits", "probe", prepared.sweep.alphas).histories,
    )
    if found.loss > PROBE_TOLERANCE:
        raise Disagreement(
            f"after two steps the ways' losses differ by {found.loss:.2g} of themselves (allowed: {PROBE_TOLERANCE:g})"
        )
    return found.loss


def bounds(sweep: Sweep) -> tuple[float, float]:
    """How many times as much arithmetic the plain way has as kdstudy, cold and warm."""
    pair, entry = pairs.get(sweep.pair), data.get(sweep.dataset)
    assert entry.shape is not None
    assert entry.num_classes is not None
    teacher, student = (
        models.count_macs(models.build(model, entry.num_classes), entry.shape) for model in (pair.teacher, pair.student)
    )
    own = (3 + sweep.test_images / sweep.images) * student
    return (teacher + own) / (teacher / len(sweep.alphas) + own), (teacher + own) / own


# The tables

WAYS = ("plain", "cold", "warm", "other alphas")
# Where the seconds of a study go: imports, the teacher's measurement and Ray's start; training and measuring students,
# a worker's share of it; workers that wait for Ray or for the last run; MLflow's last pass, the answer, the end.
SPENT = ("until the first run", "training", "workers idle", "after the last run")


def measure_sweep(
    prepared: Prepared, folder: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Difference], dict[str, tuple[float, ...]]]:
    """Each way in turns: its seconds in each round, its largest difference from the plain way, where its time went.

    Raises:
        Disagreement: a way did not train the plain way's runs.
    """
    sweep = prepared.sweep
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    worst: dict[str, Difference] = {}
    spent: dict[str, tuple[float, ...]] = {}
    for number in range(rounds):
        logits = folder / f"logits-{number}"
        cold, warm = (_new_home(prepared, folder / f"{way}-{number}") for way in ("cold", "warm"))
        found = {
            "plain": run_plain(prepared),
            "cold": run_kdstudy(prepared, cold, logits, "cold", sweep.alphas),
            "warm": run_kdstudy(prepared, warm, logits, "warm", sweep.alphas),
            "other alphas": run_kdstudy(prepared, warm, logits, "other", sweep.others),
        }
        for way, outcome in found.items():
            seconds[way].append(outcome.seconds)
            spent[way] = outcome.spent
            print(f"{sweep.pair}, {way}: {outcome.seconds:.1f} s", file=sys.stderr)
        for way in ("cold", "warm"):
            differs = difference(found["plain"].histories, found[way].histories)
            require_agreement(differs, way)
            before = worst.get(way, differs)
            worst[way] = Difference(*map(max, zip(_values(differs), _values(before), strict=True)))
    return seconds, worst, spent


def _values(found: Difference) -> tuple[float, float, float]:
    return found.loss, found.point, found.mean


def _rows(
    label: str, seconds: dict[str, list[float]], worst: dict[str, Difference], limits: tuple[float, float] | None
) -> list[tuple[object, ...]]:
    cold, warm = limits or (None, None)
    of_way = {"plain": None, "cold": cold, "warm": warm, "other alphas": warm}
    return [
        (
            label,
            way,
            fmean(seconds[way]),
            ratio(seconds["plain"], seconds[way]),
            of_way[way],
            f"{100 * worst[way].loss:.2g} %" if way in worst else None,
            worst[way].point if way in worst else None,
        )
        for way in WAYS
    ]


_COLUMNS = ("pair", "way", "seconds", "plain / this", "bound", "first loss differs by", "last accuracy differs by")


def measure(
    quick: bool,
    *,
    root: Path = _ROOT,
    checkpoints: Path = _TEACHERS,
    images: int = 2000,
    epochs: int = 2,
    rounds: int = 1,
    concurrency: int = 2,
    loader_workers: int = 0,
    work: Path | None = None,
    only: str | None = None,
) -> list[Table]:
    """Sweep both pairs, then short trials.

    Args:
        quick: the digits instead, in seconds.
        only: this pair alone, and no short trials.
        root: folder of CIFAR-100.
        checkpoints: folder of teachers, `cifar100_MODEL.pth`.
        images: of a run.
        epochs: of a run.
        rounds: how often each way has its turn.
        concurrency: runs at a time, a core each.
        loader_workers: of the plain way's DataLoader.
        work: where all files go; by default a temporary folder.

    Raises:
        Disagreement: the ways did not train the same runs.
    """
    if quick:
        tiny = Sweep("cnn32-cnn3", "digits", None, "digits-quick", 2, 200, 40, (0.9, 1.0), (0.8, 0.95))
        long, short = [tiny], None
    else:
        one = Sweep(
            "resnet56-resnet20", "cifar100", root, "crd-240", epochs, images, images // 5, ALPHAS, OTHERS, checkpoints
        )
        long = [replace(one, pair=pair) for pair in TARGETS if only in (None, pair)]
        short = (
            None
            if only
            else replace(one, epochs=1, images=256, test_images=51, alphas=_spread(0.8, 16), others=_spread(0.806, 16))
        )
    with TemporaryDirectory(prefix="kdstudy-sweep-", dir=work) as temporary:
        folder = Path(temporary)
        root = folder / "home"
        home = Home(root, f"sqlite:///{root / 'store.db'}", f"sqlite:///{root / 'mlflow.db'}", str(root))

        profile: list[tuple[object, ...]] = []

        def measured(sweep: Sweep, limits: tuple[float, float] | None) -> tuple[list[tuple[object, ...]], float]:
            there = folder / ("short" if limits is None else "long") / sweep.pair
            batch = resolve(sweep.base).batch_size
            two_steps = replace(sweep, epochs=1, images=2 * batch, alphas=(sweep.alphas[0], sweep.alphas[-1]))
            found = probe(prepare(two_steps, home, there / "probe", concurrency, loader_workers), there / "probed")
            prepared = prepare(sweep, home, there / "plain", concurrency, loader_workers)
            seconds, worst, spent = measure_sweep(prepared, there, rounds)
            label = sweep.pair + (", short trials" if limits is None else "")
            profile.extend((label, way, *parts) for way, parts in spent.items() if parts)
            return _rows(sweep.pair, seconds, worst, limits), found

        rows, probed = zip(*(measured(sweep, bounds(sweep)) for sweep in long), strict=True)
        title = f"A sweep of {len(long[0].alphas)} alphas"
        tables = [Table(title, _COLUMNS, tuple(row for some in rows for row in some), _limits(long, max(probed)))]
        if short is not None:
            found, _ = measured(short, None)
            title = f"Short trials: {len(short.alphas)} of one epoch on {short.images} images"
            tables.append(Table(title, _COLUMNS, tuple(found), "Limit: the framework's own cost, see `overhead`."))
    text = "Limit: the training alone. The last of the rounds."
    return [*tables, Table("Where kdstudy's seconds go", ("pair", "way", *SPENT), tuple(profile), text)]


def _spread(first: float, count: int) -> tuple[float, ...]:
    """So many alphas from `first` on."""
    return tuple(round(first + 0.012 * i, 4) for i in range(count))


def _limits(sweeps: list[Sweep], probed: float) -> str:
    one = sweeps[0]
    text = (
        f"Each run: {one.images:,} images, {one.epochs} epochs, {one.test_images:,} test images after each. Bounds are "
        "of arithmetic: T + 3S a view the plain way, T/n + 3S cold with n points, 3S warm, and S a test image. "
    )
    targets = [f"{pair} cold {cold}, warm {warm}" for pair, (cold, warm) in TARGETS.items()]
    text += f"To reach on two CPU cores: {'; '.join(targets)}. "
    text += f"After two steps the ways' losses differ by {probed:.1g} of themselves. "
    without = [pairs.get(s.pair).teacher for s in sweeps if _checkpoint(s, pairs.get(s.pair).teacher) is None]
    return text + (f"Random weights: {', '.join(without)}." if without else "")


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--root", type=Path, default=_ROOT, metavar="FOLDER", help=f"of CIFAR-100 ({_ROOT})")
    parser.add_argument("--teachers", type=Path, default=_TEACHERS, metavar="FOLDER", help=f"({_TEACHERS})")
    parser.add_argument("--images", type=int, default=2000, help="of a run (2000)")
    parser.add_argument("--epochs", type=int, default=2, help="of a run (2)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each way has its turn (1)")
    parser.add_argument("--concurrency", type=int, default=2, help="runs at a time, a core each (2)")
    parser.add_argument("--loader-workers", type=int, default=0, help="of the plain way's DataLoader (0)")
    parser.add_argument("--pair", choices=TARGETS, help="this one alone, and no short trials")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where temporary files go")
    options = parser.parse_args()
    if not options.quick and not options.root.is_dir():
        print(f"benchmarks.sweep: skipped: there is no CIFAR-100 in {options.root}; --root names its folder")
        return
    try:
        tables = _measured(options)
    except Disagreement as error:
        sys.exit(f"benchmarks.sweep: no ratios: {error}")
    measuring.show("sweep", tables, options)


def _measured(options: argparse.Namespace) -> list[Table]:
    return measure(
        options.quick,
        root=options.root,
        checkpoints=options.teachers,
        images=options.images,
        epochs=options.epochs,
        rounds=options.rounds,
        concurrency=options.concurrency,
        loader_workers=options.loader_workers,
        work=options.work,
        only=options.pair,
    )


if __name__ == "__main__":
    main()
