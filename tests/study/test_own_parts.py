"""A method, a model and a data set of the user's own, as docs/extending.md has them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMAND = Path(sys.executable).parent / "kdstudy"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with the documented example and spec."""
    shutil.copy(DOCS / "examples" / "my_parts.py", tmp_path)
    shutil.copy(DOCS / "examples" / "test_my_parts.py", tmp_path)
    (spec,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(spec, encoding="utf-8")
    return tmp_path


def kdstudy(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(COMMAND), *arguments], cwd=folder, env={**os.environ, "COLUMNS": "150"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_documented_spec_names_parts_of_the_users_own(folder: Path) -> None:
    assert "9 runs, ablation, on 3 seeds" in kdstudy(folder, "run", "mine.yaml", "--dry-run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.name=my_parts:strips", "my_parts:strips: cannot be imported (AttributeError"),
        ("data.name=no_such_parts:stripes", "no_such_parts:stripes: cannot be imported (ModuleNotFoundError"),
        ("data.name=my_parts:trust", "it is a Method; wanted: a trainables.data.entry.DatasetEntry"),
        ("methods.my_parts:trust.weight_mse=-1", "weight_mse: -1 is not allowed; it must be at least 0"),
    ],
)
def test_a_part_that_is_none_is_one_line(folder: Path, change: str, says: str) -> None:
    answer = kdstudy(folder, "run", "mine.yaml", "--dry-run", "--set", change, code=2)
    assert says in " ".join(answer.split())
    assert len(answer.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_users_own_parts_run_through_ray_to_a_report(folder: Path) -> None:
    said = kdstudy(folder, "run", "mine.yaml", "--set", "protocol.epochs=3", "--set", "seeds=2", "--report")
    assert "7 of 7 runs done" in said
    assert "my_parts:trust" in (folder / "home" / "reports" / "mine" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_users_own_parts_pass_the_contracts_by_the_documented_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "test_my_parts"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 40  # some checks skip what such a part does not have: options, files
