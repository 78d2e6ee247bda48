"""Whatever breaks in the middle of a study, it ends with exactly the asked runs, each once and whole.

Every test really does it: processes are killed, nodes are lost, servers restarted. `pytest -m cluster` runs them all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from study.database import check_url
from study.store import DONE, FAILED, RUNNING, RunRow
from tests.cluster.conftest import ASKED, EPOCHS, Nodes, Study, begun_again, epochs
from tests.servers import Bucket, Postgres, note_recovery

# A method that hangs in the third epoch of its first attempt: forever, and without letting Python's lock go.
HANGS = """
import ctypes
from pathlib import Path
import torch
from trainables import objectives
from trainables.objectives import Method

class Hanging(torch.nn.Module):
    def forward(self, student_logits, teacher_logits, target, epoch=1):
        once = Path("FOLDER") / "hung"
        if epoch == 30 and not once.exists():
            once.touch()
            ctypes.PyDLL(None).sleep(600)
        return objectives.build("ce")(student_logits, teacher_logits, target, epoch)

method = Method("hanging:method", "hangs once", "CE", "-", (), False, Hanging)
"""

BROKEN = """
import os
import torch
from trainables.objectives import Method

class Broken(torch.nn.Module):
    def forward(self, student_logits, teacher_logits, target, epoch=1):
        raise RuntimeError(f"no such disk: sd{os.getpid()}")

method = Method("broken:method", "fails", "-", "-", (), False, Broken)
"""

# A method that sets its worker's clock ahead, on the node that is told so, and writes down that it did.
AHEAD = """
import os
import time
from pathlib import Path
import torch
from trainables import objectives
from trainables.objectives import Method

if os.environ.get("CLOCK_AHEAD"):
    right, ahead = time.time, float(os.environ["CLOCK_AHEAD"])
    time.time = lambda: right() + ahead
    (Path("FOLDER") / "set-ahead").touch()

class Ahead(torch.nn.Module):
    def forward(self, student_logits, teacher_logits, target, epoch=1):
        return objectives.build("ce")(student_logits, teacher_logits, target, epoch)

