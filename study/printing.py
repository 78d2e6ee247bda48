"""What the command line prints: plans, forecasts, summaries, runs and teachers, as tables and sentences."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from study.home import Home
    from study.jobs import Job
    from study.preflight import Forecast
    from study.service import Summary
    from study.spec import Spec
    from study.store import DriverRow, RunRow
    from trainables.logits import Stored
    from trainables.teachers import TeacherRecord
    from trainables.text.store import Stored as TextStored

_LOG_LINES = 8

out = Console(highlight=False)


def print_plan(spec: Spec) -> None:
    from search_spaces.spaces import written
    from study.service import expected_runs

    out.print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).rstrip(), markup=False)
    table = table_of("method", "points", ">runs")
    for name, space in spec.spaces().items():
        if space.sampled:
            points, number = f"{spec.search.points} from {spec.search.sampler}", spec.search.points or 0
        else:
            grid = list(space.grid())
            number = len(grid)
            points = "; ".join(", ".join(f"{k} {written(v)}" for k, v in values.items()) for values in grid if values)
        table.add_row(name, points or "the protocol's values", str(number * len(spec.seeds) * len(spec.pairs)))
    out.print(table)
    final = " (the final stage's among them)" if spec.chosen_by == "validation" else ""
    out.print(f"{expected_runs(spec)} runs{final}, {spec.mode}, on {len(spec.seeds)} seeds. Nothing was run.")


def print_summary(summary: Summary) -> None:
    done = f"{summary.done} of {summary.asked} runs done"
    extra = [
        f"{n} {what}"
        for n, what in (
            (summary.taken_over, "taken over from other studies"),
            (summary.pruned, "pruned"),
            (summary.failed, "failed"),
        )
        if n
    ]
    out.print(f"{summary.study}: {', '.join([done, *extra])}, {duration(summary.wall_seconds)} in all.")
    for note in summary.warnings:
        out.print(f"note: {note}", markup=False, style="yellow")
    for reason, number in summary.reasons.items():
        out.print(f"failed ({number}): {reason}", markup=False, style="red")
    if summary.state == "failed" and summary.stopped_by:
        out.print(f"Stopped early ({summary.stopped_by}).", markup=False, style="red")
    if summary.failed:
        out.print(f"Try them again with: {command()} retry {summary.study}; {command()} run {summary.study}")
    if summary.state == "stopped":
        out.print(f"Stopped ({summary.stopped_by}). Go on with: {command()} run {summary.study}", markup=False)
    if summary.untracked:
        said = f"MLflow does not have all of it yet ({summary.untracked}): {command()} sync {summary.study}"
        out.print(said, markup=False, style="yellow")


def print_forecast(found: Forecast, home: Home) -> None:
    out.print(f"[bold]{found.study}[/]: {found.mode}, {found.points} points, {found.runs} runs ({found.known} done)")
    out.print(
        f"About {duration(found.seconds)} on this machine ({found.device}, {found.concurrency} runs at a time) after "
        f"start-up, from a measured step; {found.disk_bytes / 2**20:,.0f} MiB of checkpoints, "
        f"up to {found.logit_bytes / 2**20:,.0f} MiB of teachers' logits, "
        f"{shutil.disk_usage(home.root).free / 2**30:,.0f} GiB free"
    )
    for pair in found.pairs:
        ratio = "" if pair.ratio is None else f"{100 * pair.ratio:.2f} %, "
        out.print(f"\n[bold]{pair.pair}[/]  teacher: {escape(pair.teacher)}")
        if pair.seconds_teacher:
            out.print(f"  training it costs about {duration(pair.seconds_teacher)} more, included above")
        out.print(f"  mis-instruction ratio: {ratio}{pair.ratio_on}")
        out.print(f"  a run: {duration(pair.seconds_plain)} without, {duration(pair.seconds_taught)} with a teacher")
        if pair.logits:
            out.print(f"  logits: {pair.logits}", markup=False)
        if pair.effects:
            table = table_of(">alpha", ">moved where the teacher is wrong", ">capped views")
            for effect in pair.effects:
                table.add_row(f"{effect.alpha:g}", f"{effect.moved:.3f}", f"{100 * effect.capped:.2f} %")
            out.print(table)
    if found.resolvable is not None:
        out.print(
            f"\nThe seeds resolve a difference of {found.resolvable:.2f} points between two methods (80 % power, 5 % "
            f"two-sided, unpaired; SD {found.sd:.2f}, {found.sd_from})"
            + (
                f", {found.resolvable_of_all:.2f} where the {found.comparisons} comparisons of a pair are corrected for"
                if found.resolvable_of_all is not None and found.comparisons > 1
                else ""
            )
            + ". Seeds are shared, so paired comparisons may do better."
        )
    for note in found.warnings:
        out.print(f"warning: {note}", style="yellow", markup=False)


def print_run(found: list[tuple[str, RunRow]], history: list[dict[str, float]]) -> None:
    run = found[0][1]
    out.print(f"[bold]{run.run_id}[/]  {run.state}, epoch {run.epoch} of {run.epochs}, attempt {run.attempt}")
    for study, row in found:
        took = ", taken over" if row.taken_over else ""
        origin = f", proposed by: {row.origin}" if row.origin else ""
        out.print(
            f"  in {study}: {row.pair} {row.method}, stage {row.stage}, seed {row.seed}{took}{origin}", markup=False
        )
    for name, value in run.identity.items():
        out.print(f"  {name}: {value}", markup=False)
    if run.reason:
        out.print(f"  reason: {run.reason}", style="red", markup=False)
    for name, value in (run.summary or {}).items():
        out.print(f"  {name}: {value:.4g}", style="bold")
    out.print(f"  checkpoint: {run.checkpoint}", markup=False, soft_wrap=True)
    if history:
        names = [name for name in history[-1] if name not in ("epoch", "time")]
        table = table_of(">epoch", *(f">{name}" for name in names))
        for metrics in history if len(history) <= 12 else [*history[:3], *history[-9:]]:
            table.add_row(str(int(metrics["epoch"])), *(f"{metrics[name]:.4g}" for name in names))
        out.print(table)


def print_teachers(records: list[TeacherRecord]) -> None:
    table = table_of("teacher", "hash", "model", "data set", ">top-1 %", ">mis-instruction", "trained on")
    for record in records:
        table.add_row(
            record.name,
            record.hash[:16],
            record.model,
            record.dataset,
            _worth(record),
            f"{100 * record.mis_instruction_ratio:.2f} %",
            record.trained_on,
        )
    out.print(table)


def _worth(record: TeacherRecord) -> str:
    """A teacher's accuracy, or its ROUGE-L where it is of text."""
    if record.rouge_l is not None:
        return f"ROUGE-L {record.rouge_l.get(record.dataset, math.nan):.2f}"
    return f"{record.test_top1:.2f}" + (f" ({record.folds} folds)" if record.folds else "")


