"""How fast students train from cached teacher logits on a GPU, alone and several at once.

    python -m benchmarks.gpu [--state FILE] [--minutes N] [--json FILE] [--quick]

Needs a GPU (without one it says so in a line and ends), and of the stack only torch, torchvision and numpy. The images
are CIFAR-100's where its folder is there, random otherwise; logits are random but fixed, in a store that has them all.

Alone: resnet20, resnet8x4, wrn_16_2 and shufflenet_v2 with eager, graphed and compiled steps, in float32, TF32 and
bf16. An epoch is 50,000 training views and 10,000 test images, as `engine.Trainer` trains it; the first one is not
counted. A whole run is 240 times the mean of the others.

Sharing: 1, 4, 8 and 16 runs of a student at once with graphed steps, in three ways:

* processes: each run in its own, as study.launcher starts them; the device gives them turns.
* processes under MPS: their kernels run side by side. Where `nvidia-cuda-mps-control` is on the path.
* streams: all runs in one process and one thread, a step of each in turns, each on its own stream.

What decides: runs an hour at 8 and 16 runs for resnet20 and shufflenet_v2, graphed, in float32. The launcher has
processes. MPS comes into it if it gives 10 % more than those on both, since it is a daemon to start and to end, and a
fault in one run ends all that share it. Streams come into it only if they give 10 % more than the better of these,
since runs in one process share one fault and one interpreter. The loser is then deleted here.

Limits and targets: a 240-epoch resnet20 run in 3 minutes or less on an H100, and shared at least 3 times that rate. A
GPU that is full gives no more runs an hour with more runs at once.

What was measured is kept in FILE, by device, and is not measured again; a call that is cut off goes on with the rest.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks import setting
from benchmarks.measuring import Table, arguments, environment, show
from trainables import engine, protocol
from trainables.data import ImageDataset
from trainables.files import write_atomic
from trainables.graphs import GraphedStep
from trainables.image_lessons import ImageLessons
from trainables.measures import evaluate
from trainables.precision import float32_products
from trainables.protocol import Protocol

STUDENTS = ("resnet20", "resnet8x4", "wrn_16_2", "shufflenet_v2")
TEACHER = "resnet8x4"  # never asked: all its logits are in the store
EXECUTIONS = ("graphs", "eager", "compiled")
PRECISIONS = ("float32", "tf32", "bf16")
RUNS = (1, 4, 8, 16)
PROCESSES, MPS, STREAMS = "processes", "processes under MPS", "streams"
WAYS = (PROCESSES, MPS, STREAMS)
EPOCHS = 240
TARGET_MINUTES, TARGET_SHARING = 3.0, 3.0
_CONTROL = "nvidia-cuda-mps-control"


@dataclass(frozen=True)
class Configuration:
    """What is measured: `runs` runs at once, in one of `WAYS`."""

    student: str
    execution: str = "graphs"
    precision: str = "float32"
    way: str = PROCESSES
    runs: int = 1

    @property
    def key(self) -> str:
        """Its name in the state file."""
        return " ".join(map(str, asdict(self).values()))


def configurations() -> list[Configuration]:
    """All, those that targets are set for first."""
    shared = [
        Configuration(student, way=way, runs=runs)
        for student in ("resnet20", "shufflenet_v2")
        for way in WAYS
        for runs in RUNS
    ]
    others = [
        Configuration(student, execution, precision)
        for student in STUDENTS
        for execution in EXECUTIONS
        for precision in PRECISIONS
    ]
    rest = [Configuration(s, way=way, runs=runs) for s in STUDENTS for way in WAYS for runs in RUNS]
    first = [Configuration(student) for student in STUDENTS]
    return list(dict.fromkeys([*first, *shared, *others, *rest]))


@dataclass(frozen=True)
class Size:
    """How much is trained: images, test images, and epochs that are timed after a first one."""

    train: int = 50_000
    test: int = 10_000
    epochs: int = 3


# One process


def make_trainer(
    configuration: Configuration, size: Size, folder: Path, dataset: ImageDataset, device: str
) -> engine.Trainer:
    """A run from cached logits, which are in the folder."""
    teacher = setting.random_teacher(TEACHER, dataset)
    chosen = _protocol(configuration)
    store = setting.open_store(folder, teacher, dataset, chosen, device)
    return engine.Trainer(
        engine.RunSpec(configuration.student, "loca", {"alpha": 0.95}, chosen, seed=0),
        dataset,
        torch.arange(size.train),
        torch.arange(0),
        teacher,
        evaluate_test=True,
        device=device,
        store=store,
        execution=configuration.execution,
    )


def _lessons(trainer: engine.Trainer) -> ImageLessons:
    assert isinstance(trainer.lessons, ImageLessons)
    return trainer.lessons


def _protocol(configuration: Configuration) -> Protocol:
    return protocol.resolve("crd-240", configuration.student, precision=configuration.precision)


class Packed:
    """Several runs in one process and one thread, a step of each in turns, each on a stream of its own.

    Args:
        trainers: of the runs.
        device: `cuda`; on a CPU there are neither streams nor graphs.
    """

    def __init__(self, trainers: Sequence[engine.Trainer], device: str) -> None:
        self._trainers = trainers
        self._graphed = device == "cuda"
        self._streams = [torch.cuda.Stream() if self._graphed else None for _ in trainers]

    def train_epoch(self) -> list[dict[str, float]]:
        """Train one more epoch of each; loss and test accuracy (percent) of each."""
        epoch = self._trainers[0].epoch + 1
        precision = self._trainers[0].run.protocol.precision
        with float32_products(precision):
            going = [self._steps(trainer, epoch) for trainer in self._trainers]
            sums: list[Tensor | None] = [None] * len(going)
            while True:
                ended = 0
                for i, (steps, stream) in enumerate(zip(going, self._streams, strict=True)):
                    with _on(stream):
                        found = next(steps, None)
                        if found is None:
                            ended += 1
                            continue
                        before = sums[i]
                        sums[i] = found.clone() if before is None else before + found
                if ended == len(going):
                    break
            metrics = []
            for trainer, stream, total in zip(self._trainers, self._streams, sums, strict=True):
                assert total is not None
                with _on(stream):
                    _lessons(trainer).model.eval()
                    top1, _ = evaluate(_lessons(trainer).logits, _lessons(trainer).pipeline.evaluation("test", None))
                    metrics.append({"train_loss": float(total) / len(trainer._train), "test_top1": top1})
                trainer.epoch = epoch
        return metrics

    def _steps(self, trainer: engine.Trainer, epoch: int) -> Iterator[Tensor]:
        """A step at each turn; the loss over its batch, summed. The trainer's own step without its metrics."""
        model, objective, optimiser = _lessons(trainer).model.train(), trainer.objective, trainer._optimiser
        for group in optimiser.param_groups:
            group["lr"] = trainer.run.protocol.lr_at(epoch)

        def step(target: Tensor, teacher_logits: Tensor, pixels: Tensor) -> Tensor:
            with _lessons(trainer).autocast():
                logits = model(_lessons(trainer).normalised(pixels)).float()
            loss: Tensor = objective(logits, teacher_logits, target, epoch)["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.detach() * len(target)

        run = GraphedStep(step) if self._graphed else step
        for shown, teacher_logits, _ in _lessons(trainer).batches(epoch):
            assert teacher_logits is not None
            yield run(shown.labels, teacher_logits, shown.views[0])


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _work(
    configuration: Configuration, size: Size, folder: Path, device: str, runs: int, start: Any, results: Any
) -> None:
    """In a process of its own: train `runs` runs, when all processes are ready, and put what came of it."""
    try:
        torch.set_num_threads(1)
        root = setting.CIFAR100 if size == Size() else None
        dataset = setting.images(root, folder / "images", size.train, size.test)
        trainers = [make_trainer(configuration, size, folder, dataset, device) for _ in range(runs)]
        train = Packed(trainers, device).train_epoch if configuration.way == STREAMS else trainers[0].train_epoch
        began = time.perf_counter()
        train()
        first = time.perf_counter() - began
        start.wait()
        began = time.time()  # of all processes, one clock
        for _ in range(size.epochs):
            train()
        ended = time.time()
        step = _seconds_a_step(trainers[0], size) if configuration.runs == 1 and configuration.way != STREAMS else None
        answering = [_lessons(trainer).teaching for trainer in trainers]
        if any(teaching and teaching.asked for teaching in answering):
            raise RuntimeError("a logit was not in the store")
        results.put({"began": began, "ended": ended, "first": first, "step": step})
    except BaseException as error:
        start.abort()
        results.put({"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"})


def _seconds_a_step(trainer: engine.Trainer, size: Size) -> float:
    """Of training alone: an epoch without its evaluation."""
    _lessons(trainer).measured.clear()
    return trainer.train_epoch()["epoch_seconds"] / -(-size.train // trainer.run.protocol.batch_size)


# All processes of a configuration


def run(configuration: Configuration, size: Size, folder: Path, device: str) -> dict[str, Any]:
    """Measure one configuration.

    Returns:
        `epoch`: seconds in which each run has trained an epoch; `first`: the first one's, with all that is done once;
        `step`: seconds of a training step, where a run is alone; or `failed`: why it could not be measured.
    """
    context = multiprocessing.get_context("spawn")
    processes = 1 if configuration.way == STREAMS else configuration.runs
    each = configuration.runs if configuration.way == STREAMS else 1
    start, results = context.Barrier(processes), context.Queue()
    arguments_of = (configuration, size, folder, device, each, start, results)
    workers = [context.Process(target=_work, args=arguments_of, daemon=True) for _ in range(processes)]
    try:
        with mps() if configuration.way == MPS else nullcontext():
            try:
                for worker in workers:
                    worker.start()
                found = [_next(results, workers) for _ in workers]
            finally:
                for worker in workers:
                    if worker.pid is not None:
                        worker.kill()  # all have answered, or wait for one that cannot
                        worker.join()
    except OSError as error:
        return {"failed": str(error)}
    # One that broke the barrier has the reason, not those that waited at it.
    failed = [one["failed"] for one in found if "failed" in one]
    if failed:
        return {"failed": next((reason for reason in failed if "BrokenBarrier" not in reason), failed[0])}
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    first = fmean(one["first"] for one in found)
    return {"epoch": seconds / size.epochs, "first": first, "step": found[0]["step"]}


def _next(results: Any, workers: Sequence[Any]) -> dict[str, Any]:
    while True:
        try:
            found: dict[str, Any] = results.get(timeout=5.0)
            return found
        except Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode]
            if dead:
                return {"failed": f"a process ended with exit code {dead[0]}"}


@contextmanager
def mps() -> Iterator[None]:
    """Processes that start inside share the GPU under MPS, by a daemon of our own that ends with the block.

    Raises:
        OSError: it is not there, or does not start.
    """
    if shutil.which(_CONTROL) is None:
        raise FileNotFoundError(f"{_CONTROL} is not on the path")
    with TemporaryDirectory(prefix="mps-") as folder:
        ours = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in ours.values():
            Path(path).mkdir()
        with environment(**ours):
            started = subprocess.run([_CONTROL, "-d"], capture_output=True, text=True, timeout=60)
            if started.returncode:
                raise OSError(f"{_CONTROL}: {(started.stderr or started.stdout).strip() or started.returncode}")
            try:
                yield
            finally:
                subprocess.run([_CONTROL], input="quit\n", capture_output=True, text=True, timeout=60)


# What was measured


class State:
    """Results by device and configuration, in a JSON file that is whole at any moment."""

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self._device = device
        self._all: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.results = self._all.setdefault(device, {})

    def keep(self, configuration: Configuration, found: dict[str, Any]) -> None:
        """Add a result."""
        self.results[configuration.key] = found
        write_atomic(self._path, json.dumps(self._all, indent=2).encode())


def measure(
    quick: bool,
    state: State,
    device: str = "cuda",
    asked: Sequence[Configuration] | None = None,
    minutes: float = float("inf"),
    size: Size | None = None,
) -> list[Table]:
    """Measure what is not in the state yet, until the minutes are over; the tables of all that is there.

    Args:
        quick: few images, and of the configurations only those of resnet20 on its own.
        state: what was measured before; gets what is measured now.
        device: `cuda`, or `cpu` in a test.
        asked: the configurations; None: all.
        minutes: no configuration is begun later.
        size: how much is trained; None: what `quick` says.
    """
    size = size or (Size(train=2_048, test=1_000, epochs=1) if quick else Size())
    if asked is None:
        asked = [each for each in configurations() if not quick or (each.student, each.runs) == ("resnet20", 1)]
    end = time.monotonic() + 60 * minutes
    with TemporaryDirectory(prefix="kdstudy-gpu-") as folder:
        filled = False
        for configuration in asked:
            if configuration.key in state.results:
                continue
            if time.monotonic() > end:
                print("the time is over; the same command goes on", file=sys.stderr)
                break
            if not filled:
                _fill(Path(folder), size, device)
                filled = True
            found = run(configuration, size, Path(folder), device)
            print(f"{configuration.key}: {found}", file=sys.stderr, flush=True)
            state.keep(configuration, found)
    return tables(state.results, asked, size)


def _fill(folder: Path, size: Size, device: str) -> None:
    """Read the images once, and put the logits of all epochs into the stores; one for each precision of a teacher."""
    root = setting.CIFAR100 if size == Size() else None
    dataset = setting.images(root, folder / "images", size.train, size.test)
    teacher = setting.random_teacher(TEACHER, dataset)
    for precision in PRECISIONS:
        chosen = _protocol(Configuration(TEACHER, precision=precision))
        setting.fill(setting.open_store(folder, teacher, dataset, chosen, device), epochs=size.epochs + 2)


def tables(results: dict[str, dict[str, Any]], asked: Sequence[Configuration], size: Size) -> list[Table]:
    """What was measured; empty cells for what was not."""
    alone = [each for each in asked if (each.way, each.runs) == (PROCESSES, 1)]
    alone_rows = []
    for each in alone:
        found = results.get(each.key, {})
        epoch, step = found.get("epoch"), found.get("step")
        minutes = None if epoch is None else EPOCHS * epoch / 60
        figures = (step and 1e3 * step, epoch, minutes, minutes and 60 / minutes)
        alone_rows.append((each.student, each.execution, each.precision, *figures, found.get("failed", "")))
    shared_rows = []
    for each in (one for one in asked if (one.execution, one.precision) == ("graphs", "float32")):
        found, base = results.get(each.key, {}), results.get(Configuration(each.student).key, {}).get("epoch")
        epoch = found.get("epoch")
        rate = None if epoch is None else 3600 * each.runs / (EPOCHS * epoch)
        times = None if epoch is None or base is None else each.runs * base / epoch
        shared_rows.append((each.student, each.way, each.runs, epoch, rate, times, found.get("failed", "")))
    what = f"{size.train:,} views and {size.test:,} test images an epoch"
    return [
        Table(
            f"One run, {what}",
            ("student", "step", "precision", "ms a step", "s an epoch", "min a run", "runs an hour", "failed"),
            tuple(alone_rows),
            f"A run: {EPOCHS} epochs. To reach on an H100: resnet20 in {TARGET_MINUTES:g} minutes.",
        ),
        Table(
            f"Runs at once, graphed, float32, {what}",
            ("student", "way", "runs", "s an epoch of each", "runs an hour", "times one run's rate", "failed"),
            tuple(shared_rows),
            f"To reach: {TARGET_SHARING:g} times the rate of one run.",
        ),
    ]


def main() -> None:
    """The command."""
    parser = arguments(__doc__)
    parser.add_argument("--state", type=Path, default=Path("gpu-benchmark.json"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="N", help="begin nothing later")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: skipped, there is no GPU here")
        return
    # What --quick measures is no result to go on from.
    state = State(options.state.with_suffix(".quick.json") if options.quick else options.state, _device_name())
    show("gpu", measure(options.quick, state, minutes=options.minutes), options, "cuda")


def _device_name() -> str:
    """Asked in another process: this one needs no context beside those that are measured."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
