"""From a spec to runs: data, splits, points, what each run is made of, and the hash that names it.

A run's id is a hash of everything that decides its result and of nothing else, so that a run which another study has
finished is found again. What runs where (device, threads, folders) goes into the worker's request, not into the id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from search_spaces import pairs
from search_spaces.spaces import MethodSpace, Value
from study.errors import RequestError
from study.home import Home
from study.spec import CONFIRM_SEED, FINAL_SEED, DataSpec, PairSpec, Spec, TeacherSpec
from study.store import RunRow, canonical
from trainables import calibration, data, engine, models, objectives, splits, tasks, teachers, views
from trainables.data import ImageDataset
from trainables.logits import Key, key_of, open_store
from trainables.pipeline import Pipeline
from trainables.protocol import Protocol
from trainables.runner import load_data
from trainables.splits import Split
from trainables.tasks import Dataset
from trainables.teaching import Teaching
from trainables.text import corpora
from trainables.text import models as text_models
from trainables.text.corpora import TextDataset

ABLATION, SEARCH, FINAL, CONFIRM, TEACHER = "ablation", "search", "final", "confirm", "teacher"

# Raised in its module when a fix there changes results; so that no run made before the fix is taken over after it.
VERSIONS = {
    "calibration": calibration.VERSION,
    "data": data.VERSION,
    "engine": engine.VERSION,
    "models": models.VERSION,
    "objectives": objectives.VERSION,
    "views": views.VERSION,
}


@dataclass(frozen=True)
class PairPlan:
    """One pair of a study with its data, its splits and its protocols."""

    spec: PairSpec
    mode: str
    chosen_by: str
    data: DataSpec
    teacher: TeacherSpec
    protocol: Protocol
    teacher_protocol: Protocol
    dataset: Dataset

    @property
    def name(self) -> str:
        """`dataset/teacher-student`, with `@label` where the spec labels the pair."""
        return f"{self.data.name}/{self.spec.key}"

    @cached_property
    def pair(self) -> pairs.Pair:
        """The two architectures."""
        return pairs.get(self.spec.pair)

    @property
    def task(self) -> str:
        """The kind of data: `images` or `text`."""
        return tasks.of(self.dataset)

    @property
    def items(self) -> str:
        """What its data are called in messages."""
        return "examples" if self.task == "text" else "images"

    @property
    def score(self) -> str:
        """What students are valued by, as metrics are called: `top1` or `rouge_l`."""
        return tasks.SCORES[self.task]

    @cached_property
    def num_classes(self) -> int:
        """How many logits there are: the classes of images, the vocabulary of text."""
        if isinstance(self.dataset, TextDataset):
            return text_models.vocabulary(self.pair.student, self.dataset.models, self.dataset.cache)
        return self.dataset.num_classes

    @property
    def images(self) -> ImageDataset:
        """The data set, of a pair that has images."""
        assert isinstance(self.dataset, ImageDataset)
        return self.dataset

    @cached_property
    def pipeline(self) -> Pipeline:
        """What the students are shown, on the CPU of this process."""
        return Pipeline(self.images, self.protocol)

    def require_models(self) -> None:
        """Refuse models that these data cannot be shown to, or that are not there.

        Raises:
            ValueError: one line that says which, and why.
        """
        if isinstance(self.dataset, TextDataset):
            models_, cache = self.dataset.models, self.dataset.cache
            for name in (self.pair.teacher, self.pair.student):
                text_models.base_hash(name, models_)  # or it says where it was looked for
            text_models.require_same_tokens(self.pair.teacher, self.pair.student, models_, cache)
            return
        for model in (self.pair.teacher, self.pair.student):
            models.get(model).require(self.pipeline.shape)

    def resolve(self, space: MethodSpace, values: Mapping[str, Value]) -> dict[str, Value]:
        """A point's parameters: what is given, then what the papers give for the pair, the method and the protocol."""
        return space.resolve(values, self.pair.defaults, self.protocol)

    def split_options(self, stage: str) -> dict[str, Any]:
        """Arguments of `make_split`: the same in the driver and in the worker."""
        return {
            "split_seed": self.data.split_seed,
            "validation_fraction": self.data.validation if self.chosen_by == "validation" else 0.0,
            "teacher_fraction": self.teacher.fraction if self.teacher.regime == "held_out" else None,
            "train_limit": self.data.train_limit,
            "keep_validation_in_train": stage in (FINAL, CONFIRM, TEACHER),
        }

    def split(self, stage: str) -> Split:
        """Which training images are whose at a stage."""
        if stage not in self._splits:
            self._splits[stage] = splits.make_split(self.dataset.train_labels, **self.split_options(stage))
        return self._splits[stage]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {}

    def uncut_images(self, stage: str) -> int:
        """How many images the students would have at a stage without `train_limit`."""
        options = {**self.split_options(stage), "train_limit": None}
        return len(splits.make_split(self.dataset.train_labels, **options).train)

    def test_indices(self) -> torch.Tensor:
        """The test images that are used."""
        labels, limit = self.dataset.test_labels, self.data.test_limit
        return splits.stratified(labels, len(labels) if limit is None else limit, self.data.split_seed)

    @property
    def folds(self) -> tuple[int | None, ...]:
        """The networks that a teacher trained here consists of: one for each fold, or one."""
        return tuple(range(self.teacher.folds)) if self.teacher.regime == "cross_fitted" else (None,)

    def teaches(self, fold: int | None) -> dict[str, Any]:
        """What one of these networks learns from, as `splits.teacher_images` takes it."""
        folds = None if fold is None else self.teacher.folds
        return {"regime": self.teacher.regime, "folds": folds, "fold": fold, "limit": self.teacher.train_limit}

    def teacher_images(self, fold: int | None = None) -> torch.Tensor:
        """Indices of the training images that a teacher trained here learns from."""
        if fold not in self._teacher_images:
            # A driver asks at each of its turns while teachers are trained.
            labels, options = self.dataset.train_labels, self.split_options(TEACHER)
            self._teacher_images[fold] = splits.teacher_images(labels, options, **self.teaches(fold))
        return self._teacher_images[fold]

    @cached_property
    def _teacher_images(self) -> dict[int | None, torch.Tensor]:
        return {}

    def evaluates_test(self, stage: str) -> bool:
        """Whether a stage's runs look at the test set: not while something is chosen by validation."""
        return stage != SEARCH or self.chosen_by == "paper"

    @property
    def valued_by(self) -> str:
        """The metric that a point of the first stage is valued by."""
        return f"{'val' if self.chosen_by == 'validation' else 'test'}_{self.score}_last"