def print_logits(found: list[Stored], of_text: list[TextStored], names: dict[str, str]) -> None:
    """What is stored of teachers, of images and of text."""
    if of_text:
        table = table_of("id", "teacher", "kept", ">examples", ">MB")
        for kept in of_text:
            name = names.get(kept.teacher, kept.teacher[:8])
            table.add_row(kept.id, name, kept.what, f"{kept.examples:,}", f"{kept.bytes / 1e6:,.1f}")
        out.print(table)
        if not found:
            return
    if not found:
        out.print("No logits are stored; a study's runs store them as they go, `kdstudy logits build` ahead of them.")
        return
    table = table_of("id", "teacher", "data set", ">views", "kept as", "by", ">MB", ">full MB", "used")
    for one in found:
        key = one.key
        table.add_row(
            one.folder.name[:8],
            names.get(key.teacher, key.teacher[:8]),
            key.dataset,
            f"{key.views.count:,}",
            key.dtype,
            key.device,
            f"{one.bytes / 1e6:,.1f}",
            f"{key.full_bytes / 1e6:,.1f}",
            moment(one.used)[:10],
        )
    out.print(table)
    out.print(f"{sum(one.bytes for one in found) / 1e6:,.1f} MB in all. MB grow to full as more views are met.")


def print_log(said: str | None, *, whole: bool) -> None:
    """A run's log, or its last lines."""
    if said is None:
        out.print("Its log is not on this host; its MLflow run has it as run.log when it has ended.")
        return
    lines = said.splitlines()
    part = "" if whole or len(lines) <= _LOG_LINES else f", the last {_LOG_LINES} of {len(lines)} lines (--log: all)"
    out.print(f"log{part}:")
    for line in lines if whole else lines[-_LOG_LINES:]:
        out.print(f"  {line}", markup=False, soft_wrap=True)


def driver_lines(driver: DriverRow) -> Group:
    """Who drives a study, and the nodes that it has."""
    ago = max(0.0, time.time() - driver.seen)
    said = Text(f"driven by {driver.who}, heard of {duration(ago)} ago")
    nodes = driver.about.get("nodes", [])
    if len(nodes) < 2:
        return Group(said)
    table = table_of("node", "address", "", ">cores", ">GPUs")
    for node in nodes:
        alive = "up" if node["alive"] else "[bold red]lost[/]"
        table.add_row(node["host"], node["address"], alive, f"{node['cpus']:g}", f"{node['gpus']:g}")
    return Group(said, table)


def print_job(job: Job) -> None:
    """What would be sent to a cluster."""
    out.print(f"to        {job.address}", markup=False, soft_wrap=True)
    out.print(f"job       {job.submission}", markup=False, soft_wrap=True)
    out.print(f"command   {job.command}", markup=False, soft_wrap=True)
    for name, value in job.environment.items():
        out.print(f"variable  {name}={value}", markup=False, soft_wrap=True)
    for name, reason in job.left.items():
        out.print(f"not sent  {name}: {reason}", markup=False, soft_wrap=True)
    for name in job.resources:
        out.print(f"driver    on a node with the resource {name!r}", markup=False, soft_wrap=True)
    total = sum(job.files.values())
    out.print(f"files     {len(job.files)} of {total / 1e6:.1f} MB:")
    for name, size in job.files.items():
        out.print(f"          {size:>9,}  {name}", markup=False, soft_wrap=True)
    out.print("spec      as spec.json:")
    out.print(json.dumps(job.spec, indent=2), markup=False, soft_wrap=True)


def command() -> str:
    """How this command was called, as one may type it again from the same folder."""
    called = Path(sys.argv[0])
    if called.name != "kdstudy" or not called.is_absolute():
        return "kdstudy" if called.name != "kdstudy" else str(called)
    try:
        return str(called.relative_to(Path.cwd()))
    except ValueError:
        return "kdstudy"


def plain(value: Any) -> str:
    """A field's value as a spec writes it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table_of(*columns: str) -> Table:
    """A plain table; a column that begins with `>` is right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return table


def state_word(state: str, driven: bool, runs: int) -> str:
    if driven:
        return "running"
    return "not begun" if runs == 0 else state


def moment(stamp: float | None) -> str:
    return "" if stamp is None else datetime.fromtimestamp(stamp).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
