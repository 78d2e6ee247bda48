"""A study's teachers: found by name, or made from the run that trained them, and measured on the study's own views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import torch

from study.errors import RequestError
from study.home import Home
from study.plan import FINAL, TEACHER, PairPlan, Plan, digest, resolve_teacher
from study.store import DONE, RunRow, Store
from trainables import engine, measures, splits, teachers
from trainables.data import DataError
from trainables.teachers import Teacher, TeacherRecord
from trainables.text import measures as text_measures
from trainables.text import models as text_models
from trainables.text.corpora import TextDataset
from trainables.text.teacher import TextTeacher, untouched

# Enough views for a ratio to within a percentage point, and seconds even for a large teacher on a CPU.
RATIO_VIEWS = 4_000
PRETRAINED = "pretrained"
"""What `teacher.checkpoint` says of text for a model that is to teach as its folder has it."""
# As many tokens, about.
RATIO_EXAMPLES = 64


def find(plan: Plan) -> dict[str, Teacher]:
    """The teachers that a study's spec names, by pair; their hashes go into the plan.

    Raises:
        RequestError: one is unknown, does not fit its pair, or saw what its regime keeps from it.
    """
    found = {}
    for name, pair in plan.pairs.items():
        if pair.task == "text" and pair.teacher.checkpoint == PRETRAINED:
            teacher: Teacher | None = _pretrained(plan, pair)
        else:
            teacher = resolve_teacher(plan.home, pair)
        if teacher is not None:
            found[name] = teacher
            plan.teacher_hashes[name] = teacher.record.hash
    return found


def _pretrained(plan: Plan, pair: PairPlan) -> Teacher:
    """A model as its folder has it, measured once on the pair's evaluation sets and kept in the home by a name."""
    assert isinstance(pair.dataset, TextDataset)
    model, dataset = pair.pair.teacher, pair.dataset
    base = text_models.base_hash(model, dataset.models)
    measured = digest([base, dataset.hash, dataset.evaluated, pair.data.test_limit, pair.teacher_protocol.identity()])
    name = f"{pair.data.name}-{model}-{PRETRAINED}-{measured[:8]}"
    existing = _existing(plan.home, name)
    if existing is not None:
        return existing
    state = untouched(base)
    run = engine.RunSpec(model, "ce", {}, pair.teacher_protocol, seed=0)
    train = pair.split(FINAL).train
    trainer = engine.Trainer(run, dataset, train, train[:0], None, True, test_indices=pair.test_indices())
    summary = engine.summary([trainer.lessons.measure(pair.teacher_protocol.epochs)])
    record = teachers.unmeasured_record(model, dataset, state, trained_on="unknown", origin="as its folder has it")
    record = replace(
        record,
        name=name,
        num_classes=pair.num_classes,
        test_top1=summary["test_top1_last"],
        test_top5=summary["test_top5_last"],
        task="text",
        rouge_l=_rouge_by_set(pair.data.name, summary),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    teachers.save(plan.home.root, record, state)
    return TextTeacher(record, lambda: state)


def adopt(plan: Plan, store: Store, pair_name: str) -> Teacher | None:
    """The teacher that a study's own runs have trained, kept in the home; None where one of them has not ended well."""
    pair = plan.pairs[pair_name]
    planned = [run.run_id for run in plan.teacher_runs(pair_name)]
    done = {run.run_id: run for run in store.runs(plan.spec.name, TEACHER) if run.state == DONE}
    if not all(run_id in done for run_id in planned):
        return None
    runs = [done[run_id] for run_id in planned]
    named_by = planned[0] if len(planned) == 1 else digest(planned)
    name = f"{pair.data.name}-{pair.pair.teacher}-{named_by[:8]}"
    teacher = _existing(plan.home, name)
    if teacher is None:
        states = [plan.home.read_checkpoint(run.run_id, run.checkpoint)["model"] for run in runs]
        made = _made(name, pair, states, runs)
        plan.teacher_hashes[pair_name] = made.record.hash
        ratio, ratio_on = measure_ratio(plan, pair_name, made)
        record = replace(made.record, mis_instruction_ratio=ratio, ratio_on=ratio_on, ratio_views=_views(pair))
        images = torch.cat([pair.teacher_images(fold) for fold in pair.folds]).unique()
        weights = states[0] if made.folds is None else {"members": states, "folds": made.folds}
        teachers.save(plan.home.root, record, weights, trained_indices=images)
        teacher = teachers.load(plan.home.root, record.hash)
    plan.teacher_hashes[pair_name] = teacher.record.hash
    return teacher


def _existing(home: Home, name: str) -> Teacher | None:
    if any(record.name == name for record in teachers.list_records(home.root)):
        return teachers.load(home.root, name)
    return None


def _trained_on(pair: PairPlan) -> str:
    if pair.teacher.regime == "cross_fitted":
        return "folds"
    return "part" if pair.teacher.regime == "held_out" or pair.teacher.train_limit is not None else "all"


def _made(name: str, pair: PairPlan, states: list[dict[str, Any]], runs: list[RunRow]) -> Teacher:
    """The teacher that these runs trained, with all of its record but its mis-instruction ratio."""
    dataset, model = pair.dataset, pair.pair.teacher
    hashes = [teachers.content_hash(model, dataset.mean, dataset.std, state) for state in states]
    folds, content = None, hashes[0]
    if pair.teacher.regime == "cross_fitted":
        folds = splits.make_folds(dataset.train_labels, pair.teacher.folds, pair.data.split_seed)
        content = teachers.cross_fitted_hash(hashes, folds)
    top1, top5 = ([(run.summary or {})[f"test_{top}_last"] for run in runs] for top in ("top1", "top5"))
    rouge = _rouge_by_set(pair.data.name, runs[0].summary or {}) if pair.task == "text" else None
    record = TeacherRecord(
        name=name,
        hash=content,
        dataset=pair.data.name,
        dataset_hash=dataset.hash,
        model=model,
        num_classes=pair.num_classes,
        mean=dataset.mean,
        std=dataset.std,
        trained_on=_trained_on(pair),
        indices_digest=splits.digest(*(pair.teacher_images(fold) for fold in pair.folds)),
        test_top1=fmean(top1),
        test_top5=fmean(top5),
        mis_instruction_ratio=float("nan"),
        ratio_on="not measured",
        origin=", ".join(f"run {run.run_id}" for run in runs),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fold_top1=tuple(top1) if folds is not None else (),
        task=pair.task,
        rouge_l=rouge,
    )
    if pair.task == "text":
        return TextTeacher(record, lambda: states[0])
    modules = [teachers.load_into(model, dataset.num_classes, state, name) for state in states]
    return Teacher(record, modules, folds)


def _rouge_by_set(own: str, summary: Mapping[str, float]) -> dict[str, float]:
    """ROUGE-L by the name of the evaluation set, from a run's summary."""
    found = {own: summary["test_rouge_l_last"]} if "test_rouge_l_last" in summary else {}
    others = (name for name in summary if name.startswith("test_rouge_l."))
    return found | {name.removeprefix("test_rouge_l.").removesuffix("_last"): summary[name] for name in others}


def _rouge_of(record: TeacherRecord) -> dict[str, Any]:
    """What a study's record says of a text teacher's ROUGE-L."""
    if record.rouge_l is None:
        return {}
    return {"test_rouge_l": record.rouge_l.get(record.dataset, math.nan), "rouge_l": record.rouge_l}


def _views(pair: PairPlan) -> str:
    """A name for the views and labels that a pair's students see."""
    protocol = pair.protocol
    if pair.task == "text":
        return digest([protocol.template, protocol.max_tokens, pair.split(FINAL).digest])
    shown = {"pad": protocol.pad, "flip": protocol.flip, "split": pair.split(FINAL).digest}
    if protocol.views != "crop_flip" or protocol.image_size is not None:
        shown |= {"views": protocol.views, "size": protocol.image_size, "resize": protocol.eval_resize}
    return digest({**shown, **pair.data.variant})


def measure_ratio(plan: Plan, pair_name: str, teacher: Teacher) -> tuple[float, str]:
    """The teacher's mis-instruction ratio on views of the students' images (or a sample), and which those were.

    A teacher that was trained for these students was measured on them then, and is not measured again.

    Raises:
        RequestError: an image does not decode, and such images are not to be skipped.
    """
    record, pair = teacher.record, plan.pairs[pair_name]
    if record.ratio_views == _views(pair):
        return record.mis_instruction_ratio, record.ratio_on
    train = pair.split(FINAL).train
    if isinstance(teacher, TextTeacher):
        assert isinstance(pair.dataset, TextDataset)
        sample = train[splits.stratified(pair.dataset.train_labels[train], RATIO_EXAMPLES, seed=0)]
        ratio, tokens = text_measures.mis_instruction_ratio(teacher, pair.dataset, pair.protocol, sample)
        return ratio, f"the {tokens:,} response tokens of {len(sample):,} of the students' training examples"
    images = train[splits.stratified(pair.dataset.train_labels[train], RATIO_VIEWS, seed=0)]
    # Small images are cheap to show more than once, which narrows the estimate.
    repeats = max(1, min(10, RATIO_VIEWS // len(images)))
    try:
        ratio = measures.mis_instruction_ratio(plan.teaching(pair_name, teacher), images, repeats, seed=0)
    except DataError as error:  # an image that does not decode, of a set that is decoded when it is shown
        raise RequestError(f"data: {error}") from None
    return ratio, f"{repeats} views of each of {len(images):,} of the students' training images"


def overview(plan: Plan, pair_name: str, teacher: Teacher, before: list[dict[str, Any]]) -> dict[str, Any]:
    """What a study's record says of a pair's teacher. Its ratio on this study's views is measured once."""
    pair, record = plan.pairs[pair_name], teacher.record
    views = _views(pair)
    for entry in before:
        if (entry["pair"], entry["hash"], entry["views"]) == (pair_name, record.hash, views):
            return entry
    ratio, ratio_on = measure_ratio(plan, pair_name, teacher)
    images = teachers.trained_indices(plan.home.root, record.hash)
    return {
        "pair": pair_name,
        "name": record.name,
        "model": record.model,
        "dataset": record.dataset,
        "hash": record.hash,
        "regime": pair.teacher.regime,
        "trained_on": record.trained_on,
        "trained_images": None if images is None else len(images),
        "test_top1": record.test_top1,
        "test_top5": record.test_top5,
        "fold_top1": list(record.fold_top1),
        **_rouge_of(record),
        "mis_instruction_ratio": ratio,
        "ratio_on": ratio_on,
        "views": views,
    }


def warnings(plan: Plan, entry: dict[str, Any]) -> list[str]:
    """What a reader must know of a teacher before trusting a choice made with it."""
    if plan.has_final and entry["regime"] == "seen" and entry["trained_on"] != "none":
        return [
            f"{entry['pair']}: the teacher {entry['name']} may have been trained on the validation part "
            f"(trained on: {entry['trained_on']}), so validation accuracy is not independent of it"
        ]
    return []


def remarks(plan: Plan, store: Store, pair: PairPlan) -> list[str]:
    """What a reader must know of a pair's data and of how its teacher was trained."""
    found = []
    if pair.dataset.skipped:
        count = f"{pair.dataset.skipped:,}"
        why = (
            "examples left out because they have no response"
            if pair.task == "text"
            else "images left out because they do not decode (bad_images: skip)"
        )
        found.append(f"{pair.name}: {why}: {count}")
    wanted = pair.teacher.stop_at
    if wanted is not None and plan.spec.trains_teacher_of(pair.spec):
        for run in plan.teacher_runs(pair.name):
            history = store.history(run.run_id)
            if history and history[-1]["train_top1"] < wanted:
                found.append(
                    f"{pair.name}: its teacher came to {history[-1]['train_top1']:.1f} % on the views that it trains "
                    f"on, not to the {wanted:g} % of teacher.stop_at, in {len(history)} epochs"
                )
    return found
