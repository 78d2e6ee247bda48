"""Taking a student home: the best point's, or one run's, as a checkpoint that says how to use it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from search_spaces.spaces import written
from study.errors import RequestError
from study.home import Home
from study.plan import ABLATION, FINAL, TEACHER
from study.spec import parse_spec
from study.store import DONE, RunRow, Store
from trainables.data.cache import keep
from trainables.files import CheckpointError, checkpoint_bytes, write_atomic


def export_student(home: Home, store: Store, study: str, run_id: str | None, output: Path | None) -> tuple[Path, str]:
    """Write one student's weights with its model's name, classes and normalisation.

    Without `run_id` it is the first seed's run of the point with the best mean: in a search the best of the final stage
    by validation, which chose it; in an ablation the best by the last epoch's test accuracy, which is said.

    Returns:
        The file, and a sentence that says which student it is and by what it was chosen.

    Raises:
        RequestError: no such run, no run that is done, or its checkpoint is gone.
    """
    runs = [run for run in store.runs(study) if run.state == DONE and run.stage != TEACHER]
    if run_id is not None:
        chosen = [run for run in runs if run.run_id.startswith(run_id)]
        if not chosen:
            raise RequestError(f"study {study} has no finished run that begins with {run_id!r}")
        run, reason = chosen[0], "as asked"
    else:
        run, reason = _best(store, study, runs)
    try:
        state_dict = home.read_checkpoint(run.run_id, run.checkpoint)["model"]
    except CheckpointError as error:
        raise RequestError(str(error)) from None
    described = store.info(study).get("pairs", {}).get(run.pair)
    if described is None:
        raise RequestError(f"study {study}: its record is an older kdstudy's; `kdstudy run {study}` renews it")
    section = described["data"]
    if section.get("task") == "text":
        folder = output or Path(f"{study}-{run.identity['student'].replace(':', '-')}-{run.run_id[:8]}")
        _write_model(home, run, state_dict, folder)
        return folder, f"{_described(run, 'ROUGE-L', 'test_rouge_l_last', '')}; {reason}"
    path = output or Path(f"{study}-{run.identity['student']}-{run.run_id[:8]}.pt")
    content = {
        "state_dict": state_dict,
        "student": run.identity["student"],
        "num_classes": section["num_classes"],
        "dataset": section["name"],
        "mean": section["mean"],
        "std": section["std"],
        "run_id": run.run_id,
        "method": run.method,
        "parameters": run.parameters,
        "summary": run.summary,
    }
    try:
        write_atomic(path, checkpoint_bytes(content))
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from None
    return path, f"{_described(run, 'top-1', 'test_top1_last', ' %')}; {reason}"


def _described(run: RunRow, score: str, metric: str, unit: str) -> str:
    shown = ", ".join(f"{name} {written(value)}" for name, value in run.parameters.items())
    value = (run.summary or {}).get(metric)
    measured = "" if value is None else f", test {score} {value:.2f}{unit} at the last epoch"
    return f"{run.identity['student']} by {run.method} ({shown}), seed {run.seed}{measured}"


def _write_model(home: Home, run: RunRow, state: dict[str, Any], folder: Path) -> None:
    """A student of text as a folder that transformers reads: adapters are merged into the weights.

    Raises:
        RequestError: the folder is there already or cannot be written, or the model's files have changed.
    """
    from trainables.text import models
    from trainables.text.network import Network
    from trainables.text.teacher import adapter_rank, put_back

    if folder.exists():
        raise RequestError(f"{folder}: is there already; name another with --output")
    name = run.identity["student"]
    try:
        network = Network(models.build(name, home.models, home.data), adapter_rank(state))
        put_back(network, state, models.base_hash(name, home.models), f"run {run.run_id}")
        tokenizer = models.tokenizer(name, home.models, home.data)
        model = network.merged()

        def write(made: Path) -> None:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)

        keep(folder.absolute(), write)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _score(run: RunRow) -> float:
    summary = run.summary or {}
    return float(summary.get("test_rouge_l_last", summary.get("test_top1_last", 0.0)))


def _best(store: Store, study: str, runs: list[RunRow]) -> tuple[RunRow, str]:
    by_validation = parse_spec(store.spec(study) or {}, f"study {study}").chosen_by == "validation"
    stage = FINAL if by_validation else ABLATION if any(run.stage == ABLATION for run in runs) else "search"
    points: dict[str, list[RunRow]] = {}
    for run in runs:
        if run.stage == stage:
            points.setdefault(run.point_id, []).append(run)
    if not points:
        raise RequestError(f"study {study} has no finished runs to choose from yet")
    if by_validation:
        values = {point.point_id: point.value or 0.0 for point in store.points(study, "search")}
        best = max(points, key=lambda point: values[point])
        reason = "the point was chosen by validation accuracy"
    else:
        best = max(points, key=lambda point: fmean(_score(run) for run in points[point]))
        reason = "the point was chosen by test accuracy, so this accuracy is optimistic"
    return min(points[best], key=lambda run: run.seed), reason