@dataclass(frozen=True)
class RunPlan:
    """One run: its id, what the id is made of, and how it is trained."""

    run_id: str
    identity: dict[str, Any]
    seed: int
    epochs: int


class Plan:
    """Everything that follows from a spec and the data, before any run."""

    def __init__(self, spec: Spec, home: Home) -> None:
        self.spec = spec
        self.home = home
        self._datasets: dict[str, Dataset] = {}  # pairs on the same data share them
        self.pairs = {plan.name: plan for plan in (self._pair(pair) for pair in spec.pairs)}
        self.teacher_hashes: dict[str, str] = {}  # by pair, filled when the teachers are known

    def _pair(self, pair: PairSpec) -> PairPlan:
        data_spec, teacher = self.spec.data_of(pair), self.spec.teacher_of(pair)
        plan = PairPlan(
            spec=pair,
            mode=self.spec.mode,
            chosen_by=self.spec.chosen_by,
            data=data_spec,
            teacher=teacher,
            protocol=self.spec.protocol_of(pair),
            teacher_protocol=self.spec.teacher_protocol_of(pair),
            dataset=self._dataset(data_spec, f"pairs.{pair.key}.data" if pair.data else "data"),
        )
        dataset = plan.dataset
        for key, limit, labels in (
            ("train_limit", data_spec.train_limit, dataset.train_labels),
            ("test_limit", data_spec.test_limit, dataset.test_labels),
        ):
            there = len(splits.members(labels))
            if limit is not None and limit > there:
                raise RequestError(f"data.{key}: {limit} is more than the {there:,} {plan.items} of {data_spec.name}")
        try:
            plan.require_models()
        except ValueError as error:
            raise RequestError(f"pairs.{pair.key}: {error}") from None
        split = plan.split(self.first_stage)
        if len(split.train) < 2:
            key = "teacher.fraction" if data_spec.train_limit is None else "data.train_limit"
            raise RequestError(f"{key}: leaves the students {len(split.train)} {plan.items}; they need 2 at least")
        trained_here = self.spec.trains_teacher_of(pair)
        fewest = min(len(plan.teacher_images(fold)) for fold in plan.folds)
        if trained_here and fewest < 2:
            key = "fraction" if teacher.regime == "held_out" else "folds"
            raise RequestError(
                f"teacher.{key}: {getattr(teacher, key):g} leaves the teacher {fewest} {plan.items}; "
                "it needs 2 at least"
            )
        if plan.chosen_by == "validation" and not len(split.validation):
            raise RequestError(f"data.validation: {data_spec.validation:g} of the training {plan.items} are none")
        return plan

    def source(self, data_spec: DataSpec) -> dict[str, Any]:
        """Where the data come from, in plain data for a worker."""
        models_ = {"models": str(self.home.models)} if data_spec.task == "text" else {}
        return {**data_spec.source, "cache": str(self.home.data), **models_}

    def _dataset(self, data_spec: DataSpec, where: str) -> Dataset:
        key = canonical(data_spec.source)
        if key not in self._datasets:
            try:
                self._datasets[key] = load_data(self.source(data_spec))
            except data.DataError as error:
                raise RequestError(f"{where}.root: {error}") from None
            except ValueError as error:
                raise RequestError(f"{where}: {error}") from None
        return self._datasets[key]

    @property
    def first_stage(self) -> str:
        """The stage that a study begins with, after its teachers."""
        return SEARCH if self.spec.mode == "search" else ABLATION

    @property
    def has_final(self) -> bool:
        """Whether the chosen points are trained again, on the whole training set and on fresh seeds."""
        return self.spec.chosen_by == "validation"

    @property
    def final_seeds(self) -> list[int]:
        """Seeds of the final stage: none of them chose a point."""
        return [FINAL_SEED + seed for seed in self.spec.seeds]

    @property
    def confirm_seeds(self) -> list[int]:
        """Seeds of the confirmation: none of them chose a point, or was used before."""
        asked = self.spec.confirm
        return [] if asked is None else [CONFIRM_SEED + seed for seed in range(asked.seeds)]

    def student_run(self, pair: str, stage: str, method: str, parameters: Mapping[str, Value], seed: int) -> RunPlan:
        """The run of a point with a seed."""
        plan = self.pairs[pair]
        taught = objectives.get(method).needs_teacher
        identity = {
            "kind": "student",
            "data": plan.dataset.hash,
            "split": plan.split(stage).digest,
            "test": plan.data.test_limit if plan.evaluates_test(stage) else 0,
            "dataset": plan.data.name,
            "student": plan.pair.student,
            "method": method,
            "parameters": dict(sorted(parameters.items())),
            "protocol": _protocol_identity(plan.protocol),
            "teacher": self.teacher_hashes[pair] if taught else None,
            # Logits stored in float32 are those of an online teacher.
            "logits": self._logits(plan) if taught else None,
            "seed": seed,
            "versions": VERSIONS,
            **_specialities(plan, plan.pair.student, method),
        }
        return RunPlan(digest(identity), identity, seed, plan.protocol.epochs)

    def _logits(self, plan: PairPlan) -> str:
        """What of the teacher's logits a student learns from, as it decides a run."""
        teacher = plan.teacher
        if plan.task == "text":
            kept = teacher.top_k is not None and teacher.logits != "online"
            return f"top{teacher.top_k}-{teacher.logits}" if kept else "online-float32"
        halves = teacher.logits == "float16" and plan.protocol.views == "crop_flip"
        return "float16" if halves else "online-float32"

    def logit_key(self, pair: str, device: str) -> Key | None:
        """What the logits of a pair's teacher are stored under; None where they are not stored.

        Before the teacher is known the key names none, and is good for sizes only.
        """
        plan = self.pairs[pair]
        if plan.teacher.logits == "online" or plan.task == "text":
            return None
        teacher = self.teacher_hashes.get(pair, "")
        return key_of(teacher, plan.images, plan.protocol, plan.teacher.logits, device)

    def teaching(self, pair: str, teacher: teachers.Teacher, device: str = "cpu") -> Teaching:
        """A pair's teacher before its students' views, in this process; what it says is kept for the runs.

        Raises:
            RequestError: the store of its logits is damaged.
        """
        plan, key = self.pairs[pair], self.logit_key(pair, device)
        try:
            store = None if key is None else open_store(self.home.logits, key)
        except ValueError as error:
            raise RequestError(str(error)) from None
        pipeline = plan.pipeline if device == "cpu" else Pipeline(plan.images, plan.protocol, device)
        return Teaching(teacher, pipeline, store)

    def teacher_run(self, pair: str, fold: int | None) -> RunPlan:
        """The run that trains a pair's teacher, or the one of its networks that never sees a fold."""
        plan = self.pairs[pair]
        identity = {
            "kind": "teacher",
            "data": plan.dataset.hash,
            "images": splits.digest(plan.teacher_images(fold)),
            "test": plan.data.test_limit,
            "dataset": plan.data.name,
            "student": plan.pair.teacher,
            "method": "ce",
            "parameters": {},
            "protocol": _protocol_identity(plan.teacher_protocol),
            "seed": plan.teacher.seed,
            "versions": VERSIONS,
            **_specialities(plan, plan.pair.teacher, "ce"),
            **({} if plan.teacher.stop_at is None else {"stop_at": plan.teacher.stop_at}),
        }
        return RunPlan(digest(identity), identity, plan.teacher.seed, plan.teacher_protocol.epochs)

    def teacher_runs(self, pair: str) -> tuple[RunPlan, ...]:
        """The runs that train a pair's teacher: one, or one for each fold."""
        return tuple(self.teacher_run(pair, fold) for fold in self.pairs[pair].folds)

    def point_id(self, pair: str, method: str, parameters: Mapping[str, Value]) -> str:
        """A point's id: the same in each study that has the pair, the method and the parameters."""
        return digest({"pair": pair, "method": method, "parameters": dict(sorted(parameters.items()))})[:12]

    def _teacher_source(self, pair: str) -> dict[str, str]:
        """Where a worker has a pair's teacher from: its own host's home, or else the storage."""
        return {"home": str(self.home.root), "hash": self.teacher_hashes[pair], "storage": self.home.storage}

    def request(
        self,
        run: RunRow,
        attempt: int,
        *,
        device: str,
        threads: int,
        workers: int,
        rungs: tuple[int, ...],
        execution: str | None = None,
    ) -> dict[str, Any]:
        """What a worker needs to train a run, as plain data (see `trainables.runner`)."""
        plan = self.pairs[run.pair]
        is_teacher = run.stage == TEACHER
        taught = not is_teacher and objectives.get(run.method).needs_teacher
        protocol = plan.teacher_protocol if is_teacher else plan.protocol
        stored: dict[str, Any] | None = None
        if taught and plan.task == "text":
            top_k = None if plan.teacher.logits == "online" else plan.teacher.top_k
            stored = {"root": str(self.home.logits), "top_k": top_k, "dtype": plan.teacher.logits}
        key = self.logit_key(run.pair, device) if taught else None
        return {
            "run_id": run.run_id,
            "attempt": attempt,
            "model": plan.pair.teacher if is_teacher else plan.pair.student,
            "method": run.method,
            "parameters": {} if is_teacher else run.parameters,
            "protocol": protocol.identity() | {"base": protocol.base},
            "seed": run.seed,
            "data": self.source(plan.data),
            "data_hash": plan.dataset.hash,
            "split": plan.split_options(run.stage),
            "teaches": plan.teaches(run.parameters.get("fold")) if is_teacher else None,
            "stop_at": plan.teacher.stop_at if is_teacher else None,
            "test_limit": plan.data.test_limit,
            "evaluate_test": plan.evaluates_test(run.stage),
            "teacher": self._teacher_source(run.pair) if taught else None,
            "logits": stored if key is None else {"root": str(self.home.logits), "key": asdict(key)},
            "checkpoints": self.home.checkpoints(run.run_id),
            "resume_from": run.checkpoint,
            "rungs": list(rungs),
            "hangs_after": 60 * self.spec.budget.epoch_minutes,
            "device": device,
            "threads": threads,
            "workers": workers,
            "execution": execution,
        }


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def resolve_teacher(home: Home, plan: PairPlan) -> teachers.Teacher | None:
    """The teacher that a spec names; None where it is to be trained.

    Raises:
        RequestError: unknown, of another architecture or data set, or it saw images that the regime keeps from it.
    """
    reference = plan.teacher.checkpoint
    if reference is None:
        return None
    try:
        teachers.fetch(home.root, reference, home.storage)
        record = teachers.find(home.root, reference)
        wanted = (plan.pair.teacher, plan.num_classes)
        if (record.model, record.num_classes) != wanted:
            raise RequestError(
                f"teacher.checkpoint: {reference} is a {record.model} of {record.num_classes} classes; "
                f"the pair {plan.spec.key} on {plan.data.name} needs a {wanted[0]} of {wanted[1]}"
            )
        _require_unseen(home, plan, record)
        return teachers.load(home.root, reference)
    except (ValueError, OSError) as error:
        raise RequestError(f"teacher.checkpoint: {error}") from None


