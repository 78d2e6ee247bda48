"""The stored logits of a study: what they take, whether there is room, filling, listing and dropping them."""

from __future__ import annotations

import types
from typing import Any

import pytest

from study import logits, printing
from study.errors import RequestError
from study.home import open_home
from study.plan import Plan
from study.spec import difference
from tests.study.given import Command, keep_teacher
from tests.study.simulation import Simulation, spec_of
from trainables.logits import Key, LogitStore, stored

GIVEN = {"checkpoint": "given"}


def plan_of(**changes: Any) -> Plan:
    made = Plan(spec_of(**{"teacher": GIVEN, **changes}), open_home())
    for pair in made.pairs:
        made.teacher_hashes[pair] = "a" * 64
    return made


def test_what_a_study_will_store_follows_from_its_images_views_classes_seeds_and_epochs() -> None:
    plan = plan_of(methods={"kd": {}}, seeds=3)
    (one,) = logits.needed(plan, "cpu")
    (pair,) = plan.pairs.values()
    assert isinstance(one.key, Key)
    assert one.key.row_bytes == 4 + 4 * 10
    assert one.bytes == one.key.bytes_for(len(pair.split("final").train), 3 * pair.protocol.epochs)
    assert one.there == 0


def test_a_study_that_asks_no_teacher_stores_nothing_and_one_that_cannot_says_why() -> None:
    assert logits.needed(plan_of(methods={"ce": {}}), "cpu") == []
    (online,) = logits.needed(plan_of(methods={"kd": {}}, teacher={**GIVEN, "logits": "online"}), "cpu")
    assert (online.key, online.why) == (None, "the teacher is asked at each step (teacher.logits: online)")
    protocol = {"base": "digits-quick", "views": "random_resized_crop", "image_size": 8, "eval_resize": 8}
    (endless,) = logits.needed(plan_of(methods={"kd": {}}, protocol=protocol), "cpu")
    assert endless.key is None
    assert "random_resized_crop has views without number" in endless.why


@pytest.mark.parametrize(("cap", "fits"), [("1", True), ("0.00001", False)])
def test_a_study_whose_logits_do_not_fit_is_refused_with_the_sum(
    monkeypatch: pytest.MonkeyPatch, cap: str, fits: bool
) -> None:
    monkeypatch.setenv("KDSTUDY_LOGITS_MAX_GB", cap)
    plan = plan_of(methods={"kd": {}})
    if fits:
        logits.require_room(plan, "cpu")
        return
    with pytest.raises(RequestError, match=r"takes up to .* MB more \(digits/cnn32-cnn3: .* leaves 0.01 MB; free some"):
        logits.require_room(plan, "cpu")
    # Asking online needs no room.
    logits.require_room(plan_of(methods={"kd": {}}, teacher={**GIVEN, "logits": "online"}), "cpu")


def test_a_short_disk_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.logits.shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(RequestError, match=r"logits has 0.00 MB free; free some .* float16 .* or online"):
        logits.require_room(plan_of(methods={"kd": {}}), "cpu")


def test_pairs_that_share_a_teacher_share_its_store_and_the_sum_counts_it_once() -> None:
    pairs = ["cnn32-cnn3", {"pair": "cnn32-cnn3", "label": "again"}]
    plan = plan_of(methods={"kd": {}}, pairs=pairs)
    first, second = logits.needed(plan, "cpu")
    assert first.key is not None
    assert second.key is not None
    assert first.key.name == second.key.name
    assert first.bytes == second.bytes


def test_a_cap_that_is_no_number_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSTUDY_LOGITS_MAX_GB", "much")
    with pytest.raises(RequestError, match="KDSTUDY_LOGITS_MAX_GB: 'much' is no number of gigabytes"):
        logits.room(open_home())


def test_precision_decides_a_run_but_storing_in_float32_does_not() -> None:
    ids = {}
    for kept in ("float32", "online", "float16"):
        plan = plan_of(methods={"kd": {}}, teacher={**GIVEN, "logits": kept})
        (pair,) = plan.pairs
        ids[kept] = plan.student_run(pair, "ablation", "kd", {"tau": 4.0}, 0).run_id
    assert ids["float32"] == ids["online"] != ids["float16"]
    exact, online, half = (
        spec_of(methods={"kd": {}}, teacher={**GIVEN, "logits": kept}) for kept in ("float32", "online", "float16")
    )
    assert difference(exact, online) == difference(online, exact) == []
    assert difference(exact, half) == ["teacher.logits: float32 -> float16"]


