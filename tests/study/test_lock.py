"""A study has one driver, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from study.errors import RequestError
from study.home import open_home
from study.lock import hold, is_driven
from study.store import Store

HOLDER = """
import sys, time
from study.home import open_home
from study.lock import hold
from study.store import Store
home = open_home()
with hold(home, Store(home.store_url), "s"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Both kinds of store, and thereby of lock."""
    if request.param == "postgresql":
        monkeypatch.setenv("KDSTUDY_STORE", request.getfixturevalue("postgres_url"))
    with Store(open_home().store_url).opened() as opened:
        yield opened


def test_a_second_driver_is_refused_and_told_whose_the_study_is(store: Store) -> None:
    with hold(open_home(), store, "s"):
        assert is_driven(open_home(), store, "s")
        with (
            pytest.raises(RequestError, match=f"study s is being run already, by process {os.getpid()} on"),
            hold(open_home(), store, "s"),
        ):
            pass
    assert not is_driven(open_home(), store, "s")


def test_other_studies_are_not_held_up(store: Store) -> None:
    with hold(open_home(), store, "s"), hold(open_home(), store, "other"):
        assert is_driven(open_home(), store, "other")


def test_the_lock_of_a_killed_driver_is_gone_with_it(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert is_driven(open_home(), store, "s")
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A server sees a closed connection a moment later; the next driver waits that long.
    with hold(open_home(), store, "s"):
        pass
