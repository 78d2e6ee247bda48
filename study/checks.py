"""What `kdstudy doctor` looks at: whether this machine can run studies, and what it would run them with."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from study import record, tracking
from study.errors import RequestError, one_line
from study.home import open_home, probe_storage


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


def check_all() -> Iterator[Check]:
    """Every check, in an order in which an early failure explains a later one."""
    for name, look in (
        ("versions", _versions),
        ("home", _home),
        ("disk", _disk),
        ("store", _store),
        ("storage", _storage),
        ("MLflow", _mlflow),
        ("devices", _devices),
        ("shared memory", _shared_memory),
        ("packages", _packages),
    ):
        yield _checked(name, look)


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Exception as error:
        return Check(name, False, one_line(error))


def _versions() -> str:
    return ", ".join(f"{package} {version}" for package, version in record.versions().items())


def _home() -> str:
    return str(open_home().root)


def _disk() -> str:
    free = shutil.disk_usage(open_home().root).free / 2**30
    if free < 2:
        raise RequestError(f"{free:.1f} GiB free in the home; a study needs room for checkpoints and MLflow")
    return f"{free:,.0f} GiB free"


def _store() -> str:
    from study.store import Store

    with Store(open_home().store_url).opened() as store:
        return f"{len(store.study_names())} studies"


def _storage() -> str:
    home = open_home()
    probe_storage(home)
    return f"{home.storage} takes and gives checkpoints"


def _mlflow() -> str:
    home = open_home()
    tracking.probe(home.tracking_uri)
    return "its own database in the home" if home.own_tracking else f"{home.tracking_uri} answers"


def _devices() -> str:
    found = record.hardware()
    gpus = ", ".join(found["devices"]) or "no accelerator"
    return f"{found['cores']} cores, {found['memory_gib']} GiB, {gpus} ({found['cpu']})"


def _shared_memory() -> str:
    shm = Path("/dev/shm")
    if not shm.exists():
        return "none; Ray falls back to files"
    free = shutil.disk_usage(shm).free / 2**20
    if free < 128:
        raise RequestError(f"{free:.0f} MiB free in {shm}; Ray wants 128 at least (docker run --shm-size)")
    return f"{free:,.0f} MiB free"


def _packages() -> str:
    import analysis
    import search_spaces
    import trainables

    ours = Path(__file__).resolve().parent.parent
    for package in (analysis, search_spaces, trainables):
        place = Path(str(package.__file__)).resolve().parent.parent
        if place != ours:
            raise RequestError(
                f"{package.__name__} comes from {place}, not from {ours}: PYTHONPATH={os.getenv('PYTHONPATH')}"
            )
    return f"{ours}, Python {sys.version.split()[0]}"
