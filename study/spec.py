"""The spec: what was asked, as a YAML file, validated once and frozen.

The name is the study's identity. `difference` says whether a spec may continue a stored one: seeds, budget, further
list values, methods and pairs make a study grow; anything that would change results already there needs a new name.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from search_spaces import pairs, shipped, spaces
from search_spaces.pairs import Pair
from study.errors import RequestError
from study.home import check_name
from trainables import data as datasets
from trainables import objectives, tasks
from trainables import protocol as protocols
from trainables.naming import unknown
from trainables.text import corpora
from trainables.text import models as text_models


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _absolute(folder: str) -> str:
    # Workers start in a folder of their own, and a study may be continued from another one.
    return str(Path(folder).expanduser().absolute())


def _inside(folder: str) -> str:
    """A folder, where it lies below one of those that data may be read from (`KDSTUDY_DATA_ROOTS`, if that is set)."""
    allowed = [entry for entry in os.environ.get("KDSTUDY_DATA_ROOTS", "").split(os.pathsep) if entry]
    real = Path(folder).resolve()
    if allowed and not any(real.is_relative_to(Path(entry).expanduser().resolve()) for entry in allowed):
        raise ValueError(f"{folder} lies outside of KDSTUDY_DATA_ROOTS ({os.pathsep.join(allowed)})")
    return folder


class DataSpec(_Part):
    """Which images, and how many of them."""

    name: str = Field(description="a data set of `kdstudy datasets`")
    evaluate: tuple[str, ...] = Field((), description="text: further sets whose responses are scored")
    root: str | None = Field(None, description="folder of the files (torchvision's layout, or image parquet files)")
    train_limit: int | None = Field(None, ge=1, description="stratified sample of the students' training images")
    test_limit: int | None = Field(None, ge=1, description="stratified sample of the test images")
    validation: float = Field(0.1, gt=0, lt=1, description="share of train that a search values its points on")
    split_seed: int = Field(0, ge=0, description="seed of the split, apart from the seeds of the runs")
    classes: int | tuple[int | str, ...] | None = Field(
        None, description="only these classes: the first so many, or a list of numbers or names"
    )
    label_noise: float = Field(0.0, ge=0, lt=1, description="share of the training labels that are made wrong")
    noise_seed: int = Field(0, ge=0, description="seed of the label noise")
    bad_images: Literal["fail", "skip"] = Field("fail", description="what an image that does not decode comes to")

    @property
    def source(self) -> dict[str, Any]:
        """What decides which images and labels there are, where to read them, as `runner.load_data` takes it."""
        return self.model_dump(mode="json", include=_SOURCE | ({"evaluate"} if self.task == "text" else set()))

    @property
    def variant(self) -> dict[str, Any]:
        """What makes the labels differ from the original's; empty where they are the original's."""
        found: dict[str, Any] = {"classes": self.model_dump(mode="json")["classes"]} if self.classes else {}
        return found | ({"noise": [self.label_noise, self.noise_seed]} if self.label_noise else {})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        tasks.of_data(name)
        return name

    @field_validator("evaluate")
    @classmethod
    def _known_sets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            corpora.CORPORA.get(name)
        return names

    @model_validator(mode="after")
    def _of_its_task(self) -> DataSpec:
        if self.task == "images" and self.evaluate:
            raise ValueError(f"evaluate: {self.name} has images; further sets are of text")
        if self.task == "text":
            for name in ("classes", "label_noise"):
                if getattr(self, name):
                    raise ValueError(f"{name}: {self.name} has texts, which have no classes")
        return self

    @property
    def task(self) -> str:
        """`images` or `text`."""
        return tasks.of_data(self.name)

    @field_validator("root")
    @classmethod
    def _from_here(cls, root: str | None) -> str | None:
        return None if root is None else _inside(_absolute(root))


_SOURCE = {"name", "root", "classes", "label_noise", "noise_seed", "bad_images"}


class TeacherSpec(_Part):
    """Where the teacher comes from and what it saw."""

    regime: Literal["seen", "held_out", "cross_fitted"] = Field(
        "seen", description="what the teacher saw of the students' images: all, none, or none of those it answers"
    )
    checkpoint: str | None = Field(
        None,
        description="name or hash in `kdstudy teacher list`; none: it is trained first; of text also `pretrained`: as "
        "its folder has it",
    )
    fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="held_out: the share of train for the teacher; 0 for one that was trained elsewhere",
    )
    folds: int = Field(5, ge=2, le=100, description="cross_fitted: how many networks; each knows all folds but one")
    stop_at: float | None = Field(
        None, gt=0, le=100, description="its training ends when its top-1 on the views it trains on reaches this, %"
    )
    train_limit: int | None = Field(None, ge=2, description="stratified sample of the images that it learns from")
    logits: Literal["float32", "float16", "online"] = Field(
        "float32", description="how its logits on enumerable views are stored; online: it is asked at each step"
    )
    top_k: int | None = Field(
        None, ge=1, description="text: so many of its logits a token are kept; null: none, it is asked at each step"
    )
    seed: int = Field(0, ge=0, description="seed of its training")
    protocol: dict[str, Any] = Field(
        default_factory=dict, description="fields in which its training differs from the students'"
    )


class PairSpec(_Part):
    """A pair, with the teacher, data and protocol where they differ from the study's.

    A pair may stand several times, with different teachers or data, when each has a label of its own.
    """

    pair: str
    protocol: dict[str, Any] = Field(default_factory=dict)
    label: str = Field("", pattern=r"^[A-Za-z0-9._+%-]{0,40}$", description="tells apart what has the same pair")
    teacher: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)

    @field_validator("pair")
    @classmethod
    def _known(cls, name: str) -> str:
        pairs.get(name)
        return name

    @property
    def key(self) -> str:
        """The pair, with its label where it has one."""
        return f"{self.pair}@{self.label}" if self.label else self.pair

    @field_validator("data")
    @classmethod
    def _from_here(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "root": _absolute(data["root"])} if isinstance(data.get("root"), str) else data


class SearchSpec(_Part):
    """How points are proposed, pruned and chosen."""

    sampler: Literal["grid", "random", "tpe", "gp"] = Field("grid", description="grid for lists; the others for ranges")
    pruner: Literal["none", "successive_halving"] = "none"
    points: int | None = Field(None, ge=1, description="points a pair and method with ranges")
    seed: int = Field(0, ge=0, description="seed of the sampler")
    first_rung: int | None = Field(
        None,
        ge=1,
        description="successive halving: the epoch of the first decision, with others at `reduction` times the epoch; "
        "null: one decision, after the first epoch with a lower learning rate",
    )
    reduction: int = Field(3, ge=2, description="successive halving: one of so many points goes on")
    final_top: int = Field(1, ge=1, description="points a pair and method that the final stage trains again")
    defaults_first: bool = Field(True, description="try the protocol's own values first, where the ranges have them")
    warm_start: int = Field(
        0, ge=0, description="best points of each pair searched before, by this study or another, that are tried next"
    )


class ConfirmSpec(_Part):
    """The best points trained again, so that their gains are told by seeds that did not choose them."""

    top: int = Field(3, ge=1, description="points of each pair that are trained again, with what they are held against")
    seeds: int = Field(5, ge=2, description="fresh seeds of each")


class Budget(_Part):
    """Limits of the whole study; null means none."""

    runs: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0, description="wall hours, summed over restarts")
    device_hours: float | None = Field(None, gt=0)
    run_hours: float | None = Field(None, gt=0, description="a run that takes longer on its device has failed")
    epoch_minutes: float = Field(
        360.0, gt=0, description="a worker that finishes no epoch for so long hangs: it is killed, its run goes on"
    )
    same_failures: int = Field(5, ge=1, description="so many runs that fail alike, one after the other, stop the study")


class Spec(_Part):
    """A study as a user writes it."""

    name: Annotated[str, AfterValidator(check_name)]
    question: str = Field("", description="what the study is to answer; shown in its report")
    protocol: dict[str, Any] = Field(description="base: a protocol's name, and any field in which it differs")
    data: DataSpec
    teacher: TeacherSpec = TeacherSpec()  # type: ignore[call-arg]
    pairs: tuple[PairSpec, ...] = Field(min_length=1)
    methods: dict[str, dict[str, Any]] = Field(description="none: the study measures its teachers and trains nobody")
    search: SearchSpec = SearchSpec()  # type: ignore[call-arg]
    selection: Literal["validation", "paper"] = Field(
        "validation", description="paper: choose by test accuracy, as the papers do; printed in every report"
    )
    seeds: tuple[int, ...] = Field(min_length=1)
    confirm: ConfirmSpec | None = Field(
        None, description="train the best points again on fresh seeds when all else is done; `kdstudy confirm` adds it"
    )
    budget: Budget = Budget()  # type: ignore[call-arg]

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= FINAL_SEED:
                raise ValueError(f"a number of seeds lies between 1 and {FINAL_SEED}, not {value}")
            return tuple(range(value))
        if not _is_list(value):
            raise ValueError(f"must be a number of seeds, or a list of them, not {_shortened(value)}")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= FINAL_SEED:
            raise ValueError(f"seeds must be distinct numbers from 0 to {FINAL_SEED - 1}")
        return seeds

    @field_validator("pairs", mode="before")
    @classmethod
    def _names_or_objects(cls, value: Any) -> Any:
        return [{"pair": pair} if isinstance(pair, str) else pair for pair in value] if _is_list(value) else value

    @field_validator("methods", mode="before")
    @classmethod
    def _bare_methods(cls, value: Any) -> Any:
        return {name: {} if given is None else given for name, given in value.items()} if _is_map(value) else value

    @field_validator("methods")
    @classmethod
    def _spaces(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, raw in methods.items():
            try:
                spaces.parse_method(name, raw)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if not str(error).startswith("unknown") else str(error)) from None
        return methods

    @field_validator("protocol")
    @classmethod
    def _resolves(cls, raw: dict[str, Any]) -> dict[str, Any]:
        try:
            resolve_protocol(raw)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("protocol.")) from None
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> Spec:
        names = [pair.key for pair in self.pairs]
        for index, pair in enumerate(self.pairs):
            try:
                data = self.data_of(pair)
            except ValidationError as error:
                raise ValueError(f"pairs.{index}.data.{_first(error, ('data',))}") from None
            try:
                teacher = self.teacher_of(pair)
            except ValidationError as error:
                raise ValueError(f"pairs.{index}.teacher.{_first(error, ('teacher',))}") from None
            architectures = pairs.get(pair.pair)
            try:
                protocol = self.protocol_of(pair)
            except ValueError as error:
                raise ValueError(f"pairs.{index}.protocol: {str(error).removeprefix('protocol.')}") from None
            try:
                self.teacher_protocol_of(pair)
            except ValueError as error:
                raise ValueError(f"teacher.protocol: {str(error).removeprefix('protocol.')}") from None
            self._fits_its_task(f"pairs.{index}", data, teacher, architectures, protocol)
            if data.task == "text":
                continue
            shape = datasets.get(data.name).shape
            if shape is not None and protocol.image_size is not None:
                shape = (shape[0], protocol.image_size, protocol.image_size)
            for model in (architectures.teacher, architectures.student):
                if shape is not None:
                    _require_shape(model, data.name, shape, f"pairs.{index}")
            if teacher.regime == "held_out" and not teacher.fraction and teacher.checkpoint is None:
                raise ValueError(
                    f"pairs.{index}: teacher.fraction: 0 leaves the teacher no image to learn from; only a checkpoint "
                    "that was trained elsewhere needs none"
                )
            if teacher.stop_at is not None and teacher.checkpoint is not None:
                raise ValueError(f"pairs.{index}: teacher.stop_at is for a teacher that is trained, no checkpoint")
        if len({self.data_of(pair).task for pair in self.pairs}) > 1:
            raise ValueError("pairs: some have images and some text, which are valued differently: make two studies")
        if len(set(names)) < len(names):
            raise ValueError("pairs: a pair stands twice; give each a label of its own: {pair: …, label: …}")
        sampled = [name for name, raw in self.methods.items() if spaces.parse_method(name, raw).sampled]
        if sampled and self.search.sampler == "grid":
            raise ValueError(
                f"search.sampler: grid cannot sample the ranges of {', '.join(sampled)}; use random, tpe or gp"
            )
        if sampled and self.search.points is None:
            raise ValueError("search.points: how many points should be sampled from the ranges? for instance 30")
        if not sampled and self.search.points is not None:
            raise ValueError("search.points: every method has lists, which are enumerated; leave points out")
        if not sampled and self.search.sampler != "grid":
            raise ValueError(
                f"search.sampler: {self.search.sampler} needs a range, and every method has lists; use grid"
            )
        return self

    def _fits_its_task(
        self, where: str, data: DataSpec, teacher: TeacherSpec, pair: Pair, protocol: protocols.Protocol
    ) -> None:
        """Refuse a protocol, models, methods or a regime that are of another kind of data."""
        task = data.task
        if protocol.task != task:
            fitting = [base for base, each in protocols.PROTOCOLS.items() if each.task == task]
            raise ValueError(
                f"{where}: protocol.base: {protocol.base} is for {protocol.task}, {data.name} has {task}; take one of "
                f"{', '.join(fitting)}"
            )
        for model in (pair.teacher, pair.student):
            if (text_models.parse(model) is not None) != (task == "text"):
                raise ValueError(f"{where}: {model} is no model of {task}, which {data.name} has")
        for name in self.methods:
            if task not in objectives.get(name).tasks:
                raise ValueError(f"methods.{name}: it is not for {task}, which {data.name} has")
        if task == "text" and teacher.regime == "cross_fitted":
            raise ValueError(f"{where}: teacher.regime: cross_fitted is for images; use seen or held_out")
        if task == "text" and self.search.pruner != "none" and protocol.score_every != 1:
            raise ValueError(
                f"{where}: protocol.score_every: {protocol.score_every} leaves the pruner epochs without a score; with "
                "a pruner it must be 1"
            )
        if task == "images" and teacher.top_k is not None:
            raise ValueError(f"{where}: teacher.top_k: it is for text; of images all logits are kept")

    @property
    def mode(self) -> Literal["ablation", "search"]:
        """`search` where something is chosen (a range or a pruner), else `ablation`."""
        sampled = any(space.sampled for space in self.spaces().values())
        return "search" if sampled or self.search.pruner != "none" else "ablation"

    @property
    def chosen_by(self) -> Literal["none", "validation", "paper"]:
        """What points are chosen by: nothing in an ablation."""
        return "none" if self.mode == "ablation" else self.selection

    @property
    def valued_by(self) -> str:
        """The metric that points of the first stage are valued by."""
        part = "val" if self.chosen_by == "validation" else "test"
        return f"{part}_{tasks.SCORES[self.data_of(self.pairs[0]).task]}_last"

    def spaces(self) -> dict[str, spaces.MethodSpace]:
        """The search space of each method."""
        return {name: spaces.parse_method(name, raw) for name, raw in self.methods.items()}

    def trains_teacher_of(self, pair: PairSpec) -> bool:
        """Whether a pair's teacher has to be trained first: some method needs one, and none is named."""
        taught = any(objectives.get(method).needs_teacher for method in self.methods)
        return (taught or not self.methods) and self.teacher_of(pair).checkpoint is None

    def data_of(self, pair: PairSpec) -> DataSpec:
        """The data of one pair. A folder belongs to its data set: a pair with another one does not inherit it."""
        inherited = self.data.model_dump()
        if pair.data.get("name", self.data.name) != self.data.name:
            inherited["root"] = None
        return DataSpec(**{**inherited, **pair.data})

    def teacher_of(self, pair: PairSpec) -> TeacherSpec:
        """The teacher of one pair."""
        return TeacherSpec(**{**self.teacher.model_dump(), **pair.teacher})

    def protocol_of(self, pair: PairSpec) -> protocols.Protocol:
        """The protocol of one pair's students: the base may treat a student in a way of its own."""
        return resolve_protocol({**self.protocol, **pair.protocol}, pairs.get(pair.pair).student)

    def teacher_protocol_of(self, pair: PairSpec) -> protocols.Protocol:
        """The protocol of one pair's teacher, where it is trained here."""
        fields = {**self.protocol, **pair.protocol, **self.teacher_of(pair).protocol}
        return resolve_protocol(fields, pairs.get(pair.pair).teacher)


