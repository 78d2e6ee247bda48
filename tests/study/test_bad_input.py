"""What a user gets wrong ends in one line and exit code 2, with nothing half written."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from study import importing, service
from study.home import Home, open_home
from study.plan import Plan
from study.spec import load_spec
from study.store import Store
from tests.study.given import Answer, Command
from trainables import models, teachers
from trainables.data import ResidentImages
from trainables.views import CropFlip

SPEC: dict[str, Any] = {
    "name": "small",
    "protocol": {"base": "digits-quick", "epochs": 2},
    "data": {"name": "digits"},
    "pairs": ["cnn32-cnn3"],
    "methods": {"ce": {}},
    "seeds": 1,
}


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    return path


@pytest.fixture
def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(answer: Answer, says: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert answer.code == 2, answer
    assert answer.err.startswith("kdstudy: ")
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert answer.out == ""
    assert re.search(says, answer.err), answer.err


def listing(home: Path) -> list[str]:
    """What there is under a home, apart from decoded data, which are a cache."""
    return sorted(
        str(path.relative_to(home)) for path in home.rglob("*") if path.relative_to(home).parts[0] != "data"
    )  # fmt: skip


# The spec

WRONG_SPECS = [
    pytest.param("sedes=3", "sedes: unknown key; did you mean seeds", id="unknown key"),
    pytest.param("data.train_limt=3", "data.train_limt: unknown key; did you mean train_limit", id="unknown key below"),
    pytest.param("data.train_limit=many", "data.train_limit: must be a whole number, not 'many'", id="wrong type"),
    pytest.param("methods.loca.alpha=high", "alpha: 'high' is not a number", id="wrong type of alpha"),
    pytest.param("methods.loca.alpha=0", "alpha: 0 is not allowed; it must be above 0", id="alpha 0"),
    pytest.param("methods.loca.alpha=[0.9,-1]", "alpha: -1 is not allowed", id="alpha below 0"),
    pytest.param("methods.loca.alpha=[]", "alpha: the list is empty", id="empty list"),
    pytest.param("seeds=[]", "seeds: is empty", id="no seeds"),
    pytest.param("methods.lcoa={}", "unknown method 'lcoa': did you mean loca", id="unknown method"),
    pytest.param("pairs=[cnn32-cnn4]", "unknown pair 'cnn32-cnn4': did you mean cnn32-cnn3", id="unknown pair"),
    pytest.param("pairs=[cmm32-cnn3]", "unknown pair 'cmm32-cnn3': did you mean cnn32-cnn3", id="unknown model"),
    pytest.param("data.name=digit", "unknown data set 'digit': did you mean digits", id="unknown data set"),
    pytest.param("protocol.epoch=1", "unknown field of the protocol 'epoch': did you mean epochs", id="unknown field"),
    pytest.param("name=a/b", "'a/b' is no study name", id="name with a separator"),
    pytest.param("name=../evil", "'../evil' is no study name", id="name that leads out"),
    pytest.param("name=a\\b", "is no study name", id="name with a backslash"),
]


@pytest.mark.parametrize("command", ["run", "preflight"])
@pytest.mark.parametrize(("change", "says"), WRONG_SPECS)
def test_a_wrong_spec_is_refused_before_anything_is_written(
    kdstudy: Command, spec_file: Path, home: Path, command: str, change: str, says: str
) -> None:
    refused(kdstudy(command, spec_file, "--set", change), says)
    assert not home.exists()
    assert list(spec_file.parent.iterdir()) == [spec_file]


def test_a_spec_that_is_not_there_is_refused(kdstudy: Command, home: Path) -> None:
    refused(kdstudy("run", "nowhere.yaml"), "nowhere.yaml: no such file")
    refused(kdstudy("run", "quickstrat"), "did you mean quickstart")
    assert not home.exists()


def test_a_limit_beyond_the_data_is_refused(kdstudy: Command, spec_file: Path, home: Path) -> None:
    answer = kdstudy("run", spec_file, "--set", "data.train_limit=5000")
    refused(answer, "data.train_limit: 5000 is more than the 1,000 images of digits")
    assert listing(home) == []


@pytest.mark.parametrize("name", ["a/b", "../evil", "/tmp/evil", "a\\b", ".."])
def test_init_writes_no_file_under_a_name_with_separators(kdstudy: Command, tmp_path: Path, name: str) -> None:
    refused(kdstudy("init", name), "is no study name")
    assert list(tmp_path.iterdir()) == []


def test_init_does_not_overwrite(kdstudy: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    refused(kdstudy("init", "mine"), "mine.yaml exists already; choose another name")
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == "name: mine\n"


def test_an_unknown_device_is_refused(kdstudy: Command, spec_file: Path, home: Path) -> None:
    refused(kdstudy("run", spec_file, "--device", "tpu"), "--device: 'tpu' is neither cpu nor cuda")
    assert not home.exists()


# Checkpoints


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An untrained teacher for the digits: it is wrong on most of them."""
    torch.manual_seed(0)
    path = tmp_path / "teacher.pt"
    torch.save(models.build("cnn32", 10).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of teachers with that one in it, called `teacher`."""
    folder = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    torch.save(models.build("cnn32", 10).state_dict(), folder / "teacher.pt")
    home = Home(folder, f"sqlite:///{folder / 'store.db'}", "", folder)
    importing.import_teacher(
        home, folder / "teacher.pt", model="cnn32", dataset="digits", root=None, name=None, mean=None, std=None,
        trained_on="unknown", protocol="digits-quick",
    )  # fmt: skip
    return folder / "teachers"


@pytest.fixture
def with_teacher(imported: Path, home: Path) -> Path:
    """A home with a teacher in it."""
    shutil.copytree(imported, home / "teachers")
    return home


def import_teacher(kdstudy: Command, path: Path, *more: object, model: str = "cnn32") -> Answer:
    options = ("--model", model, "--dataset", "digits", "--protocol", "digits-quick")
    return kdstudy("teacher", "import", path, *options, *more)


class Code:
    """What a pickle would run when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def no_such_file(path: Path) -> None:
    path.unlink(missing_ok=True)


def other_architecture(path: Path) -> None:
    torch.save(models.build("cnn3", 10).state_dict(), path)


def other_keys(path: Path) -> None:
    torch.save(models.build("resnet8", 10).state_dict(), path)


def other_classes(path: Path) -> None:
    torch.save(models.build("cnn32", 7).state_dict(), path)


def truncated(path: Path) -> None:
    other_architecture(path)
    path.write_bytes(path.read_bytes()[:2000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled_code(path: Path) -> None:
    torch.save({"state_dict": Code(path.with_name("proof"))}, path)


def not_tensors(path: Path) -> None:
    torch.save([1, 2, 3], path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_such_file, "there is no such file"),
        (other_architecture, "not a checkpoint of cnn32; keys: .* of another shape"),
        (other_keys, "not a checkpoint of cnn32; keys: .* missing .* unexpected"),
        (other_classes, "it tells 7 classes apart; wanted: 10"),
        (truncated, "truncated, or not a checkpoint"),
        (empty, "truncated, or not a checkpoint"),
        (pickled_code, "holds pickled code, which is never run"),
        (not_tensors, "wanted: a state dict"),
    ],
)
def test_a_checkpoint_that_is_not_the_models_is_refused_and_not_kept(
    kdstudy: Command, tmp_path: Path, home: Path, make: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "wrong.pt"
    make(path)
    answer = import_teacher(kdstudy, path)
    refused(answer, says)
    assert "wrong.pt" in answer.err
    assert listing(home) == []
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "cnn33"), "unknown model 'cnn33': did you mean cnn3 or cnn32"),
        (("--model", "resnet8"), "--model: resnet8 takes images of 3 channels and at least"),
        (("--dataset", "digit"), "unknown data set 'digit': did you mean digits"),
        (("--protocol", "crd-204"), "unknown protocol 'crd-204': did you mean crd-240"),
        (("--name", "a/b"), "'a/b' is no study name"),
        (("--trained-on", "half"), "--trained-on: 'half' is none of all, unknown, none"),
        (("--mean", "0.1,0.2"), "--mean: '0.1,0.2' is not 1 number"),
        (("--std", "zero"), "--std: 'zero' is not 1 number"),
        (("--std", "0"), "--std: '0' is not 1 number"),
        (("--std", "nan"), "--std: 'nan' is not 1 number"),
    ],
)
def test_a_teacher_with_a_wrong_option_is_refused_and_not_kept(
    kdstudy: Command, weights: Path, home: Path, options: tuple[str, ...], says: str
) -> None:
    refused(import_teacher(kdstudy, weights, *options), says)
    assert listing(home) == []


