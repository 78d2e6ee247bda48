"""Teachers: checkpoints with a record of where they come from, kept by content, and carried between machines.

A teacher is one network, or (cross-fitted) one a fold of the training set, of which each image is answered by the one
that never saw it.
"""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables import models
from trainables.files import CheckpointError, checkpoint_bytes, read_checkpoint, read_stored, write_atomic
from trainables.naming import unknown
from trainables.storage import below, is_bucket, open_storage
from trainables.tasks import Dataset
from trainables.views import normalise

__all__ = [
    "CheckpointError",
    "Teacher",
    "TeacherRecord",
    "content_hash",
    "cross_fitted_hash",
    "export_file",
    "import_file",
    "is_teacher_file",
    "list_records",
    "load",
    "load_into",
    "read_state_dict",
    "save",
    "trained_indices",
    "unmeasured_record",
]


@dataclass(frozen=True)
class TeacherRecord:
    """What is known of a teacher.

    `hash` is `content_hash` of its weights and normalisation (`cross_fitted_hash` of a set). `trained_on` is "unknown",
    "all", "part" (of the training set; `indices_digest` then says which), "folds" (cross-fitted) or "none" (of the
    training set: it was trained elsewhere). `test_top1` and `test_top5` are in percent, the mean over the networks of a
    set; `mis_instruction_ratio` is from 0 to 1, over the views that `ratio_on` describes and `ratio_views` names,
    where whoever measured it named them. `fold_top1`: the test accuracy of each network of a cross-fitted set, empty
    for a single one. `task`: `images` or `text`; of text the accuracies are of tokens, `num_classes` is the vocabulary,
    and `rouge_l` is ROUGE-L on each evaluation set, from 0 to 100.
    """

    name: str
    hash: str
    dataset: str
    dataset_hash: str
    model: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_on: str
    indices_digest: str | None
    test_top1: float
    test_top5: float
    mis_instruction_ratio: float
    ratio_on: str
    origin: str
    created: str
    ratio_views: str | None = None
    fold_top1: tuple[float, ...] = ()
    task: str = "images"
    rouge_l: dict[str, float] | None = None

    @property
    def folds(self) -> int:
        """How many networks a cross-fitted set has; 0 for a single one."""
        return len(self.fold_top1)


class Teacher:
    """Networks that only answer: evaluation mode, no gradients, their own normalisation.

    Args:
        record: what is known of it.
        modules: the network, or one for each fold.
        folds: (N,) int64, the fold of each training image; None for a single network.
    """

    def __init__(self, record: TeacherRecord, modules: Sequence[nn.Module], folds: Tensor | None = None) -> None:
        self.record = record
        self.device = torch.device("cpu")
        self._read: Callable[[], tuple[Sequence[nn.Module], Tensor | None]] = lambda: (modules, folds)

    @classmethod
    def lazy(cls, record: TeacherRecord, read: Callable[[], "Teacher"]) -> "Teacher":
        """One whose networks are read when they are asked for the first time."""
        teacher = cls(record, ())

        def parts() -> tuple[Sequence[nn.Module], Tensor | None]:
            found = read()
            return found.modules, found.folds

        teacher._read = parts
        return teacher

    @property
    def modules(self) -> list[nn.Module]:
        """The networks."""
        return self._networks[0]

    @property
    def folds(self) -> Tensor | None:
        """(N,) int64, the fold of each training image; None for a single network."""
        return self._networks[1]

    @cached_property
    def _networks(self) -> tuple[list[nn.Module], Tensor | None]:
        modules, folds = self._read()
        frozen = (module.eval().requires_grad_(False) for module in modules)
        # Channels last, as students have it.
        there = [module.to(self.device).to(memory_format=torch.channels_last) for module in frozen]
        return there, None if folds is None else folds.to(self.device)

    def to(self, device: torch.device | str) -> "Teacher":
        """Move it there; returns itself."""
        if torch.device(device) != self.device:
            self.device = torch.device(device)
            if "_networks" in self.__dict__:
                modules, folds = self._networks
                self._networks = (
                    [module.to(self.device) for module in modules],
                    None if folds is None else folds.to(self.device),
                )
        return self

    @torch.no_grad()
    def logits(self, images: Tensor, indices: Tensor | None = None, batch: int | None = None) -> Tensor:
        """(n, C, H, W) uint8 pixels to (n, classes) float32 logits, on the teacher's device.

        Args:
            images: uint8 pixels.
            indices: (n,) int64, which training images they are views of. None for images of the test set, which a
                cross-fitted set answers by the mean of its networks' logits.
            batch: the size of the batches in which a network sees them, the last one filled up with blank images. The
                last bits of an answer vary with that size. None: they are one batch.
        """
        images = images.to(self.device)
        if self.folds is None:
            return self._answers(self.modules[0], images, batch)
        if indices is None:
            return torch.stack([self._answers(module, images, batch) for module in self.modules]).mean(0)
        asked = self.folds[indices.to(self.device)]
        logits = torch.empty((len(images), self.record.num_classes), device=self.device)
        for fold, module in enumerate(self.modules):
            mine = torch.nonzero(asked == fold).flatten()
            if len(mine):
                logits[mine] = self._answers(module, images[mine], batch)
        return logits

    def _answers(self, module: nn.Module, images: Tensor, batch: int | None) -> Tensor:
        n = len(images)
        if batch is None:
            return module(self._normalised(images)).float()
        if n % batch:
            images = torch.cat([images, images.new_zeros((-n % batch, *images.shape[1:]))])
        return torch.cat([module(self._normalised(some)).float() for some in images.split(batch)])[:n]

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.record.mean, self.record.std)


