"""Runs a driver's requests on Ray Tune: an own Searcher and Scheduler, warm workers, no Tune snapshots.

The store is the memory and Tune is fed in chunks. Tune's own loggers, checkpoints and progress output are off: results
go from the worker's report into the store, and from there to MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from study.driver import Driver
from study.errors import RequestError, one_line
from study.home import Home
from trainables.memory import KEEP_FREED

log = logging.getLogger("kdstudy.launcher")

# Tune keeps every trial of an experiment in memory, so a long study is several experiments.
CHUNK = 200
# How often the cluster is asked for its nodes.
_LOOK_SECONDS = 2.0
# A run that waits so long for a worker, at so many looks with room for it, waits for nothing.
STUCK_SECONDS = 60.0
_STUCK_LOOKS = 3

# Where nobody says how many runs share a GPU, at most so many.
MOST_RUNS_A_GPU = 16


@dataclass(frozen=True)
class Machine:
    """What runs may use at once.

    Attributes:
        device: `cpu` or `cuda`.
        concurrency: runs at a time.
        cpus, gpus: what each run asks Ray for.
        devices: GPUs that the runs share.
        threads: CPU threads of each run.
        workers: processes of each run that decode its images, where they are not in memory.
        execution: how steps are run, one of `trainables.engine.EXECUTIONS`; None: what suits the device.
        joined: a cluster whose nodes come and go, rather than a Ray of this process's own.
        devices_a_run: GPUs, or cores where there are none, that a run has; with more than one, `cpus` and `gpus` are
            those of each.
    """

    device: str
    concurrency: int
    cpus: float
    gpus: float
    devices: int = 0
    threads: int = 1
    workers: int = 0
    execution: str | None = None
    joined: bool = False
    devices_a_run: int = 1

    @property
    def runs_a_gpu(self) -> int:
        """How many runs share a GPU, at most."""
        return math.ceil(self.concurrency / self.devices) if self.devices else 1

    def halved(self) -> Machine | None:
        """Half as many runs a GPU; None where each has one to itself, or there is none."""
        if self.runs_a_gpu == 1:
            return None
        runs = self.runs_a_gpu // 2
        return replace(self, concurrency=runs * self.devices, gpus=_fraction(runs))


def this_machine(
    device: str | None = None,
    concurrency: int | None = None,
    runs_a_gpu: Callable[[], int] = lambda: 1,
) -> Machine:
    """As many runs as its accelerators and cores take, else one a core.

    On a CPU a run has one thread: small networks gain little from more, and the result of a run then does not depend on
    how many cores its machine has.

    Args:
        device: `cpu` or `cuda`; by default what the machine has.
        concurrency: runs at a time; None: see above.
        runs_a_gpu: how many fit into the memory of one (see `study.sharing`); asked only where that decides.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cpu":
        runs = concurrency or cores
        return Machine("cpu", runs, cpus=1.0, gpus=0.0)
    there = torch.cuda.device_count()
    # A run's Python takes a core, so more runs than cores would only wait for each other.
    runs = concurrency or there * max(1, min(runs_a_gpu(), MOST_RUNS_A_GPU, cores // there))
    gpus = min(there, runs)
    # On a CPU decoding beside training would only take its core; a GPU waits for as many cores as there are.
    return Machine(
        chosen,
        runs,
        cpus=min(1.0, cores / runs),
        gpus=_fraction(math.ceil(runs / gpus)),
        devices=gpus,
        workers=max(1, cores // runs),
    )


def spread(machine: Machine, devices_a_run: int) -> Machine:
    """The machine with so many whole devices a run.

    Raises:
        RequestError: it has fewer.
    """
    if devices_a_run == 1:
        return machine
    on_gpus = machine.device != "cpu"
    there = machine.devices if on_gpus else machine.concurrency
    runs = there // devices_a_run
    if not runs:
        what = "GPUs" if on_gpus else "cores"
        raise RequestError(f"--devices-a-run: {devices_a_run}, but there are {there} {what} for the study")
    return replace(
        machine,
        concurrency=runs,
        cpus=1.0,
        gpus=1.0 if on_gpus else 0.0,
        devices=runs * devices_a_run if on_gpus else 0,
        devices_a_run=devices_a_run,
    )


def _fraction(runs: int) -> float:
    """A run's share of a GPU. Ray counts in ten-thousandths: rounded up, the last of the runs would not fit."""
    return 10_000 // runs / 10_000


@contextmanager
def cluster(machine: Machine) -> Iterator[None]:
    """A local Ray for as long as the block lasts."""
    options = {
        "num_cpus": max(1, round(machine.concurrency * machine.cpus * machine.devices_a_run)),
        "num_gpus": machine.devices,
    }
    with _ray("local", machine.threads, include_dashboard=False, **options):
        yield


@contextmanager
def joined(address: str, threads: int = 1) -> Iterator[None]:
    """A driver's place in a cluster that is there, for as long as the block lasts.

    Raises:
        RequestError: nothing answers at the address, or it does not let us in.
    """
    with _ray(address, threads):
        yield


@contextmanager
def _ray(address: str, threads: int, **options: Any) -> Iterator[None]:
    """Ray, started here or joined.

    Workers start in an empty folder, with the installed packages first on their path, so that a `study/` or `analysis/`
    in the user's own folder can never stand in for ours.
    """
    _configure(local=address == "local")
    import ray

    variables = {"OMP_NUM_THREADS": str(threads), "GLIBC_TUNABLES": KEEP_FREED}
    if "KDSTUDY_JOB" not in os.environ:  # a job's code is shipped, and where to, each node knows
        variables["PYTHONPATH"] = python_path()
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="kdstudy-") as empty:
        os.chdir(empty)
        try:
            _start(ray, address, runtime_env={"env_vars": variables}, **options)
            yield
        finally:
            ray.shutdown()
            os.chdir(before)


def _start(ray: Any, address: str, **options: Any) -> None:
    """Start a local Ray, or join one.

    Raises:
        RequestError: it does not start or does not let us in; its own reason, in one line.
    """
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        reason = one_line(error)
        if address == "local":
            raise RequestError(f"Ray cannot start here: {reason}; `kdstudy doctor` looks for the cause") from None
        raise RequestError(f"--address: no Ray cluster lets us in at {address}: {one_line(error)}") from None
    quiet()  # Ray sets its own levels when it starts


def joined_machine(
    device: str | None, max_devices: int | None, runs_a_gpu: int | None, fitting: Callable[[], int] = lambda: 1
) -> Machine:
    """What runs may use of the cluster that this process has joined.

    Args:
        device: `cpu` or `cuda`; by default what the cluster has now.
        max_devices: GPUs, or cores where there are none, that the study may have at once; None: all that come.
        runs_a_gpu: how many share one; None: as many as fit into its memory and have a core each.
        fitting: how many fit into the memory of one (see `study.sharing`); asked only where that decides.
    """
    import ray

    there = ray.cluster_resources()
    gpus = there.get("GPU", 0.0)
    chosen = device or ("cuda" if gpus else "cpu")
    most = max_devices or 10_000
    if chosen == "cpu":
        return Machine("cpu", most, cpus=1.0, gpus=0.0)
    share = runs_a_gpu or 1
    cores = int(there.get("CPU", 0.0) // gpus) if gpus else 1
    if runs_a_gpu is None and cores > 1:
        share = max(1, min(fitting(), MOST_RUNS_A_GPU, cores))
    return Machine(chosen, most * share, cpus=1.0, gpus=_fraction(share), devices=most)


def _slots_of_cluster(machine: Machine) -> Callable[[], int]:
    """How many runs the joined cluster has room for, as nodes come and go; at most what the machine allows."""
    import ray

    seen = {"at": -math.inf, "runs": 0.0}

    def slots() -> int:
        if time.monotonic() - seen["at"] > _LOOK_SECONDS:
            there = ray.cluster_resources()
            runs = there.get("CPU", 0.0) // machine.cpus
            if machine.gpus:
                runs = min(runs, int(there.get("GPU", 0.0)) * (1 // machine.gpus))
            runs //= machine.devices_a_run
            seen.update(at=time.monotonic(), runs=runs)
        # At least one waits, so that a cluster which scales up sees that it is asked for something.
        return max(1, min(int(seen["runs"]), machine.concurrency))

    return slots


def nodes() -> list[dict[str, Any]]:
    """The nodes of the Ray that runs now, if one does: name, address, whether alive, CPUs and GPUs."""
    import ray

    if not ray.is_initialized():
        return []
    return [
        {
            "host": node["NodeManagerHostname"],
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "cpus": node["Resources"].get("CPU", 0.0),
            "gpus": node["Resources"].get("GPU", 0.0),
        }
        for node in ray.nodes()
    ]


class _Room:
    """The room in one of Tune's experiments: how many runs at once, the memory of its GPUs, and who waits for a worker.

    Where a run finds no memory, it waits for the next experiment, in which half as many share a GPU: Tune cannot change
    what a trial has asked for, and those that run now were started with the share that is too small.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.slots = _slots_of_cluster(machine) if machine.joined else lambda: machine.concurrency
        """How many runs there is room for at this moment."""
        self.next = machine
        self.waiting: dict[str, float] = {}  # Tune's trials that no worker has begun: since when
        self._looked = time.monotonic()
        self._free = 0  # looks, one after the other, that found room for a run that waits

    def stuck(self) -> bool:
        """Whether a run waits for a worker though there is room for one, so that the experiment should begin anew.

        Ray may forget a worker that it was asked for, when its head is lost and another takes its place.
        """
        now = time.monotonic()
        since = min(self.waiting.values(), default=now)
        if not self.machine.joined or now - since < STUCK_SECONDS or now - self._looked < _LOOK_SECONDS:
            return False
        import ray

        self._looked, there = now, ray.available_resources()
        cpus, gpus = (each * self.machine.devices_a_run for each in (self.machine.cpus, self.machine.gpus))
        fits = there.get("CPU", 0.0) >= cpus and there.get("GPU", 0.0) >= gpus
        self._free = self._free + 1 if fits else 0
        if self._free < _STUCK_LOOKS:
            return False
        log.warning("a run has waited for %.0f s for a worker that there is room for: beginning anew", now - since)
        return True

    @property
    def changes(self) -> bool:
        """Whether the next experiment's runs have more memory, so that none should start in this one."""
        return self.next is not self.machine

    def make(self) -> bool:
        """Have more memory for the runs that start from now on; False where there is no more to have."""
        if self.changes:
            return True
        halved = self.machine.halved()
        if halved is None:
            return False
        log.warning("out of memory: from now on %d runs a GPU, not %d", halved.runs_a_gpu, self.machine.runs_a_gpu)
        self.next = halved
        return True


def train(driver: Driver, machine: Machine, home: Home) -> None:
    """Train everything that the driver has to train, until it is finished or stopping."""
    while not driver.finished:
        room = _Room(machine)
        driver.make_room = room.make
        _experiment(driver, room, home.root / "tune" / driver.study)
        machine = room.next


def _experiment(driver: Driver, room: _Room, scratch: Path) -> None:
    """One chunk of a study's runs, as an experiment of Tune's."""
    from ray import tune

    from trainables.tune_adapter import RunTrainable

    machine = room.machine
    each = {"CPU": machine.cpus, "GPU": machine.gpus}
    several = machine.devices_a_run > 1
    tuner = tune.Tuner(
        tune.with_resources(
            RunTrainable, tune.PlacementGroupFactory([each] * machine.devices_a_run) if several else each
        ),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(driver, room),
            scheduler=_scheduler(driver),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=driver.study,
            storage_path=str(scratch.parent),
            verbose=0,
            stop=_stopper(driver, room),
            callbacks=[_begun(room)],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    finally:
        driver.release()
        shutil.rmtree(scratch, ignore_errors=True)


def _searcher(driver: Driver, room: _Room) -> Any:
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        """Tune's Searcher over the driver. A lost worker reaches it as an error; every other end is a report."""

        def __init__(self) -> None:
            super().__init__()
            self._requests: dict[str, tuple[str, int]] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if len(self._requests) >= CHUNK or room.changes:
                return Searcher.FINISHED
            if driver.in_flight >= room.slots():
                return None
            request = driver.next_request()
            if request is not None:
                self._requests[trial_id] = request["run_id"], request["attempt"]
                room.waiting[trial_id] = time.monotonic()
                return {"request": request | {"devices": room.machine.devices_a_run}}
            # FINISHED is final, so it is said only when nothing can come back and be queued again.
            return Searcher.FINISHED if driver.finished else None

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            run_id, attempt = self._requests[trial_id]
            room.waiting.pop(trial_id, None)
            if error:
                driver.on_lost(run_id, attempt, "its worker died")
            elif result and "report" in result:
                driver.on_report(json.loads(result["report"]))

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: the store has it."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing to restore."""

    return StudySearcher()


def _scheduler(driver: Driver) -> Any:
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class StudyScheduler(FIFOScheduler):
        """Tune's Scheduler over the driver: each report is recorded, and the driver says if the run goes on."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            driver.poll()
            stop = driver.on_report(json.loads(result["report"]))
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        def debug_string(self) -> str:
            return "the study's driver"

    return StudyScheduler()


def _begun(room: _Room) -> Any:
    from ray.tune import Callback

    class Begun(Callback):
        """Hears that a worker has begun a run."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            room.waiting.pop(trial.trial_id, None)

    return Begun()


def _stopper(driver: Driver, room: _Room) -> Any:
    from ray.tune import Stopper

    class StudyStopper(Stopper):
        """Ends the experiment at once when the study is stopping, or stuck; runs go on from their checkpoints."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return driver.stopping is not None or room.stuck()

    return StudyStopper()


def require_token() -> None:
    """Check that there is what a cluster's door asks for, before Ray says so in a page of text.

    Raises:
        RequestError: no token, and the cluster is not said to want none.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    default = Path("~/.ray/auth_token").expanduser()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ["RAY_AUTH_MODE"] != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if named and not Path(named).is_file():
        raise RequestError(f"RAY_AUTH_TOKEN_PATH: {named} is no file; it should hold the cluster's token")
    if not named and not default.is_file():
        raise RequestError(
            "RAY_AUTH_TOKEN_PATH: name the file with the cluster's token (RAY_AUTH_MODE=disabled where it has none)"
        )


def _configure(*, local: bool) -> None:
    """Settings of Ray and Tune for this process and all that it starts (see docs/architecture.md)."""
    if not local:
        require_token()
    elif "ray" not in sys.modules:
        # Ray reads these when it is imported. A token of this process's own: nobody else talks to its cluster.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.update(
        {
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
            # How many there are is decided where runs are proposed, so this is only not to be in the way.
            "TUNE_MAX_PENDING_TRIALS_PG": "1000",
            "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        }
    )


def python_path() -> str:
    """The folder that our packages were installed to, then what the user had, and the user's own folder last.

    The last is for methods, models and data sets of one's own; behind everything else it can shadow nothing.
    """
    ours = str(Path(__file__).resolve().parent.parent)
    theirs = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([ours, *(str(Path(entry).resolve()) for entry in theirs), str(Path.cwd())])


def quiet() -> None:
    """Keep Ray's and Tune's chatter out of the terminal; warnings go to the study's log."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"ray\..*")
