"""The store holds the truth: who may write what, and what several writers at once leave behind."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.errors import RequestError
from study.store import (
    COMPLETE,
    DONE,
    FAILED,
    OPEN,
    PRUNED,
    RUNNING,
    WAITING,
    NewRun,
    PointRow,
    RunRow,
    Store,
)

POINT = "point"
RUN = "abcdef0123456789"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """Both kinds of store go through the same checks."""
    if request.param == "sqlite":
        return sqlite_url
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url).opened() as opened:
        yield opened


def point_of(study: str, point_id: str = POINT, stage: str = "ablation") -> PointRow:
    return PointRow(
        study=study, stage=stage, point_id=point_id, pair="digits/cnn32-cnn3", method="kd", parameters={"tau": 4.0},
        trial=None, state=OPEN, value=None,
    )  # fmt: skip


def ask(store: Store, study: str, run_id: str = RUN, point_id: str = POINT, **changes: Any) -> bool:
    """Let a study ask for a run, with the study and the point made where they are not there."""
    if study not in store.study_names():
        store.create_study(study, {"name": study})
    stage = changes.pop("stage", "ablation")
    store.add_points([point_of(study, point_id, stage)])
    options = {"seed": 0, "identity": {"data": "d"}, "epochs": 3, "position": 0, **changes}
    return bool(store.add_runs(study, [NewRun(stage, point_id, run_id, **options)]))


def one(store: Store, study: str, run_id: str = RUN) -> RunRow:
    (run,) = [run for run in store.runs(study) if run.run_id == run_id]
    return run


def epochs(first: int, last: int, loss: float = 1.0) -> list[dict[str, float]]:
    return [{"epoch": epoch, "train_loss": loss / epoch} for epoch in range(first, last + 1)]


def record(store: Store, attempt: int, rows: list[dict[str, float]], checkpoint: str | None = None) -> bool:
    return store.record(RUN, attempt, rows, checkpoint=checkpoint, device="cpu", device_seconds=1.5)


def train(store: Store, study: str, run_id: str = RUN, state: str = DONE) -> int:
    """A run from its claim to its end."""
    attempt = store.claim(run_id, study)
    assert attempt is not None
    store.record(run_id, attempt, epochs(1, 3), checkpoint="3.pt", device="cpu", device_seconds=1.0)
    assert store.end_run(run_id, attempt, state, summary={"test_top1_last": 50.0}, study=study)
    return attempt


# Studies and points


def test_a_study_is_kept_with_its_spec_and_what_was_recorded_about_it(store: Store) -> None:
    store.create_study("a", {"name": "a", "seeds": [0]})
    assert store.spec("a") == {"name": "a", "seeds": [0]}
    assert store.spec("b") is None
    store.update_spec("a", {"name": "a", "seeds": [0, 1]})
    assert store.spec("a") == {"name": "a", "seeds": [0, 1]}
    store.update_info("a", versions={"torch": "2"}, ended=1.0)
    store.update_info("a", ended=2.0)
    store.add_wall_seconds("a", 3.0)
    store.add_wall_seconds("a", 4.5)
    info = store.info("a")
    assert (info["versions"], info["ended"], info["wall_seconds"]) == ({"torch": "2"}, 2.0, 7.5)


def test_studies_are_listed_oldest_first(store: Store) -> None:
    for name in ("zeta", "alpha", "mid"):
        store.create_study(name, {})
    assert store.study_names() == ["zeta", "alpha", "mid"]


def test_a_point_is_added_once_and_keeps_its_place_and_state(store: Store) -> None:
    store.create_study("a", {})
    for name in ("z", "a", "m"):
        store.add_points([point_of("a", name)])
    store.end_point("a", "ablation", "a", COMPLETE, 61.5)
    store.add_points([point_of("a", "a")])
    assert [(point.point_id, point.state, point.value) for point in store.points("a")] == [
        ("z", OPEN, None), ("a", COMPLETE, 61.5), ("m", OPEN, None),
    ]  # fmt: skip
    store.reopen_point("a", "ablation", "a")
    assert [point.state for point in store.points("a", "ablation")] == [OPEN] * 3
    assert store.points("a", "final") == []


# Asking


def test_a_run_is_asked_for_once(store: Store) -> None:
    assert ask(store, "a")
    assert not ask(store, "a")
    assert len(store.runs("a")) == 1
    assert one(store, "a").state == WAITING


def test_runs_start_in_the_order_of_their_positions(store: Store) -> None:
    for run_id, position in (("cc", 2), ("aa", 1), ("bb", 1), ("dd", 0)):
        ask(store, "a", run_id, position=position)
    assert [run.run_id for run in store.runs("a")] == ["dd", "aa", "bb", "cc"]


def test_two_points_may_share_a_run_and_it_is_trained_once(store: Store) -> None:
    assert ask(store, "a", point_id="one")
    assert ask(store, "a", point_id="two")
    assert store.claim(RUN, "a") == 1
    assert store.claim(RUN, "a") is None
    assert [run.state for run in store.runs("a")] == [RUNNING, RUNNING]


def test_runs_are_found_by_the_beginning_of_their_id_in_every_study(store: Store) -> None:
    ask(store, "a")
    ask(store, "b")
    ask(store, "b", "ab_999")
    assert sorted(study for study, _ in store.find_runs("abcd")) == ["a", "b"]
    assert [run.run_id for _, run in store.find_runs("ab_")] == ["ab_999"]
    assert store.find_runs("%") == []
    assert store.find_runs("ff") == []


# Claims and attempts


def test_a_claimed_run_belongs_to_its_study_and_counts_its_attempts(store: Store) -> None:
    ask(store, "a")
    assert store.claim(RUN, "a") == 1
    run = one(store, "a")
    assert (run.state, run.owner, run.attempt) == (RUNNING, "a", 1)
    began = run.started
    assert store.claim(RUN, "b") is None
    assert store.requeue(RUN, 1, lost=True)
    assert (one(store, "a").state, one(store, "a").owner, one(store, "a").losses) == (WAITING, None, 1)
    assert store.claim(RUN, "a") == 2
    assert one(store, "a").started == began


def test_a_run_that_nobody_asked_for_cannot_be_claimed(store: Store) -> None:
    assert store.claim("nothing", "a") is None


def test_an_outdated_attempt_cannot_write_end_or_requeue(store: Store) -> None:
    ask(store, "a")
    old = store.claim(RUN, "a")
    assert old is not None
    record(store, old, epochs(1, 1), checkpoint="1.pt")
    store.requeue(RUN, old, lost=True)
    waiting = one(store, "a")
    assert not record(store, old, epochs(2, 3), checkpoint="3.pt")  # it waits: nobody may write
    assert not store.end_run(RUN, old, DONE)
    assert one(store, "a") == waiting
    new = store.claim(RUN, "a")
    assert new == old + 1
    running = one(store, "a")
    assert not record(store, old, epochs(2, 3, loss=9.0), checkpoint="3.pt")
    assert not store.end_run(RUN, old, FAILED, reason="late")
    assert not store.requeue(RUN, old, lost=True)
    assert one(store, "a") == running
    assert [row["epoch"] for row in store.history(RUN)] == [1]
    assert record(store, new, epochs(2, 3), checkpoint="3.pt")
    assert store.end_run(RUN, new, DONE, summary={"test_top1_last": 61.0})


@pytest.mark.parametrize("state", [DONE, FAILED, PRUNED])
def test_a_run_that_has_ended_takes_nothing_more(store: Store, state: str) -> None:
    ask(store, "a")
    attempt = train(store, "a", state=state)
    ended = one(store, "a")
    assert not record(store, attempt, epochs(4, 4), checkpoint="4.pt")
    assert not store.end_run(RUN, attempt, DONE)
    assert not store.requeue(RUN, attempt, lost=True)
    assert store.claim(RUN, "a") is None
    assert one(store, "a") == ended
    assert len(store.history(RUN)) == 3


def test_only_the_runs_that_a_study_left_running_are_requeued(store: Store) -> None:
    for run_id in ("mine", "done", "waits", "theirs"):
        ask(store, "a", run_id)
        ask(store, "b", run_id)
    store.claim("mine", "a")
    train(store, "a", "done")
    store.claim("theirs", "b")
    assert store.requeue_owned("a") == 1
    assert {run.run_id: run.state for run in store.runs("a")} == {
        "mine": WAITING, "done": DONE, "waits": WAITING, "theirs": RUNNING,
    }  # fmt: skip
    assert one(store, "a", "mine").losses == 0
    assert store.requeue_owned("a") == 0


# Results


def test_an_epoch_keeps_the_result_that_came_first(store: Store) -> None:
    ask(store, "a")
    first = store.claim(RUN, "a")
    assert first is not None
    record(store, first, epochs(1, 2))
    stamps = [row["time"] for row in store.history(RUN)]
    store.requeue(RUN, first, lost=True)
    second = store.claim(RUN, "a")
    assert second is not None
    record(store, second, epochs(1, 3, loss=7.0))  # resumed from before epoch 1 was recorded
    history = store.history(RUN)
    assert [row["train_loss"] for row in history] == [1.0, 0.5, pytest.approx(7 / 3)]
    assert [row["time"] for row in history[:2]] == stamps


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(1, 7)))
def test_a_history_is_in_the_order_of_epochs_however_it_came(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    with Store(f"sqlite:///{tmp_path_factory.mktemp('s') / 'store.db'}").opened() as store:
        ask(store, "a")
        attempt = store.claim(RUN, "a")
        assert attempt is not None
        for epoch in order:
            record(store, attempt, epochs(epoch, epoch))
        assert [row["epoch"] for row in store.history(RUN)] == [1, 2, 3, 4, 5, 6]


def test_a_report_moves_the_run_and_adds_up_the_device_time(store: Store) -> None:
    ask(store, "a")
    attempt = store.claim(RUN, "a")
    assert attempt is not None
    record(store, attempt, epochs(1, 2), checkpoint="2.pt")
    record(store, attempt, [], checkpoint=None)
    run = one(store, "a")
    assert (run.epoch, run.checkpoint, run.device, run.device_seconds) == (2, "2.pt", "cpu", 3.0)


# Taking over


def test_a_done_run_is_taken_over_by_another_study_and_shown_so(store: Store) -> None:
    ask(store, "a")
    train(store, "a")
    ask(store, "b")
    assert (one(store, "a").taken_over, one(store, "b").taken_over) == (False, True)
    assert one(store, "b").state == DONE
    assert one(store, "b").ended_here
    assert store.claim(RUN, "b") is None
    assert one(store, "b").summary == {"test_top1_last": 50.0}


def test_a_run_that_another_study_is_training_is_taken_over_when_it_is_done(store: Store) -> None:
    ask(store, "a")
    attempt = store.claim(RUN, "a")
    assert attempt is not None
    ask(store, "b")
    assert (one(store, "b").state, one(store, "b").taken_over) == (RUNNING, False)
    store.end_run(RUN, attempt, DONE)
    assert one(store, "b").taken_over


def test_a_failed_run_is_never_taken_over_but_begins_again(store: Store) -> None:
    ask(store, "a")
    attempt = train(store, "a", state=FAILED)
    store.end_point("a", "ablation", POINT, FAILED, None)
    ask(store, "b")
    run = one(store, "b")
    assert (run.state, run.taken_over, run.epoch, run.checkpoint) == (WAITING, False, 0, None)
    assert (run.reason, run.summary, run.losses) == (None, None, 0)
    assert store.history(RUN) == []
    # Whoever trains it now, both studies hear of it.
    assert [point.state for point in store.points("a") + store.points("b")] == [OPEN, OPEN]
    assert not record(store, attempt, epochs(1, 1))
    assert store.claim(RUN, "b") == attempt + 1


def test_a_run_that_a_pruner_stopped_is_continued_by_a_study_that_needs_it(store: Store) -> None:
    ask(store, "a", stage="search", screening=True)
    attempt = store.claim(RUN, "a")
    assert attempt is not None
    record(store, attempt, epochs(1, 1), checkpoint="1.pt")
    store.end_run(RUN, attempt, PRUNED, study="a")
    assert one(store, "a").pruned
    assert one(store, "a").ended_here
    ask(store, "b")
    run = one(store, "b")
    assert (run.state, run.checkpoint, run.epoch, run.pruned, run.ended_here) == (WAITING, "1.pt", 1, False, False)
    assert [row["epoch"] for row in store.history(RUN)] == [1]
    again = store.claim(RUN, "b")
    assert again == attempt + 1
    record(store, again, epochs(2, 3), checkpoint="3.pt")
    store.end_run(RUN, again, DONE, study="b")
    # For the study whose pruner stopped it, it stays stopped.
    assert (one(store, "a").pruned, one(store, "a").ended_here) == (True, True)
    assert [row["epoch"] for row in store.history(RUN)] == [1, 2, 3]


def test_a_pruner_stops_a_run_for_its_own_study_alone(store: Store) -> None:
    ask(store, "a", stage="search")
    ask(store, "b", stage="search")
    attempt = store.claim(RUN, "a")
    assert attempt is not None
    store.end_run(RUN, attempt, PRUNED, study="a")
    assert (one(store, "a").pruned, one(store, "b").pruned) == (True, False)


def test_failed_runs_begin_again_on_request_and_others_stay(store: Store) -> None:
    ask(store, "a", "bad", "one")
    ask(store, "a", "good", "two")
    ask(store, "b", "theirs", "three")
    for run_id, study, state in (("bad", "a", FAILED), ("good", "a", DONE), ("theirs", "b", FAILED)):
        train(store, study, run_id, state)
    store.end_point("a", "ablation", "one", FAILED, None)
    store.end_point("a", "ablation", "two", COMPLETE, 50.0)
    assert store.retry_failed("a") == 1
    assert {run.run_id: run.state for run in store.runs("a") + store.runs("b")} == {
        "bad": WAITING, "good": DONE, "theirs": FAILED,
    }  # fmt: skip
    assert {point.point_id: point.state for point in store.points("a")} == {"one": OPEN, "two": COMPLETE}
    assert store.history("bad") == []
    assert len(store.history("good")) == 3
    assert store.retry_failed("a") == 0


# Requests and the tracker's memory


def test_a_request_is_answered_once_by_its_own_study_in_order(store: Store) -> None:
    for study, kind in (("a", "retry"), ("b", "stop"), ("a", "stop")):
        store.request(study, kind)
    assert store.take_requests("a") == ["retry", "stop"]
    assert store.take_requests("a") == []
    assert store.take_requests("b") == ["stop"]


def test_what_a_tracker_has_is_remembered_by_address_and_key(store: Store) -> None:
    store.set_tracked("a", "http://one", "run:1", "m1", 3, "shown")
    store.set_tracked("a", "http://one", "run:1", "m1", 5, None)
    store.set_tracked("a", "http://two", "run:1", "m2", 1, None)
    assert store.tracked("a", "http://one") == {"run:1": ("m1", 5, None)}
    assert store.tracked("a", "http://two") == {"run:1": ("m2", 1, None)}
    assert store.tracked("b", "http://one") == {}


# Several writers


def _claim_all(url: str, study: str, start: Any, results: Any) -> None:
    with Store(url).opened() as store:
        start.wait()
        claimed = [run.run_id for run in store.runs(study) if store.claim(run.run_id, study) is not None]
    results.put(claimed)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_several_drivers_that_claim_at_once_get_each_run_exactly_once(url: str, store: Store, kind: str) -> None:
    studies = ["a", "b", "c"]
    wanted = [f"{index:04x}" for index in range(30)]
    for study, run_id in itertools.product(studies, wanted):
        ask(store, study, run_id)
    context = multiprocessing.get_context("spawn")
    maker: Any = threading.Thread if kind == "threads" else context.Process
    start: Any = threading.Barrier(3) if kind == "threads" else context.Barrier(3)
    results: Any = queue.SimpleQueue() if kind == "threads" else context.SimpleQueue()
    workers = [maker(target=_claim_all, args=(url, study, start, results)) for study in studies]
    for worker in workers:
        worker.start()
    claimed = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(itertools.chain.from_iterable(claimed)) == wanted
    assert all(run.attempt == 1 and run.state == RUNNING for run in store.runs("a"))


def test_several_that_take_requests_at_once_answer_each_exactly_once(url: str, store: Store) -> None:
    for _ in range(20):
        store.request("a", "retry")
    start, taken = threading.Barrier(4), list[str]()

    def take() -> None:
        with Store(url).opened() as mine:
            start.wait()
            taken.extend(mine.take_requests("a"))

    workers = [threading.Thread(target=take) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert taken == ["retry"] * 20


def test_several_that_open_a_new_store_at_once_all_find_it_made(url: str) -> None:
    start, failed = threading.Barrier(6), list[BaseException]()

    def use(index: int) -> None:
        try:
            start.wait()
            with Store(url).opened() as mine:
                mine.create_study(f"study-{index}", {})
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=use, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []
    with Store(url).opened() as store:
        assert sorted(store.study_names()) == [f"study-{index}" for index in range(6)]


# What cannot be opened


def test_a_study_is_followed_by_the_rows_that_were_written_since(store: Store) -> None:
    """Each kind of write to a run shows in each study that uses it, and nothing else does."""
    for study in ("a", "b"):
        ask(store, study)
        ask(store, study, "another", point_id="p2", position=1)
    writes: list[Callable[[], object]] = [
        lambda: store.claim(RUN, "a"),
        lambda: store.record(RUN, 1, epochs(1, 1), checkpoint=None, device="cpu", device_seconds=1.0),
        lambda: store.requeue(RUN, 1, lost=True),
        lambda: store.claim(RUN, "a"),
        lambda: store.requeue_owned("a"),
        lambda: store.claim(RUN, "a"),
        lambda: store.end_run(RUN, 3, PRUNED, study="a"),
        lambda: store.resume_pruned(RUN),
        lambda: store.claim(RUN, "b"),
        lambda: store.end_run(RUN, 4, FAILED, reason="boom"),
        lambda: store.retry_failed("a"),
        lambda: ask(store, "c"),
    ]
    seen = {study: max(run.revision for run in store.runs(study)) for study in ("a", "b")}
    for number, write in enumerate(writes[:-1]):
        before = {study: store.runs(study) for study in seen}
        write()
        for study in seen:
            (row,) = store.runs(study, since=seen[study])
            assert row == one(store, study), number
            assert row not in before[study], number
            assert store.runs(study, since=row.revision) == []
            seen[study] = row.revision
    writes[-1]()
    assert [run.run_id for run in store.runs("c", since=-1)] == [RUN]
    assert store.runs("a", since=seen["a"]) == []  # that a third study asks for a run changes nothing for the others


def test_a_write_that_does_nothing_is_not_seen(store: Store) -> None:
    ask(store, "a")
    assert store.claim(RUN, "a") == 1
    (row,) = store.runs("a")
    store.record(RUN, 7, epochs(1, 1), checkpoint=None, device="cpu", device_seconds=1.0)
    store.end_run(RUN, 7, DONE)
    store.requeue(RUN, 7, lost=True)
    store.resume_pruned(RUN)
    store.requeue_owned("b")
    store.claim(RUN, "b")
    assert store.runs("a", since=row.revision) == []


def test_thousands_of_runs_are_asked_for_at_once_and_only_the_new_ones_are_named(store: Store) -> None:
    store.create_study("a", {})
    store.add_points([point_of("a")])
    asked = [NewRun("ablation", POINT, f"{i:05d}", i, {"seed": i}, 3, i) for i in range(1_200)]
    assert store.add_runs("a", asked[:700]) == asked[:700]
    assert store.add_runs("a", asked) == asked[700:]
    assert [(run.run_id, run.identity) for run in store.runs("a")] == [(run.run_id, run.identity) for run in asked]


def test_a_run_of_two_points_is_one_run(store: Store) -> None:
    store.create_study("a", {})
    store.add_points([point_of("a", "p1"), point_of("a", "p2")])
    asked = [NewRun("ablation", point, RUN, 0, {}, 3, position) for position, point in enumerate(("p1", "p2"))]
    assert store.add_runs("a", asked) == asked
    assert store.claim(RUN, "a") == 1
    assert [(run.point_id, run.state) for run in store.runs("a")] == [("p1", RUNNING), ("p2", RUNNING)]
    assert store.run("a", RUN).point_id == "p1"


def test_a_store_is_opened_again_as_it_was(url: str) -> None:
    with Store(url).opened() as store:
        ask(store, "a")
        before = store.runs("a")
    with Store(url).opened() as store:
        assert store.runs("a") == before


def damage_start(content: bytes) -> bytes:
    return b"\xff" * 4096 + content[4096:]


def damage_length(content: bytes) -> bytes:
    return content[: len(content) // 2]


def another_file(content: bytes) -> bytes:
    return b"name: small\nseeds: 3\n" * 400


@pytest.mark.parametrize("damage", [damage_start, damage_length, another_file])
def test_a_damaged_store_is_one_line(tmp_path: Path, sqlite_url: str, damage: Any) -> None:
    with Store(sqlite_url).opened() as store:
        for index in range(200):
            ask(store, "a", f"{index:04x}")
    path = tmp_path / "store.db"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RequestError, match=r"store.db: cannot be opened as a store \(.*\); move it away") as caught:
        Store(sqlite_url)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_stores_place_is_one_line(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(RequestError, match=r"store.db: cannot be opened as a store \(unable to open database file\)"):
        Store(sqlite_url)
