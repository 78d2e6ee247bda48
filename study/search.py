"""Which point next: one Optuna study for each pair and method.

Lists are enumerated, ranges are sampled: first the protocol's own values and, where asked for, the best points of pairs
that were searched before. Our point rows are the truth and Optuna's trials follow: a point is told once, when its runs
have ended, and `reconcile` mends what a driver that died left between the two. A listed point gets its trial when
Optuna has to know of it, at the pruner's first rung or at its end: a trial costs tens of milliseconds in a database,
and a study may list thousands.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from search_spaces.spaces import MethodSpace, Range, Value
from study.database import connect_arguments, exclusively, is_sqlite, patient_methods, sqlite_file
from study.spec import SearchSpec
from study.store import COMPLETE, FAILED, PRUNED, PointRow, Store
from trainables import objectives
from trainables.protocol import Protocol

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# A resumed run passes its rungs again; Optuna keeps the first value, as the store does.
warnings.filterwarnings("ignore", message=".*is ignored because.*already reported.*")

_POINT = "kdstudy.point"  # a trial's user attribute: the id of its point
_TOLD = {COMPLETE: TrialState.COMPLETE, FAILED: TrialState.FAIL, PRUNED: TrialState.PRUNED}
_BEGUN = TrialState.RUNNING


def open_storage(store: Store) -> optuna.storages.RDBStorage:
    """Optuna's tables in the store's own database."""
    url, options = store.url, {"connect_args": connect_arguments(store.url), "pool_pre_ping": not is_sqlite(store.url)}
    # Optuna makes its tables without a lock: two studies that begin in a fresh home would collide.
    with FileLock(f"{sqlite_file(url)}.optuna-lock") if is_sqlite(url) else exclusively(store.engine, "optuna"):
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def rungs(search: SearchSpec, protocol: Protocol) -> tuple[int, ...]:
    """Epochs of a run, before its last, after which the pruner is asked.

    Unless the spec says where the first lies there is one: the first epoch with a lower learning rate, or half of the
    epochs where the rate never drops. Earlier, and one after the other, decisions lose good points: docs/results/
    fidelity has the measurement.
    """
    if search.pruner == "none":
        return ()
    if search.first_rung is None:
        drops = [epoch for epoch in protocol.milestones if epoch < protocol.epochs]
        return tuple(epoch for epoch in (*drops, protocol.epochs // 2)[:1] if epoch)
    found, epoch = [], search.first_rung
    while epoch < protocol.epochs:
        found.append(epoch)
        epoch *= search.reduction
    return tuple(found)


@patient_methods
class PointSearch:
    """Proposes the points of one pair and method, and hears what became of them.

    Args:
        storage: Optuna's storage.
        name: `study/pair/method`, the Optuna study's name.
        space: what varies.
        search: sampler, pruner, seed.
        protocol: of the runs.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        space: MethodSpace,
        search: SearchSpec,
        protocol: Protocol,
    ) -> None:
        self.space = space
        self.rungs = rungs(search, protocol)
        """Epochs after which the pruner is asked."""
        self._search = search
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            # Optuna's default reads all trials whenever a trial is looked at; `_ask` sets the one that is meant.
            sampler=optuna.samplers.RandomSampler(),
            pruner=self._pruner(),
        )
        self._asked: dict[int | None, optuna.Trial] = {}

    def add(self, point_id: str, values: dict[str, Value]) -> int:
        """The trial, just begun, of a point that is given: listed, or tried first."""
        return self._create(point_id, values, TrialState.RUNNING)

    def _create(self, point_id: str, values: dict[str, Value], state: TrialState, value: float | None = None) -> int:
        trial = optuna.create_trial(
            state=state,
            value=value,
            params=self._drawn(values),
            distributions=self._distributions(),
            user_attrs={_POINT: point_id},
        )
        storage = self._study._storage  # `Study.add_trial` does not say which number it gave
        trial_id = storage.create_new_trial(self._study._study_id, template_trial=trial)
        return storage.get_trial(trial_id).number

    def sample(self) -> tuple[int, dict[str, Value]]:
        """A new point from the sampler, with its trial."""
        return self._ask()

    def _ask(self) -> tuple[int, dict[str, Value]]:
        # A sampler made anew with the same seed would repeat itself, so its seed follows the number of trials.
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = self._sampler(_seed(self._search.seed, self._study.study_name, number))
        trial = self._study.ask(self._distributions())
        self._asked[trial.number] = trial
        return trial.number, self._values(trial.params)

    def _values(self, params: dict[str, Any]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for name, axis in self.space.axes:
            drawn_as_margin = isinstance(axis, Range) and axis.margin
            values[name] = 1.0 - params["margin"] if drawn_as_margin else params[name]
        return values

    def _drawn(self, values: dict[str, Value]) -> dict[str, Any]:
        """The values under the names and on the scales of Optuna's distributions."""
        drawn: dict[str, Any] = dict(values)
        for name, axis in self.space.axes:
            if isinstance(axis, Range) and axis.margin:
                # 1 - alpha may miss an end of the range by its last bit.
                drawn["margin"] = min(max(1.0 - float(drawn.pop(name)), axis.low), axis.high)
        return drawn

    def report(self, trial: int, epoch: int, value: float) -> bool:
        """Hand a value at a rung to the pruner; True if the point should stop."""
        asked = self._trial(trial)
        # Optuna's rungs lie at powers of the reduction, ours where the schedule has them: it is told which one it is.
        asked.report(value, self._search.reduction ** self.rungs.index(epoch))
        return asked.should_prune()

    def discard(self, trial: int) -> None:
        """End a trial whose values are those of a point that is there."""
        self._study.tell(trial, state=TrialState.FAIL)

    def tell(self, point: PointRow) -> int | None:
        """Say how a point ended; its trial. Telling it again changes nothing.

        None where its values lie outside of the space: a list can only have grown, so an older kdstudy had others.
        """
        state, value = _TOLD[point.state], point.value if point.state == COMPLETE else None
        self._asked.pop(point.trial, None)
        if point.trial is None:
            values = self.space.point_of(point.parameters)
            return None if values is None else self._create(point.point_id, values, state, value)
        if not self._frozen(point.trial).state.is_finished():
            self._study.tell(point.trial, value, state=state)
        return point.trial

    def reconcile(self, points: list[PointRow]) -> list[tuple[PointRow, int]]:
        """Bring Optuna's trials in line with our points: tell what was not told, end what has no point.

        Returns:
            Points that did not know their trial, each with its trial.
        """
        unknown = [point for point in points if point.state in _TOLD and point.trial is None]
        if not (unknown or self.space.sampled or self.rungs):
            return []  # a listed point has no trial before it is told, and reading thousands takes seconds
        trials = self._study.get_trials(deepcopy=False)
        mine = {trial.user_attrs.get(_POINT): trial.number for trial in trials}
        by_trial = {point.trial: point for point in points if point.trial is not None}
        found = []
        for point in points:
            number = mine.get(point.point_id)
            if point.trial is None and number is not None and trials[number].state in (_TOLD.get(point.state), _BEGUN):
                found.append((point, number))
                by_trial[number] = replace(point, trial=number)
        for trial in trials:
            if trial.state == _BEGUN:
                point_of_trial = by_trial.get(trial.number)
                if point_of_trial is None:
                    self.discard(trial.number)
                elif point_of_trial.state in _TOLD:
                    self.tell(point_of_trial)
        have = {point.point_id for point, _ in found}
        for point in unknown:
            if point.point_id not in have and (number := self.tell(point)) is not None:
                found.append((point, number))
        return found

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._asked:
            # A trial of an earlier driver: Optuna offers no other way back from a number to a live trial.
            self._asked[number] = optuna.Trial(self._study, self._frozen(number)._trial_id)
        return self._asked[number]

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        storage = self._study._storage
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number))

    def _distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {}
        options = {option.name: option.choices for option in objectives.get(self.space.method).options}
        for name, axis in self.space.axes:
            if isinstance(axis, Range):
                found["margin" if axis.margin else name] = FloatDistribution(axis.low, axis.high, log=axis.log)
            elif self.space.sampled:
                found[name] = CategoricalDistribution(axis.values)
            elif name in options:
                found[name] = CategoricalDistribution(options[name])
            else:
                # Not categorical: the list may grow later, which Optuna refuses for categories.
                numbers = [float(value) for value in axis.values]
                found[name] = FloatDistribution(min(numbers), max(numbers))
        return found

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._search.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        if self._search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _pruner(self) -> optuna.pruners.BasePruner:
        if self._search.pruner == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=self._search.reduction)


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")
