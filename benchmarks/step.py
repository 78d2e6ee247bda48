"""A training step by part, the arithmetic that it achieves, and other ways to take it.

    python -m benchmarks.step [--device cuda] [--compile] [--json FILE] [--quick]

On CIFAR-shaped images in batches of 64, on one CPU thread or on a GPU, for resnet20 (taught by resnet56) and resnet8x4
(by resnet32x4) with LoCa:

* by part: views, normalisation, teacher logits from the store or from the teacher itself, student forward, loss,
  backward, optimiser, metrics. On a GPU the clock waits for the device after each part, which the step itself does not:
  the last row has the whole step as a run takes it.
* the student's passes as arithmetic: two floating-point operations a multiply-add, a backward pass twice a forward
  pass. The limit is the device's matrix product (float32), measured between the steps of the same run.
* the student's step in other ways, in turns, each in a process of its own: the layout in memory, the optimiser's
  implementation, bfloat16 and (on a CPU) whether the process keeps the memory that it frees. `plain torch` is what one
  writes without thinking of any of it; to reach: faster than that. `--compile` adds torch.compile; that takes minutes.
* evaluation by batch size.
"""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import setting
from benchmarks.measuring import Table, arguments, environment, interleaved, ratio, show
from trainables import engine, models, objectives, protocol
from trainables.data import ImageDataset
from trainables.logits import LogitStore
from trainables.measures import evaluate
from trainables.memory import KEEP_FREED
from trainables.pipeline import Pipeline
from trainables.precision import autocast
from trainables.teachers import Teacher
from trainables.teaching import Teaching
from trainables.views import normalise

PAIRS = {"resnet20": "resnet56", "resnet8x4": "resnet32x4"}
BATCH = 64
PARTS = (
    "views",
    "normalise",
    "teacher logits from the store",
    "student forward",
    "loss",
    "backward",
    "optimiser",
    "metrics",
)
ONLINE = "teacher logits from the teacher"