def test_a_run_is_told_where_its_logits_lie() -> None:
    keep_teacher()
    simulation = Simulation(spec_of(methods={"ce": {}, "kd": {}}, teacher=GIVEN))
    requests = {}
    while (request := simulation.driver.next_request()) is not None:
        requests[request["method"]] = request
    assert requests["ce"]["logits"] is None
    told = requests["kd"]["logits"]
    assert told["root"] == str(open_home().logits)
    assert Key(**told["key"]).teacher == requests["kd"]["teacher"]["hash"]


def test_a_damaged_store_is_one_line() -> None:
    record = keep_teacher()
    plan = plan_of(methods={"kd": {}})
    (pair,) = plan.pairs
    plan.teacher_hashes[pair] = record.hash
    key = plan.logit_key(pair, "cpu")
    assert key is not None
    rows = LogitStore(plan.home.logits, key).folder / "rows.bin"
    rows.write_bytes(b"short")
    from trainables import teachers

    with pytest.raises(RequestError, match=r"rows\.bin: 5 bytes, not .*: drop this store"):
        plan.teaching(pair, teachers.load(plan.home.root, record.hash))


def test_stores_are_dropped_by_teacher_or_id_or_all_together(
    kdstudy: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = keep_teacher()
    home = open_home()
    plan = plan_of(methods={"kd": {}})
    (pair,) = plan.pairs
    for digest in (record.hash, "b" * 64, "c" * 64):
        plan.teacher_hashes[pair] = digest
        key = plan.logit_key(pair, "cpu")
        assert key is not None
        LogitStore(home.logits, key)
    monkeypatch.setattr(printing.out, "_width", 200)
    shown = kdstudy("logits", "list")
    assert shown.code == 0
    assert all(name in shown.out for name in ("given", "b" * 8, "MB in all"))
    assert kdstudy("logits", "drop", "given").code == 0
    assert kdstudy("logits", "drop", "bbbb").code == 0
    left = {one.key.teacher[0] for one in stored(home.logits)}
    assert left == {"c"}
    wrong = kdstudy("logits", "drop", "nobody")
    assert wrong.code == 2
    assert "nothing is stored for 'nobody'; stored: cccc" in wrong.err
    assert kdstudy("logits", "drop").code == 2
    assert kdstudy("logits", "drop", "--all", "cccc").code == 2
    assert kdstudy("logits", "drop", "--all").code == 0
    assert "No logits are stored" in kdstudy("logits", "list").out


@pytest.mark.slow
def test_logits_are_built_ahead_by_several_processes_and_the_runs_find_them_there() -> None:
    record = keep_teacher()
    spec = spec_of(methods={"kd": {}}, teacher=GIVEN, seeds=2)
    plan = Plan(spec, open_home())
    (*_, (done, total, asked)) = logits.build(plan, None, device="cpu", processes=2)
    (pair,) = plan.pairs
    assert done == total == 2 * plan.pairs[pair].protocol.epochs
    assert asked > 0
    (*_, (_, _, again)) = logits.build(plan, None, device="cpu", processes=2)
    assert again == 0
    (one,) = stored(plan.home.logits)
    assert one.key.teacher == record.hash
    from trainables import teachers

    teaching = plan.teaching(pair, teachers.load(plan.home.root, record.hash))
    images = plan.pairs[pair].split("final").train.sort().values
    for seed in spec.seeds:
        teaching.epoch(seed, plan.pairs[pair].protocol.epochs, images)
    assert teaching.asked == 0


def test_there_is_nothing_to_build_where_nothing_is_stored() -> None:
    keep_teacher()
    plan = Plan(spec_of(methods={"kd": {}}, teacher={**GIVEN, "logits": "online"}), open_home())
    with pytest.raises(RequestError, match="there is nothing to store: digits/cnn32-cnn3: the teacher is asked at"):
        logits.build(plan, None, device="cpu", processes=1)
    untrained = Plan(spec_of(methods={"kd": {}}), open_home())
    with pytest.raises(RequestError, match="its teacher is not trained yet; `kdstudy teacher train"):
        logits.build(untrained, None, device="cpu", processes=1)
