"""Typed search spaces: what a spec writes for a method's parameters, and the points that it stands for.

A number is a value, a list or a range; an option (a named choice of a method) is a value or a list:

    alpha: 0.95
    alpha: [0.9, 0.95, 1.0]
    alpha: {range: [0.3, 1.05]}
    alpha: {margin: [0.001, 0.2], log: true}      the range of 1 - alpha, LoCa's natural scale
    tau:   {range: [1, 8], log: true}
    share: {range: [0.5, 1.0]}                    beta = share, gamma = 1 - share
    apply_to: [wrong, right, all]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables import objectives

SHARE = objectives.Parameter(
    "share", default=None, low=0.0, high=1.0, low_open=False, help="beta = share, gamma = 1 - share"
)


Value = float | str | bool
"""What a parameter can be: a number, or one of an option's choices."""


@dataclass(frozen=True)
class Choices:
    """One value or several: enumerated."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        values = [written(value) for value in self.values]
        return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


@dataclass(frozen=True)
class Range:
    """An interval that a sampler draws from, on a linear or a logarithmic scale.

    With `margin` the interval is one of 1 - alpha.
    """

    low: float
    high: float
    log: bool = False
    margin: bool = False

    def __str__(self) -> str:
        kind = "margin" if self.margin else "range"
        return f"{{{kind}: [{self.low:.12g}, {self.high:.12g}]{', log: true' if self.log else ''}}}"

    @property
    def ends(self) -> tuple[float, float]:
        """The parameter's lowest and highest value."""
        return (1.0 - self.high, 1.0 - self.low) if self.margin else (self.low, self.high)


Axis = Choices | Range


