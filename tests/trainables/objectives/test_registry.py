"""How methods are found and built, and what is said to a wrong request."""

import inspect
import math
import re

import pytest
import torch

from tests.trainables.objectives.given import METHODS, PROTOCOL, batch, batch_for, given_parameters
from trainables import objectives
from trainables.objectives import Method, Option, Parameter

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


def test_every_method_of_the_papers_is_there():
    assert objectives.names()[:21] == [
        "ce",
        "sft",
        "seqkd",
        "label_smoothing",
        "tf_kd",
        "kd",
        "kd_drop",
        "kd_swap",
        "kd_one_hot",
        "loca",
        "dkd",
        "loca_dkd",
        "nkd",
        "ctkd",
        "mlkd",
        "kd_ls",
        "loca_ls",
        "dkd_ls",
        "loca_dkd_ls",
        "ctkd_ls",
        "mlkd_ls",
    ]
    assert [method.name for method in METHODS if not method.needs_teacher] == ["ce", "sft", "label_smoothing", "tf_kd"]
    assert {method.name: method.views for method in METHODS if len(method.views) > 1} == {
        "mlkd": ("weak", "strong"),
        "mlkd_ls": ("weak", "strong"),
    }


@every_method
def test_the_factory_takes_exactly_the_declared_parameters_and_options(method):
    declared = {each.name for each in (*method.parameters, *method.options)}
    signature = inspect.signature(method.factory).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature):
        # It passes on what it does not take itself; then building it says whether all of them have a place.
        objectives.build(method.name, **given_parameters(method))
        assert {p.name for p in signature if p.default is p.empty} - {"others"} <= declared
    else:
        assert {p.name for p in signature if p.default is p.empty} <= declared <= {p.name for p in signature}


@every_method
def test_an_alpha_is_locas_and_no_one_elses(method):
    named = {parameter.name for parameter in method.parameters}
    assert ("alpha" in named) == method.name.startswith("loca")


def test_a_registered_method_is_found_by_its_name():
    assert all(objectives.get(name).name == name for name in objectives.names())
    assert objectives.METHODS.names() == objectives.names()
    assert objectives.get("kd") is objectives.METHODS.get("kd")


def test_a_method_of_ones_own_is_named_by_module_and_attribute():
    name = "tests.trainables.objectives.test_contract:squared_error"
    assert objectives.get(name).name == name
    assert objectives.build(name, weight_mse=2.0).weight == 2.0
    with pytest.raises(ValueError, match=rf"^method {name}: weight_mse is -1; it must be at least 0$"):
        objectives.build(name, weight_mse=-1)


@pytest.mark.parametrize("found", ["trainables.objectives:VERSION", "trainables.calibration:CAP"])
def test_a_name_that_leads_to_no_method_is_refused(found):
    with pytest.raises(ValueError, match=rf"^method {found}: it is a (int|float); wanted: a .*\.Method"):
        objectives.get(found)


def test_an_unknown_method_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"^unknown method 'locca': did you mean loca"):
        objectives.build("locca", alpha=0.9)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("loca", {"alpha": 0.0}, "method loca: alpha is 0.0; it must be above 0"),
        ("loca", {"alpha": -1}, "method loca: alpha is -1; it must be above 0"),
        ("loca", {"alpha": math.nan}, "method loca: alpha is nan; it must be above 0"),
        ("loca", {"alpha": math.inf}, "method loca: alpha is inf; it must be above 0"),
        ("loca", {"alpha": "0.9"}, "method loca: alpha is '0.9'; it must be above 0"),
        ("kd", {"tau": 0}, "method kd: tau is 0; it must be above 0"),
        ("kd", {"beta": -0.1}, "method kd: beta is -0.1; it must be at least 0"),
        ("kd", {"gamma": True}, "method kd: gamma is True; it must be at least 0"),
        (
            "kd",
            {"tau": None},
            "method kd: tau is missing; it must be above 0 (temperature of both softmaxes in the KD term)",
        ),
        (
            "kd",
            {"alpha": 0.9},
            "method kd: unknown parameter 'alpha': there is beta, gamma, tau, tau_squared "
            "(it takes tau, beta, gamma, tau_squared)",
        ),
        ("ce", {"tau": 4.0}, "method ce: unknown parameter 'tau': there is none yet (it takes no parameters)"),
        (
            "loca",
            {"apply_to": "both"},
            "method loca: apply_to is 'both'; it must be one of wrong, right, all",
        ),
        ("kd", {"tau_squared": 1}, "method kd: tau_squared is 1; it must be one of true, false"),
    ],
)
def test_a_wrong_parameter_is_refused_in_one_line_that_says_what_is_allowed(name, changes, message):
    given = {} if name == "ce" else {key: PROTOCOL[key] for key in ("tau", "beta", "gamma")}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        objectives.build(name, **given | changes)


