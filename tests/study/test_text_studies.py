"""Studies of text: refused where they cannot be, and run through every real part with a toy model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
import yaml

import analysis
from study import sharing, teachers
from study.home import open_home
from study.plan import Plan
from study.spec import load_spec
from study.store import DONE, Store
from tests.study.given import Answer, Command
from tests.study.test_service import commands
from tests.toy_text import write_corpus, write_lines, write_model
from trainables import memory
from trainables.text import models
from trainables.text.teacher import TextTeacher

SPEC: dict[str, Any] = {
    "name": "words",
    "protocol": {
        "base": "dolly-quick",
        "epochs": 2,
        "max_tokens": 120,
        "max_response": 6,
        "template": "{instruction}: {input}\n",
        "decoding": "greedy",
    },
    "data": {"name": "instructions", "evaluate": ["self_inst"], "train_limit": 24},
    "teacher": {"top_k": 16, "protocol": {"epochs": 2, "lr": 0.01}},
    "pairs": ["hf:toy-hf:toy_every2"],
    "methods": {"sft": {}, "seqkd": {}, "kd": {}, "loca": {"alpha": [0.9, 1.0]}},
    "seeds": 2,
}


@pytest.fixture
def spec(tmp_path: Path, home: Path) -> Path:
    """A spec with its corpus and model in their places."""
    write_model(home / "models" / "toy", layers=4)
    return write_spec(tmp_path, SPEC | {"data": SPEC["data"] | {"root": str(write_corpus(tmp_path / "corpus"))}})


def write_spec(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def refused(answer: Answer, says: str) -> None:
    assert answer.code == 2, answer
    assert answer.err.startswith("kdstudy: ")
    assert answer.err.count("\n") == 1
    assert says in answer.err, answer.err
    assert "Traceback" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("protocol.base=crd-240", "crd-240 is a protocol of images, which has no such field"),
        ("protocol={base: crd-240}", "crd-240 is for images, instructions has text; take one of dolly-10, dolly-quick"),
        ("pairs=[cnn32-cnn3]", "cnn32 is no model of text"),
        ("data.name=digits", "evaluate: digits has images"),
        ("data.classes=3", "classes: instructions has texts"),
        ("data.evaluate=[vicuna]", "vicuna.jsonl"),
        ("data.evaluate=[sni]", "did you mean s_ni"),
        ("methods.mlkd={}", "methods.mlkd: it is not for text"),
        ("teacher.regime=cross_fitted", "cross_fitted is for images"),
        ("teacher.top_k=0", "teacher.top_k: "),
        ("protocol.template='{instruction} {context}'", "protocol: template: it has no field {context}"),
        ("protocol.max_response=200", "max_response: must be below max_tokens"),
        ("protocol.pad=4", "protocol: pad: dolly-quick is a protocol of text, which has no such field"),
        ("protocol.decoding=beam", "protocol: decoding: "),
        ("search={pruner: successive_halving}", "score_every: 3 leaves the pruner epochs without a score"),
        ("pairs=[hf:toy-hf:other]", "there is no folder"),
        ("pairs=[hf:toy-hf:foreign]", "different tokenizers"),
        ("data.root=nowhere", "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    kdstudy: Command, spec: Path, home: Path, change: str, says: str
) -> None:
    write_model(home / "models" / "foreign", words="entirely different things are said here")
    refused(kdstudy("run", spec, "--set", change), says)
    assert not (home / "store.db").exists()


def test_a_folder_without_weights_and_an_empty_evaluation_set_are_refused(
    kdstudy: Command, spec: Path, home: Path, tmp_path: Path
) -> None:
    own = tmp_path / "corpus" / "test.jsonl"
    before = own.read_text()
    write_lines(own, [{"instruction": "x", "output": ""}])
    refused(kdstudy("run", spec), "its evaluation set is empty")
    own.write_text(before)
    (home / "models" / "toy" / "model.safetensors").unlink()
    refused(kdstudy("run", spec), "has no weights")


def test_images_and_text_are_two_studies(kdstudy: Command, spec: Path) -> None:
    pairs = "[hf:toy-hf:toy_every2, {pair: cnn32-cnn3, data: {name: digits, evaluate: []}}]"
    refused(kdstudy("run", spec, "--set", f"pairs={pairs}"), "pairs")


@pytest.mark.slow
def test_a_whole_study_of_text_its_report_and_a_second_that_asks_no_teacher(tmp_path: Path) -> None:
    kdstudy = commands(tmp_path)
    home = tmp_path / "home"
    write_model(home / "models" / "toy", layers=4)
    root = str(write_corpus(tmp_path / "corpus"))
    spec = write_spec(tmp_path, SPEC | {"data": SPEC["data"] | {"root": root}})
    told = kdstudy("preflight", spec).stdout
    assert "16 of 376 logits a token are kept" in " ".join(told.split()) or "logits a token are kept" in told
    done = kdstudy("run", spec, "--report").stdout
    assert "11 of 11 runs done" in done
    assert "ROUGE-L" in done

    with Store(f"sqlite:///{home}/store.db").opened() as store:
        runs = store.runs("words")
        assert {run.state for run in runs} == {DONE}
        assert all("test_rouge_l_last" in (run.summary or {}) for run in runs)
        (teacher,) = store.info("words")["teachers"]
        assert set(teacher["rouge_l"]) == {"instructions", "self_inst"}
        assert 0 < teacher["mis_instruction_ratio"] < 1
        assert "response tokens" in teacher["ratio_on"]

    uri = f"sqlite:///{home}/mlflow.db"
    frame = analysis.load_runs(uri, "words")
    assert frame["test_rouge_l_last"].notna().all()
    assert frame["test_rouge_l.self_inst_last"].between(0, 100).all()
    history = analysis.load_history(uri, "words")
    assert set(history.columns) >= {"test_rouge_l", "val_loss" if "val_loss" in history else "test_loss", "tokens"}
    written = analysis.load_generations(uri, "words")
    # Eight own and six other instructions, of ten students and the teacher.
    assert written.groupby("run_id").size().tolist() == [14] * 11
    assert (written["teacher_of"] != "").sum() == 14

    report = home / "reports" / "words"
    page = (report / "report.html").read_text(encoding="utf-8")
    for text in ("ROUGE-L by evaluation set", "Cases", "gains most", "the teacher wrote", "mis-instructed tokens"):
        assert text in page, text
    for wrong in ("top-1", "test images", "training images", "of the views"):
        assert wrong not in page, wrong
    figures = {path.stem for path in (report / "figures").glob("*.svg")}
    assert figures >= {"rouge-by-set", "alpha-curve", "mis-instruction"}
    cases = pd.read_csv(report / "tables" / "cases.csv")
    assert set(cases["who"]) >= {"teacher", "sft", "kd"}
    assert kdstudy("report", "words", "--check", "-o", report).returncode == 0

    # The teacher's responses and logits are there: a study that adds a seed trains its runs and asks nothing.
    kept = sorted((home / "logits").rglob("*.npz"))
    (responses,) = (home / "logits").glob("responses-*.jsonl")
    before = responses.read_bytes(), [file.stat().st_mtime_ns for file in kept]
    more = kdstudy("run", spec, "--set", "name=more", "--set", "seeds=[0, 5]").stdout
    assert "6 taken over from other studies" in " ".join(more.split())  # the teacher and the five runs of seed 0
    assert (responses.read_bytes(), [file.stat().st_mtime_ns for file in kept]) == before
    assert len(json.loads(responses.read_text().splitlines()[0])["tokens"]) <= 6

    exported = kdstudy("export", "words", "-o", str(tmp_path / "student")).stdout
    assert "ROUGE-L" in exported
    shutil.copytree(tmp_path / "student", home / "models" / "student")
    assert models.locate("hf:student", home / "models").gguf is None


def test_a_model_may_teach_as_its_folder_has_it(spec: Path, home: Path) -> None:
    plan = Plan(load_spec(spec, ["teacher.checkpoint=pretrained", "data.test_limit=3"]), open_home())
    (teacher,) = teachers.find(plan).values()
    assert teacher.record.rouge_l is not None
    assert set(teacher.record.rouge_l) == {"instructions", "self_inst"}
    assert not plan.spec.trains_teacher_of(plan.spec.pairs[0])
    # It is measured once, and is the folder's model.
    (again,) = teachers.find(plan).values()
    assert (again.record.hash, again.record.created) == (teacher.record.hash, teacher.record.created)
    ratio, ratio_on = teachers.measure_ratio(plan, "instructions/hf:toy-hf:toy_every2", again)
    assert 0 < ratio <= 1
    assert "response tokens of 24" in ratio_on
    assert isinstance(again, TextTeacher)
    network = again.network(plan.home.models, plan.home.data, torch.device("cpu"))
    whole = models.build("hf:toy", plan.home.models, plan.home.data)
    assert all(torch.equal(a, b) for a, b in zip(network.model.parameters(), whole.parameters(), strict=True))


def test_the_memory_of_a_run_can_be_rehearsed(spec: Path) -> None:
    plan = Plan(load_spec(spec), open_home())
    for request in sharing.requests(plan):
        memory.rehearse(request | {"device": "cpu"})


def test_several_devices_a_run_are_for_text_and_must_be_there(kdstudy: Command, spec: Path) -> None:
    refused(kdstudy("run", "quickstart", "--devices-a-run", 2), "--devices-a-run: is for studies of text")
    asked = ("--device", "cpu", "--concurrency", 1, "--devices-a-run", 2)
    refused(kdstudy("run", spec, *asked), "--devices-a-run: 2, but there are 1 cores")


@pytest.mark.slow
def test_two_devices_share_the_batches_of_a_run(tmp_path: Path) -> None:
    """Two cores a run, each a process of its own: the study ends as with one, but for rounding."""
    write_model(tmp_path / "models" / "toy", layers=4)
    root = str(write_corpus(tmp_path / "corpus"))
    methods = {"sft": {}, "loca": {"alpha": 0.9}}
    content = SPEC | {"data": SPEC["data"] | {"root": root}, "methods": methods, "seeds": 1}
    losses = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        kdstudy = commands(folder)
        asked = ("--device", "cpu", "--concurrency", "2", "--devices-a-run", str(devices))
        told = kdstudy("run", str(write_spec(folder, content)), *asked, KDSTUDY_MODELS=str(tmp_path / "models")).stdout
        assert "3 of 3 runs done" in told
        with Store(f"sqlite:///{folder}/home/store.db").opened() as store:
            runs = store.runs("words")
            assert all((run.state, run.attempt) == (DONE, 1) for run in runs)
            histories = {(run.stage, run.method): store.history(run.run_id) for run in runs}
        losses.append({key: [row["train_loss"] for row in rows] for key, rows in histories.items()})
    assert losses[0].keys() == losses[1].keys()
    for key, values in losses[0].items():
        assert losses[1][key] == pytest.approx(values, rel=0.02), key


@pytest.mark.slow
def test_a_run_whose_other_device_is_lost_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    write_model(tmp_path / "home" / "models" / "toy", layers=4)
    data = SPEC["data"] | {"root": str(write_corpus(tmp_path / "corpus"))}
    spec = write_spec(tmp_path, SPEC | {"data": data, "methods": {"sft": {}}, "seeds": 1})
    command = [str(Path(sys.executable).parent / "kdstudy"), "run", str(spec), "--device", "cpu"]
    asked = ["--concurrency", "2", "--devices-a-run", "2", "--set", "protocol.epochs=30"]
    environment = {**os.environ, "KDSTUDY_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([*command, *asked], env=environment, stdout=subprocess.PIPE, text=True)
    url = f"sqlite:///{tmp_path}/home/store.db"

    def epochs() -> int:
        if not (tmp_path / "home" / "store.db").exists():
            return 0
        with Store(url).opened() as store:
            return sum(run.epoch for run in store.runs("words")) if store.study_names() else 0

    def members() -> list[psutil.Process]:
        below = psutil.Process(process.pid).children(recursive=True)
        return [child for child in below if "_Member" in " ".join(child.cmdline())]

    try:
        give_up = time.monotonic() + 240
        while epochs() < 3 or not members():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < give_up
            time.sleep(0.1)
        members()[0].kill()
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert "1 of 1 runs done" in told
    with Store(url).opened() as store:
        runs = store.runs("words")
        assert {run.state for run in runs} == {DONE}
        assert sum(run.losses for run in runs) == 1
        for run in runs:
            assert [row["epoch"] for row in store.history(run.run_id)] == list(range(1, run.epochs + 1))
