"""Where a study's things lie: the home folder and the addresses that may stand elsewhere."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from study.database import check_url, is_sqlite, sqlite_file
from study.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Home:
    """Paths and addresses of one home. `KDSTUDY_HOME` names the folder; the environment may move its parts."""

    root: Path
    store_url: str
    tracking_uri: str
    storage: Path

    @property
    def has_store(self) -> bool:
        """Whether there is a store to read: a server's is made by the first who opens it."""
        return not is_sqlite(self.store_url) or sqlite_file(self.store_url).exists()

    @property
    def data(self) -> Path:
        """Decoded data sets, one copy a node."""
        return self.root / "data"

    @property
    def checkpoints(self) -> Path:
        """Where runs stand: one folder a run."""
        return self.storage / "checkpoints"

    def checkpoint(self, run_id: str, name: str) -> Path:
        """A run's checkpoint of this name. The store holds names, so that a home may move."""
        return self.checkpoints / run_id / name

    @property
    def logits(self) -> Path:
        """Stores of teachers' logits, one copy a node."""
        return Path(os.environ.get("KDSTUDY_LOGITS") or self.root / "logits").expanduser().absolute()

    @property
    def locks(self) -> Path:
        """One file lock a study: its driver's."""
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        """One log a study: what the driver did."""
        return self.root / "logs"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts where MLflow's database is the home's own."""
        return self.root / "mlartifacts"

    @property
    def own_tracking(self) -> bool:
        """Whether MLflow's database is the home's own file, so that no server is needed."""
        return self.tracking_uri.startswith("sqlite:///")

    def report(self, study: str) -> Path:
        """The folder of a study's report."""
        return self.root / "reports" / study


def open_home(create: bool = True) -> Home:
    """The home that the environment names (default: `./kdstudy-home`).

    Raises:
        RequestError: the folder cannot be written, or the store is of a kind that is not supported.
    """
    root = Path(os.environ.get("KDSTUDY_HOME") or "kdstudy-home").expanduser().absolute()
    store_url = os.environ.get("KDSTUDY_STORE") or f"sqlite:///{root / 'store.db'}"
    home = Home(
        root=root,
        store_url=check_url("KDSTUDY_STORE", store_url),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}",
        storage=Path(os.environ.get("KDSTUDY_STORAGE") or root).expanduser().absolute(),
    )
    if create:
        folders = {"KDSTUDY_HOME": root, "KDSTUDY_STORAGE": home.storage}
        if is_sqlite(home.store_url):
            folders["KDSTUDY_STORE"] = sqlite_file(home.store_url).parent
        for variable, folder in folders.items():
            _require_writable(variable, folder)
    return home


def _require_writable(variable: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise RequestError(f"{folder}: cannot be written ({reason}); set {variable} to a place that can") from None


def check_name(name: str) -> str:
    """A study's name, which is also a folder's and an experiment's.

    Raises:
        ValueError: the name has path separators, blanks or other characters that do not travel.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no study name: use letters, digits, '.', '_' and '-' (100 at most), no '/'")
    return name
