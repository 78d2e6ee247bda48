"""What a method declares about itself, and the check of what it is given."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import nn

from trainables.naming import unknown


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes.

    default: None where the protocol gives it, in its field of this name. low, high: bounds, None for none; low itself
    is not allowed if `low_open`, high itself if `high_open`.
    """

    name: str
    default: float | None
    low: float | None
    high: float | None
    low_open: bool
    help: str
    high_open: bool = False

    @property
    def allowed(self) -> str:
        """The range in words: `above 0`."""
        low = None if self.low is None else f"{'above' if self.low_open else 'at least'} {self.low:g}"
        high = None if self.high is None else f"{'below' if self.high_open else 'at most'} {self.high:g}"
        return " and ".join(bound for bound in (low, high) if bound) or "any finite number"

    def contains(self, value: float) -> bool:
        """Whether a value is finite and within the bounds."""
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return math.isfinite(value) and above and below


@dataclass(frozen=True)
class Option:
    """A choice between readings of a method. The first one is the default."""

    name: str
    choices: tuple[str | bool, ...]
    help: str

    @property
    def allowed(self) -> str:
        """The choices in words: `one of true, false`."""
        return f"one of {', '.join(str(choice).lower() for choice in self.choices)}"

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the choices; 1 is not true."""
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


TASKS = ("images", "text")


@dataclass(frozen=True)
class Method:
    """A training objective: what it is called, computes and takes.

    summary: one line. formula: its loss. source: the paper. factory: called with every parameter and option by name;
    returns a module with the interface that the package's docstring describes. views: how many views of an image it
    sees, and which. version: raised when a fix changes its results. zero_at_teacher: whether its distillation term has
    its least value, zero, where the student's logits are the teacher's, if the teacher is right on every view and so
    needs no calibration. tasks: the kinds of data that it is for. from_responses: whether the student learns the
    responses that the teacher generates in the place of those given, and not its logits.
    """

    name: str
    summary: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    needs_teacher: bool
    factory: Callable[..., nn.Module]
    options: tuple[Option, ...] = ()
    views: tuple[str, ...] = ("weak",)
    version: int = 1
    zero_at_teacher: bool = False
    tasks: tuple[str, ...] = TASKS
    from_responses: bool = False


def build(method: Method, given: Mapping[str, float | str | bool]) -> nn.Module:
    """The method's objective. What is not given has its default; `trainables.objectives.build` says the rest."""
    parameters = {parameter.name: parameter for parameter in method.parameters}
    options = {option.name: option for option in method.options}
    known = [*parameters, *options]
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            raise ValueError(f"method {method.name}: {unknown('parameter', name, known)} (it takes {takes})")
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        if value is None:
            raise ValueError(
                f"method {method.name}: {name} is missing; it must be {parameter.allowed} ({parameter.help})"
            )
        if isinstance(value, bool) or not isinstance(value, Real) or not parameter.contains(float(value)):
            raise ValueError(f"method {method.name}: {name} is {value!r}; it must be {parameter.allowed}")
        values[name] = float(value)
    for name, option in options.items():
        value = given.get(name, option.choices[0])
        if not option.contains(value):
            raise ValueError(f"method {method.name}: {name} is {value!r}; it must be {option.allowed}")
        values[name] = value
    return method.factory(**values)
