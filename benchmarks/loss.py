"""The loss alone: LoCa against KD, LoCa on DKD against DKD, and LoCa as the paper writes it; then of a training step.

    python -m benchmarks.loss [--json FILE] [--quick]

Each method is called and differentiated on given logits, in turns with all others, on one CPU thread and on the GPU if
there is one. A fifth of the views are mis-instructed. `loca, as the paper writes it` is softmax, sigma and s in
probability space, with the mis-instructed views picked out by a mask: on a GPU that waits for the device. It gives the
same loss, which is checked.

Limits. KD cannot be cheaper than its passes over (B, C) numbers; each table's columns say how many tensor operations
(kernels, on a GPU) a method takes, and how many (B, C) float32 tensors those read and write. LoCa needs no (B, C) pass
of its own but for one sum and works on (B,) numbers otherwise, so its limit is 1x KD; what it costs beside that is the
launch of those operations, which shows at (64, 100) only. To reach: LoCa at most 1.15x KD forward and backward, 1.2x at
(64, 100), the same on DKD (the paper: 1.22x), and 1.01x of a resnet20 step at batch 64.

Over a language model's vocabulary the logits are the largest tensor by far: the last tables have LoCa from hidden
states, as a whole and in parts (`trainables.objectives.chunks`), with the memory that it takes.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measuring import Table, arguments, interleaved, ratio, show
from trainables import models, objectives
from trainables.objectives import chunks

SHAPES = ((64, 100), (256, 1000), (32, 32000))
WRONG = 0.2
TAU, ALPHA, BETA, GAMMA = 4.0, 0.95, 0.9, 0.1
BASELINES = {"kd": "kd", "loca": "kd", "dkd": "dkd", "loca_dkd": "dkd", "loca, as the paper writes it": "kd"}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def batch(size: int, classes: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels: the teacher leads on the label by about 3, but for a fifth."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, size, classes, generator=generator)
    target = torch.randint(classes, (size,), generator=generator)
    rows = torch.arange(size)
    lead = torch.where(rows < WRONG * size, -1.0, 3.0) + 0.3 * torch.randn(size, generator=generator)
    teacher[rows, target] = teacher.amax(-1) + lead
    return student.to(device).requires_grad_(), teacher.to(device), target.to(device)


def losses() -> dict[str, Loss]:
    """The losses by name: of each method, and LoCa as the paper writes it."""
    kd = {"tau": TAU, "beta": BETA, "gamma": GAMMA}
    dkd = {"tau": TAU, "warmup_dkd": 1.0}
    built = {
        "kd": objectives.build("kd", **kd),
        "loca": objectives.build("loca", alpha=ALPHA, **kd),
        "dkd": objectives.build("dkd", **dkd),
        "loca_dkd": objectives.build("loca_dkd", alpha=ALPHA, **dkd),
    }
    return {name: _loss(objective) for name, objective in built.items()} | {"loca, as the paper writes it": as_written}


def _loss(objective: nn.Module) -> Loss:
    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        value: Tensor = objective(student, teacher, target)["loss"]
        return value

    return loss


def as_written(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """The loss of LoCa by the formulas of arXiv 2409.04778, in their order: the comparison, not what kdstudy does."""
    p = (teacher / TAU).softmax(-1)
    rows = torch.arange(len(p), device=p.device)
    others = p.clone()
    others[rows, target] = 0
    p_y, p_k = p[rows, target], others.amax(-1)
    wrong = p_k >= p_y
    sigma = 1 / (1 - p_y + p_k)
    s = ALPHA * sigma
    calibrated = p.clone()
    calibrated[wrong] = s[wrong].unsqueeze(-1) * p[wrong]
    calibrated[rows[wrong], target[wrong]] = 1 - s[wrong] * (1 - p_y[wrong])
    kl = F.kl_div((student / TAU).log_softmax(-1), calibrated, reduction="batchmean")
    return GAMMA * F.cross_entropy(student, target) + BETA * TAU**2 * kl


class Operations(TorchDispatchMode):
    """Counts the tensor operations inside, views apart, and the elements that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(alias.alias_info and not alias.alias_info.is_write for alias in func._schema.returns) and any(
            isinstance(leaf, Tensor) for leaf in tree_leaves(result)
        ):
            self.names[str(func)] += 1
            # Gathering and scattering touch as many elements as there are indices, whatever the tensor's size.
            touched = [args[2]] if func._schema.name in ("aten::gather", "aten::scatter_") else [args, kwargs, result]
            self.elements += sum(leaf.numel() for leaf in tree_leaves(touched) if isinstance(leaf, Tensor))
        return result