# Checkpoints


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a checkpoint file, taken out of `model` or `state_dict` and freed of `module.` prefixes.

    Raises:
        CheckpointError: no such file, truncated, holding code, or something other than named tensors.
    """
    path = Path(path)
    content = read_checkpoint(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"checkpoint {path}: wanted: a state dict (names and tensors), found: {_describe(content)}"
        )
    return {str(key).removeprefix("module."): value.detach() for key, value in content.items()}


def load_into(model_name: str, num_classes: int, state_dict: dict[str, Tensor], where: str) -> nn.Module:
    """A model with these weights, strictly: every key present, no other, every shape right.

    Args:
        model_name: of a registered model.
        num_classes: that it is to tell apart.
        state_dict: the weights.
        where: they come from, for the message.

    Raises:
        ValueError: unknown model.
        CheckpointError: the weights are for another architecture or another number of classes.
    """
    module = models.build(model_name, num_classes)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    wrong = [key for key in expected if key in state_dict and state_dict[key].shape != expected[key].shape]
    if not missing and not unexpected and wrong and all(len(expected[k]) == num_classes for k in wrong):
        found = sorted({len(state_dict[key]) for key in wrong})
        raise CheckpointError(f"{where}: it tells {found[0]} classes apart; wanted: {num_classes}")
    shapes = [f"{key} {tuple(state_dict[key].shape)} for {tuple(expected[key].shape)}" for key in wrong]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise CheckpointError(f"{where}: not a checkpoint of {model_name}; keys: {'; '.join(faults)}")
    module.load_state_dict(state_dict)
    return module


def content_hash(
    model_name: str, mean: tuple[float, ...], std: tuple[float, ...], state_dict: dict[str, Tensor]
) -> str:
    """SHA-256 (hex) over everything that decides a teacher's logits."""
    sha = hashlib.sha256(json.dumps([model_name, list(mean), list(std)]).encode())
    for key in sorted(state_dict):
        tensor = state_dict[key].detach().cpu().contiguous()
        sha.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def unmeasured_record(
    model_name: str, dataset: Dataset, state_dict: dict[str, Tensor], *, trained_on: str, origin: str
) -> TeacherRecord:
    """The record of a network with these weights and the data set's normalisation, of which nothing was measured."""
    unknown_number = float("nan")
    return TeacherRecord(
        name=model_name,
        hash=content_hash(model_name, dataset.mean, dataset.std, state_dict),
        dataset=dataset.name,
        dataset_hash=dataset.hash,
        model=model_name,
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
        trained_on=trained_on,
        indices_digest=None,
        test_top1=unknown_number,
        test_top5=unknown_number,
        mis_instruction_ratio=unknown_number,
        ratio_on="not measured",
        origin=origin,
        created="",
    )


def cross_fitted_hash(member_hashes: Sequence[str], folds: Tensor) -> str:
    """SHA-256 (hex) over the networks of a cross-fitted set, in order, and who answers which image."""
    sha = hashlib.sha256(json.dumps(list(member_hashes)).encode())
    sha.update(folds.to(torch.int64).numpy().astype("<i8").tobytes())
    return sha.hexdigest()


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(map(str, list(content)[:3]))}{', …' if len(content) > 3 else ''}"
    return f"a {type(content).__name__}"


# The folder of teachers


