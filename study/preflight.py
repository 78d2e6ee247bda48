"""What a study will cost, and whether it can show anything: measured on this machine before the first run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from statistics import NormalDist, stdev

import torch

from analysis.statistics import LEVEL, resolvable_difference
from search_spaces.spaces import Range
from study import logits, teachers
from study.errors import RequestError
from study.plan import FINAL, TEACHER, PairPlan, Plan, digest
from study.service import expected_runs, points_of
from study.spec import Spec
from study.store import DONE, Store
from trainables import engine, measures, models, objectives
from trainables.calibration import capped_bound, loca_logits, moved
from trainables.data import DataError
from trainables.teachers import Teacher
from trainables.text import measures as text_measures
from trainables.text import models as text_models
from trainables.text.corpora import TextDataset
from trainables.text.teacher import TextTeacher
from trainables.views import normalise

# Where nothing was measured yet: the SD over seeds of a CIFAR-100 student (resnet32x4 -> resnet8x4), in points.
ASSUMED_SD = 0.18
# Below this share of mis-instructed views LoCa and KD train on all but the same targets.
LOW_RATIO = 0.01
# More capped views than this, and alpha no longer means what it says.
HIGH_CAPPED = 0.01
# What the papers find between LoCa and KD: gains from 0.2 to 1.3 points, most of them below 0.5.
PLAUSIBLE_DIFFERENCE = 0.5
_SAMPLE = 2_000
_TEXT_SAMPLE = 8  # examples of text: some hundred tokens, each with the logits of a whole vocabulary
# Multiply-adds of the images that a model's speed is measured on: seconds on one core.
_SAMPLE_MACS = 15e9


@dataclass(frozen=True)
class AlphaEffect:
    """What one alpha does to the teacher's targets on a sample of the study's views.

    `moved`: mean total-variation distance on the mis-instructed views (0 to 1); `capped`: share of all views that leave
    the simplex and are capped.
    """

    alpha: float
    moved: float
    capped: float


@dataclass(frozen=True)
class PairForecast:
    """A pair's costs and teacher. Ratios are from 0 to 1, None where the teacher is trained first."""

    pair: str
    teacher: str
    ratio: float | None
    ratio_on: str
    seconds_plain: float  # a run without a teacher
    seconds_taught: float  # a run with one
    seconds_teacher: float  # training the teacher, 0 where it exists
    seconds_logits: float  # asking the teacher about all views that are stored, once for all runs
    logits: str  # what is stored of it; empty where no method asks it
    effects: tuple[AlphaEffect, ...]


@dataclass(frozen=True)
class Forecast:
    """What `kdstudy preflight` prints."""

    study: str
    mode: str
    points: int
    runs: int
    known: int  # runs that are done already, here or in another study
    concurrency: int
    device: str
    seconds: float
    disk_bytes: int  # of checkpoints
    logit_bytes: int  # of teachers' logits, at most
    resolvable: float | None  # points, between two methods over the study's seeds; None for one seed
    comparisons: int  # points of a pair that are compared with its baseline
    resolvable_of_all: float | None  # the same when all of them are, corrected for that
    sd: float
    sd_from: str
    pairs: tuple[PairForecast, ...]
    warnings: tuple[str, ...]


