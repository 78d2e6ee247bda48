"""Reading instructions: what is there, what is refused, and that the hash notices everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy_text import lines, write_corpus, write_lines
from trainables.data import DataError
from trainables.text import corpora
from trainables.text.corpora import TextDataset

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def load(root: Path, *evaluate: str) -> TextDataset:
    return corpora.load("instructions", root, root, root, evaluate)


def test_parts_inputs_and_several_right_responses(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    rows = [{"instruction": "Say", "output": ["one", "two"]}, {"instruction": "Nothing", "input": "x", "output": " "}]
    write_lines(tmp_path / "test.jsonl", [*rows, *lines(2, 3)])
    found = load(tmp_path, "self_inst")
    assert (len(found.train), {name: len(part) for name, part in found.tests.items()}) == (
        40,
        {"instructions": 4, "self_inst": 6},
    )
    assert found.tests["instructions"][0].outputs == ("one", "two")
    # An example without a response is not part of the data, and is counted.
    assert found.test_labels.tolist() == [0, -1, 0, 0]
    assert found.skipped == 1


def test_the_hash_notices_training_and_test_and_not_what_else_is_evaluated(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    before = load(tmp_path).hash
    assert load(tmp_path, "self_inst").hash == before
    other = load(tmp_path, "self_inst").evaluated
    write_lines(tmp_path / "self_inst.jsonl", lines(6, 9))
    assert load(tmp_path, "self_inst").evaluated != other
    assert set(other) == {"self_inst"}
    for file in ("train.jsonl", "test.jsonl"):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(text.replace("cat", "cow", 1))
        assert load(tmp_path).hash != before
        (tmp_path / file).write_text(text)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "line 41: not JSON"),
        ('{"instruction": "x"}', "line 41: wanted an object with instruction, output"),
        ('["x"]', "line 41: wanted an object"),
        ('{"instruction": "x", "output": 3}', "line 41: input and output must be text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    write_corpus(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=says):
        load(tmp_path)


def test_what_is_missing_or_empty_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no test\.jsonl|has no train\.jsonl"):
        load(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "nowhere")
    write_corpus(tmp_path)
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(DataError, match="it is empty"):
        load(tmp_path)
    write_lines(tmp_path / "test.jsonl", [{"instruction": "x", "output": ""}])
    with pytest.raises(DataError, match="its evaluation set is empty"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no training part"):
        corpora.load("s_ni", tmp_path, tmp_path, tmp_path)


@pytest.mark.skipif(not (SHARED / "dolly").is_dir(), reason="needs ../shared/data")
def test_the_real_sets_have_as_many_examples_as_they_should() -> None:
    found = corpora.load("dolly", SHARED, SHARED, SHARED, ["s_ni", "self_inst", "vicuna"])
    assert len(found.train) == 11_435
    assert {name: len(part) for name, part in found.tests.items()} == {
        "dolly": 500,
        "s_ni": 1_694,  # the paper's Table 5
        "self_inst": 242,
        "vicuna": 80,
    }
    with pytest.raises(DataError, match="uinst_11plus"):
        corpora.load("dolly", SHARED, SHARED, SHARED, ["unni"])
