"""Which point next: one Optuna study for each pair and method.

Lists are enumerated and enqueued, ranges are sampled: first the protocol's own values and, where asked for, the best
points of pairs that were searched before. Our point rows are the truth and Optuna's trials follow: a point
is told once, when its runs have ended, and `reconcile` mends what a driver that died left between the two.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from search_spaces.spaces import MethodSpace, Range, Value
from study.spec import SearchSpec
from study.store import COMPLETE, FAILED, PRUNED, PointRow
from trainables import objectives

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# A resumed run passes its rungs again; Optuna keeps the first value, as the store does.
warnings.filterwarnings("ignore", message=".*is ignored because.*already reported.*")

_TOLD = {COMPLETE: TrialState.COMPLETE, FAILED: TrialState.FAIL, PRUNED: TrialState.PRUNED}


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's tables in the store's own database."""
    # Optuna makes its tables without a lock: two studies that begin in a fresh home would collide.
    with FileLock(f"{url.removeprefix('sqlite:///')}.optuna-lock"):
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


class PointSearch:
    """Proposes the points of one pair and method, and hears what became of them.

    Args:
        storage: Optuna's storage.
        name: `study/pair/method`, the Optuna study's name.
        space: what varies.
        search: sampler, pruner, seed.
        epochs: of a whole run; rungs lie below.
    """

    def __init__(
        self, storage: optuna.storages.BaseStorage, name: str, space: MethodSpace, search: SearchSpec, epochs: int
    ) -> None:
        self.space = space
        self._search = search
        self._epochs = epochs
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=self._pruner()
        )
        self._asked: dict[int, optuna.Trial] = {}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which the pruner is asked."""
        if self._search.pruner == "none":
            return ()
        rungs, epoch = [], self._search.first_rung
        while epoch < self._epochs:
            rungs.append(epoch)
            epoch *= self._search.reduction
        return tuple(rungs)

    def add(self, values: dict[str, Value]) -> int:
        """The trial of a point that is given: listed, or tried first."""
        self._study.enqueue_trial(self._drawn(values))
        return self._ask()[0]

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
        asked.report(value, epoch)
        return asked.should_prune()

    def tell(self, trial: int, state: str, value: float | None) -> None:
        """Say how a point ended. Telling it again changes nothing; a failed point that was retried is added anew."""
        frozen = self._frozen(trial)
        if not frozen.state.is_finished():
            self._study.tell(trial, value if state == COMPLETE else None, state=_TOLD[state])
        elif state == COMPLETE and frozen.state == TrialState.FAIL:
            self._study.add_trial(
                optuna.create_trial(params=frozen.params, distributions=frozen.distributions, value=value)
            )

    def reconcile(self, points: list[PointRow]) -> None:
        """Bring Optuna's trials in line with our points: tell what was not told, end what has no point."""
        by_trial = {point.trial: point for point in points}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            point = by_trial.get(trial.number)
            if point is None:
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                else:
                    self._study.tell(self._study.ask(), state=TrialState.FAIL)
            elif point.state in _TOLD:
                self.tell(trial.number, point.state, point.value)

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._asked:
            # A trial of an earlier driver: Optuna offers no other way back from a number to a live trial.
            self._asked[number] = optuna.Trial(self._study, self._frozen(number)._trial_id)
        return self._asked[number]

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

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
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=self._search.first_rung, reduction_factor=self._search.reduction
        )


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")
