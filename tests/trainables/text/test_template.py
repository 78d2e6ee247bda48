"""Prompts say what they are given, and nothing that is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.text.template import ALPACA, fault, fill


def test_the_usual_prompt_with_and_without_an_input() -> None:
    assert fill(ALPACA, "Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n"
    )
    assert fill(ALPACA, "Add.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )


@settings(deadline=None)
@given(instruction=st.text(), given_=st.text(min_size=1))
def test_braces_and_brackets_in_what_is_given_are_text(instruction: str, given_: str) -> None:
    assert fill("<{instruction}|{input}>", instruction, given_) == f"<{instruction}|{given_}>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{instruction} {context}", "no field {context}"),
        ("{instruction", "braces"),
        ("{input}", "{instruction} does not stand in it"),
        ("{instruction}{}", "no field {}"),
    ],
)
def test_a_template_with_a_fault_says_which(template: str, says: str) -> None:
    assert says in str(fault(template))


def test_a_good_template_has_none() -> None:
    assert fault(ALPACA) is None
    assert fault("{instruction}\n") is None
