"""Instructions and their responses, as JSON lines: the data sets that can be named, and reading them.

A line is an object with `instruction`, `output` (a text, or a list of texts that are all right) and, where there is
one, `input`. A data set to train on has a training and a test part; those that only evaluate have a test part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainables.data import DataError
from trainables.registry import Registry

VERSION = 1  # raised when a fix changes what a loader returns


@dataclass(frozen=True)
class Example:
    """An instruction, what it is about ('' where nothing is given), and the responses that are right."""

    instruction: str
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """A data set that can be named.

    `train` and `test` are the names that its files may have below the user's folder, best first; no `train`: it only
    evaluates. `source`: what the folder should hold.
    """

    name: str
    summary: str
    source: str
    test: tuple[str, ...]
    train: tuple[str, ...] = ()
    version: int = 1


def _evaluated(name: str, summary: str, *files: str) -> Corpus:
    return Corpus(
        name, summary, f"a folder with {files[0]}", tuple(f"{below}{file}" for below in _BELOW for file in files)
    )


_BELOW = ("", "instruct_eval/", "../instruct_eval/")

CORPORA = Registry(
    "text data set",
    "kdstudy.corpora",
    Corpus,
    (
        Corpus(
            "dolly",
            "databricks-dolly-15k: instructions and responses written by people; LoCa, section 4.2",
            "a folder with train.jsonl and valid.jsonl, or with a folder dolly of these",
            test=("valid.jsonl", "dolly/valid.jsonl"),
            train=("train.jsonl", "dolly/train.jsonl"),
        ),
        Corpus(
            "instructions",
            "instructions and responses of your own",
            "a folder with train.jsonl and test.jsonl; keys instruction, input, output",
            test=("test.jsonl",),
            train=("train.jsonl",),
        ),
        _evaluated("s_ni", "Super-NaturalInstructions, responses of 11 words and more", "sinst_11plus.jsonl"),
        _evaluated("unni", "Unnatural Instructions, responses of 11 words and more", "uinst_11plus.jsonl"),
        _evaluated("self_inst", "Self-Instruct: 252 instructions of users", "self_inst.jsonl"),
        _evaluated("vicuna", "Vicuna: 80 questions", "vicuna.jsonl"),
    ),
)


@dataclass(frozen=True)
class TextDataset:
    """Examples to train on and to evaluate on.

    `tests`: the evaluation sets by name; the first is the data set's own, and the one that a study's results are of.
    `train_labels` and `test_labels` are 0, or -1 for an example without a response, which is not part of the data: so
    splits and samples are made as of images of one class. `models`: where the models' folders lie; `cache`: for what is
    made of them. `hash`: SHA-256 (hex) of the training part and the data set's own evaluation set; `evaluated`: of each
    of the others.
    """

    name: str
    train: tuple[Example, ...]
    tests: dict[str, tuple[Example, ...]]
    hash: str
    evaluated: dict[str, str]
    models: Path
    cache: Path
    skipped: int
    train_labels: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bad_images: str = "fail"


def names() -> list[str]:
    """The names of all text data sets."""
    return CORPORA.names()


def load(
    name: str, root: Path | str | None, models: Path | str, cache: Path | str, evaluate: Sequence[str] = ()
) -> TextDataset:
    """Read a data set.

    Args:
        name: of a corpus with a training part.
        root: the folder that holds its files.
        models, cache: see `TextDataset`.
        evaluate: further corpora whose test parts are evaluated on.

    Raises:
        ValueError: unknown name, or one without a training part.
        DataError: a file is missing, empty, or not of JSON lines with these keys; one line.
    """
    corpus = CORPORA.get(name)
    if not corpus.train:
        raise ValueError(f"{name} has no training part; it can be named in data.evaluate")
    if root is None:
        raise DataError(f"data set {name}: no folder given; wanted: {corpus.source}")
    train = _read(_find(corpus, corpus.train, Path(root)))
    tests = {name: _read(_find(corpus, corpus.test, Path(root)))}
    for other in evaluate:
        if other != name:
            entry = CORPORA.get(other)
            tests[other] = _read(_find(entry, entry.test, Path(root)))
    for part, examples in tests.items():
        if not any(example.outputs for example in examples):
            raise DataError(f"data set {part}: its evaluation set is empty")
    marks = {"train": train, "test": tests[name]}
    labels = {part: torch.tensor([0 if each.outputs else -1 for each in found]) for part, found in marks.items()}
    return TextDataset(
        name=name,
        train=train,
        tests=tests,
        hash=_hash(train, tests[name]),
        evaluated={other: _hash(examples) for other, examples in tests.items() if other != name},
        models=Path(models),
        cache=Path(cache),
        skipped=sum(int((found < 0).sum()) for found in labels.values()),
        train_labels=labels["train"],
        test_labels=labels["test"],
    )


def _find(corpus: Corpus, files: Sequence[str], root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"data set {corpus.name}: there is no folder {root}; wanted: {corpus.source}")
    for file in files:
        if (root / file).is_file():
            return root / file
    raise DataError(f"data set {corpus.name}: {root} has no {files[0]}; wanted: {corpus.source}")


def _read(file: Path) -> tuple[Example, ...]:
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}: line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or "output" not in row:
            raise DataError(f"{file}: line {number}: wanted an object with instruction, output and perhaps input")
        outputs = row["output"] if isinstance(row["output"], list) else [row["output"]]
        given = row.get("input") or ""
        if not all(isinstance(text, str) for text in (given, *outputs)):
            raise DataError(f"{file}: line {number}: input and output must be text")
        kept = tuple(text for text in outputs if text.strip())
        found.append(Example(row["instruction"], given, kept))
    if not found:
        raise DataError(f"{file}: it is empty")
    return tuple(found)


def _hash(*parts: tuple[Example, ...]) -> str:
    sha = hashlib.sha256()
    for examples in parts:
        sha.update(f"{len(examples)}".encode())
        for each in examples:
            sha.update(json.dumps([each.instruction, each.input, each.outputs]).encode())
    return sha.hexdigest()