def _require_unseen(home: Home, plan: PairPlan, record: teachers.TeacherRecord) -> None:
    """Refuse a teacher that knows images which the regime keeps from it.

    Raises:
        RequestError: says what it was trained on, and what to do instead.
    """
    regime, instead = plan.teacher.regime, "use regime seen, or leave checkpoint out to train"
    if regime == "seen" or (regime == "held_out" and record.trained_on == "none"):
        return
    here = record.dataset_hash == plan.dataset.hash
    saw = teachers.trained_indices(home.root, record.hash) if here else None
    if regime == "held_out":
        if saw is None or torch.isin(saw, plan.split(FINAL).train).any():
            what = "some of the students' images" if saw is not None else record.trained_on if here else "other data"
            raise RequestError(
                f"teacher.regime: held_out, but {record.name} was trained on: {what}; {instead} one on the part held "
                "out for it"
            )
        return
    if not record.folds or not here:
        raise RequestError(
            f"teacher.regime: cross_fitted, but {record.name} is not a set that was cross-fitted on these data; "
            f"{instead} the set here"
        )
    validation = plan.split(SEARCH if plan.mode == "search" else ABLATION).validation
    if saw is None or torch.isin(saw, validation).any():
        raise RequestError(
            f"teacher.regime: cross_fitted, but {record.name} was trained on some of the validation part; {instead} "
            "a set that never saw it"
        )


