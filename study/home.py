"""Where a study's things lie: the home folder and the addresses that may stand elsewhere."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.database import check_url, is_sqlite, sqlite_file
from study.errors import RequestError
from trainables.files import read_stored
from trainables.storage import ARTIFACTS, below, is_bucket, open_storage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Home:
    """Paths and addresses of one home. `KDSTUDY_HOME` names the folder; the environment may move its parts."""

    root: Path
    store_url: str
    tracking_uri: str
    storage: str  # a folder, or s3://BUCKET/PREFIX

    @property
    def has_store(self) -> bool:
        """Whether there is a store to read: a server's is made by the first who opens it."""
        return not is_sqlite(self.store_url) or sqlite_file(self.store_url).exists()

    @property
    def data(self) -> Path:
        """Decoded data sets, one copy a node."""
        return self.root / "data"

    @property
    def models(self) -> Path:
        """Folders of language models, one a model."""
        return Path(os.environ.get("KDSTUDY_MODELS") or self.root / "models").expanduser().absolute()

    def checkpoints(self, run_id: str) -> str:
        """The address of a run's checkpoints. The store holds their names below it, so that a home may move."""
        return below(self.storage, "checkpoints", run_id)

    def read_checkpoint(self, run_id: str, name: str | None) -> Any:
        """What a run's checkpoint holds.

        Raises:
            CheckpointError: it is gone, or damaged.
        """
        named, address = name or "none", self.checkpoints(run_id)
        return read_stored(lambda: open_storage(address).read(named), below(address, named))

    def artifacts_of(self, run_id: str) -> dict[str, str]:
        """The files that a run has left to be shown with it, by name; none where the storage does not have them."""
        storage = open_storage(self.checkpoints(run_id))
        try:
            names = [name for name in storage.names() if name.startswith(f"{ARTIFACTS}/")]
            return {name.removeprefix(f"{ARTIFACTS}/"): storage.read(name).decode("utf-8") for name in names}
        except OSError:
            return {}

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
        storage=_storage(os.environ.get("KDSTUDY_STORAGE") or str(root)),
    )
    if create:
        folders = {"KDSTUDY_HOME": root}
        if not is_bucket(home.storage):
            folders["KDSTUDY_STORAGE"] = Path(home.storage)
        if is_sqlite(home.store_url):
            folders["KDSTUDY_STORE"] = sqlite_file(home.store_url).parent
        for variable, folder in folders.items():
            _require_writable(variable, folder)
    return home


def _storage(address: str) -> str:
    if is_bucket(address):
        return address.rstrip("/")
    if "://" in address:
        raise RequestError(f"KDSTUDY_STORAGE: {address}: use a folder or s3://BUCKET/PREFIX")
    return str(Path(address).expanduser().absolute())


def probe_storage(home: Home) -> None:
    """Write, read and delete a small object, as checkpoints will be.

    Raises:
        RequestError: the storage does not take it, or gives something else back.
    """
    name, content = f"probe-{os.getpid()}-{secrets.token_hex(4)}", secrets.token_bytes(16)
    try:
        storage = open_storage(home.storage)
        storage.write(name, content, 5.0)
        same = storage.read(name) == content
        storage.delete(name)
    except (OSError, ValueError) as error:
        raise RequestError(f"KDSTUDY_STORAGE: {error}") from None
    if not same:
        raise RequestError(f"KDSTUDY_STORAGE: {home.storage} does not give back what is written to it")


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