def test_a_checkpoint_of_the_model_is_kept_under_its_files_name(kdstudy: Command, weights: Path, home: Path) -> None:
    answer = import_teacher(kdstudy, weights)
    assert (answer.code, answer.err) == (0, "")
    assert "Use it with: teacher: {checkpoint: teacher}" in answer.out
    assert [record.name for record in teachers.list_records(home)] == ["teacher"]


def test_a_name_stands_for_one_teacher(kdstudy: Command, weights: Path, with_teacher: Path) -> None:
    before = listing(with_teacher)
    torch.save(models.build("cnn32", 10).state_dict(), weights)
    refused(import_teacher(kdstudy, weights), "--name: teacher is already the name of .*; give this one another")
    assert listing(with_teacher) == before


def test_an_unknown_teacher_is_answered_with_the_nearest(kdstudy: Command, with_teacher: Path, spec_file: Path) -> None:
    before = listing(with_teacher)
    refused(
        kdstudy("run", spec_file, "--set", "methods.kd={}", "--set", "teacher.checkpoint=techer"),
        "teacher.checkpoint: unknown teacher 'techer': did you mean teacher",
    )
    assert listing(with_teacher) == before


def test_a_teacher_of_another_architecture_is_refused_by_a_study(
    kdstudy: Command, with_teacher: Path, spec_file: Path
) -> None:
    before = listing(with_teacher)
    changes = ("methods.kd={}", "teacher.checkpoint=teacher", "pairs=[cnn3-cnn3]")
    answer = kdstudy("run", spec_file, *(part for change in changes for part in ("--set", change)))
    refused(answer, "teacher is a cnn32 of 10 classes; the pair cnn3-cnn3 on digits needs a cnn3 of 10")
    assert listing(with_teacher) == before