def _differentiated(loss: Loss, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        given[0].grad = None
        value = loss(*given)
        value.backward()
        return value.detach()

    return call


def of_losses(size: int, classes: int, device: str, quick: bool) -> Table:
    """Forward and backward of each loss on (size, classes) logits."""
    given = batch(size, classes, device)
    calls = {name: _differentiated(loss, given) for name, loss in losses().items()}
    torch.testing.assert_close(calls["loca"](), calls["loca, as the paper writes it"]())
    numbers = size * classes
    # Short turns, and many: what else the machine does must hit all of them.
    times = 1 if quick else max(1, 100_000 // numbers)
    seconds = interleaved(calls, rounds=2 if quick else 300 if numbers < 1e5 else 80, calls=times, device=device)
    rows = []
    for name, call in calls.items():
        with Operations() as operations:
            call()
        rows.append(
            (
                name,
                1e6 * sorted(seconds[name])[len(seconds[name]) // 2],
                BASELINES[name],
                ratio(seconds[name], to=seconds[BASELINES[name]]),
                sum(operations.names.values()),
                operations.elements / numbers,
            )
        )
    most = 1.2 if numbers < 1e5 else 1.15
    return Table(
        f"Loss, forward and backward, ({size}, {classes}), {device}",
        ("method", "microseconds", "baseline", "times the baseline", "operations", "(B, C) tensors read and written"),
        tuple(rows),
        f"Limit: 1x the baseline. To reach: {most}x; the paper has 1.22x.",
    )


def of_steps(device: str, quick: bool) -> Table:
    """A whole training step of resnet20 at batch 64: forward, loss, backward, SGD."""
    size = 8 if quick else 64
    _, teacher, target = batch(size, 100, device)
    images = torch.randn(size, 3, 32, 32).to(device, memory_format=torch.channels_last)
    student = models.build("resnet20", 100).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=True)
    names = ("kd", "loca", "dkd", "loca_dkd")
    chosen = losses()

    def step(loss: Loss) -> Callable[[], None]:
        def call() -> None:
            optimiser.zero_grad()
            loss(student(images), teacher, target).backward()
            optimiser.step()

        return call

    seconds = interleaved(
        {name: step(chosen[name]) for name in names}, rounds=2 if quick else 60, calls=1, device=device
    )
    rows = tuple(
        (
            name,
            1e3 * sorted(seconds[name])[len(seconds[name]) // 2],
            BASELINES[name],
            ratio(seconds[name], to=seconds[BASELINES[name]]),
        )
        for name in names
    )
    return Table(
        f"A training step, resnet20, batch {size}, {device}",
        ("method", "milliseconds", "baseline", "times the baseline"),
        rows,
        "Limit: 1x. To reach: 1.01x (the paper: 1.01x of an epoch).",
    )


@dataclass(frozen=True)
class Tokens:
    """So many tokens of a language model of so many dimensions and classes, and the teacher's logits on them."""

    rows: int
    width: int
    classes: int


VOCABULARIES = (Tokens(2048, 576, 49_152), Tokens(512, 576, 151_936))
PLAIN = "whole: head, loss, backward"


def _tokens(size: Tokens, device: str) -> dict[str, Callable[[], None]]:
    """LoCa on hidden states, the whole at once and in parts, by what it is called."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(size.rows, size.width, generator=generator).to(device).requires_grad_()
    head = nn.Linear(size.width, size.classes, bias=False).to(device)
    teacher = torch.randn(size.rows, size.classes, generator=generator).to(device)
    target = torch.randint(size.classes, (size.rows,), generator=generator).to(device)
    objective = objectives.build("loca", alpha=ALPHA, tau=1.0, beta=0.5, gamma=0.5)

    def whole() -> None:
        hidden.grad = head.weight.grad = None
        objective(head(hidden), teacher, target)["loss"].backward()

    def parts(rows: int) -> Callable[[], None]:
        def call() -> None:
            hidden.grad = head.weight.grad = None
            chunks.accumulate(objective, hidden, head, lambda part: teacher[part], target, rows=rows)

        return call

    return {PLAIN: whole} | {f"in parts of {rows}": parts(rows) for rows in (64, chunks.ROWS)}


def _peak(size: Tokens, name: str, pipe: Any) -> None:
    """Send the bytes that a call takes at its peak beyond what it is given; of a process that does nothing else."""
    torch.set_num_threads(1)
    call = _tokens(size, "cpu")[name]
    # The high-water mark of making the inputs does not count, nor (as in getrusage) that of the process before this.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    pipe.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    """Bytes of a line of this process's status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_bytes(size: Tokens, name: str, device: str) -> int:
    """The most memory that a call takes beyond hidden states, weights and the teacher's logits."""
    if device == "cuda":
        call = _tokens(size, device)[name]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(size, name, its))
    process.start()
    found: int = mine.recv()
    process.join()
    return found


def of_vocabulary(size: Tokens, device: str, quick: bool) -> Table:
    """LoCa from hidden states over a vocabulary: time, and memory in copies of the logits."""
    calls = _tokens(size, device)
    seconds = interleaved(calls, rounds=2 if quick else 3, device=device)
    logits = 4 * size.rows * size.classes
    rows = tuple(
        (
            name,
            1e3 * sorted(seconds[name])[len(seconds[name]) // 2],
            ratio(seconds[name], to=seconds[PLAIN]),
            (peak_bytes(size, name, device) - 4 * size.width * size.classes) / logits,
        )
        for name in calls
    )
    return Table(
        f"LoCa from hidden states, {size.rows} tokens of {size.classes:,} classes, {device}",
        ("how", "milliseconds", "times the whole", "copies of the logits at the peak"),
        rows,
        "Limit: the head's three products, which are the same; 0 copies. To reach: 1.1x in time, one copy at most "
        "where the parts are a small part of the tokens. The gradient of the head's weights is not counted, which "
        "every "
        "way needs; in parts each one's is added to it, a second tensor of that size, which counts.",
    )


def measure(quick: bool) -> list[Table]:
    """Every shape and the whole step, on the CPU and on a GPU where there is one."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    shapes = SHAPES[:2] if quick else SHAPES
    tables = [of_losses(*shape, device, quick) for device in devices for shape in shapes]
    tables += [of_steps(device, quick) for device in devices]
    vocabularies = (Tokens(64, 16, 4_000),) if quick else VOCABULARIES
    return tables + [of_vocabulary(size, device, quick) for device in devices for size in vocabularies]


def main() -> None:
    torch.set_num_threads(1)
    options = arguments(__doc__).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    show("loss", measure(options.quick), options, device)


if __name__ == "__main__":
    main()
