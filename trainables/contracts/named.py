"""What the contracts of methods and of models have in common: they run each check for each name."""

import re
from collections.abc import Sequence

import pytest


class NamedContract:
    """Checks of things that a registry knows by name; each check takes the argument `name`.

    names: those that are held to it.
    """

    names: Sequence[str] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each check for each name, all checks of one in turn."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names, scope="class")

    def test_a_name_can_be_written_in_files_urls_and_shells(self, name: str) -> None:
        assert re.fullmatch(r"[A-Za-z0-9_.:-]+", name), f"{name!r}: letters, digits, `_`, `-`, `.` and `:` only"
