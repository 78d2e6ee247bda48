"""How much memory of a GPU a run takes: measured by a process that trains a few steps of it, then ends.

    python -m trainables.memory < REQUEST        as JSON; prints `Memory` as JSON

What is measured is what other processes can no longer have: tensors, what the allocator keeps, the libraries' own
workspaces, and the process's context, which alone takes some hundreds of megabytes. The memory of a network does not
depend on its weights, so a teacher need not exist: a random network of its architecture is asked in its place. It is
asked at each step, since any run may be the one that fills the store of its logits.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from trainables import models, splits, teachers
from trainables.runner import Runner, load_data
from trainables.text.corpora import TextDataset

KEEP_FREED = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in (("hugetlb", 1), ("mmap_threshold", 2**32), ("trim_threshold", 2**34), ("top_pad", 2**26))
)
"""For GLIBC_TUNABLES of a worker on a CPU. glibc gives large blocks back to the system and asks for them again at the
next layer; kept, and in huge pages, they make a student's step some percent shorter (`benchmarks.step`). Other C
libraries do not read it."""

# Enough for libraries to choose their algorithms and for a step to be recorded as a graph; twice, since the second
# epoch records anew while the first graph's memory is still there.
_STEPS = 8
_EPOCHS = 2


class ProbeError(RuntimeError):
    """The memory of a run could not be measured; the message says why, in one line."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU: what a process that trains a run takes, and what was free before it started."""

    need: int
    free: int

    def runs(self, margin: float) -> int:
        """How many such runs share the GPU, one at least, if the share `margin` (0 to 1) of what is free stays so."""
        return max(1, int((1 - margin) * self.free / self.need))


def same_need(request: dict[str, Any]) -> str:
    """What decides the memory of a run: requests that agree in it need not be measured again."""
    fields = ("model", "method", "teacher", "data_hash", "device")
    shown = ("batch_size", "views", "image_size", "precision", "max_tokens", "lora_rank")
    decides = [request[name] for name in fields] + [request["protocol"].get(name) for name in shown]
    return json.dumps(decides, sort_keys=True)


def probe(request: dict[str, Any], environment: dict[str, str] | None = None, timeout: float = 600.0) -> Memory:
    """Measure a run's memory in other processes: this one never gets a context.

    Args:
        request: a worker's request (see `trainables.runner`), but with `teacher` None or {"model": architecture,
            "folds": networks of a cross-fitted set, else 0}.
        environment: of the processes; None: this one's.
        timeout: seconds.

    Raises:
        ProbeError: it does not fit on the GPU, or the process failed otherwise.
    """
    command = [sys.executable, "-P", "-m", "trainables.memory"]  # -P: the working folder shadows nothing
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeError(str(error)) from None
    if done.returncode:
        raise ProbeError(next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason known"))
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure(request: dict[str, Any], free: Callable[[], int]) -> Memory:
    """Measure a run's memory in one other process.

    Args:
        request: as `probe` takes it.
        free: the bytes that are free on the GPU. This process's context is there already, so it does not count.

    Raises:
        ProbeError: the run failed.
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    before = free()
    process = context.Process(target=_train, args=(request, its), daemon=True)
    process.start()
    its.close()
    try:
        reserved, failed = mine.recv()
        if failed:
            raise ProbeError(failed)
        # The process still waits, with all that it took: its allocator gives nothing back by itself.
        return Memory(need=max(1, before - free(), reserved), free=before)
    except EOFError:
        raise ProbeError("the measuring process died") from None
    finally:
        mine.close()
        process.join()


def _train(request: dict[str, Any], pipe: Connection) -> None:
    """Train a few steps, send the allocator's peak in bytes or why there is none, and wait for the other end."""
    try:
        pipe.send((rehearse(request), None))
    except Exception as error:
        pipe.send((0, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"))
    try:
        pipe.recv()
    except EOFError:
        return


def rehearse(request: dict[str, Any]) -> int:
    """Train a run's first steps, in a temporary folder.

    Args:
        request: as `probe` takes it.

    Returns:
        The most bytes that torch's allocator held; 0 on a CPU.
    """
    with tempfile.TemporaryDirectory(prefix="kdstudy-probe-") as folder:
        runner = Runner(_short(request, folder))
        for _ in range(_EPOCHS):
            runner.advance(0.0)
    return torch.cuda.max_memory_reserved() if request["device"] == "cuda" else 0


def _short(request: dict[str, Any], folder: str) -> dict[str, Any]:
    """The same run on few images for few epochs, with a random teacher of the same kind."""
    short = copy.deepcopy(request)
    images = _STEPS * request["protocol"]["batch_size"]
    short["split"]["train_limit"] = images
    if short["teaches"] is not None:
        short["teaches"]["limit"] = images
    short["test_limit"] = min(images, request["test_limit"] or images)
    short |= {"checkpoints": folder, "resume_from": None, "rungs": [], "logits": None, "workers": 0}
    if request["teacher"] is not None:
        short["teacher"] = {"home": folder, "hash": _random_teacher(request, folder), "storage": folder}
    return short


def _random_teacher(request: dict[str, Any], home: str) -> str:
    """Keep a teacher of the architecture in a home; its hash."""
    dataset = load_data(request["data"])
    if isinstance(dataset, TextDataset):
        return _random_text_teacher(request, dataset, home)
    model, folds = request["teacher"]["model"], request["teacher"]["folds"]
    states = [models.build(model, dataset.num_classes).state_dict() for _ in range(max(1, folds))]
    record = teachers.unmeasured_record(model, dataset, states[0], trained_on="none", origin="random")
    if not folds:
        teachers.save(home, record, states[0])
        return record.hash
    hashes = [teachers.content_hash(model, dataset.mean, dataset.std, state) for state in states]
    of_images = splits.make_folds(dataset.train_labels, folds, request["split"]["split_seed"])
    record = replace(record, hash=teachers.cross_fitted_hash(hashes, of_images), fold_top1=(float("nan"),) * folds)
    teachers.save(home, record, {"members": states, "folds": of_images})
    return record.hash


def _random_text_teacher(request: dict[str, Any], dataset: TextDataset, home: str) -> str:
    from trainables.text import models as text_models
    from trainables.text.network import Network
    from trainables.text.teacher import stamped

    model = request["teacher"]["model"]
    network = Network(text_models.build(model, dataset.models, dataset.cache))
    state = stamped(network, text_models.base_hash(model, dataset.models))
    record = teachers.unmeasured_record(model, dataset, state, trained_on="none", origin="random")
    record = replace(record, task="text")
    teachers.save(home, record, state)
    return record.hash


def _free() -> int:
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(measure(json.load(sys.stdin), _free))))
    except ProbeError as error:
        sys.exit(str(error))