def test_a_missing_parameter_is_named():
    with pytest.raises(ValueError, match=r"^method loca: tau is missing"):
        objectives.build("loca", alpha=0.9, beta=0.9, gamma=0.1)


def test_alpha_has_the_papers_default_and_the_rest_comes_from_the_protocol():
    assert {p.name: p.default for p in objectives.get("loca").parameters} == {
        "alpha": 0.95,
        "tau": None,
        "beta": None,
        "gamma": None,
    }
    given = {key: PROTOCOL[key] for key in ("tau", "beta", "gamma")}
    by_default, named = objectives.build("loca", **given), objectives.build("loca", alpha=0.95, **given)
    assert torch.equal(by_default(*batch())["loss"], named(*batch())["loss"])


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("label_smoothing", {"eps_ls": 0.1}),
        ("tf_kd", {"a_tf": 0.99, "tau_tf": 20.0, "beta": None, "gamma": None}),
        ("dkd", {"tau": None, "alpha_dkd": 1.0, "beta_dkd": 8.0, "warmup_dkd": None}),
        ("loca_dkd", {"alpha": 0.95, "tau": None, "alpha_dkd": 1.0, "beta_dkd": 8.0, "warmup_dkd": None}),
        ("nkd", {"gamma_nkd": 3.5, "lambda_nkd": 3.0}),
        ("ctkd", {"beta": None, "gamma": None, "warmup_ctkd": None}),
        ("mlkd", {"tau_mlkd": 4.0, "beta": None, "gamma": None}),
        ("kd_ls", {"tau": 2.0, "beta": 9.0, "gamma": 0.1}),
        ("loca_ls", {"alpha": 0.95, "tau": 2.0, "beta": 9.0, "gamma": 0.1}),
        ("dkd_ls", {"tau": 2.0, "alpha_dkd": 1.0, "beta_dkd": 8.0, "warmup_dkd": None, "beta": 9.0}),
        ("ctkd_ls", {"beta": 9.0, "gamma": 0.1, "warmup_ctkd": None}),
        ("mlkd_ls", {"tau_mlkd": 2.0, "beta": 9.0, "gamma": 0.1}),
    ],
)
def test_defaults_are_those_of_the_papers_and_their_released_configurations(name, defaults):
    assert {p.name: p.default for p in objectives.get(name).parameters} == defaults


@every_method
def test_the_first_choice_of_every_option_is_its_default(method):
    given, logits = given_parameters(method), batch_for(method)
    named = given | {option.name: option.choices[0] for option in method.options}
    by_default, by_name = (objectives.build(method.name, **values)(*logits)["loss"] for values in (given, named))
    assert torch.equal(by_default, by_name)


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        ((0.0, None, True), "above 0", [1e-9, 5], [0, -1]),
        ((0.0, 1.0, False), "at least 0 and at most 1", [0, 1], [-1e-9, 1.1]),
        ((0.0, 1.0, True, True), "above 0 and below 1", [1e-9, 0.999], [0, 1]),
        ((None, None, False), "any finite number", [-1e9, 0], [math.inf, math.nan]),
    ],
)
def test_a_parameters_range_in_words_and_in_numbers(bounds, words, inside, outside):
    low, high, low_open, *high_open = bounds
    parameter = Parameter("p", None, low, high, low_open, "help", *high_open)
    assert parameter.allowed == words
    assert all(parameter.contains(value) for value in inside)
    assert not any(parameter.contains(value) for value in outside)


def test_an_options_choices_in_words_and_one_is_not_true():
    option = Option("o", (True, "never"), "help")
    assert option.allowed == "one of true, never"
    assert option.contains(True)
    assert not option.contains(1)
    assert not option.contains("true")


def test_a_method_needs_no_more_than_the_fields_it_always_had():
    method = Method("m", "summary", "formula", "-", (), False, torch.nn.Identity)
    assert (method.options, method.views, method.version, method.zero_at_teacher) == ((), ("weak",), 1, False)
