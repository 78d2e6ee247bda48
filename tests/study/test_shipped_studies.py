"""Every shipped study, cut to seconds: its preflight, its runs to the end, its report.

The runs are trained in this process, without Ray: what the studies have of their own is their data, teachers, methods
and protocols, and the way through Ray is the same for all (test_service.py).
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import analysis
from search_spaces import shipped
from study import launcher, preflight, service, tracking
from study.driver import Driver
from study.home import Home, open_home
from study.plan import Plan
from study.spec import load_spec
from study.store import DONE, PRUNED, Store
from tests.toy_text import write_model
from trainables.runner import Runner

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

CUT = ["seeds=1", "protocol.epochs=1", "data.train_limit=16", "data.test_limit=20", "teacher.train_limit=16"]
CIFAR100 = [*CUT, f"data.root={SHARED}/cifar100", "protocol.batch_size=8"]
# Twenty classes of Tiny-ImageNet stand in for ImageNet, and teachers are trained instead of fetched.
IMAGENET = [
    *CUT,
    "data.name=parquet",
    f"data.root={SHARED}/tinyimagenet20",
    "protocol.batch_size=8",
    "protocol.image_size=32",
    "protocol.eval_resize=32",
    "teacher.checkpoint=null",
]
DIGITS = ["seeds=2", "protocol.epochs=2", "teacher.protocol={epochs: 2}"]

# A toy of some thousand parameters in the place of the language model.
TEXT = [
    *CUT,
    f"data.root={SHARED}",
    "data.test_limit=6",
    "pairs=[hf:toy-hf:toy_every2]",
    "protocol.template='{instruction} '",
    "protocol.max_tokens=120",
    "protocol.max_response=4",
    "protocol.batch_size=8",
    "protocol.decoding_seeds=1",
    "teacher.protocol={epochs: 1}",
]

CUTS: dict[str, list[str]] = {
    "alpha-resnet56-resnet20": [*CIFAR100, "teacher.checkpoint=null", "methods.loca.alpha=[0.95,1.05]"],
    "alpha-sensitivity-cifar100": [*CIFAR100, "methods.loca.alpha=[0.95,1.05]"],
    "alpha-sensitivity-imagenet": [*IMAGENET, "methods.loca.alpha=[0.95,1.0]"],
    "alpha-near-one": IMAGENET,
    "drop-or-keep": CIFAR100,
    "pairs-cifar100": [*CIFAR100, "methods.loca.alpha=[0.95]"],
    "pairs-imagenet": [*IMAGENET, "pairs.0.teacher.checkpoint=null", "pairs.1.teacher.checkpoint=null"],
    "loca-on-dkd": [*CIFAR100, "methods.loca_dkd.alpha=[0.95]"],
    "standardised": CIFAR100,
    "mis-instruction": [
        *CIFAR100,
        "teacher.folds=2",
        *(
            f"pairs.{index}.{change}"
            for index in (6, 7)
            for change in (
                "teacher.checkpoint=null",
                "data.name=parquet",
                f"data.root={SHARED}/tinyimagenet20",
                "protocol.image_size=32",
                "protocol.eval_resize=32",
            )
        ),
    ],
    "mitigations": CIFAR100,
    "prevalence": [*CIFAR100, "teacher.folds=2", "methods.loca.alpha=[0.95]"],
    "search-loca": [
        *CIFAR100,
        "data.validation=0.001",
        "protocol.epochs=2",
        "search.first_rung=1",
        "search.points=3",
        "seeds=2",
    ],
    "scale": [
        *CIFAR100,
        "methods.loca.alpha=[0.95]",
        *(f"pairs.{index}.data.train_limit={limit}" for index, limit in enumerate((4, 8, 12))),
        "data.test_limit=10",
    ],
    "dark-knowledge": CIFAR100,
    "quickstart": [*DIGITS, "methods.loca.alpha=[0.95]"],
    "quick-prevalence": [*DIGITS, "methods.loca.alpha=[0.95]"],
    "text-dolly": [*TEXT, "protocol.precision=float32"],
    "text-quick": TEXT,
    "text-alpha": [*TEXT, "methods.loca.alpha=[0.9,1.00001]"],
    "text-alpha-quick": [*TEXT, "methods.loca.alpha=[0.9]"],
    "quick-search": [*DIGITS, "search.first_rung=1", "search.points=3"],
}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all studies: decoded data, teachers and MLflow's database are made once."""
    folder = tmp_path_factory.mktemp("shipped") / "home"
    write_model(folder / "models" / "toy")
    return folder


@pytest.fixture
def in_process(home: Path, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Runs are trained here, one after the other, instead of on Ray."""

    @contextlib.contextmanager
    def no_cluster(machine: launcher.Machine) -> Iterator[None]:
        yield

    def train(driver: Driver, machine: launcher.Machine, home: Home) -> None:
        while not driver.finished:
            request: dict[str, Any] | None = driver.next_request()
            assert request is not None
            runner, stop = Runner(request), False
            while not stop:
                report = runner.advance(1e9)
                stop = driver.on_report(report) or report["done"]

    monkeypatch.setenv("KDSTUDY_HOME", str(shared_home))
    monkeypatch.setattr(launcher, "cluster", no_cluster)
    monkeypatch.setattr(launcher, "train", train)
    tracking.configure()
    return open_home()


def test_every_shipped_study_is_cut_to_seconds_here() -> None:
    assert set(CUTS) == set(shipped.names())


@pytest.mark.parametrize("name", list(CUTS))
def test_a_shipped_study_passes_preflight_and_runs_to_its_report(name: str, in_process: Home, tmp_path: Path) -> None:
    if any(str(SHARED) in change for change in CUTS[name]) and not SHARED.is_dir():
        pytest.skip("needs the shared data beside the checkout")
    spec = load_spec(name, CUTS[name])
    plan = Plan(spec, in_process)
    forecast = preflight.forecast(plan, None, device="cpu", concurrency=1)
    assert forecast.runs == service.expected_runs(spec)
    assert [pair.pair for pair in forecast.pairs] == list(plan.pairs)

    summary = service.run(spec, device="cpu", concurrency=1)

    assert (summary.state, summary.failed, summary.untracked) == ("finished", 0, "")
    with Store(in_process.store_url).opened() as store:
        runs = store.runs(name)
        assert {run.state_here for run in runs} <= {DONE, PRUNED}
        recorded = {entry["pair"]: entry for entry in store.info(name)["teachers"]}
        assert all(0 <= entry["mis_instruction_ratio"] <= 1 for entry in recorded.values())
    page = analysis.report(in_process.tracking_uri, name, tmp_path / "report")
    text = html.unescape(page.read_text(encoding="utf-8"))
    assert shipped.question(name) in text
    assert all(pair in text for pair in plan.pairs)