def save(
    home: Path | str, record: TeacherRecord, weights: Mapping[str, Any], trained_indices: Tensor | None = None
) -> Path:
    """Keep a teacher under home/teachers, in a folder named by its hash; returns the folder.

    The folder appears complete or not at all. A teacher that is there already gets the new record and indices.

    Args:
        home: the home.
        record: what is known of it.
        weights: a state dict; of a cross-fitted set `{"members": [state dict, ...], "folds": (N,) int64}`.
        trained_indices: the training images that it was trained on, where that is known; all that any network of a
            cross-fitted set was trained on.
    """
    folder = Path(home) / "teachers" / record.hash[:16]
    files = {"weights.pt": checkpoint_bytes(weights)}
    if trained_indices is not None:
        buffer = io.BytesIO()
        np.save(buffer, trained_indices.numpy())
        files["indices.npy"] = buffer.getvalue()
    files["teacher.json"] = json.dumps(dataclasses.asdict(record), indent=2).encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        for name, content in files.items():
            write_atomic(temporary / name, content)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
        for name in ("indices.npy", "teacher.json"):
            if name in files:
                write_atomic(folder / name, files[name])
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def list_records(home: Path | str) -> list[TeacherRecord]:
    """All teachers kept under a home, by name."""
    records = [_read_record(file) for file in (Path(home) / "teachers").glob("[!.]*/teacher.json")]
    return sorted(records, key=lambda record: (record.name, record.hash))


def load(home: Path | str, reference: str, lazy: bool = False) -> Teacher:
    """The teacher of this name, or whose hash begins so (four characters at least), ready to answer.

    Args:
        home: the home.
        reference: its name, or the beginning of its hash.
        lazy: its weights are read, and found to be damaged, when it is asked for the first time.

    Raises:
        CheckpointError: there is none (the nearest names are given) or more than one, or its files are damaged.
    """
    record = find(home, reference)
    if lazy and record.task == "text":
        return _text_teacher(record, lambda: read_checkpoint(_folder(home, record) / "weights.pt"))
    if lazy:
        return Teacher.lazy(record, lambda: load(home, record.hash))
    file = _folder(home, record) / "weights.pt"
    return _assembled(record, read_checkpoint(file), str(file))


def _assembled(record: TeacherRecord, weights: Any, where: str) -> Teacher:
    """A teacher from its record and weights, once the weights are known to be those of the record."""
    try:
        members = weights["members"] if record.folds else [weights]
        folds = weights["folds"] if record.folds else None
        hashes = [content_hash(record.model, record.mean, record.std, member) for member in members]
        found = hashes[0] if folds is None else cross_fitted_hash(hashes, folds)
    except (KeyError, TypeError, AttributeError):  # something else than the weights that were written
        found = ""
    if found != record.hash:
        raise CheckpointError(
            f"teacher {record.name}: {where} is damaged, its hash is not {record.hash[:16]}; import again"
        )
    if record.task == "text":
        return _text_teacher(record, lambda: weights)
    modules = [load_into(record.model, record.num_classes, member, f"teacher {record.name}") for member in members]
    return Teacher(record, modules, folds)


def _text_teacher(record: TeacherRecord, read: Callable[[], dict[str, Tensor]]) -> Teacher:
    from trainables.text.teacher import TextTeacher  # here, since images do not need its libraries

    return TextTeacher(record, read)


def trained_indices(home: Path | str, reference: str) -> Tensor | None:
    """Indices into the training set that the teacher was trained on, where they were recorded."""
    file = _folder(home, find(home, reference)) / "indices.npy"
    return torch.from_numpy(np.load(file)) if file.is_file() else None


def _folder(home: Path | str, record: TeacherRecord) -> Path:
    return Path(home) / "teachers" / record.hash[:16]


def find(home: Path | str, reference: str) -> TeacherRecord:
    """The record of the teacher of this name, or whose hash begins so (four characters at least).

    Raises:
        CheckpointError: there is none (the nearest names are given) or more than one.
    """
    records = list_records(home)
    found = [record for record in records if record.name == reference]
    if not found and len(reference) >= 4:
        found = [record for record in records if record.hash.startswith(reference)]
    if not found:
        raise CheckpointError(
            f"{unknown('teacher', reference, {r.name for r in records})} (in {Path(home) / 'teachers'})"
        )
    if len(found) > 1:
        hashes = ", ".join(record.hash[:16] for record in found)
        raise CheckpointError(f"teacher {reference!r} means any of {hashes}: name one by its hash")
    return found[0]