def test_a_teacher_that_may_have_seen_everything_is_refused_under_held_out(
    kdstudy: Command, with_teacher: Path, spec_file: Path
) -> None:
    before = listing(with_teacher)
    changes = ("methods.kd={}", "teacher.checkpoint=teacher", "teacher.regime=held_out")
    answer = kdstudy("run", spec_file, *(part for change in changes for part in ("--set", change)))
    refused(answer, "teacher.regime: held_out, but teacher was trained on: unknown; use regime seen")
    assert listing(with_teacher) == before


def test_a_teacher_may_not_be_trained_where_that_is_forbidden(
    kdstudy: Command, spec_file: Path, home: Path
) -> None:  # fmt: skip
    refused(
        kdstudy("run", spec_file, "--set", "methods.kd={}", "--no-train-teachers"),
        "teacher.checkpoint: cnn32-cnn3: no teacher is named and --no-train-teachers forbids to train one",
    )
    assert not home.exists()


def test_a_damaged_teacher_is_refused(kdstudy: Command, with_teacher: Path, spec_file: Path) -> None:
    (kept,) = (with_teacher / "teachers").glob("*/weights.pt")
    kept.write_bytes(kept.read_bytes()[:-100])
    answer = kdstudy("run", spec_file, "--set", "methods.kd={}", "--set", "teacher.checkpoint=teacher")
    refused(answer, "teacher.checkpoint: .*weights.pt")


# Alpha beyond the bound


def test_an_alpha_beyond_the_bound_is_allowed_and_its_capped_share_is_shown(
    kdstudy: Command, with_teacher: Path, spec_file: Path
) -> None:
    changes = ("methods={loca: {alpha: [0.95, 1.3]}}", "teacher.checkpoint=teacher", "seeds=3")
    options = [part for change in changes for part in ("--set", change)]
    answer = kdstudy("preflight", spec_file, *options)
    assert answer.code == 0, answer.err
    shares = dict(re.findall(r"^\s*([\d.]+)\s+[\d.]+\s+([\d.]+) %\s*$", answer.out, re.MULTILINE))
    expected = capped_share(load_spec(spec_file, changes), alpha=1.3)
    assert expected > 0.2
    assert float(shares["1.3"]) == pytest.approx(100 * expected, abs=0.5)
    assert float(shares["0.95"]) == 0
    warning = next(line for line in answer.out.splitlines() if "alpha 1.3 leaves the simplex" in line)
    assert warning.startswith("warning: ")
    assert "every alpha below 1.111 is valid on all" in " ".join(answer.out.split())
    assert not (with_teacher / "store.db").exists()
    assert not (with_teacher / "checkpoints").exists()


def capped_share(spec: Any, alpha: float) -> float:
    """In float64 from the formula: p'_y = 1 - alpha / (1 + r), r = p_k / (1 - p_y), is not positive."""
    home = open_home()
    (pair,) = Plan(spec, home).pairs.values()
    images = pair.split("final").train
    views = CropFlip(pair.protocol.pad, pair.protocol.flip)
    assert isinstance(pair.dataset.train_images, ResidentImages)
    shown = views.apply(pair.dataset.train_images.pixels[images], views.view_ids(0, 1, images))
    logits = teachers.load(home.root, "teacher").logits(shown).double()
    p = (logits / pair.protocol.tau).softmax(-1)
    label = pair.dataset.train_labels[images][:, None]
    p_y = p.gather(1, label)[:, 0]
    p_k = p.scatter(1, label, -1.0).amax(1)
    return float(((p_k >= p_y) & (alpha >= 1 + p_k / (1 - p_y))).double().mean())


