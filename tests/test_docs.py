"""Documents that are made from the code are what the code would make now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_reference_is_that_of_the_registries() -> None:
    made = script(DOCS / "make_reference.py")
    assert made.REFERENCE.read_text(encoding="utf-8") == made.text(), "run `python docs/make_reference.py`"
