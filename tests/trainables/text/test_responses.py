"""The teacher's responses are generated once, whoever asks, and a torn line is generated again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from pathlib import Path

from trainables.text.responses import Responses


def test_each_is_generated_once_and_found_by_a_second_study(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def generate(missing: list[int]) -> Iterable[tuple[int, list[int]]]:
        asked.append(missing)
        return [(index, [index, index + 1]) for index in missing]

    first = Responses(tmp_path, {"teacher": "a"}).of([3, 1, 2], generate)
    assert first == {3: [3, 4], 1: [1, 2], 2: [2, 3]}
    again = Responses(tmp_path, {"teacher": "a"}).of([2, 5], generate)
    assert asked == [[3, 1, 2], [5]]
    assert again == {2: [2, 3], 5: [5, 6]}
    Responses(tmp_path, {"teacher": "b"}).of([2], generate)
    assert asked[-1] == [2]
    assert Responses.digest(first) == Responses.digest({1: [1, 2], 2: [2, 3], 3: [3, 4]})


def test_a_torn_line_is_not_believed(tmp_path: Path) -> None:
    store = Responses(tmp_path, {})
    store.of([1, 2], lambda missing: [(index, [7] * 50) for index in missing])
    store.file.write_bytes(store.file.read_bytes()[:-30])
    found = store.of([1, 2], lambda missing: [(index, [8]) for index in missing])
    assert found == {1: [7] * 50, 2: [8]}
    assert store.of([2], lambda missing: []) == {2: [8]}


def _ask(folder: str, log: str) -> None:
    def generate(missing: list[int]) -> Iterable[tuple[int, list[int]]]:
        with open(log, "a") as stream:
            stream.write(f"{len(missing)}\n")
        return [(index, [index]) for index in missing]

    Responses(Path(folder), {}).of(list(range(200)), generate)


def test_processes_that_need_the_same_generate_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    others = [context.Process(target=_ask, args=(str(tmp_path), str(log))) for _ in range(2)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert sum(map(int, log.read_text().split())) == 200