def clock(device: str) -> float:
    """Seconds, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter()


class Steps:
    """A run's steps taken apart.

    Args:
        student: its model.
        dataset, teacher, store: what it learns from.
        device: `cpu` or `cuda`.
    """

    def __init__(self, student: str, dataset: ImageDataset, teacher: Teacher, store: LogitStore, device: str) -> None:
        self.protocol = protocol.resolve("crd-240", student)
        self.device = device
        self.dataset = dataset
        self.pipeline = Pipeline(dataset, self.protocol, device)
        self.teaching = Teaching(teacher, self.pipeline, store)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = models.build(student, dataset.num_classes).to(device).to(memory_format=torch.channels_last)
        chosen = self.protocol
        self.objective = objectives.build("loca", alpha=0.95, tau=chosen.tau, beta=chosen.beta, gamma=chosen.gamma)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay
        )

    def take(self, indices: Tensor) -> dict[str, float]:
        """Train on some images, in batches; seconds a step of each part, and of asking the teacher itself."""
        batches = indices.split(BATCH)
        seconds: dict[str, list[float]] = defaultdict(list)
        last = clock(self.device)

        def lap(part: str) -> None:
            nonlocal last
            now = clock(self.device)
            seconds[part].append(now - last)
            last = clock(self.device)

        self.teaching.begin(0, 1, indices)
        lap("begin")
        shown = iter(self.pipeline.training(0, 1, batches))
        for _ in batches:
            batch = next(shown)
            pixels, target = batch.views[0], batch.labels
            lap("views")
            teacher_logits = self.teaching.answers("weak", pixels, batch.indices)
            lap("teacher logits from the store")
            images = normalise(pixels, self.dataset.mean, self.dataset.std)
            lap("normalise")
            logits = self.model(images)
            lap("student forward")
            parts = self.objective(logits, teacher_logits, target, 1)
            lap("loss")
            self.optimiser.zero_grad()
            parts["loss"].backward()
            lap("backward")
            self.optimiser.step()
            lap("optimiser")
            hit = (logits.detach().argmax(1) == target).float().mean()
            metrics = [parts[name].detach() for name in ("loss", "mis_instruction_ratio", "capped_ratio")]
            torch.stack([*metrics, hit])
            lap("metrics")
        # Not between the others: the teacher's activations would push the student's out of a CPU's cache.
        for batch in self.pipeline.training(0, 1, batches):
            lap("views again")
            self.teaching.ask(batch.views[0], batch.indices)
            lap(ONLINE)
        # Views are made of several batches at once, and an epoch's answers are read at its beginning.
        found = {part: median(values) for part, values in seconds.items() if part in (*PARTS, ONLINE)}
        found["views"] = sum(seconds["views"]) / len(batches)
        found["teacher logits from the store"] += seconds["begin"][0] / len(batches)
        return found


def matrix_products(device: str) -> dict[str, tuple[Callable[[], Tensor], float]]:
    """Float32 products that fill the device, each with its 1e9 floating-point operations.

    A square one by the library for matrices, and a 1x1 convolution, which is one too, by the library for convolutions:
    which of them knows the processor better differs.
    """
    n = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device)
    out = torch.empty(n, n, device=device)
    images, channels, side = (BATCH, 1024, 32) if device == "cuda" else (BATCH, 256, 16)
    pixels = torch.randn(images, channels, side, side, device=device).to(memory_format=torch.channels_last)
    kernels = torch.randn(channels, channels, 1, 1, device=device).to(memory_format=torch.channels_last)
    return {
        "square": (lambda: torch.mm(a, b, out=out), 2 * n**3 / 1e9),
        "1x1 convolution": (lambda: F.conv2d(pixels, kernels), 2 * images * side**2 * channels**2 / 1e9),
    }


def of_parts(student: str, dataset: ImageDataset, folder: Path, device: str, steps: int, rounds: int) -> list[Table]:
    """Where a step's time goes, and the student's arithmetic against the device's matrix product."""
    chosen = protocol.resolve("crd-240", student)
    teacher = setting.random_teacher(PAIRS[student], dataset)
    store = setting.open_store(folder, teacher, dataset, chosen, device)
    setting.fill(store, epochs=rounds + 1)
    indices = torch.arange(steps * BATCH)
    taken = Steps(student, dataset, teacher, store, device)
    run = engine.RunSpec(student, "loca", {"alpha": 0.95}, chosen, seed=0)
    trainer = engine.Trainer(
        run, dataset, indices, indices[:0], teacher, evaluate_test=False, device=device, store=store
    )
    products = matrix_products(device)
    parts: dict[str, list[float]] = defaultdict(list)

    def apart() -> None:
        for part, seconds in taken.take(indices).items():
            parts[part].append(seconds)

    calls = {"apart": apart, "whole": trainer.train_epoch, **{name: call for name, (call, _) in products.items()}}
    seconds = interleaved(calls, rounds=rounds, device=device)
    of = {part: median(values[1:]) for part, values in parts.items()}
    whole, total = median(seconds["whole"]) / steps, sum(of[part] for part in PARTS)
    rows = [(part, 1e3 * of[part], 100 * of[part] / total) for part in PARTS]
    rows.append(("all parts", 1e3 * total, 100.0))
    rows.append(("the whole step, as a run takes it", 1e3 * whole, 100 * whole / total))
    rows.append((f"not in it: {PAIRS[student]} asked at each step", 1e3 * of[ONLINE], 100 * of[ONLINE] / total))
    student_passes = of["student forward"] + of["backward"]
    first = Table(
        f"A step of {student} on {BATCH} images by part, {device}",
        ("part", "ms", "% of all parts"),
        tuple(rows),
        f"Limit: the student's own passes, {100 * student_passes / total:.3g} % of the parts; all else is to vanish "
        "beside them.",
    )
    macs = models.count_macs(taken.model, (3, 32, 32)) * BATCH
    rates = {name: operations / min(seconds[name]) for name, (_, operations) in products.items()}
    peak = max(rates.values())
    passes = (
        ("forward", 2, of["student forward"]),
        ("backward", 4, of["backward"]),
        ("forward and backward", 6, student_passes),
    )
    second = Table(
        f"Arithmetic of {student}, {device}",
        ("pass", "GFLOP", "GFLOP/s", "% of the matrix product"),
        tuple(
            (name, each * macs / 1e9, each * macs / 1e9 / spent, 100 * each * macs / 1e9 / spent / peak)
            for name, each, spent in passes
        ),
        f"Limit: the matrix product's {peak:.4g} GFLOP/s, its fastest in this run ("
        + ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
        + "). The passes also hold batch norms, ReLUs and sums, which are no products.",
    )
    return [first, second]


# The student's step in other ways


@dataclass(frozen=True)
class Way:
    """How a student's step is taken. `keep`: the process keeps the memory that it frees (CPU)."""

    channels_last: bool = True
    optimiser: str = "foreach"
    precision: str = "float32"
    compiled: bool = False
    keep: bool = True


WAYS = {
    "as a run takes it": Way(),
    "plain torch": Way(channels_last=False, keep=False),
    "channels first": Way(channels_last=False),
    "memory given back": Way(keep=False),
    "SGD in a loop": Way(optimiser="loop"),
    "SGD fused": Way(optimiser="fused"),
    "bf16": Way(precision="bf16"),
}
COMPILED = {"compiled": Way(compiled=True), "compiled, bf16": Way(compiled=True, precision="bf16")}


