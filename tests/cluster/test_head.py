"""The head dies in the middle of a study, and is not kept in Redis: the same command goes on when it is back."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from study.database import check_url
from tests.cluster.conftest import Nodes, Study, begun_again
from tests.cluster.test_faults import in_the_middle
from tests.servers import Postgres, note_recovery

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.cluster, pytest.mark.timeout(600)]


def test_without_redis_the_same_command_goes_on(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    url = check_url("KDSTUDY_STORE", postgres.create(f"head-{uuid.uuid4().hex}"))
    (tmp_path / "ray").mkdir()
    nodes = Nodes(tmp_path / "ray", 2)
    try:
        study = Study(tmp_path, nodes, url, postgres.password_file)
        process = study.start("--set", "protocol.epochs=120")
        study.wait_until(in_the_middle, process)
        nodes.kill(nodes.head)
        process.wait(120)
        assert process.returncode != 0
        for node in nodes.nodes:
            node.wait(120)  # nodes do not outlive their head
        nodes.start_head()
        nodes.add()
        nodes.add()
        again = study.start("--set", "protocol.epochs=120")
        note_recovery("the head is started again", study.wait_until(begun_again, again))
        study.finish(again)
        study.require_whole()
        assert any(run.attempt > 1 for run in study.runs())
    finally:
        nodes.remove()
