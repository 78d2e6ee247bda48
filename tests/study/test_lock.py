"""A study has one driver, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from study.errors import RequestError
from study.home import open_home
from study.lock import hold, is_driven
from study.store import Store

HOLDER = """
import sys, time
from study.home import open_home
from study.service import hold
with hold(open_home(), "s"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_driver_is_refused_and_told_whose_the_study_is() -> None:
    with hold(open_home(), "s"):
        assert is_driven(open_home(), "s")
        with (
            pytest.raises(RequestError, match=f"study s is being run already, by process {os.getpid()} on"),
            hold(open_home(), "s"),
        ):
            pass
    assert not is_driven(open_home(), "s")


def test_other_studies_are_not_held_up() -> None:
    with hold(open_home(), "s"), hold(open_home(), "other"):
        assert is_driven(open_home(), "other")


def test_the_lock_of_a_killed_driver_is_gone_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert is_driven(open_home(), "s")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_driven(open_home(), "s")
    with hold(open_home(), "s"):
        pass
