"""Prompts: how an instruction and its input are put to a model."""

import re
import string

ALPACA = (
    "Below is an instruction that describes a task[[, paired with an input that provides further context]]. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "[[### Input:\n{input}\n\n]]### Response:\n"
)
"""The prompt of Stanford Alpaca, which work on Dolly uses."""

FIELDS = ("instruction", "input")

_WITH_INPUT = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


def fill(template: str, instruction: str, given: str) -> str:
    """A prompt.

    Args:
        template: with `{instruction}` and `{input}`; a part in [[double brackets]] is left out where there is no input.
        instruction, given: what stands in their places.
    """
    shown = _WITH_INPUT.sub(r"\1" if given else "", template)
    # One pass: braces inside of an instruction are text.
    fields = {"instruction": instruction, "input": given}
    return re.sub(r"\{(instruction|input)\}", lambda field: fields[field[1]], shown)


def fault(template: str) -> str | None:
    """What is wrong with a template; None: nothing."""
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        return f"its braces do not match ({error}); the fields are {{instruction}} and {{input}}"
    unknown = [field for field in named if field not in FIELDS]
    if unknown:
        return f"it has no field {{{unknown[0]}}}; the fields are {{instruction}} and {{input}}"
    if "instruction" not in named:
        return "{instruction} does not stand in it"
    return None