def _read_record(file: Path) -> TeacherRecord:
    try:
        return _record(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): remove its folder and import the teacher again") from None


def _record(fields: Mapping[str, Any]) -> TeacherRecord:
    sequences = {name: tuple(fields.get(name, ())) for name in ("mean", "std", "fold_top1")}
    return TeacherRecord(**{**fields, **sequences})


# A storage that several hosts share

_FOLDER = "teachers"


def publish(home: Path | str, reference: str, storage: str) -> None:
    """Put a teacher of a home where other hosts find it; one that is there already stays.

    Raises:
        CheckpointError: the home has no such teacher.
        OSError: the storage does not take it.
    """
    folder = _folder(home, find(home, reference))
    if _is_home(home, storage):
        return
    there = open_storage(below(storage, _FOLDER, folder.name))
    if "teacher.json" in there.names():
        return
    # The record comes last: where it is, all is.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "teacher.json"):
        there.write(file.name, file.read_bytes())


def fetch(home: Path | str, reference: str, storage: str) -> None:
    """Bring a teacher into a home that lacks it, from where another host has published it; whole or not at all.

    Whether the storage has it shows when it is loaded.

    Raises:
        CheckpointError: a record on the storage is damaged.
        OSError: the storage does not answer.
    """
    if _is_home(home, storage) or any(_means(reference, record) for record in list_records(home)):
        return
    there = open_storage(below(storage, _FOLDER))
    for name in there.names():
        if not name.endswith("/teacher.json"):
            continue
        try:
            record = _record(json.loads(there.read(name)))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{storage}/{_FOLDER}/{name} is damaged ({error}): publish it again") from None
        if _means(reference, record):
            _bring(home, record, below(storage, _FOLDER, name.rpartition("/")[0]))


def _means(reference: str, record: TeacherRecord) -> bool:
    return reference == record.name or (len(reference) >= 4 and record.hash.startswith(reference))


def _bring(home: Path | str, record: TeacherRecord, address: str) -> None:
    there = open_storage(address)
    weights = read_stored(lambda: there.read("weights.pt"), address)
    indices = None
    if "indices.npy" in there.names():
        indices = torch.from_numpy(np.load(io.BytesIO(there.read("indices.npy"))))
    _assembled(record, weights, address)
    save(home, record, weights, indices)


def _is_home(home: Path | str, storage: str) -> bool:
    return not is_bucket(storage) and Path(storage).absolute() == Path(home).absolute()


# Files that travel: a teacher with all that is known of it

_FILE_KIND = "kdstudy teacher"


def export_file(home: Path | str, reference: str, path: Path) -> TeacherRecord:
    """Write a teacher with its record and the indices of its training images to one file; returns the record.

    Raises:
        CheckpointError: there is no such teacher, or its files are damaged.
        OSError: the file cannot be written.
    """
    record = load(home, reference).record  # loaded, so that what travels is known to be whole
    content = {
        "kind": _FILE_KIND,
        "record": dataclasses.asdict(record),
        "weights": read_checkpoint(_folder(home, record) / "weights.pt"),
        "indices": trained_indices(home, record.hash),
    }
    write_atomic(path, checkpoint_bytes(content))
    return record


def is_teacher_file(path: Path) -> bool:
    """Whether a file is one that `export_file` wrote.

    Raises:
        CheckpointError: it is no file that torch wrote, or cannot be read.
    """
    content = read_checkpoint(path)
    return isinstance(content, dict) and content.get("kind") == _FILE_KIND


def import_file(home: Path | str, path: Path) -> TeacherRecord:
    """Keep a teacher that `export_file` wrote, with its record as it is; returns the record.

    Raises:
        CheckpointError: the file is damaged, or its name is another teacher's here; nothing is kept.
    """
    content = read_checkpoint(path)
    try:
        record = _record(content["record"])
        teacher = _assembled(record, content["weights"], str(path))
        indices = content["indices"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}): export the teacher again") from None
    require_free(home, record.name, record.hash)
    save(home, teacher.record, content["weights"], indices)
    return record


def require_free(home: Path | str, name: str, content: str) -> None:
    """Refuse a name that another teacher of the home has.

    Raises:
        CheckpointError: the name is that of a teacher with another hash than `content`.
    """
    if clash := [r for r in list_records(home) if r.name == name and r.hash != content]:
        raise CheckpointError(f"--name: {name} is already the name of {clash[0].hash[:16]}; give this one another")
