"""What a spec means, what it refuses, and how a study may grow."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from study.errors import RequestError
from study.home import Home
from study.plan import Plan, digest
from study.service import expected_runs
from study.spec import FINAL_SEED, Spec, apply_overrides, difference, json_schema, load_spec, parse_spec
from study.store import canonical
from study.templates import starter

SMALL: dict[str, Any] = {
    "name": "small",
    "protocol": {"base": "digits-quick"},
    "data": {"name": "digits"},
    "pairs": ["cnn32-cnn3"],
    "methods": {"ce": {}, "loca": {"alpha": [0.9, 1.0]}},
    "seeds": 2,
}
SEARCH: dict[str, Any] = {
    **SMALL,
    "methods": {"kd": {}, "loca": {"alpha": {"range": [0.5, 1]}, "tau": [2, 4]}},
    "search": {"sampler": "tpe", "points": 4},
}


def spec(*overrides: str, base: dict[str, Any] = SMALL, **changes: Any) -> Spec:
    return apply_overrides({**base, **changes}, overrides, "small.yaml")


def refusal(*overrides: str, base: dict[str, Any] = SMALL, **changes: Any) -> str:
    """What is said of a wrong spec: one line that begins with the file."""
    with pytest.raises(RequestError) as caught:
        spec(*overrides, base=base, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("small.yaml: ")
    return message.removeprefix("small.yaml: ")


# What a spec means


def test_what_is_not_said_has_the_documented_default() -> None:
    found = spec()
    assert (found.teacher.regime, found.teacher.checkpoint, found.teacher.fraction) == ("seen", None, 0.5)
    assert (found.search.sampler, found.search.pruner, found.selection) == ("grid", "none", "validation")
    assert (found.budget.runs, found.budget.hours, found.budget.device_hours) == (None, None, None)
    assert (found.data.validation, found.data.train_limit, found.data.split_seed) == (0.1, None, 0)


def test_seeds_are_a_number_or_a_list() -> None:
    assert spec(seeds=3).seeds == (0, 1, 2)
    assert spec(seeds=[7, 3]).seeds == (7, 3)


def test_pairs_are_names_or_objects() -> None:
    by_name, by_object = spec(pairs=["cnn32-cnn3"]), spec(pairs=[{"pair": "cnn32-cnn3"}])
    assert by_name == by_object
    own = spec(pairs=["cnn32-cnn3", {"pair": "cnn3-cnn3", "data": {"train_limit": 50}, "teacher": {"seed": 4}}])
    first, second = own.pairs
    assert (own.data_of(first).train_limit, own.data_of(second).train_limit) == (None, 50)
    assert (own.teacher_of(first).seed, own.teacher_of(second).seed) == (0, 4)
    assert own.data_of(second).name == "digits"


def test_a_pair_stands_several_times_under_labels_of_its_own() -> None:
    found = spec(pairs=["cnn32-cnn3", {"pair": "cnn32-cnn3", "label": "noisy", "data": {"label_noise": 0.2}}])
    assert [pair.key for pair in found.pairs] == ["cnn32-cnn3", "cnn32-cnn3@noisy"]
    assert [found.data_of(pair).variant for pair in found.pairs] == [{}, {"noise": [0.2, 0]}]
    assert "give each a label" in refusal(pairs=["cnn32-cnn3", "cnn32-cnn3"])
    says = refusal(pairs=[{"pair": "cnn32-cnn3", "label": "a b/c"}])
    assert says.startswith(
        "pairs.0.label: must be letters, digits, '.', '_', '+', '%' or '-' (40 at most), not 'a b/c'"
    )


def test_a_pair_on_another_data_set_does_not_look_for_it_in_the_first_ones_folder() -> None:
    cifar = {"pair": "resnet56-resnet20", "data": {"name": "cifar100"}}
    found = spec(data={"name": "digits", "root": "/here"}, pairs=["cnn32-cnn3", cifar])
    assert [found.data_of(pair).root for pair in found.pairs] == ["/here", None]


def test_a_pair_may_have_a_protocol_of_its_own() -> None:
    found = spec(pairs=["cnn32-cnn3", {"pair": "cnn3-cnn3", "protocol": {"epochs": 2}}])
    assert [found.protocol_of(pair).epochs for pair in found.pairs] == [40, 2]
    assert found.teacher_protocol_of(found.pairs[1]).epochs == 2
    assert refusal(pairs=[{"pair": "cnn32-cnn3", "protocol": {"epoch": 2}}]).startswith("pairs.0.protocol: unknown")


def test_a_light_student_is_trained_at_the_papers_lower_rate() -> None:
    found = spec(
        protocol={"base": "crd-240"},
        data={"name": "cifar100"},
        pairs=["resnet50-mobilenet_v2", "resnet56-resnet20"],
    )
    assert [found.protocol_of(pair).lr for pair in found.pairs] == [0.01, 0.05]
    assert found.teacher_protocol_of(found.pairs[0]).lr == 0.05


def test_a_teacher_that_exists_cannot_be_stopped_early() -> None:
    teacher = {"checkpoint": "given", "stop_at": 60}
    assert "teacher.stop_at is for a teacher that is trained" in refusal(teacher=teacher)


def test_only_a_teacher_that_was_trained_elsewhere_needs_no_part_of_the_images() -> None:
    teacher = {"regime": "held_out", "fraction": 0}
    assert "only a checkpoint that was trained elsewhere needs none" in refusal(teacher=teacher)
    assert spec(teacher={**teacher, "checkpoint": "given"}).teacher.fraction == 0


def test_a_study_without_methods_is_about_its_teachers() -> None:
    found = spec(methods={})
    assert found.mode == "ablation"
    assert expected_runs(found) == 0
    assert found.trains_teacher_of(found.pairs[0])


def test_a_method_without_a_value_in_the_file_has_no_parameters_of_its_own() -> None:
    assert spec(methods={"ce": None, "kd": {}}).methods == {"ce": {}, "kd": {}}


@pytest.mark.parametrize(
    ("changes", "mode", "chosen_by"),
    [
        ({}, "ablation", "none"),
        ({"selection": "paper"}, "ablation", "none"),
        ({"search": {"pruner": "successive_halving"}}, "search", "validation"),
        ({"base": SEARCH}, "search", "validation"),
        ({"base": SEARCH, "selection": "paper"}, "search", "paper"),
    ],
)
def test_a_study_is_a_search_where_something_is_chosen(changes: dict[str, Any], mode: str, chosen_by: str) -> None:
    found = spec(**changes)
    assert (found.mode, found.chosen_by) == (mode, chosen_by)


@given(alphas=st.integers(1, 6), taus=st.integers(1, 4), seeds=st.integers(1, 5))
def test_the_runs_of_a_study_of_lists_are_its_points_times_its_seeds(alphas: int, taus: int, seeds: int) -> None:
    lists = {"alpha": [0.5 + i / 10 for i in range(alphas)], "tau": [1 + i for i in range(taus)]}
    found = spec(methods={"ce": {}, "loca": lists}, seeds=seeds, pairs=["cnn32-cnn3", "cnn3-cnn3"])
    assert expected_runs(found) == (1 + alphas * taus) * seeds * 2


def test_the_runs_of_a_search_are_its_points_and_one_final_point_a_method_each_with_every_seed() -> None:
    # kd is one point, loca four sampled ones; each method's best is trained again.
    assert expected_runs(spec(base=SEARCH)) == (1 + 4 + 2) * 2


def test_a_spec_survives_the_store() -> None:
    for raw in (SMALL, SEARCH):
        found = spec(base=raw)
        assert parse_spec(json.loads(json.dumps(found.model_dump(mode="json"))), "store") == found


def test_a_folder_of_data_is_meant_from_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = spec(
        data={"name": "digits", "root": "here"},
        pairs=["cnn32-cnn3", {"pair": "cnn3-cnn3", "data": {"root": "there"}}],
    )
    monkeypatch.chdir(Path("/"))
    assert [found.data_of(pair).root for pair in found.pairs] == [str(tmp_path / "here"), str(tmp_path / "there")]


def test_the_starter_is_a_valid_spec() -> None:
    found = parse_spec(yaml.safe_load(starter("my-study")), "my-study.yaml")
    assert found.name == "my-study"


def test_the_schema_has_every_key_with_what_it_is() -> None:
    schema = json.loads(json_schema())
    assert schema["properties"].keys() == Spec.model_fields.keys()
    assert schema["additionalProperties"] is False
    assert "kdstudy datasets" in schema["$defs"]["DataSpec"]["properties"]["name"]["description"]


# --set


def test_set_changes_a_key_at_any_depth() -> None:
    found = spec("protocol.epochs=1", "methods.loca.alpha=[0.9,0.95]", "seeds=6", "data.train_limit=100")
    assert found.protocol == {"base": "digits-quick", "epochs": 1}
    assert found.methods["loca"]["alpha"] == [0.9, 0.95]
    assert len(found.seeds) == 6
    assert found.data.train_limit == 100


def test_set_makes_what_is_not_there_and_takes_ranges_lists_and_null() -> None:
    found = spec(
        "budget.hours=2", "search.sampler=random", "search.points=3", "methods.loca={alpha: {margin: [0.01, 0.2]}}",
        "methods.kd=", "data.train_limit=null", "pairs=[cnn3-cnn3]",
    )  # fmt: skip
    assert found.budget.hours == 2
    assert found.spaces()["loca"].sampled
    assert found.methods["kd"] == {}
    assert found.data.train_limit is None
    assert found.pairs[0].pair == "cnn3-cnn3"


def test_the_last_set_of_a_key_counts_and_the_file_stays_as_it_was() -> None:
    raw = copy.deepcopy(SMALL)
    assert len(apply_overrides(raw, ["seeds=3", "seeds=4"], "small.yaml").seeds) == 4
    assert raw == SMALL


def test_set_with_an_equals_sign_in_its_value_keeps_it() -> None:
    assert spec("question=is a=b?").question == "is a=b?"


def test_small_numbers_may_be_written_as_everywhere_else() -> None:
    # YAML 1.1 takes 5e-4 for text.
    found = spec("protocol.weight_decay=5e-4", "protocol.lr=1E-2", "methods.loca.alpha={margin: [1e-3, 2e-1]}",
                 "search={sampler: gp, points: 2}")  # fmt: skip
    assert (found.protocol["weight_decay"], found.protocol["lr"]) == (0.0005, 0.01)
    assert found.methods["loca"]["alpha"] == {"margin": [0.001, 0.2]}


def test_set_reaches_into_lists_by_place_and_into_a_pair_that_is_only_named() -> None:
    found = spec("pairs.0.teacher.checkpoint=mine", "pairs.0.data.train_limit=50", "methods.loca.alpha.1=0.7")
    assert found.pairs[0].teacher == {"checkpoint": "mine"}
    assert found.data_of(found.pairs[0]).train_limit == 50
    assert found.methods["loca"]["alpha"] == [0.9, 0.7]


@pytest.mark.parametrize("override", ["seeds", "=3", "protocol..epochs=1", ".seeds=1"])
def test_a_set_that_is_not_key_and_value_is_refused(override: str) -> None:
    with pytest.raises(RequestError, match=r"--set .*write key=value"):
        spec(override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seeds.first=1", "seeds is 2, which has no keys below it"),
        ("pairs.1.data=1", r"'1' is no place of its list, which has 1"),
        ("pairs.first.data=1", r"'first' is no place of its list"),
        ("seeds=[1", "is no YAML value"),
        ("methods={ce: {}, ce: {}}", "is no YAML value"),
    ],
)
def test_a_set_that_cannot_be_done_says_why(override: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        spec(override)
    assert "\n" not in str(caught.value)


# What a spec refuses


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sedes=3"], "sedes: unknown key; did you mean seeds?"),
        (["zzz=3"], "zzz: unknown key; the keys here are: name, question, protocol, data, teacher, pairs, methods"),
        (["data.train_limt=5"], "data.train_limt: unknown key; did you mean train_limit?"),
        (["teacher.checkpiont=x"], "teacher.checkpiont: unknown key; did you mean checkpoint?"),
        (["search.prunner=none"], "search.prunner: unknown key; did you mean pruner?"),
        (["budget.hour=1"], "budget.hour: unknown key; did you mean hours?"),
        (["pairs=[{pair: cnn32-cnn3, techer: {}}]"], "pairs.0.techer: unknown key; did you mean teacher?"),
        (
            ["pairs=[cnn3-cnn3, {pair: cnn32-cnn3, data: {train_limt: 5}}]"],
            "pairs.1.data.train_limt: unknown key; did you mean train_limit?",
        ),
        (
            ["pairs=[{pair: cnn32-cnn3, teacher: {regim: seen}}]"],
            "pairs.0.teacher.regim: unknown key; did you mean regime?",
        ),
        (["protocol.epoch=3"], "protocol: unknown field of the protocol 'epoch': did you mean epochs?"),
        (["teacher.protocol.epoch=3"], "teacher.protocol: unknown field of the protocol 'epoch': did you mean epochs?"),
        (["methods.loca.alfa=0.9"], "methods: loca: alfa: method loca has no such parameter; it has: alpha, tau"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest(overrides: list[str], says: str) -> None:
    assert refusal(*overrides).startswith(says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["methods.lcoa={}"], "methods: unknown method 'lcoa': did you mean loca"),
        (["pairs=[cnn32-cnn4]"], "pairs.0.pair: unknown pair 'cnn32-cnn4': did you mean cnn32-cnn3"),
        (["pairs=[cnn33-cnn3]"], "pairs.0.pair: unknown pair 'cnn33-cnn3': did you mean cnn32-cnn3"),
        (["data.name=digit"], "data.name: unknown data set 'digit': did you mean digits"),
        (["protocol.base=digits-quik"], "protocol: unknown protocol 'digits-quik': did you mean digits-quick"),
        (["search.sampler=tpee"], "search.sampler: must be 'grid', 'random', 'tpe' or 'gp', not 'tpee'"),
        (["teacher.regime=sean"], "teacher.regime: must be 'seen', 'held_out' or 'cross_fitted', not 'sean'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(overrides: list[str], says: str) -> None:
    assert refusal(*overrides).startswith(says)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["name=5"], "name: must be text, not 5"),
        (["data=digits"], "data: must have keys below it, not 'digits'"),
        (["data.train_limit=many"], "data.train_limit: must be a whole number, not 'many'"),
        (["data.train_limit=0"], "data.train_limit: must be greater than or equal to 1, not 0"),
        (["data.validation=1"], "data.validation: must be less than 1, not 1"),
        (["pairs=cnn32-cnn3"], "pairs: must be a list, not 'cnn32-cnn3'"),
        (["pairs=[5]"], "pairs.0: must have keys below it, not 5"),
        (["methods=[ce, kd]"], "methods: must have keys below it, not ['ce', 'kd']"),
        (["methods.loca=0.9"], "methods.loca: must have keys below it, not 0.9"),
        (["methods.loca.alpha=high"], "methods: loca: alpha: 'high' is not a number"),
        (["methods.loca.alpha=0"], "methods: loca: alpha: 0 is not allowed; it must be above 0"),
        (["methods.loca.alpha=[]"], "methods: loca: alpha: the list is empty; give at least one value"),
        (["seeds=three"], "seeds: must be a number of seeds, or a list of them, not 'three'"),
        (["seeds=2.5"], "seeds: must be a number of seeds, or a list of them, not 2.5"),
        (["seeds=true"], "seeds: must be a number of seeds, or a list of them, not True"),
        (["seeds=0"], f"seeds: a number of seeds lies between 1 and {FINAL_SEED}, not 0"),
        (["seeds=123456789012"], f"seeds: a number of seeds lies between 1 and {FINAL_SEED}, not 123456789012"),
        (["seeds=[]"], "seeds: is empty; give at least one"),
        (["seeds=[1, 1]"], f"seeds: seeds must be distinct numbers from 0 to {FINAL_SEED - 1}"),
        (["seeds=[-1]"], "seeds: seeds must be distinct numbers"),
        (["seeds=[a]"], "seeds.0: must be a whole number, not 'a'"),
        (["pairs=[]"], "pairs: is empty; give at least one"),
        (["protocol=digits-quick"], "protocol: must have keys below it, not 'digits-quick'"),
        (["protocol={epochs: 3}"], "protocol: base is missing or no name; it is one of: cifar-quick, crd-240"),
        (["protocol={base: [digits-quick]}"], "protocol: base is missing or no name"),
        (["protocol={base: 5}"], "protocol: base is missing or no name"),
        (["protocol.epochs=few"], "protocol: epochs: 'few' will not do; it must be a whole number from 1"),
        (["teacher.protocol.lr=-1"], "teacher.protocol: lr: -1 will not do; it must be a number above 0"),
        (["teacher.protocol.base=x"], "teacher.protocol: unknown protocol 'x'"),
        (["pairs=[{pair: cnn32-cnn3, data: {train_limit: a}}]"], "pairs.0.data.train_limit: must be a whole number"),
        (["budget.hours=0"], "budget.hours: must be greater than 0, not 0"),
        (["{1: 2}=3"], "{1: 2}: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place_and_what_would_be_right(overrides: list[str], says: str) -> None:
    assert refusal(*overrides).startswith(says)


@pytest.mark.parametrize("key", ["name", "protocol", "data", "pairs", "methods", "seeds"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_spec({name: value for name, value in SMALL.items() if name != key}, "small.yaml")
    assert str(caught.value) == f"small.yaml: {key}: is missing"


def test_one_problem_is_told_and_the_others_are_counted() -> None:
    assert refusal("sedes=3", "data.nam=x", "budget.runs=a").endswith("(and 2 more)")


def test_a_long_wrong_value_is_not_shown_in_full() -> None:
    assert len(refusal(data="x" * 10_000)) < 120


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["search.sampler=tpe"], "search.sampler: tpe needs a range, and every method has lists; use grid"),
        (["methods.loca.alpha={range: [0.5, 1]}"], "search.sampler: grid cannot sample the ranges of loca"),
        (["methods.loca.alpha={range: [0.5, 1]}", "search.sampler=gp"], "search.points: how many points"),
        (["pairs=[resnet56-resnet20]"], "pairs.0: resnet56 takes images of 3 channels and at least"),
        (
            ["pairs=[cnn32-cnn3, {pair: cnn3-cnn3, data: {name: cifar100}}]"],
            "pairs.1: cnn3 takes images of 1 channel and at least",
        ),
        (["pairs=[cnn32-cnn3, cnn32-cnn3]"], "pairs: a pair stands twice"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(overrides: list[str], says: str) -> None:
    assert refusal(*overrides).startswith(says)


@pytest.mark.parametrize("name", ["a/b", "../evil", "a\\b", "", ".hidden", "a b", "é", "a\n", "x" * 101, "/tmp/x"])
def test_a_name_that_is_not_a_folders_everywhere_is_refused(name: str) -> None:
    assert "is no study name" in refusal(name=name)


# Files


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "small.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_and_its_changes_make_a_spec(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(SMALL))
    assert load_spec(path) == spec()
    assert load_spec(str(path), ["seeds=5"]) == spec(seeds=5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nseeds: 3\nname: b\n", "not YAML: key 'name' stands twice in line 3, column 1"),
        ("methods:\n  ce: {}\n  ce: {}\n", "not YAML: key 'ce' stands twice in line 3, column 3"),
        ("methods: {loca: {alpha: [0.9}}", "not YAML: .* in line 1"),
        ("? [a, b]\n: 1\n", "not YAML: a key must be a name in line 1"),
        ("name: !!python/object/apply:os.getcwd []", "not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
        ("- a\n- b\n", "a spec is a mapping of keys"),
        ("", "a spec is a mapping of keys"),
        ("just words", "a spec is a mapping of keys"),
        (b"name: \xff\xfe", "cannot be read"),
        (b"\x00\x01", "not YAML"),
        ("1: 2\n" + yaml.safe_dump(SMALL), "1: a key must be text, not 1"),
    ],
)
def test_a_file_that_is_no_spec_is_one_line_with_its_place(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RequestError, match=says) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_name_that_is_no_study_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere.yaml: no such file"):
        load_spec(tmp_path / "nowhere.yaml")
    with pytest.raises(RequestError, match="unknown shipped study 'quickstrat': did you mean quickstart"):
        load_spec("quickstrat")


# How a study may grow


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (SMALL, ["seeds=5"]),
        (SMALL, ["seeds=[5, 1, 0]"]),
        (SMALL, ["methods.loca.alpha=[1.0, 0.9, 0.95]"]),
        (SMALL, ["methods.kd={}"]),
        (SMALL, ["pairs=[cnn3-cnn3, cnn32-cnn3]"]),
        (SMALL, ["budget={runs: 3, hours: 1, device_hours: 2}"]),
        (SMALL, ["question=another one?"]),
        (SMALL, ["data.root=elsewhere"]),
        (SMALL, ["pairs=[{pair: cnn32-cnn3, data: {root: elsewhere}}]"]),
        (SMALL, ["protocol.epochs=40", "protocol.tau=4"]),  # the base's own values
        (SEARCH, ["search.points=9"]),
        (SEARCH, ["methods.ce={}"]),
    ],
)
def test_a_study_may_grow(base: dict[str, Any], overrides: list[str]) -> None:
    assert difference(spec(base=base), spec(*overrides, base=base)) == []


@pytest.mark.parametrize(
    ("base", "overrides", "says"),
    [
        (SMALL, ["seeds=1"], ["seeds lost [1]"]),
        (SMALL, ["protocol.lr=0.5"], ["protocol.lr: 0.05 -> 0.5"]),
        (
            SMALL,
            ["protocol.epochs=10"],
            [
                "protocol.epochs: 40 -> 10",
                "protocol.milestones: (25, 33) -> (7, 9)",
                "protocol.warmup_dkd: 3.0 -> 1.0",
                "protocol.warmup_ctkd: 2.0 -> 1.0",
            ],
        ),
        (SMALL, ["data.train_limit=100"], ["data.train_limit: not given -> 100"]),
        (SMALL, ["data.split_seed=1"], ["data.split_seed: 0 -> 1"]),
        (SMALL, ["teacher.regime=held_out"], ["teacher.regime: seen -> held_out"]),
        (SMALL, ["teacher.checkpoint=other"], ["teacher.checkpoint: not given -> other"]),
        (SMALL, ["teacher.protocol.epochs=3"], ["teacher.protocol.epochs: not given -> 3"]),
        (SMALL, ["pairs=[cnn3-cnn3]"], ["pairs lost cnn32-cnn3"]),
        (
            SMALL,
            ["pairs=[{pair: cnn32-cnn3, data: {test_limit: 9}}]"],
            ["pairs.cnn32-cnn3.data.test_limit: not given -> 9"],
        ),
        (SMALL, ["methods={loca: {alpha: [0.9, 1.0]}}"], ["methods lost ce"]),
        (SMALL, ["methods.loca.alpha=[0.9]"], ["methods.loca.alpha lost [1.0]"]),
        (SMALL, ["methods.loca.tau=2"], ["methods.loca.tau: not given -> 2"]),
        (SMALL, ["methods.loca={}"], ["methods.loca.alpha: [0.9, 1] -> not given"]),
        (
            SMALL,
            ["search.pruner=successive_halving"],
            ["search.pruner: none -> successive_halving", "mode: ablation -> search"],
        ),
        (SEARCH, ["search.points=3"], ["search.points: 4 -> 3"]),
        (SEARCH, ["search.sampler=random"], ["search.sampler: tpe -> random"]),
        (SEARCH, ["selection=paper"], ["selection: validation -> paper"]),
        (
            SEARCH,
            ["methods.loca.alpha={range: [0.4, 1]}"],
            ["methods.loca.alpha: {range: [0.5, 1]} -> {range: [0.4, 1]}"],
        ),
        # A sampler that has drawn from a list cannot take another one.
        (SEARCH, ["methods.loca.tau=[2, 4, 8]"], ["methods.loca.tau: [2, 4] -> [2, 4, 8]"]),
    ],
)
def test_what_would_change_results_needs_another_name_and_is_told(
    base: dict[str, Any], overrides: list[str], says: list[str]
) -> None:
    assert difference(spec(base=base), spec(*overrides, base=base)) == says


# Identity


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_the_identity_of_a_value_does_not_depend_on_the_order_of_its_keys(value: dict[str, Any]) -> None:
    other = {key: reordered(value[key]) for key in reversed(value)}
    assert canonical(other) == canonical(value)
    assert digest(other) == digest(value)


def test_the_order_of_a_specs_keys_names_the_same_runs(tmp_path: Path) -> None:
    one = spec(methods={"loca": {"alpha": 0.9, "tau": 2}}, protocol={"base": "digits-quick", "epochs": 3, "lr": 0.2})
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", "", tmp_path)
    ids = set()
    for found in (one, parse_spec(reordered(one.model_dump(mode="json")), "reordered")):
        plan = Plan(found, home)
        (pair,) = plan.pairs
        plan.teacher_hashes[pair] = "0" * 64
        (values,) = found.spaces()["loca"].grid()
        parameters = found.spaces()["loca"].resolve(values, plan.pairs[pair].protocol)
        ids.add(plan.student_run(pair, plan.first_stage, "loca", parameters, 0).run_id)
    assert len(ids) == 1


def test_rungs_that_no_pruner_asks_keep_no_study_from_going_on() -> None:
    """Studies that were stored when the first rung's default was 1 go on."""
    assert difference(spec(search={"first_rung": 1, "reduction": 2}), spec()) == []
    old, new = (spec(search={"pruner": "successive_halving", **more}) for more in ({"first_rung": 1}, {}))
    assert difference(old, new) == ["search.first_rung: 1 -> not given"]
