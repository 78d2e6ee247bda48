"""Bringing in a teacher: a checkpoint is checked, measured and kept with its record."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study.errors import RequestError
from study.home import Home, check_name
from trainables import data, measures, models, splits, teachers
from trainables import protocol as protocols
from trainables.models import ModelEntry
from trainables.pipeline import Pipeline
from trainables.teachers import TeacherRecord
from trainables.teaching import Teaching

RATIO_IMAGES = 10_000
TORCHVISION = "torchvision"
_TRAINED_ON = ("all", "unknown", "none")


def import_file(home: Home, file: Path) -> TeacherRecord | None:
    """Keep a teacher from a file of `kdstudy teacher export`; None where the file is a plain checkpoint.

    Raises:
        RequestError: the file cannot be read or is damaged, or its name is another teacher's; nothing is kept.
    """
    try:
        return teachers.import_file(home.root, file) if teachers.is_teacher_file(file) else None
    except (ValueError, OSError) as error:
        raise RequestError(str(error)) from None


def import_teacher(
    home: Home,
    checkpoint: str,
    *,
    model: str,
    dataset: str,
    root: str | None,
    name: str | None,
    mean: str | None,
    std: str | None,
    trained_on: str,
    protocol: str,
) -> TeacherRecord:
    """Check a checkpoint, measure its test accuracy and mis-instruction ratio, and keep it in the home.

    The ratio is taken on augmented views of the training images, or of a stratified sample of 10,000 of them.

    Args:
        home: the home.
        checkpoint: a file, or `torchvision` for the weights that torchvision has for the model.
        model, dataset, root: what it is, what it classifies, and where those data are.
        name: what to call it; by default the file's name.
        mean, std: its normalisation, by channel with commas between; by default the data set's.
        trained_on: what it saw of the data set's training images: `all`, `none` or `unknown`.
        protocol: whose views its ratio is measured on.

    Raises:
        RequestError: an unknown name, a checkpoint that is not this model's, data that cannot be read; nothing is kept.
    """
    if trained_on not in _TRAINED_ON:
        raise RequestError(f"--trained-on: {trained_on!r} is none of {', '.join(_TRAINED_ON)}")
    try:
        network, entry = models.get(model), data.get(dataset)
        chosen = protocols.resolve(protocol)
        called = check_name(name or (f"{model}-torchvision" if checkpoint == TORCHVISION else Path(checkpoint).stem))
        if entry.shape is not None:
            size = chosen.image_size
            _require(network, (entry.shape[0], size, size) if size is not None else entry.shape)
        # The checkpoint first: it is checked in a moment, and the data may take minutes to read.
        if checkpoint == TORCHVISION:
            state_dict = _torchvision_weights(network)
        else:
            state_dict = teachers.read_state_dict(checkpoint)
        if entry.num_classes is not None:
            teachers.load_into(model, entry.num_classes, state_dict, checkpoint)
        loaded = data.load(dataset, root=root, cache=home.data)
        module = teachers.load_into(model, loaded.num_classes, state_dict, checkpoint)
        pipeline = Pipeline(loaded, chosen)
        _require(network, pipeline.shape)
        channels = len(loaded.mean)
        normalisation = _numbers("mean", mean, loaded.mean, channels), _numbers("std", std, loaded.std, channels)
        digest = teachers.content_hash(model, *normalisation, state_dict)
        teachers.require_free(home.root, called, digest)
    except RequestError:
        raise
    except (ValueError, OSError) as error:
        raise RequestError(str(error)) from None
    measured = TeacherRecord(
        name=called,
        hash=digest,
        dataset=dataset,
        dataset_hash=loaded.hash,
        model=model,
        num_classes=loaded.num_classes,
        mean=normalisation[0],
        std=normalisation[1],
        trained_on=trained_on,
        indices_digest=None,
        test_top1=0.0,
        test_top5=0.0,
        mis_instruction_ratio=0.0,
        ratio_on="",
        origin=f"import of {Path(checkpoint).name}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    teacher = teachers.Teacher(measured, [module])
    images = splits.stratified(loaded.train_labels, RATIO_IMAGES, seed=0)
    try:
        top1, top5 = measures.evaluate(teacher.logits, pipeline.evaluation("test", None))
        ratio = measures.mis_instruction_ratio(Teaching(teacher, pipeline), images, 1, seed=0)
    except data.DataError as error:
        raise RequestError(f"--root: {error}") from None
    record = replace(
        measured,
        test_top1=top1,
        test_top5=top5,
        mis_instruction_ratio=ratio,
        ratio_on=f"one augmented view of each of {len(images):,} training images",
    )
    teachers.save(home.root, record, state_dict)
    return record


def _require(network: ModelEntry, shape: tuple[int, int, int]) -> None:
    try:
        network.require(shape)
    except ValueError as error:
        raise RequestError(f"--model: {error}") from None


def _torchvision_weights(network: ModelEntry) -> dict[str, Any]:
    """The weights that torchvision has for a model, from its cache or from its server.

    Raises:
        RequestError: it has none, or they can be had from neither.
    """
    if network.weights is None:
        raise RequestError(f"{network.name}: torchvision has no weights for it; give a checkpoint file")
    from torchvision.models import get_weight

    weights = get_weight(network.weights)
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise RequestError(
            f"{network.weights}: cannot be fetched ({error}); download {weights.url} elsewhere and import the file"
        ) from None


def _numbers(option: str, text: str | None, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if text is None:
        return default
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != channels or not all(map(math.isfinite, values)) or (option == "std" and min(values) <= 0):
        raise RequestError(f"--{option}: {text!r} is not {channels} numbers with commas between them")
    return values
