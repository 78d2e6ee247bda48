"""Small reports, regenerated from recorded runs, are what they were: every table and sentence, byte for byte.

After a change that is meant, `KDSTUDY_GOLDEN=write pytest tests/analysis/test_golden.py` writes them anew; then read
the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis import report

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"


def texts(folder: Path) -> dict[str, str]:
    """The report's text, but the page itself, which has the figures in it."""
    tables = [file for file in (folder / "tables").glob("*.csv") if file.name != "runs.csv"]  # has MLflow's own ids
    files = [folder / "report.md", *tables]
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files)}


@pytest.mark.parametrize("study", ["ablation", "search", "paper"])
def test_a_report_says_what_it_said(study: str, store: str, tmp_path: Path) -> None:
    found = texts(report(store, study, tmp_path / "out").parent)
    kept = GOLDEN / study
    if os.environ.get("KDSTUDY_GOLDEN") == "write":
        kept.mkdir(parents=True, exist_ok=True)
        for old in kept.iterdir():
            old.unlink()
        for name, text in found.items():
            (kept / name).write_text(text, encoding="utf-8", newline="\n")
    assert {file.name: file.read_text(encoding="utf-8") for file in sorted(kept.iterdir())} == found
