"""What a spec writes for a parameter, and which points it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search_spaces.spaces import Choices, MethodSpace, Range, parse_method
from trainables import objectives


@dataclass(frozen=True)
class Given:
    """Defaults that no method has, so that a test sees where a value comes from."""

    tau: float = 7.0
    beta: float = 0.75
    gamma: float = 0.25


def axis(method: str, name: str, value: Any) -> Choices | Range:
    return dict(parse_method(method, {name: value}).axes)[name]


def test_a_value_is_a_list_of_one() -> None:
    assert axis("loca", "alpha", 0.9) == axis("loca", "alpha", [0.9]) == Choices((0.9,))


def test_a_list_keeps_its_order() -> None:
    assert axis("loca", "alpha", [1.0, 0.5, 0.9]) == Choices((1.0, 0.5, 0.9))


def test_whole_numbers_and_numbers_in_text_are_the_same_values() -> None:
    assert axis("kd", "tau", [4, "2.5", 1e-1]) == Choices((4.0, 2.5, 0.1))


def test_a_range_is_linear_unless_log_is_asked_for() -> None:
    assert axis("kd", "tau", {"range": [1, 8]}) == Range(1.0, 8.0, log=False, margin=False)
    assert axis("kd", "tau", {"range": [1, 8], "log": True}) == Range(1.0, 8.0, log=True, margin=False)


def test_a_margin_is_the_range_of_one_minus_alpha() -> None:
    margin = axis("loca", "alpha", {"margin": [0.001, 0.2], "log": True})
    assert isinstance(margin, Range)
    assert (margin.low, margin.high, margin.log, margin.margin) == (0.001, 0.2, True, True)
    assert margin.ends == (0.8, 0.999)


def test_a_margin_below_zero_is_an_alpha_above_one() -> None:
    margin = axis("loca", "alpha", {"margin": [-0.05, 0.2]})
    assert isinstance(margin, Range)
    assert margin.ends == (0.8, 1.05)


@given(st.floats(1e-6, 0.999), st.floats(1e-6, 0.999), st.floats(0, 1))
def test_every_margin_in_a_range_is_an_alpha_that_the_method_takes(a: float, b: float, where: float) -> None:
    low, high = sorted((a, b))
    assume(low < high)
    found = axis("loca", "alpha", {"margin": [low, high]})
    assert isinstance(found, Range)
    drawn = low + where * (high - low)
    bottom, top = found.ends
    assert bottom - 1e-12 <= 1 - drawn <= top + 1e-12
    alpha = next(p for p in objectives.get("loca").parameters if p.name == "alpha")
    assert alpha.contains(bottom)
    assert alpha.contains(top)


@given(st.floats(0, 1))
def test_a_share_gives_a_beta_and_a_gamma_that_add_up_to_one(share: float) -> None:
    resolved = parse_method("kd", {"share": share}).resolve({"share": share}, Given())
    assert resolved.keys() == {"tau", "beta", "gamma"}
    assert resolved["beta"] == share
    assert math.isclose(resolved["beta"] + resolved["gamma"], 1.0, abs_tol=1e-11)


def test_a_share_of_nine_tenths_is_the_protocols_own_beta_and_gamma() -> None:
    # 1 - 0.9 is 0.09999…98 in floating point, which would name another run than gamma: 0.1 does.
    assert parse_method("kd", {"share": 0.9}).resolve({"share": 0.9}, Given()) == {
        "tau": 7.0, "beta": 0.9, "gamma": 0.1,
    }  # fmt: skip


def test_what_is_not_named_is_the_methods_default_or_else_the_protocols() -> None:
    space = parse_method("loca", {"tau": 2})
    assert space.resolve({"tau": 2.0}, Given()) == {"alpha": 0.95, "tau": 2.0, "beta": 0.75, "gamma": 0.25}
    assert space.resolve({}, Given())["tau"] == 7.0


def test_a_method_without_parameters_is_one_point_with_none() -> None:
    space = parse_method("ce", {})
    assert list(space.grid()) == [{}]
    assert space.resolve({}, Given()) == {}
    assert parse_method("ce", None) == space


LISTS = st.lists(st.floats(0.01, 10, allow_nan=False), min_size=1, max_size=5, unique=True)


@given(st.dictionaries(st.sampled_from(["alpha", "tau", "beta", "gamma"]), LISTS, max_size=4))
def test_a_grid_is_every_combination_once(lists: dict[str, list[float]]) -> None:
    space = parse_method("loca", lists)
    grid = list(space.grid())
    assert len(grid) == math.prod(len(values) for values in lists.values())
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)
    assert all(point[name] in values for point in grid for name, values in lists.items())
    assert not space.sampled


def test_a_grid_varies_the_last_list_first() -> None:
    grid = list(parse_method("loca", {"alpha": [0.9, 1.0], "tau": [2, 4]}).grid())
    assert [(point["alpha"], point["tau"]) for point in grid] == [(0.9, 2), (0.9, 4), (1.0, 2), (1.0, 4)]


def test_one_range_makes_a_space_sampled() -> None:
    assert parse_method("loca", {"alpha": {"range": [0.5, 1]}, "tau": [2, 4]}).sampled
    assert not MethodSpace("loca", ()).sampled


@pytest.mark.parametrize("method", objectives.names())
def test_every_method_reads_every_parameter_of_its_own(method: str) -> None:
    for parameter in objectives.get(method).parameters:
        assert axis(method, parameter.name, 0.5) == Choices((0.5,))


@pytest.mark.parametrize(
    ("method", "raw", "says"),
    [
        ("loca", {"alpha": 0}, "alpha: 0 is not allowed; it must be above 0"),
        ("loca", {"alpha": [0.9, -0.1]}, "alpha: -0.1 is not allowed; it must be above 0"),
        ("loca", {"alpha": {"range": [0, 1]}}, "alpha: 0 is not allowed"),
        ("loca", {"alpha": {"margin": [0.5, 1]}}, "alpha: 0 is not allowed"),
        ("kd", {"tau": 0}, "tau: 0 is not allowed; it must be above 0"),
        ("kd", {"beta": -1}, "beta: -1 is not allowed; it must be at least 0"),
        ("kd", {"share": 1.5}, "share: 1.5 is not allowed; it must be at least 0 and at most 1"),
        ("loca", {"alpha": []}, "alpha: the list is empty; give at least one value"),
        ("loca", {"alpha": "high"}, "alpha: 'high' is not a number"),
        ("loca", {"alpha": True}, "alpha: True is not a number"),
        ("loca", {"alpha": None}, "alpha: None is not a number"),
        ("loca", {"alpha": [[0.9]]}, r"alpha: \[0.9\] is not a number"),
        ("loca", {"alpha": math.nan}, "alpha: nan is not a finite number"),
        ("loca", {"alpha": ".inf"}, "alpha: '.inf' is not a number"),
        ("loca", {"alpha": 10**400}, "is not a number"),
        ("loca", {"alpha": [0.9, 1, 0.9]}, "alpha: the list .* has a value twice"),
        ("loca", {"alpha": {"range": [0.9]}}, "two ends"),
        ("loca", {"alpha": {"range": 0.9}}, "two ends"),
        ("loca", {"alpha": {"range": [1, 0.5]}}, "low must be below high"),
        ("loca", {"alpha": {"range": [0.5, 0.5]}}, "low must be below high"),
        ("loca", {"alpha": {"rang": [0.5, 1]}}, "write a value, a list"),
        ("loca", {"alpha": {"range": [0.5, 1], "margin": [0.1, 0.2]}}, "write a value, a list"),
        ("loca", {"alpha": {"range": [0.5, 1], "step": 0.1}}, "write a value, a list"),
        ("loca", {"alpha": {"margin": [0, 0.2], "log": True}}, "logarithmic range must begin above 0"),
        ("loca", {"alpha": {"range": [0.5, 1], "log": "yes"}}, "log is true or false, not 'yes'"),
        ("kd", {"tau": {"margin": [0.1, 0.2]}}, "tau: margin is 1 - alpha and belongs to alpha alone"),
        ("kd", {"alpha": 0.9}, "alpha: method kd has no such parameter; it has: tau, beta, gamma, share"),
        ("ce", {"tau": 4}, "tau: method ce has no such parameter; it has: none"),
        ("ce", {"share": 0.5}, "share: method ce has no such parameter"),
        ("kd", {"share": 0.5, "beta": 0.5}, "share: takes the place of beta and gamma"),
        ("lcoa", {}, "unknown method 'lcoa': did you mean loca"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_parameter_and_what_would_be_right(
    method: str, raw: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_method(method, raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        (0.95, "0.95"),
        ([0.9, 1], "[0.9, 1]"),
        ({"range": [0.3, 1.05]}, "{range: [0.3, 1.05]}"),
        ({"margin": [0.001, 0.2], "log": True}, "{margin: [0.001, 0.2], log: true}"),
    ],
)
def test_an_axis_is_shown_as_a_spec_writes_it(raw: Any, written: str) -> None:
    assert str(axis("loca", "alpha", raw)) == written


# Options: named choices of a method


def test_an_option_is_a_value_or_a_list_of_its_choices() -> None:
    assert axis("loca", "apply_to", "right") == Choices(("right",))
    assert axis("loca", "apply_to", ["wrong", "all"]) == Choices(("wrong", "all"))
    assert axis("kd", "tau_squared", False) == Choices((False,))
    assert str(axis("kd", "tau_squared", [True, False])) == "[true, false]"


@pytest.mark.parametrize(
    ("method", "raw", "says"),
    [
        ("loca", {"apply_to": "left"}, "apply_to: 'left' is none of its choices: wrong, right, all"),
        ("kd", {"tau_squared": 1}, "tau_squared: 1 is none of its choices: true, false"),
        ("loca", {"apply_to": {"range": [0, 1]}}, "apply_to: .* is none of its choices"),
        ("loca", {"apply_to": []}, "apply_to: the list is empty"),
        ("loca", {"apply_to": ["all", "all"]}, "apply_to: the list .* has a value twice"),
        ("kd", {"apply_to": "all"}, "apply_to: method kd has no such parameter; it has: .*tau_squared"),
    ],
)
def test_a_choice_that_an_option_does_not_have_is_refused(method: str, raw: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_method(method, raw)


def test_an_option_at_its_default_is_no_part_of_a_point_so_that_a_new_option_changes_no_id() -> None:
    space = parse_method("loca", {"apply_to": ["wrong", "all"]})
    plain, other = (space.resolve(values, Given()) for values in space.grid())
    assert plain == parse_method("loca", {}).resolve({}, Given())
    assert other == {**plain, "apply_to": "all"}


def test_options_and_numbers_are_enumerated_together() -> None:
    space = parse_method("loca", {"alpha": [0.9, 1.0], "non_target": ["keep", "uniform", "shuffle"]})
    assert len(list(space.grid())) == 6


def test_a_pairs_own_value_takes_the_place_of_the_methods_and_what_is_given_that_of_both() -> None:
    space = parse_method("loca", {"alpha": [0.5]})
    assert space.resolve({}, {"alpha": 0.7}, Given())["alpha"] == 0.7
    assert space.resolve({"alpha": 0.5}, {"alpha": 0.7}, Given())["alpha"] == 0.5
    assert space.resolve({}, {}, Given())["alpha"] == 0.95


@pytest.mark.parametrize(
    ("raw", "parameters", "values"),
    [
        ({"alpha": {"range": [0.3, 1.05]}}, {"alpha": 0.95, "tau": 4.0}, {"alpha": 0.95}),
        ({"alpha": {"range": [0.3, 0.9]}}, {"alpha": 0.95}, None),
        ({"alpha": {"margin": [0.01, 0.2]}}, {"alpha": 0.95}, {"alpha": 0.95}),
        ({"share": {"range": [0.5, 1]}}, {"beta": 0.9, "gamma": 0.1}, {"share": 0.9}),
        ({"share": {"range": [0.5, 1]}}, {"beta": 0.9, "gamma": 0.5}, None),
        ({"tau": [2, 4]}, {"tau": 4.0}, {"tau": 4.0}),
        ({"tau": [2, 4]}, {"tau": 3.0}, None),
        ({"tau": [2, 4]}, {}, None),
        ({"apply_to": ["wrong", "all"]}, {"alpha": 0.9}, {"apply_to": "wrong"}),
        ({"apply_to": ["wrong"]}, {"apply_to": "all"}, None),
    ],
)
def test_a_point_found_elsewhere_is_brought_onto_the_axes_of_a_space_where_it_fits(
    raw: dict[str, Any], parameters: dict[str, Any], values: dict[str, Any] | None
) -> None:
    assert parse_method("loca", raw).point_of(parameters) == values