def _specialities(plan: PairPlan, model: str, method: str) -> dict[str, Any]:
    """What decides a run only where it is out of the ordinary, so that the ordinary keeps its ids.

    Classes or label noise that make other labels, and the versions of entries that say that they have changed.
    """
    if isinstance(plan.dataset, TextDataset):
        given = plan.dataset
        return {
            "base": text_models.base_hash(model, given.models),
            "tokens": text_models.fingerprint(model, given.models, given.cache),
            "evaluate": given.evaluated,
            "text": [corpora.VERSION, text_models.VERSION, corpora.CORPORA.get(given.name).version],
        }
    versions = {
        kind: version
        for kind, version in (
            ("data", data.get(plan.data.name).version),
            ("model", models.get(model).version),
            ("method", objectives.get(method).version),
        )
        if version != 1
    }
    found: dict[str, Any] = {"variant": plan.data.variant} if plan.data.variant else {}
    if plan.dataset.skipped:
        found["skipped"] = plan.dataset.skipped
    return found | ({"entries": versions} if versions else {})


# These act through the method's parameters, which are hashed.
_THROUGH_PARAMETERS = ("tau", "beta", "gamma", "warmup_dkd", "warmup_ctkd")
# Fields that came later, at the values that everything had before: they are left out, so that runs keep their ids.
_ORDINARY = {"views": "crop_flip", "image_size": None, "eval_resize": None, "drop_last": False}


def _protocol_identity(protocol: Protocol) -> dict[str, Any]:
    """What of a protocol decides a run."""
    fields = {key: value for key, value in protocol.identity().items() if key not in _THROUGH_PARAMETERS}
    return {key: value for key, value in fields.items() if key not in _ORDINARY or value != _ORDINARY[key]}