# Seeds from here on belong to the final stage, so that it never repeats a seed that chose the point.
FINAL_SEED = 1_000_000
# From here on to the confirmation, which repeats neither.
CONFIRM_SEED = 2_000_000


def resolve_protocol(raw: Mapping[str, Any], student: str | None = None) -> protocols.Protocol:
    """The protocol that a spec names, as it is for a student, with its changes.

    Raises:
        ValueError: no base, an unknown base or field, or a value that the field cannot take.
    """
    fields = dict(raw)
    base = fields.pop("base", None)
    if not isinstance(base, str):
        raise ValueError(f"base is missing or no name; it is one of: {', '.join(protocols.names())}")
    return protocols.resolve(base, student, **fields)


def load_spec(source: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec: a YAML file, or the name of a shipped study; then apply `key=value` overrides.

    Raises:
        RequestError: no such file or name, not YAML, or not a valid spec; one line with the file, key and remedy.
    """
    path = _find(source)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML: {_yaml_reason(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise RequestError(f"{path}: a spec is a mapping of keys; `kdstudy init` writes one to start from")
    if shipped.path(str(source)) == path:
        raw.setdefault("question", shipped.question(str(source)))
    return apply_overrides(raw, overrides, str(path))


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str], where: str) -> Spec:
    """A spec that was read from `where`, with `key=value` changes.

    Raises:
        RequestError: a change that is not key=value, or a spec that is not valid.
    """
    changed = copy.deepcopy(dict(raw))
    for override in overrides:
        _set(changed, override)
    return parse_spec(changed, where)


def parse_spec(raw: Mapping[str, Any], where: str) -> Spec:
    """Validate a spec that was read from `where`.

    Raises:
        RequestError: one line that names the first wrong key, and how many more there are.
    """
    try:
        return Spec.model_validate(raw)
    except ValidationError as error:
        raise RequestError(f"{where}: {_first(error)}") from None


def difference(old: Spec, new: Spec) -> list[str]:
    """What keeps `new` from continuing the study that `old` began; empty where it may.

    Growth is allowed: more seeds, list values, methods, pairs, sampled points; any budget, question or data root. A
    list beside a range does not grow: the sampler has drawn from it.
    """
    found = _changed("protocol", _protocol(old), _protocol(new), free=set())
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    free = {"data.root", "search.points"}
    if old.search.pruner == new.search.pruner == "none":
        free |= {"search.first_rung", "search.reduction"}  # nothing asks them
    for key in ("data", "teacher", "search", "selection"):
        found += _changed(key, before[key], after[key], free)
    if lost := [seed for seed in old.seeds if seed not in new.seeds]:
        found.append(f"seeds lost {lost}")
    if (old.search.points or 0) > (new.search.points or 0):
        found.append(f"search.points: {old.search.points} -> {new.search.points}")
    new_pairs = {pair.key: pair.model_dump(mode="json") for pair in new.pairs}
    for pair in old.pairs:
        if pair.key not in new_pairs:
            found.append(f"pairs lost {pair.key}")
        else:
            key = f"pairs.{pair.key}"
            found += _changed(key, pair.model_dump(mode="json"), new_pairs[pair.key], free={f"{key}.data.root"})
    for method, space in old.spaces().items():
        if method not in new.methods:
            found.append(f"methods lost {method}")
        else:
            found += _space_changes(space, new.spaces()[method])
    if old.mode != new.mode:
        found.append(f"mode: {old.mode} -> {new.mode}")
    return found


def json_schema() -> str:
    """The JSON schema of a spec."""
    return json.dumps(Spec.model_json_schema(), indent=2)


def _space_changes(old: spaces.MethodSpace, new: spaces.MethodSpace) -> list[str]:
    before, after = dict(old.axes), dict(new.axes)
    found = []
    for name in before.keys() | after.keys():
        key, a, b = f"methods.{old.method}.{name}", before.get(name), after.get(name)
        if isinstance(a, spaces.Choices) and isinstance(b, spaces.Choices) and not old.sampled:
            if lost := [value for value in a.values if value not in b.values]:
                found.append(f"{key} lost {lost}")
        elif a != b:
            found.append(f"{key}: {_given(a)} -> {_given(b)}")
    return sorted(found)


def _changed(key: str, before: Any, after: Any, free: set[str]) -> list[str]:
    if key in free or before == after:
        return []
    if key.endswith("teacher.logits") and {before or "float32", after or "float32"} <= {"float32", "online"}:
        return []  # to the last bit the same
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [line for name in names for line in _changed(f"{key}.{name}", before.get(name), after.get(name), free)]
    return [f"{key}: {_given(before)} -> {_given(after)}"]


def _given(value: Any) -> str:
    return "not given" if value is None else str(value)


def _protocol(spec: Spec) -> dict[str, Any]:
    """The protocol as it is trained: a field that is spelled out or left to the base is the same."""
    return resolve_protocol(spec.protocol).identity()


def _require_shape(model: str, dataset: str, shape: tuple[int, int, int], key: str) -> None:
    from trainables import models

    try:
        models.get(model).require(shape)
    except ValueError as error:
        raise ValueError(f"{key}: {error} (the images of {dataset})") from None


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise RequestError(f"{path}: no such file")
        return path
    if found := shipped.path(str(source)):
        return found
    raise RequestError(f"{source} is no YAML file; {unknown('shipped study', str(source), shipped.names())}")


def _set(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RequestError(f"--set {override}: write key=value, for instance protocol.epochs=1")
    try:
        value = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError:
        raise RequestError(f"--set {override}: {text!r} is no YAML value") from None
    node: Any = raw
    for part, below in zip(parts, [*parts[1:], None], strict=True):
        where: Any = part
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise RequestError(f"--set {override}: {part!r} is no place of its list, which has {len(node)}")
            where = int(part)
        if below is None:
            node[where] = value
            return
        child = node[where] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list) and isinstance(child, str):
            child = node[where] = {"pair": child}  # the short form of a pair
        if child is None:
            child = node[where] = {}
        if not isinstance(child, dict | list):
            raise RequestError(f"--set {override}: {part} is {child!r}, which has no keys below it")
        node = child


# What pydantic calls by Python's names, in a spec's words.
_WORDS = {
    "missing": "is missing",
    "too_short": "is empty; give at least one",
    "tuple_type": "must be a list",
    "dict_type": "must have keys below it",
    "model_type": "must have keys below it",
    "string_type": "must be text",
    "invalid_key": "a key must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_pattern_mismatch": "must be letters, digits, '.', '_', '+', '%' or '-' (40 at most)",
}


def _first(error: ValidationError, within: tuple[str, ...] = ()) -> str:
    """The first problem as `key: message`. `within` is the part of the spec that was validated, () for all of it."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    kind, location = problem["type"], tuple(part for part in problem["loc"] if part != "[key]")
    key = ".".join(str(part) for part in location)
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
    elif kind == "extra_forbidden":
        message = f"unknown key{_nearest_key((*within, *location))}"
    elif kind in ("missing", "too_short"):
        message = _WORDS[kind]
    else:
        message = _WORDS.get(kind, problem["msg"].replace("Input should be", "must be"))
        message = f"{message}, not {_shortened(problem['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest_key(location: tuple[int | str, ...]) -> str:
    parts: dict[tuple[str, ...], type[BaseModel]] = {
        (): Spec,
        ("data",): DataSpec,
        ("teacher",): TeacherSpec,
        ("search",): SearchSpec,
        ("budget",): Budget,
    }
    model = parts.get(tuple(str(part) for part in location[:-1]), PairSpec)
    near = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are: {', '.join(model.model_fields)}"


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or 'unreadable'}{place}"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would silently keep the second.

    It also reads 5e-4 as the number that it is; YAML 1.1 wants 5.0e-4 and takes the short form for text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
