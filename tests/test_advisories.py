"""The pinned versions against a list of known holes that is kept here: it needs no network.

`make audit` asks the public database about every package. What it finds, once mended, joins the list, so that nobody
pins a version with that hole again.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from packaging.version import Version

HERE = Path(__file__).parent
ADVISORIES = list(csv.DictReader((HERE / "advisories.csv").open(encoding="utf-8")))
PINNED = {
    name.lower().replace("_", "-"): Version(version)
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)", (HERE.parent / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
}


@pytest.mark.parametrize("entry", ADVISORIES, ids=lambda entry: f"{entry['package']}-{entry['advisory']}")
def test_no_pinned_version_has_a_known_hole(entry: dict[str, str]) -> None:
    pinned = PINNED.get(entry["package"])
    if pinned is None:
        pytest.skip(f"{entry['package']} is not pinned: nothing needs it any more")
    assert pinned >= Version(entry["fixed_in"]), f"{entry['advisory']}: {entry['what']}"


def test_every_pin_names_one_version_and_no_place_to_get_it_from() -> None:
    text = (HERE.parent / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) == len(PINNED)
    assert not re.search(r"https?://|--index|--extra-index|--find-links", text)
