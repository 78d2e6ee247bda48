"""Three studies at once on four nodes of one CPU, of 2,000 short runs together and more, while fifty people look on.

`KDSTUDY_LOAD_RUNS` makes the large study smaller; `KDSTUDY_RECOVERY` names a file for what was measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.database import check_url
from study.lock import is_driven
from study.progress import Progress
from study.store import DONE, RUNNING, Store
from tests.cluster.conftest import Nodes, Study
from tests.servers import Postgres, note_recovery

SPEC = """
name: {name}
protocol: {{base: digits-quick, epochs: {epochs}}}
data: {{name: digits, train_limit: 60}}
teacher: {{regime: held_out, fraction: 0.06, protocol: {{epochs: 2}}}}
pairs: [cnn32-cnn3]
methods:
  loca: {{alpha: {alphas}}}
seeds: {seeds}
"""
RUNS = int(os.environ.get("KDSTUDY_LOAD_RUNS", "2000"))
READERS = 50

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(3000)]


@pytest.fixture
def four_nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path, 4)
    yield made
    made.remove()


class Reader(threading.Thread):
    """Somebody who has `status --watch` open, which looks each second."""

    def __init__(self, url: str, name: str, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._study, self._over = url, name, over
        self.seconds: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        from study.home import open_home

        try:
            with Store(self._url).opened() as store:
                home = open_home(create=False)
                progress = Progress(store, self._study, "test_top1_last", driven=lambda: True)
                while not self._over.wait(1):
                    began = time.perf_counter()
                    progress.render()
                    is_driven(home, store, self._study)
                    self.seconds.append(time.perf_counter() - began)
        except Exception as error:
            self.error = error


def test_three_studies_at_once_and_fifty_who_look_on(
    four_nodes: Nodes, tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_HOME", str(tmp_path / "home"))
    url = check_url("KDSTUDY_STORE", postgres.create(f"load-{uuid.uuid4().hex}"))
    study = Study(tmp_path, four_nodes, url, postgres.password_file)
    seeds = 20
    shapes = {"large": (1, RUNS // seeds, seeds, 2), "small": (3, 5, 10, 1), "stopped": (3, 20, 10, 1)}
    for name, (epochs, points, number, _) in shapes.items():
        alphas = [round(0.5 + 0.005 * point, 3) for point in range(points)]
        text = SPEC.format(name=name, epochs=epochs, alphas=alphas, seeds=number)
        (tmp_path / f"{name}.yaml").write_text(text)

    def start(name: str) -> subprocess.Popen[str]:
        cap = str(shapes[name][3])
        return subprocess.Popen(
            study.command("run", f"{name}.yaml", "--address", four_nodes.address, "--max-devices", cap),
            cwd=tmp_path, env=study.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    began = time.monotonic()
    drivers = {name: start(name) for name in shapes}
    most = dict.fromkeys(shapes, 0)
    over = threading.Event()
    readers: list[Reader] = []
    marks: list[tuple[float, int]] = []  # the large study: when, how many runs
    ended: dict[str, float] = {}
    asked = {name: points * number for name, (_, points, number, _) in shapes.items()}
    with study.store() as store:
        while "large" not in ended or "small" not in ended:
            time.sleep(1)
            if len(marks) % 60 == 59:
                shown = study.call("status", "large")
                assert shown.returncode == 0, shown.stderr
                assert "cnn32-cnn3" in shown.stdout or "loca" in shown.stdout
            for name, driver in drivers.items():
                if name not in ended and driver.poll() is not None:
                    ended[name] = time.monotonic() - began
                # "small" asks for runs that "stopped" has too: each is trained by one of them.
                states = [run.state for run in store.runs(name) if run.stage != "teacher" and run.owner == name]
                most[name] = max(most[name], states.count(RUNNING))
                if name == "large":
                    marks.append((time.monotonic() - began, states.count(DONE)))
                if name == "stopped" and states.count(DONE) >= 20 and not readers:
                    readers = [Reader(url, "large", over) for _ in range(READERS)]
                    for reader in readers:
                        reader.start()
                    assert study.call("stop", "stopped").returncode == 0
    over.set()
    for reader in readers:
        reader.join(60)
    for name in ("large", "small"):
        output = study.finish(drivers[name])
        assert f"{asked[name] + 1} of {asked[name] + 1} runs done" in output, output
    assert "Go on with: kdstudy run stopped" in study.finish(drivers["stopped"], code=130)

    again = start("stopped")
    study.finish(again)
    with study.store() as store:
        for name in shapes:
            runs = store.runs(name)
            assert len({run.run_id for run in runs}) == asked[name] + 1
            assert {run.state for run in runs} == {DONE}
            assert {len(store.history(run.run_id)) for run in runs[:50] if run.stage != "teacher"} == {shapes[name][0]}
    assert all(number <= shapes[name][3] for name, number in most.items()), most
    assert all(reader.error is None for reader in readers), [reader.error for reader in readers if reader.error]
    looks = sorted(second for reader in readers for second in reader.seconds)
    assert len(looks) > READERS
    first = next(mark for mark in marks if mark[1] > 0)
    note_recovery(
        f"load: {RUNS} runs, two at a time, beside two other studies and {READERS} readers, "
        f"{(marks[-1][1] - first[1]) / (marks[-1][0] - first[0]):.2f} runs a second; {len(looks)} looks took "
        f"{statistics.median(looks):.2f} s in the median, {looks[int(0.95 * len(looks))]:.2f} s at 95 %; whole",
        ended["large"],
    )