# Data


def junk_of_torchvisions_names(folder: Path) -> None:
    inner = folder / "cifar-100-python"
    inner.mkdir()
    for name in ("train", "test", "meta"):
        (inner / name).write_bytes(b"junk")


def junk_parquet(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / f"cifar100-{part}.parquet").write_bytes(b"junk")


def nothing(folder: Path) -> None:
    folder.rmdir()


def another_thing(folder: Path) -> None:
    (folder / "readme.txt").write_text("no images here", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nothing, "there is no folder .*images; wanted: a folder with"),
        (another_thing, "nothing of it in .*images; wanted: a folder with"),
        (junk_of_torchvisions_names, "cifar-100-python/train is damaged"),
        (junk_parquet, "cifar100-train.parquet cannot be read as parquet"),
    ],
)
@pytest.mark.parametrize("command", ["run", "preflight"])
def test_data_that_are_missing_or_damaged_are_refused(
    kdstudy: Command, tmp_path: Path, home: Path, command: str, make: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    changes = ("data={name: cifar100, root: images}", "protocol.base=crd-240", "pairs=[resnet20-resnet8]")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    refused(kdstudy(command, path, *(part for change in changes for part in ("--set", change))), says)
    assert listing(home) == []
    assert not list((home / "data").glob("*"))


def test_data_whose_folder_is_not_given_are_refused_with_what_is_wanted(kdstudy: Command, home: Path) -> None:
    refused(kdstudy("run", "alpha-resnet56-resnet20"), "cifar100: no folder given; wanted: a folder with")
    assert listing(home) == []


# Homes and addresses


@pytest.mark.parametrize("inside", ["", "deeper"])
@pytest.mark.parametrize("variable", ["KDSTUDY_HOME", "KDSTUDY_STORAGE", "KDSTUDY_STORE"])
def test_a_place_that_cannot_be_written_is_refused(
    kdstudy: Command, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, inside: str
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine", encoding="utf-8")
    place = in_the_way / inside if inside else in_the_way
    monkeypatch.setenv(variable, f"sqlite:///{place / 'store.db'}" if variable == "KDSTUDY_STORE" else str(place))
    refused(kdstudy("run", spec_file), rf"{place}: cannot be written \(.*\); set {variable} to a place that can")
    assert in_the_way.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("arguments", [("list",), ("status", "small"), ("stop", "small"), ("sync",), ("show", "ab")])
def test_a_home_without_studies_is_not_made_by_looking_at_it(
    kdstudy: Command, home: Path, arguments: tuple[str, ...]
) -> None:
    refused(kdstudy(*arguments), "no studies here; set KDSTUDY_HOME, or begin with `kdstudy run quickstart`")
    assert not home.exists()


def test_a_store_of_another_kind_is_refused(
    kdstudy: Command, spec_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSTUDY_STORE", "oracle://somewhere")
    refused(kdstudy("run", spec_file), "KDSTUDY_STORE: stores of kind 'oracle' are not supported; use sqlite:///PATH")
    assert not home.exists()


@pytest.mark.parametrize("command", [("run", "small.yaml"), ("list",), ("status", "small"), ("run", "small")])
def test_a_store_that_is_no_database_is_refused_and_left_as_it_is(
    kdstudy: Command, spec_file: Path, home: Path, command: tuple[str, ...]
) -> None:
    home.mkdir()
    (home / "store.db").write_bytes(b"this is no database " * 100)
    refused(kdstudy(*command), r"store.db: cannot be opened as a store \(file is not a database\)")
    assert (home / "store.db").read_bytes() == b"this is no database " * 100
    assert not (home / "checkpoints").exists()


def test_a_tracker_that_does_not_answer_is_refused_before_anything_is_written(
    kdstudy: Command, spec_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    address = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    refused(kdstudy("run", spec_file), rf"MLFLOW_TRACKING_URI: {address} does not answer \(.*\); start it, unset")
    assert listing(home) == []


def test_sync_says_that_a_tracker_does_not_answer(
    kdstudy: Command, spec_file: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    with Store(open_home().store_url).opened() as store:
        service.open_study(store, load_spec(spec_file))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    refused(kdstudy("sync"), "MLFLOW_TRACKING_URI: .* does not answer")


@pytest.mark.parametrize("address", ["ftp://somewhere", "mlruns", "file:///tmp/mlruns", "http://", "http://a b"])
def test_an_address_that_is_no_trackers_is_refused(
    kdstudy: Command, spec_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    refused(kdstudy("run", spec_file), "MLFLOW_TRACKING_URI: ")
    assert listing(home) == []


# Studies


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("protocol.lr=0.5", r"protocol.lr: 0.05 -> 0.5"),
        ("data.train_limit=100", r"data.train_limit: not given -> 100"),
        ("pairs=[cnn3-cnn3]", r"pairs lost cnn32-cnn3"),
        ("methods={kd: {}}", r"methods lost ce"),
        ("seeds=[1]", r"seeds lost \[0\]"),
    ],
)
def test_a_spec_that_changed_under_its_study_is_refused_with_what_differs_and_how_to_go_on(
    kdstudy: Command, spec_file: Path, home: Path, change: str, says: str
) -> None:
    spec = load_spec(spec_file)
    with Store(open_home().store_url).opened() as store:
        service.open_study(store, spec)
    changed = {**SPEC, "teacher": {"regime": "seen"}}
    spec_file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    answer = kdstudy("run", spec_file, "--set", change)
    refused(answer, f"study small exists and differs: {says}")
    assert "seeds, budget, list values, methods and pairs may be added" in answer.err
    assert "another name with --set name=" in answer.err
    with Store(open_home().store_url).opened() as store:
        assert store.spec("small") == spec.model_dump(mode="json")
        assert (store.points("small"), store.runs("small")) == ([], [])
    assert not (home / "checkpoints").exists()
    assert not (home / "tune").exists()


@pytest.mark.parametrize("command", ["status", "stop", "retry", "sync", "export"])
def test_an_unknown_study_is_answered_with_the_nearest(kdstudy: Command, spec_file: Path, command: str) -> None:
    with Store(open_home().store_url).opened() as store:
        service.open_study(store, load_spec(spec_file))
    refused(kdstudy(command, "smal"), "unknown study 'smal': did you mean small")


def test_a_request_that_a_study_cannot_answer_is_refused(kdstudy: Command, spec_file: Path) -> None:
    with Store(open_home().store_url).opened() as store:
        service.open_study(store, load_spec(spec_file))
    refused(kdstudy("stop", "small"), "study small is not running")
    refused(kdstudy("retry", "small"), "study small has no failed runs")
    refused(kdstudy("show", "%"), "no run begins with '%'")
    refused(kdstudy("export", "small"), "study small has no finished runs to choose from yet")


@pytest.mark.slow
def test_a_report_of_no_study_is_refused_and_writes_no_folder(kdstudy: Command, tmp_path: Path, home: Path) -> None:
    answer = kdstudy("report", "../../evil", "-o", tmp_path / "evil")
    refused(answer, "there is no such file")
    assert list(tmp_path.rglob("evil*")) == []


@pytest.mark.slow
def test_a_report_from_a_tracker_that_does_not_answer_is_refused(
    kdstudy: Command, home: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    refused(kdstudy("report", "small"), "does not answer")
    assert not (home / "reports").exists()


# A working folder with packages of our names

COMMAND = Path(sys.executable).parent / "kdstudy"
WAYS = {
    "the command": ([str(COMMAND)], {}),
    "the command with the folder on the path": ([str(COMMAND)], {"PYTHONPATH": "."}),
    "python -m": ([sys.executable, "-m", "kdstudy"], {}),
}


def from_a_folder_with_our_names(folder: Path, way: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("study", "analysis", "trainables", "search_spaces"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the user\\'s own package')", encoding="utf-8")
    command, environment = WAYS[way]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_working_folder_with_its_own_study_package_does_not_shadow_ours(tmp_path: Path, way: str) -> None:
    done = from_a_folder_with_our_names(tmp_path, way, "init", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: mine" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_working_folder_with_all_our_names_shadows_nothing_in_a_heavy_command(tmp_path: Path, way: str) -> None:
    done = from_a_folder_with_our_names(tmp_path, way, "doctor")
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["packages"]]
    assert line.split()[1] == "ok", done.stdout
    assert "own package" not in done.stdout + done.stderr


def test_an_execution_that_there_is_not_is_refused(kdstudy: Command, spec_file: Path) -> None:
    answer = kdstudy("run", spec_file, "--execution", "fast")
    assert (answer.code, "--execution: 'fast' is none of eager, graphs, compiled" in answer.err) == (2, True)
    answer = kdstudy("run", spec_file, "--execution", "graphs", "--device", "cpu")
    assert (answer.code, "graphs are for a GPU; use eager or compiled" in answer.err) == (2, True)
