"""What a home no longer needs: said first, removed when asked.

Kept is whatever a study may still use: the last checkpoint of every run that some study has, whether it is done, waits
or was pruned, and all that a living driver's runs write.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from study.home import Home
from study.lock import is_driven
from study.store import DONE, FAILED, RUNNING, Store
from trainables.storage import ARTIFACTS, below, is_bucket, open_storage

# Whatever is being written now is younger.
_OLD_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Garbage:
    """One kind of what is not needed: what it is, how many, their bytes (None: not known), and how to remove them."""

    what: str
    count: int
    bytes: int | None
    remove: Callable[[], None]


def find(home: Home, store: Store, *, failed: bool = False, finished: bool = False) -> list[Garbage]:
    """What may go.

    Args:
        home, store: the home and its store.
        failed: the checkpoints of failed runs too: a `retry` begins them from nothing anyway.
        finished: those of finished runs too: `export` then no longer works for them.

    Raises:
        OSError: the storage does not answer.
    """
    studies = store.study_names()
    runs = {run.run_id: run for study in studies for run in store.runs(study)}
    driven = {study for study in studies if is_driven(home, store, study)}
    drop = {FAILED: failed, DONE: finished}
    checkpoints = open_storage(below(home.storage, "checkpoints"))
    unused, outdated, ended = [], [], []
    for name in checkpoints.names():
        run_id, _, rest = name.partition("/")
        run = runs.get(run_id)
        if run is None:
            unused.append(name)
        elif run.state == RUNNING or (run.owner in driven and run.state != DONE):
            continue
        elif drop.get(run.state, False):
            ended.append(name)
        elif rest != run.checkpoint and not rest.startswith(f"{ARTIFACTS}/"):
            outdated.append(name)

    def kind(what: str, names: list[str]) -> Garbage:
        def remove() -> None:
            for name in names:
                checkpoints.delete(name)

        return Garbage(what, len(names), _size(home, names), remove)

    asked = " and ".join(word for word, on in (("failed", failed), ("finished", finished)) if on)
    found = [
        kind("checkpoints of runs that no study has", unused),
        kind("checkpoints that a later one replaced", outdated),
        kind(f"checkpoints of {asked} runs", ended),
        _files("files of writers that were killed", _left(home)),
        _files("Tune's folders of drivers that are gone", _scratch(home, driven)),
        _files("logs of studies that are gone", _logs(home, studies)),
    ]
    return [garbage for garbage in found if garbage.count]


def _size(home: Home, names: Iterable[str]) -> int | None:
    if is_bucket(home.storage):
        return None
    root = Path(home.storage) / "checkpoints"
    return sum(size for name in names if (size := _bytes(root / name)))


def _files(what: str, paths: list[Path]) -> Garbage:
    def remove() -> None:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    return Garbage(what, len(paths), sum(map(_bytes, paths)), remove)


def _bytes(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:  # gone meanwhile
        return 0


def _left(home: Home) -> list[Path]:
    roots = [home.root / "teachers", home.root / "data"]
    if not is_bucket(home.storage):
        roots.append(Path(home.storage) / "checkpoints")
    return [path for root in roots for path in root.rglob(".tmp-*") if _old(path)]


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    except OSError:
        return False


def _scratch(home: Home, driven: set[str]) -> list[Path]:
    folder = home.root / "tune"
    return [path for path in folder.glob("*") if path.name not in driven] if folder.is_dir() else []


def _logs(home: Home, studies: Iterable[str]) -> list[Path]:
    known = set(studies)
    return [path for path in home.logs.glob("*.log") if path.stem not in known] if home.logs.is_dir() else []