def forecast(plan: Plan, store: Store | None, *, device: str, concurrency: int) -> Forecast:
    """Measure a step, look at the teachers, and add up.

    Args:
        plan: the study.
        store: for what is done already and for the spread over seeds that was measured; None where there is none yet.
        device: of the runs.
        concurrency: runs at a time.

    Raises:
        RequestError: a teacher that the spec names cannot be used, or an image does not decode.
    """
    found = teachers.find(plan)
    for name in plan.pairs.keys() - found.keys():
        teacher = teachers.adopt(plan, store, name) if store else None
        if teacher is not None:
            found[name] = teacher
    speeds = _Speeds(device)
    stored = {one.pair: one for one in logits.needed(plan, device)}
    pairs = tuple(_pair(plan, name, found.get(name), speeds, stored.get(name)) for name in plan.pairs)
    taught = _taught_share(plan.spec)
    runs = expected_runs(plan.spec)
    if plan.spec.budget.runs is not None:
        runs = min(runs, plan.spec.budget.runs)
    each = sum(taught * pair.seconds_taught + (1 - taught) * pair.seconds_plain for pair in pairs) / len(pairs)
    done = store.runs(plan.spec.name) if store else []
    known = sum(run.state == DONE and run.stage != TEACHER for run in done)
    # Pairs that need the same teacher train it once.
    training = {tuple(run.run_id for run in plan.teacher_runs(p.pair)): p.seconds_teacher for p in pairs}
    # Every view is asked about once. How many of them are there already is not known: none is assumed to be.
    asking = sum(pair.seconds_logits for pair in pairs) if known < runs else 0.0
    seconds = (max(0, runs - known) * each + asking) / concurrency + sum(training.values())
    sd, sd_from = _spread(plan, store)
    seeds = len(plan.spec.seeds)
    points = sum(points_of(plan.spec, space) for space in plan.spec.spaces().values()) * len(pairs)
    # All points of a pair but the baseline are compared with it, so the report corrects for that (Holm's first step).
    comparisons = max(1, points // len(pairs) - 1)
    resolvable = resolvable_difference(sd, seeds, paired=False) if seeds > 1 else None
    corrected = resolvable_difference(sd, seeds, paired=False, level=LEVEL / comparisons) if seeds > 1 else None
    result = Forecast(
        study=plan.spec.name,
        mode=plan.spec.mode,
        points=points,
        runs=runs,
        known=known,
        concurrency=concurrency,
        device=device,
        seconds=seconds,
        disk_bytes=runs * max(_checkpoint_bytes(plan, name) for name in plan.pairs),
        logit_bytes=logits.bytes_more(logits.shared(stored.values())),
        resolvable=resolvable,
        comparisons=comparisons,
        resolvable_of_all=corrected,
        sd=sd,
        sd_from=sd_from,
        pairs=pairs,
        warnings=(),
    )
    return replace(result, warnings=tuple(_warnings(plan, result)))


def require_no_training(spec: Spec) -> None:
    """Refuse a study whose teachers would have to be trained first.

    Raises:
        RequestError: names the pairs.
    """
    wanted = [pair.pair for pair in spec.pairs if spec.trains_teacher_of(pair)]
    if wanted:
        raise RequestError(
            f"teacher.checkpoint: {', '.join(wanted)}: no teacher is named and --no-train-teachers forbids to train one"
        )


def _taught_share(spec: Spec) -> float:
    """The share of a study's points that have a teacher, 0 to 1; 0 where there are none."""
    points = {method: points_of(spec, space) for method, space in spec.spaces().items()}
    taught = sum(number for method, number in points.items() if objectives.get(method).needs_teacher)
    return taught / max(1, sum(points.values()))


def _pair(
    plan: Plan, name: str, teacher: Teacher | None, speeds: _Speeds, stored: logits.Needed | None
) -> PairForecast:
    pair = plan.pairs[name]
    step, evaluation = speeds.of(pair, pair.pair.student)
    teacher_step, teacher_evaluation = speeds.of(pair, pair.pair.teacher)
    split = pair.split(plan.first_stage)
    images, test = len(split.train), len(pair.test_indices())
    measured = len(split.validation) + (test if pair.evaluates_test(plan.first_stage) else 0)
    per_epoch = images * step + measured * evaluation
    plain = pair.protocol.epochs * per_epoch
    taught, asking, described_logits = plain, 0.0, ""
    if stored is not None and stored.key is not None:
        met = images * stored.key.views_met(logits.views_shown(plan, name))
        asking = met * teacher_evaluation
        described_logits = (
            f"each of up to {met:,.0f} views is asked about once ({asking / 60:,.1f} min) and kept "
            f"({stored.key.dtype}, up to {stored.bytes / 2**20:,.0f} MiB, {stored.there / 2**20:,.0f} there)"
        )
    elif stored is not None:
        taught += pair.protocol.epochs * images * teacher_evaluation
        described_logits = stored.why
    training = 0.0
    if teacher is None and plan.spec.trains_teacher_of(pair.spec):
        training = pair.teacher_protocol.epochs * sum(
            len(pair.teacher_images(fold)) * teacher_step + test * teacher_evaluation for fold in pair.folds
        )
    ratio, ratio_on, effects = None, "known when it is trained", list[AlphaEffect]()
    if teacher is not None:
        ratio, ratio_on = teachers.measure_ratio(plan, name, teacher)
        effects = _effects(plan, name, teacher)
    described = "trained first"
    if teacher is not None:
        rouge = teacher.record.rouge_l
        worth = f"{teacher.record.test_top1:.2f} %"
        if rouge is not None:
            worth = ", ".join(f"ROUGE-L {value:.2f} on {name}" for name, value in rouge.items())
        described = f"{teacher.record.name}, {worth}"
    return PairForecast(
        name, described, ratio, ratio_on, plain, taught, training, asking, described_logits, tuple(effects)
    )


class _Speeds:
    """Seconds an image of training and of evaluation, measured once for each model, data set and protocol."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._known: dict[str, tuple[float, float]] = {}

    def of(self, pair: PairPlan, model: str) -> tuple[float, float]:
        """A model's two speeds on a pair's images, each after one warm-up."""
        key = digest([model, pair.dataset.hash, pair.protocol.identity()])
        if key not in self._known:
            try:
                self._known[key] = self._measured(pair, model)
            except DataError as error:  # an image that does not decode
                raise RequestError(f"data: {error}") from None
        return self._known[key]

    def _measured(self, pair: PairPlan, model: str) -> tuple[float, float]:
        torch.set_num_threads(1)
        if isinstance(pair.dataset, TextDataset):
            return self._measured_text(pair, pair.dataset, model)
        module = models.build(model, pair.dataset.num_classes).to(self._device).eval()
        # A few batches, or of a large network as few images as take seconds: what an image costs hardly depends on it.
        enough = 4 * pair.protocol.batch_size
        if self._device == "cpu":
            enough = min(enough, max(8, int(_SAMPLE_MACS / models.count_macs(module, pair.pipeline.shape))))
        train = pair.split(FINAL).train
        few = train[:enough]
        trainer = engine.Trainer(
            engine.RunSpec(model, "ce", {}, pair.protocol, seed=0),
            pair.dataset,
            few,
            few[:0],
            None,
            False,
            self._device,
        )
        # The second epoch has no warm-up in it; a protocol of one epoch trains again from its start.
        seconds = 0.0
        for _ in range(2):
            trainer.epoch = 0
            seconds = trainer.train_epoch()["epoch_seconds"]
        dataset = pair.dataset

        def logits(pixels: torch.Tensor) -> torch.Tensor:
            return module(normalise(pixels.to(self._device), dataset.mean, dataset.std))

        shown = pair.test_indices()[: 2 * enough]
        measures.evaluate(logits, pair.pipeline.evaluation("test", shown[: enough // 2]))
        began = time.perf_counter()
        measures.evaluate(logits, pair.pipeline.evaluation("test", shown))
        return seconds / len(few), (time.perf_counter() - began) / len(shown)

    def _measured_text(self, pair: PairPlan, dataset: TextDataset, model: str) -> tuple[float, float]:
        """Of a few examples: training with cross-entropy, and being asked and responding."""
        few, shown = pair.split(FINAL).train[:_TEXT_SAMPLE], pair.test_indices()[:_TEXT_SAMPLE]
        protocol = pair.teacher_protocol if model == pair.pair.teacher else pair.protocol
        run = engine.RunSpec(model, "ce", {}, protocol, seed=0)
        trainer = engine.Trainer(run, dataset, few, few[:0], None, False, self._device)
        seconds = trainer.train_epoch()["epoch_seconds"]
        measured = engine.Trainer(run, dataset, few, few[:0], None, True, self._device, test_indices=shown)
        began = time.perf_counter()
        measured.lessons.measure(protocol.epochs)
        return seconds / len(few), (time.perf_counter() - began) / len(shown)


def _effects(plan: Plan, name: str, teacher: Teacher) -> list[AlphaEffect]:
    """What the alphas of the first method that has one do to the teacher's targets."""
    space = next((space for method, space in plan.spec.spaces().items() if _has_alpha(method)), None)
    if space is None:
        return []
    pair = plan.pairs[name]
    answers, target = _answers(plan, name, teacher)
    if space.sampled:
        axis = dict(space.axes).get("alpha")
        alphas = axis.ends if isinstance(axis, Range) else axis.values if axis else ()
        settings = [(float(alpha), pair.protocol.tau) for alpha in alphas]
    else:
        resolved = [pair.resolve(space, values) for values in space.grid()]
        pairs = [(float(values["alpha"]), float(values.get("tau", pair.protocol.tau))) for values in resolved]
        settings = list(dict.fromkeys(pairs))
    effects = []
    for alpha, tau in settings:
        calibrated = loca_logits(answers, target, alpha, tau)
        distance = moved(answers, target, alpha, tau)[calibrated.mis_instructed]
        effects.append(
            AlphaEffect(
                alpha,
                float(distance.mean()) if len(distance) else 0.0,
                float(calibrated.capped.float().mean()),
            )
        )
    return effects


def _answers(plan: Plan, name: str, teacher: Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """What a pair's teacher says on a sample of what it teaches, (n, C), and what is right, (n,)."""
    pair = plan.pairs[name]
    train = pair.split(FINAL).train
    if isinstance(teacher, TextTeacher):
        assert isinstance(pair.dataset, TextDataset)
        said = list(text_measures.answers(teacher, pair.dataset, pair.protocol, train[:_TEXT_SAMPLE]))
        return torch.cat([logits for logits, _ in said]), torch.cat([target for _, target in said])
    images = train[:_SAMPLE].sort().values
    answers, there = plan.teaching(name, teacher).epoch(0, 1, images)
    return answers[there], pair.dataset.train_labels[images][there]


def _has_alpha(method: str) -> bool:
    return any(parameter.name == "alpha" for parameter in objectives.get(method).parameters)


def _spread(plan: Plan, store: Store | None) -> tuple[float, str]:
    """The SD over seeds, in points: as measured in this store on the same data and student, else as published."""
    score = next(iter(plan.pairs.values())).score
    students = {(pair.dataset.hash, pair.pair.student) for pair in plan.pairs.values()}
    groups: dict[tuple[str, str], dict[str, float]] = {}
    every = [(study, run) for study in store.study_names() for run in store.runs(study)] if store else []
    for study, run in every:
        same = (run.identity["data"], run.identity["student"]) in students and run.stage != TEACHER
        value = (run.summary or {}).get(f"test_{score}_last")
        if same and run.state == DONE and value is not None:
            groups.setdefault((study, run.point_id), {})[run.run_id] = value
    variances = [(len(values) - 1, stdev(values.values()) ** 2) for values in groups.values() if len(values) > 1]
    freedom = sum(n for n, _ in variances)
    if freedom < 3:
        return ASSUMED_SD, "assumed, as for resnet32x4 -> resnet8x4 on CIFAR-100; nothing was measured here yet"
    pooled = math.sqrt(sum(n * variance for n, variance in variances) / freedom)
    return max(pooled, 1e-9), f"measured over the seeds of {len(variances)} points in this store"


def _checkpoint_bytes(plan: Plan, name: str) -> int:
    """A run's last checkpoint: weights and momentum in float32."""
    pair = plan.pairs[name]
    if isinstance(pair.dataset, TextDataset):
        network = text_models.build(pair.pair.student, pair.dataset.models, pair.dataset.cache)
        return 12 * models.count_parameters(network) + 20_000  # AdamW keeps two more of each
    return 8 * models.count_parameters(models.build(pair.pair.student, pair.dataset.num_classes)) + 20_000


def _warnings(plan: Plan, found: Forecast) -> list[str]:
    notes = []
    of_text = any(pair.task == "text" for pair in plan.pairs.values())
    shown = "tokens" if of_text else "views"
    for pair in found.pairs:
        if pair.ratio is not None and pair.ratio < LOW_RATIO:
            notes.append(
                f"{pair.pair}: the teacher is wrong on {100 * pair.ratio:.2f} % of the {shown} that it teaches, so "
                "LoCa has next to nothing to repair and its curve will be flat; use teacher.regime held_out, or a "
                "weaker teacher"
            )
        for effect in pair.effects:
            if effect.capped > HIGH_CAPPED:
                bound = capped_bound(plan.pairs[pair.pair].num_classes)
                notes.append(
                    f"{pair.pair}: alpha {effect.alpha:g} leaves the simplex on {100 * effect.capped:.1f} % of the "
                    f"{shown}, which are capped; every alpha below {bound:.{8 if of_text else 4}g} is valid on all"
                )
    if not plan.spec.methods:
        return notes
    if found.resolvable is None:
        notes.append("one seed: no interval and no test; two methods cannot be told apart. Use seeds: 3 or more")
    elif found.resolvable > PLAUSIBLE_DIFFERENCE:
        notes.append(
            f"{len(plan.spec.seeds)} seeds resolve a difference of {found.resolvable:.2f} points at 80 % power; the "
            f"papers' gains are mostly below {PLAUSIBLE_DIFFERENCE} points. Use more seeds, or expect to see large "
            "effects only"
        )
    test_images = min(len(pair.test_indices()) for pair in plan.pairs.values())
    # Two accuracies on the same images differ by chance at most as much as on independent ones.
    chance = 100 * NormalDist().inv_cdf(0.975) * math.sqrt(2 * 0.7 * 0.3 / test_images)
    if test_images < 2_000 and not of_text:
        notes.append(
            f"{test_images:,} test images: accuracies near 70 % that differ by less than {chance:.1f} points may do so "
            "by the choice of test images alone, whatever the seeds say"
        )
    budget = plan.spec.budget.runs
    if budget is not None and budget < expected_runs(plan.spec):
        notes.append(f"budget.runs {budget} ends the study before its {expected_runs(plan.spec)} runs")
    for planned in plan.pairs.values():
        if plan.has_final and planned.teacher.regime == "seen":
            notes.append(f"{planned.name}: under the regime `seen` the teacher may know the validation part")
    return notes