method = Method("ahead:method", "cross entropy", "CE", "-", (), False, Ahead)
"""

Start, Kill = Callable[[], str], Callable[[], None]

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


def running(runs: list[RunRow]) -> int:
    return sum(run.state == RUNNING for run in runs if run.stage != "teacher")


def in_the_middle(runs: list[RunRow]) -> bool:
    """Students are being trained, and have been for a while."""
    return epochs(runs) >= EPOCHS and running(runs) >= 1


def both_at_work(runs: list[RunRow]) -> bool:
    """Each node trains a student, and neither is about to end: a worker between two runs has none to lose."""
    at_work = [run for run in runs if run.stage != "teacher" and run.state == RUNNING]
    return len(at_work) == 2 and all(5 <= run.epoch <= run.epochs // 2 for run in at_work)


def a_worker(nodes: Nodes) -> int:
    return next(worker.pid for node in nodes.nodes for worker in nodes.workers(node))


def test_an_undisturbed_study_is_whole(study: Study) -> None:
    output = study.finish(study.start())
    study.require_whole()
    assert all(run.attempt == 1 for run in study.runs())
    assert "Traceback" not in output


def test_a_killed_worker(study: Study, nodes: Nodes) -> None:
    process = study.start("--set", "protocol.epochs=500")
    study.wait_until(both_at_work, process)
    os.kill(a_worker(nodes), signal.SIGKILL)
    note_recovery("a worker is killed", study.wait_until(begun_again, process))
    study.finish(process)
    study.require_whole()
    assert sum(run.losses for run in study.runs()) == 1


def test_a_node_that_is_lost_and_one_that_joins(study: Study, nodes: Nodes) -> None:
    process = study.start("--set", "protocol.epochs=400")
    # Both nodes have a run, or the one that is lost might have none to lose.
    study.wait_until(lambda runs: in_the_middle(runs) and running(runs) == 2, process)
    nodes.kill(nodes.nodes[0])
    lost = study.wait_until(lambda runs: sum(run.losses for run in runs) >= 1, process)
    note_recovery("a node is lost", lost + study.wait_until(begun_again, process))
    nodes.add()
    note_recovery("a node joins", study.wait_until(lambda runs: running(runs) == 2, process))
    study.finish(process)
    study.require_whole()


def test_a_killed_driver_goes_on_at_once(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert any(run.state == RUNNING for run in study.runs())
    again = study.start()
    note_recovery("the driver is killed", study.wait_until(begun_again, again))
    study.finish(again)
    study.require_whole()


@pytest.mark.full
def test_a_second_driver_is_refused_and_told_whose_the_study_is(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    second = study.start()
    said = study.finish(second, code=2)
    assert f"study faults is being run already, by process {process.pid} on" in said
    assert said.count("\n") == 1, said
    study.finish(process)
    study.require_whole()
    assert all(run.attempt == 1 for run in study.runs())


def test_a_store_that_is_restarted(study: Study, postgres: Postgres) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    postgres.stop()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5)  # it waits too
    postgres.start()
    before = epochs(study.runs())
    note_recovery("the store is restarted", study.wait_until(lambda runs: epochs(runs) > before, process))
    study.finish(process)
    study.require_whole()
    assert {run.state for run in study.runs()} == {DONE}


@pytest.mark.full
def test_a_tracker_that_is_down_in_the_middle(tmp_path: Path, study: Study, server: tuple[Start, Kill]) -> None:
    start, kill = server
    study.environment["MLFLOW_TRACKING_URI"] = start()
    process = study.start("--set", "protocol.epochs=200")  # it must outlast the server's absence
    study.wait_until(in_the_middle, process)
    kill()
    study.wait_until(lambda runs: sum(run.state == DONE for run in runs) >= 5, process)
    start()
    study.finish(process)
    study.require_whole()


@pytest.mark.full
def test_a_run_that_hangs_is_ended_and_goes_on_from_its_checkpoint(study: Study) -> None:
    (study.folder / "hanging.py").write_text(HANGS.replace("FOLDER", str(study.folder)))
    changes = ["--set", "methods={hanging:method: {}, kd: {}}", "--set", "budget.epoch_minutes=0.1"]
    study.finish(study.start(*changes, "--set", "seeds=1"))
    study.require_whole(asked=3)
    (hung,) = [run for run in study.runs() if run.method == "hanging:method"]
    assert (hung.losses, hung.attempt) == (1, 2)
    log = (study.folder / "home" / "logs" / "faults.log").read_text()
    assert "no epoch in 0.1 minutes (budget.epoch_minutes)" in log


@pytest.mark.full
def test_the_same_failure_again_and_again_stops_the_study(study: Study) -> None:
    (study.folder / "broken.py").write_text(BROKEN)
    changes = ["--set", "methods={broken:method: {}}", "--set", "budget.same_failures=3", "--set", "seeds=8"]
    output = study.finish(study.start(*changes), code=1)
    assert "the last 3 runs failed alike: RuntimeError: no such disk: sd" in " ".join(output.split())
    runs = [run for run in study.runs() if run.method == "broken:method"]
    assert 3 <= sum(run.state == FAILED for run in runs) <= 4
    assert running(runs) == 0


@pytest.mark.full
def test_a_bucket_that_answers_nobody_for_a_while(study: Study, buckets: Bucket) -> None:
    study.environment |= {"KDSTUDY_STORAGE": "s3://kdstudy/faults"}
    process = study.start("--set", "protocol.epochs=120")
    study.wait_until(in_the_middle, process)
    buckets.pause()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(30)
    buckets.resume()
    done = sum(run.state == DONE for run in study.runs())
    going = study.wait_until(lambda runs: sum(run.state == DONE for run in runs) > done, process)
    note_recovery("the bucket answers again", going)
    study.finish(process)
    study.require_whole()
    assert "s3://" not in " ".join(str(path) for path in (study.folder / "home").rglob("*.pt"))


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_full_for_a_while(study: Study) -> None:
    storage = study.folder / "storage"
    storage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "kdstudy-test", storage], check=True)
    try:
        process = study.start("--set", "protocol.epochs=120")
        study.wait_until(in_the_middle, process)
        filler = storage / "filler"
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(4096))
        before = epochs(study.runs())
        study.wait_until(lambda runs: epochs(runs) > before + 20, process)  # a checkpoint on the way is left out
        log = (study.folder / "home" / "logs" / "faults.log").read_text()
        assert "No space left on device" in log
        done = sum(run.state == DONE for run in study.runs())
        filler.unlink()
        going = study.wait_until(lambda runs: sum(run.state == DONE for run in runs) > done, process)
        note_recovery("the disk has room again, until a run ended", going)
        study.finish(process)
        study.require_whole()
    finally:
        subprocess.run(["umount", "--lazy", storage], check=False)


@pytest.mark.full
def test_nodes_whose_clocks_differ_by_hours(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    nodes = Nodes(tmp_path, 1)
    try:
        nodes.add(CLOCK_AHEAD=str(3 * 3600))
        url = check_url("KDSTUDY_STORE", postgres.create(f"skew-{uuid.uuid4().hex}"))
        study = Study(tmp_path, nodes, url, postgres.password_file)
        (tmp_path / "ahead.py").write_text(AHEAD.replace("FOLDER", str(tmp_path)))
        study.finish(study.start("--set", "methods={ahead:method: {}}", "--set", "seeds=8"))
        assert (tmp_path / "set-ahead").exists()  # the node trained too
        study.require_whole(asked=8)
        with study.store() as store:
            for run in store.runs("faults"):
                assert run.started is not None
                assert run.ended is not None
                assert run.started <= run.ended <= time.time()
                assert 0 < run.device_seconds < 600
                times = [row["time"] for row in store.history(run.run_id)]
                assert times == sorted(times)
                assert times[-1] <= time.time()
    finally:
        nodes.remove()


@pytest.mark.full
def test_a_stop_from_elsewhere_and_the_same_command_again(study: Study) -> None:
    process = study.start()
    study.wait_until(in_the_middle, process)
    status = study.call("status", "faults")
    assert f"driven by process {process.pid}" in status.stdout
    assert study.call("stop", "faults").returncode == 0
    study.finish(process, code=130)
    assert len(study.runs()) == ASKED
    study.finish(study.start())
    study.require_whole()


@pytest.mark.full
def test_two_studies_share_the_nodes_each_within_its_cap_and_one_is_stopped(study: Study) -> None:
    seeds = {"one": "[1, 2]", "two": "[3, 4]"}
    drivers = {
        name: study.start(
            *("--max-devices", "1", "--set", f"name={name}", "--set", f"seeds={seeds[name]}"),
            *("--set", "protocol.epochs=200"),  # or it might be over before it is stopped
        )
        for name in seeds
    }
    together, stopped, give_up = 0, False, time.monotonic() + 240
    while drivers["two"].poll() is None:
        assert time.monotonic() < give_up
        at_work = {name: sum(run.state == RUNNING and run.owner == name for run in study.runs(name)) for name in seeds}
        assert max(at_work.values()) <= 1, at_work
        together += sum(at_work.values()) == 2
        if not stopped and epochs(study.runs("one")) >= EPOCHS:
            stopped = study.call("stop", "one").returncode == 0
        time.sleep(0.2)
    study.finish(drivers["one"], code=130)
    study.finish(drivers["two"])
    assert together > 0
    assert {run.state for run in study.runs("two")} == {DONE}
    assert not any(run.state == RUNNING for run in study.runs("one"))
    assert study.call("status", "one").stdout.count("stopped") == 1