@dataclass(frozen=True)
class MethodSpace:
    """A method and what varies in it; parameters that are not named keep the method's or the protocol's value."""

    method: str
    axes: tuple[tuple[str, Axis], ...]

    @property
    def sampled(self) -> bool:
        """Whether a sampler is needed: some axis is a range."""
        return any(isinstance(axis, Range) for _, axis in self.axes)

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every combination of the listed values, in the order of the spec. Only for spaces without ranges."""
        names = [name for name, _ in self.axes]
        lists = [axis.values for _, axis in self.axes if isinstance(axis, Choices)]
        for combination in itertools.product(*lists):
            yield dict(zip(names, combination, strict=True))

    def resolve(self, values: Mapping[str, Value], *defaults: Any) -> dict[str, Value]:
        """A point's parameters: the given values, then the method's own defaults, then those of `defaults`.

        Every number of the method is in it. An option is in it only where it is not the method's default, so that a
        method that gets a further option keeps its points.

        Args:
            values: of this space's axes.
            defaults: what gives the numbers that have no default of their own; mappings or objects, the first that has
                a name wins (a pair's own values, then the protocol).
        """
        given = dict(values)
        if "share" in given:
            share = float(given.pop("share"))
            given |= {"beta": share, "gamma": round(1.0 - share, 12)}
        method = objectives.get(self.method)
        resolved: dict[str, Value] = {}
        for parameter in method.parameters:
            value = given.get(parameter.name)
            if value is None:
                value = _default(parameter, defaults)
            resolved[parameter.name] = float(value)
        for option in method.options:
            if given.get(option.name, option.choices[0]) != option.choices[0]:
                resolved[option.name] = given[option.name]
        return resolved

    def point_of(self, parameters: Mapping[str, Value]) -> dict[str, Value] | None:
        """The values on this space's axes that stand for a point's parameters; None where they lie outside of it."""
        options = {option.name: option.choices[0] for option in objectives.get(self.method).options}
        values: dict[str, Value] = {}
        for name, axis in self.axes:
            if name == "share":
                beta, gamma = parameters.get("beta"), parameters.get("gamma")
                if beta is None or gamma is None or abs(float(beta) + float(gamma) - 1) > 1e-9:
                    return None
                value: Value | None = beta
            else:
                value = parameters.get(name, options.get(name))
            if value is None or not _on(axis, value):
                return None
            values[name] = value
        return values


def written(value: Value) -> str:
    """A parameter's value as one reads and writes it: 0.95, wrong, true."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:.12g}"


def _default(parameter: objectives.Parameter, defaults: tuple[Any, ...]) -> float:
    for source in defaults:
        value = source.get(parameter.name) if isinstance(source, Mapping) else None
        if value is not None:
            return float(value)
    if parameter.default is not None:
        return parameter.default
    return float(next(getattr(source, parameter.name) for source in defaults if hasattr(source, parameter.name)))


def _on(axis: Axis, value: Value) -> bool:
    if isinstance(axis, Choices):
        return value in axis.values
    low, high = axis.ends
    return isinstance(value, float) and low <= value <= high


def parse_method(method: str, raw: Mapping[str, Any] | None) -> MethodSpace:
    """Read one entry of a spec's `methods`.

    Raises:
        ValueError: unknown method or parameter, or a value outside what the method allows; one line.
    """
    entry = objectives.get(method)
    options = {option.name: option for option in entry.options}
    known = {parameter.name: parameter for parameter in entry.parameters}
    if {"beta", "gamma"} <= known.keys():
        known["share"] = SHARE
    axes = []
    for name, value in (raw or {}).items():
        if name not in known and name not in options:
            allowed = ", ".join([*known, *options]) or "none"
            raise ValueError(f"{name}: method {method} has no such parameter; it has: {allowed}")
        try:
            parsed = _parse_option(options[name], value) if name in options else _parse_axis(known[name], value)
            axes.append((name, parsed))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    named = {name for name, _ in axes}
    if "share" in named and named & {"beta", "gamma"}:
        raise ValueError("share: takes the place of beta and gamma; give either share or those")
    return MethodSpace(method, tuple(axes))


def _parse_axis(parameter: objectives.Parameter, raw: Any) -> Axis:
    if isinstance(raw, Mapping):
        return _parse_range(parameter, raw)
    numbers = tuple(_number(value) for value in _listed(raw))
    for number in numbers:
        _check(parameter, number)
    return _distinct(numbers)


def _parse_option(option: objectives.Option, raw: Any) -> Choices:
    values = tuple(_listed(raw))
    for value in values:
        # 1 == True in Python, but not in a spec.
        if not any(type(value) is type(choice) and value == choice for choice in option.choices):
            allowed = ", ".join(written(choice) for choice in option.choices)
            raise ValueError(f"{value!r} is none of its choices: {allowed}")
    return _distinct(values)


def _listed(raw: Any) -> Sequence[Any]:
    values = raw if isinstance(raw, list | tuple) else [raw]
    if not values:
        raise ValueError("the list is empty; give at least one value")
    return values


def _distinct(values: tuple[Value, ...]) -> Choices:
    if len(set(values)) < len(values):
        raise ValueError(f"the list {list(values)} has a value twice")
    return Choices(values)


def _parse_range(parameter: objectives.Parameter, raw: Mapping[str, Any]) -> Range:
    unknown = set(raw) - {"range", "margin", "log"}
    if unknown or ("range" in raw) == ("margin" in raw):
        raise ValueError(
            "write a value, a list, {range: [low, high]} or {margin: [low, high]}, with log: true if wanted"
        )
    margin = "margin" in raw
    if margin and parameter.name != "alpha":
        raise ValueError("margin is 1 - alpha and belongs to alpha alone; write range")
    ends = raw["margin" if margin else "range"]
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError(f"a range has two ends, [low, high], not {ends!r}")
    low, high = (_number(end) for end in ends)
    if not low < high:
        raise ValueError(f"the range [{low:g}, {high:g}] is empty: low must be below high")
    log = raw.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log is true or false, not {log!r}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must begin above 0, not at {low:g}")
    for end in (low, high):
        _check(parameter, 1.0 - end if margin else end)
    return Range(low, high, log, margin)


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _check(parameter: objectives.Parameter, value: float) -> None:
    """Hold a value against the parameter's own bounds."""
    if not parameter.contains(value):
        raise ValueError(f"{value:g} is not allowed; it must be {parameter.allowed}")