def student_step(student: str, way: Way, device: str) -> Callable[[], Tensor]:
    """A step of a student alone, on one batch; it returns the weights, one after the other."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).to(device)
    target = torch.randint(100, (BATCH,), generator=generator).to(device)
    model = models.build(student, 100).to(device)
    if way.channels_last:
        model = model.to(memory_format=torch.channels_last)
    run = torch.compile(model, dynamic=False) if way.compiled else model
    chosen = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[way.optimiser]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, **chosen)

    def step() -> Tensor:
        with autocast(way.precision, torch.device(device)):
            logits = run(images).float()
        optimiser.zero_grad()
        F.cross_entropy(logits, target).backward()
        optimiser.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    return step


@contextmanager
def elsewhere(student: str, way: Way, device: str) -> Iterator[Callable[[], list[float]]]:
    """A student's step in another process: called, it takes one and returns some of the weights."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, student, way, device), daemon=True)
    with environment(GLIBC_TUNABLES=KEEP_FREED if way.keep and device == "cpu" else ""):
        process.start()
    its.close()

    def call() -> list[float]:
        mine.send(None)
        found: list[float] = mine.recv()
        return found

    try:
        call()  # imports, and compiles
        yield call
    finally:
        mine.close()
        process.join()


def _serve(pipe: Connection, student: str, way: Way, device: str) -> None:
    torch.set_num_threads(1)
    step = student_step(student, way, device)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        weights = step()
        pipe.send(weights[:: max(1, len(weights) // 1000)].tolist())


def of_ways(student: str, device: str, ways: dict[str, Way], rounds: int) -> Table:
    """The student's step in several ways, in turns."""
    ways = {name: way for name, way in ways.items() if device == "cpu" or way.keep or name == "plain torch"}
    weights: dict[str, list[float]] = {}
    with ExitStack() as stack:
        calls = {name: stack.enter_context(elsewhere(student, way, device)) for name, way in ways.items()}

        def remembered(name: str) -> Callable[[], None]:
            def call() -> None:
                weights[name] = calls[name]()

            return call

        seconds = interleaved({name: remembered(name) for name in ways}, rounds=rounds)
    ours = "as a run takes it"
    rows = tuple(
        (name, 1e3 * median(seconds[name]), ratio(seconds[name], seconds[ours]), _same(weights[name], weights[ours]))
        for name in ways
    )
    return Table(
        f"{student}'s own step on {BATCH} images in other ways, {device}",
        ("way", "ms", "times a run's way", "weights after these steps"),
        rows,
        f"To reach: `plain torch` above 1. Weights after {rounds + 2} steps, compared with those of a run's way.",
    )


def _same(weights: list[float], others: list[float]) -> str:
    if weights == others:
        return "the same to the last bit"
    return f"differ by {max(abs(a - b) for a, b in zip(weights, others, strict=True)):.1g} at most"


def of_evaluation(student: str, dataset: ImageDataset, device: str, sizes: tuple[int, ...], rounds: int) -> Table:
    """Evaluation by batch size."""
    pipeline = Pipeline(dataset, protocol.resolve("crd-240", student), device)
    model = models.build(student, 100).to(device).to(memory_format=torch.channels_last).eval()
    images = torch.arange(max(sizes))

    def logits(pixels: Tensor) -> Tensor:
        found: Tensor = model(normalise(pixels, dataset.mean, dataset.std))
        return found

    def measured(size: int) -> Callable[[], Any]:
        return lambda: evaluate(logits, pipeline.evaluation("test", images, size))

    seconds = interleaved({str(size): measured(size) for size in sizes}, rounds=rounds, device=device)
    base = seconds[str(sizes[0])]
    return Table(
        f"Evaluation of {student}, {device}",
        ("images a batch", "images/s", f"time, by that of {sizes[0]}"),
        tuple((size, len(images) / median(seconds[str(size)]), ratio(seconds[str(size)], base)) for size in sizes),
        "Limit: the forward pass; on a CPU, a batch whose activations stay in its cache.",
    )


def measure(quick: bool, device: str = "cpu", compiled: bool = False) -> list[Table]:
    """All tables."""
    torch.set_num_threads(1)
    students = ("resnet20",) if quick else tuple(PAIRS)
    # Of so many steps the first of which are slower: a median is taken.
    steps, rounds = (2, 1) if quick else (8, 5)
    ways = {name: WAYS[name] for name in ("as a run takes it", "plain torch", "SGD in a loop")} if quick else WAYS
    sizes = (25, 50) if quick else (125, 50, 250, 500, 1000)
    dataset = setting.images(None if quick else setting.CIFAR100, train=steps * BATCH, test=max(sizes))
    tables = []
    for student in students:
        with TemporaryDirectory() as folder:
            tables += of_parts(student, dataset, Path(folder), device, steps, rounds)
        tables.append(of_ways(student, device, ways | (COMPILED if compiled else {}), 1 if quick else 9))
        tables.append(of_evaluation(student, dataset, device, sizes, rounds))
    return tables


def main() -> None:
    """The command."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: needs a C++ compiler, minutes")
    options = parser.parse_args()
    show("step", measure(options.quick, options.device, options.compile), options, options.device)


if __name__ == "__main__":
    main()
