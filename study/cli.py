"""The command `kdstudy`. Heavy imports (torch, Ray, MLflow) are made by the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from sqlalchemy.exc import DBAPIError

from study import printing
from study.errors import INTERRUPTED, RUNS_FAILED, WRONG_REQUEST, RequestError, one_line
from study.printing import out

if TYPE_CHECKING:
    from study.home import Home
    from study.launcher import Machine
    from study.plan import Plan
    from study.spec import Spec
    from study.store import Store

app = typer.Typer(
    name="kdstudy",
    help="Hyperparameter studies of knowledge distillation: which alpha, tau, beta, gamma and method, how sure, and at "
    "what price.\n\nBegin with `kdstudy run quickstart --report`, or `kdstudy init` for a spec of your own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
teacher_app = typer.Typer(help="Teachers: bring in a checkpoint, train one, list them.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
logits_app = typer.Typer(help="Stored logits of teachers: fill, list, drop them.", no_args_is_help=True)
app.add_typer(logits_app, name="logits")

err = Console(stderr=True, highlight=False, emoji=False)

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file, a shipped study or one in the store.")]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study's name.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: protocol.epochs=1, seeds=6 …")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; by default what the machine has.")]
ConcurrencyOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time; by default one a core, or one a GPU.")
]
MaxDevicesOption = Annotated[
    int | None, typer.Option(min=1, help="On a cluster: GPUs, or cores without any, that the study may have at once.")
]
RunsAGpuOption = Annotated[
    int | None,
    typer.Option(min=1, help="On a cluster: runs that share a GPU; by default as many as fit into its memory."),
]
DevicesARunOption = Annotated[
    int, typer.Option(min=1, help="GPUs, or cores without any, that share the batches of a run, of text.")
]
TrackLaterOption = Annotated[
    bool, typer.Option("--track-later", help="Do not need MLflow now; `kdstudy sync` fills it in.")
]


def main() -> None:
    """Run the command line; a wrong request ends in one line and exit code 2."""
    # A method of one's own, `my_losses:mine`, is found where the command is given; last, so that it shadows nothing.
    sys.path.append(str(Path.cwd()))
    try:
        app()
    except RequestError as error:
        err.print(f"kdstudy: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(WRONG_REQUEST)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except DBAPIError as error:
        err.print(
            f"kdstudy: the store cannot be used ({error.orig}); mend that (free room on the disk?) and run again: what "
            "was recorded stays",
            style="bold red",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(RUNS_FAILED)
    except BrokenPipeError:
        # `kdstudy … | head`: nobody reads on, and that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


# Studies


@app.command()
def run(
    spec: SpecArgument,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the report at the end.")] = False,
    device: DeviceOption = None,
    concurrency: ConcurrencyOption = None,
    train_teachers: Annotated[
        bool, typer.Option("--train-teachers/--no-train-teachers", help="Train teachers that the spec does not name.")
    ] = True,
    track_later: TrackLaterOption = False,
    execution: Annotated[
        str | None,
        typer.Option(help="eager, graphs (CUDA graphs; the default on a GPU) or compiled: the same but for rounding."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Join this Ray cluster: HOST:6379, or auto on one of its nodes.")
    ] = None,
    max_devices: MaxDevicesOption = None,
    runs_a_gpu: RunsAGpuOption = None,
    devices_a_run: DevicesARunOption = 1,
) -> None:
    """Run a study, or go on with it where it exists."""
    resolved = _load(spec, set_)
    if address is None:
        for option, value in (("--max-devices", max_devices), ("--runs-a-gpu", runs_a_gpu)):
            if value is not None:
                raise RequestError(f"{option}: is for a cluster (--address); here it is --concurrency")
        _check_device(device)
        _check_execution(execution, device)
    elif concurrency is not None:
        raise RequestError("--concurrency: is for this machine; with --address it is --max-devices and --runs-a-gpu")
    if dry_run:
        printing.print_plan(resolved)
        return
    if not train_teachers:
        from study.preflight import require_no_training

        require_no_training(resolved)
    from study import service

    summary = service.run(
        resolved,
        console=out,
        device=device,
        concurrency=concurrency,
        track_later=track_later,
        execution=execution,
        address=address,
        max_devices=max_devices,
        runs_a_gpu=runs_a_gpu,
        devices_a_run=devices_a_run,
    )
    printing.print_summary(summary)
    if (summary.done or not resolved.methods) and not summary.untracked:
        _conclude([summary.study], report)
        if not report:
            out.print(f"Report:  {printing.command()} report {summary.study}", soft_wrap=True)
        out.print(f"MLflow:  {printing.command()} ui {summary.study}", soft_wrap=True)
    raise typer.Exit(summary.exit_code)


@app.command()
def confirm(
    study: StudyArgument,
    top: Annotated[int, typer.Option(min=1, help="How many of each pair's best points.")] = 3,
    seeds: Annotated[int, typer.Option(min=2, help="How many fresh seeds of each.")] = 5,
    report: Annotated[bool, typer.Option("--report", help="Write the report at the end.")] = False,
    device: DeviceOption = None,
    concurrency: ConcurrencyOption = None,
) -> None:
    """Train a study's best points again, on seeds that did not choose them, with what they are held against.

    The best of many points reads high, since luck helped to choose it; what fresh seeds say of it does not.
    """
    _, store = _open()
    with store.opened():
        _require_study(store, study)
    wanted = [f"confirm={{top: {top}, seeds: {seeds}}}"]
    run(study, wanted, report=report, device=device, concurrency=concurrency)


@app.command()
def launch(
    spec: SpecArgument,
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HOST:8265.")],
    set_: SetOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what it prints; Ctrl-C leaves it running.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the job; nothing secret.")
    ] = None,
    with_: Annotated[
        list[Path] | None, typer.Option("--with", metavar="PATH", help="Code of your own that travels too.")
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="RESOURCE", help="The driver's node must have it: keeps it off the head.")
    ] = None,
    max_devices: MaxDevicesOption = None,
    runs_a_gpu: RunsAGpuOption = None,
    devices_a_run: DevicesARunOption = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default what the cluster has.")] = None,
) -> None:
    """Run a study as a job on a cluster, or go on with it there. Closing this terminal changes nothing."""
    from study import jobs
    from study.database import is_sqlite
    from study.home import open_home
    from study.lock import is_driven
    from study.store import Store

    resolved = _load(spec, set_)
    options = [
        *([] if device is None else ["--device", device]),
        *([] if max_devices is None else ["--max-devices", str(max_devices)]),
        *([] if runs_a_gpu is None else ["--runs-a-gpu", str(runs_a_gpu)]),
        *([] if devices_a_run == 1 else ["--devices-a-run", str(devices_a_run)]),
    ]
    variables = dict(map(_variable, env or []))
    job = jobs.prepare(resolved, address, options=options, variables=variables, on=on, extra=with_ or [])
    if dry_run:
        printing.print_job(job)
        return
    home = open_home(create=False)
    if not is_sqlite(home.store_url):  # else the cluster has its own
        with Store(home.store_url).opened() as store:
            if is_driven(home, store, job.study):
                who = driver.who if (driver := store.driver(job.study)) else "another process"
                raise RequestError(f"study {job.study} is being run already, by {who}")
    jobs.publish_teachers(resolved, home)
    jobs.submit(job)
    out.print(f"Launched {job.study} as {job.submission}.", soft_wrap=True)
    if not follow:
        out.print(f"Follow:  {printing.command()} jobs --address {address} --follow {job.submission}", soft_wrap=True)
        return
    _follow(address, job.submission)


@app.command()
def jobs(
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HOST:8265.")],
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Show what this one prints, to its end.")] = None,
) -> None:
    """List the studies' jobs of a cluster, or follow one."""
    from study import jobs as cluster_jobs

    if follow is not None:
        _follow(address, follow)
    table = printing.table_of("job", "study", "status", "began", "ended", "")
    for job in cluster_jobs.jobs(address):
        began, ended = printing.moment(job.started), printing.moment(job.ended)
        table.add_row(job.submission, job.study, job.status.lower(), began, ended, "" if job.over else job.message)
    out.print(table if table.row_count else "No study was launched there.")


def _follow(address: str, submission: str) -> None:
    """Show what a job prints; ends with its exit code."""
    from study import jobs

    try:
        for text in jobs.follow(address, submission):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        out.print(f"\n{submission} goes on; `{printing.command()} stop STUDY` stops its study.")
        raise typer.Exit(0) from None
    state = jobs.state(address, submission)
    # A job's own exit code is not told; whether the study ended well is.
    raise typer.Exit(0 if state.status == "SUCCEEDED" else RUNS_FAILED)


@app.command()
def preflight(
    spec: SpecArgument,
    set_: SetOption = None,
    device: DeviceOption = None,
    concurrency: ConcurrencyOption = None,
) -> None:
    """Say what a study will cost, and whether it can show anything."""
    resolved = _load(spec, set_)
    _check_device(device)
    from study import preflight as forecasts

    with out.status("measuring a step …"), _planned(resolved, device, concurrency) as (plan, store, machine):
        found = forecasts.forecast(plan, store, device=machine.device, concurrency=machine.concurrency)
    printing.print_forecast(found, plan.home)


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the study and of the file.")] = "my-study",
) -> None:
    """Write a commented spec to start from."""
    from study.home import check_name
    from study.templates import starter

    try:
        check_name(name)
    except ValueError as error:
        raise RequestError(str(error)) from None
    path = Path(f"{name}.yaml")
    if path.exists():
        raise RequestError(f"{path} exists already; choose another name")
    try:
        path.write_text(starter(name), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from None
    out.print(f"Wrote {path}. Look at what it will cost with `kdstudy preflight {path}`, then `kdstudy run {path}`.")


@app.command()
def schema() -> None:
    """Print the JSON schema of a spec."""
    from study.spec import json_schema

    print(json_schema())


@app.command("list")
def list_() -> None:
    """List the studies of this home."""
    from study.lock import is_driven
    from study.service import summarise

    table = printing.table_of("study", "state", ">runs", ">done", ">failed", ">pruned", ">taken over", "last run ended")
    home, store = _open()
    with store.opened():
        for study in store.study_names():
            runs = store.runs(study)
            students = bool((store.spec(study) or {}).get("methods", True))
            counts = summarise(study, runs, wall_seconds=0.0, stopped_by=None, students=students)
            ended = max((run.ended for run in runs if run.ended), default=None)
            table.add_row(
                study,
                printing.state_word(counts.state, is_driven(home, store, study), len(runs)),
                *map(str, (counts.asked, counts.done, counts.failed, counts.pruned, counts.taken_over)),
                printing.moment(ended),
            )
    out.print(table if table.row_count else "No study yet; begin with `kdstudy run quickstart --report`.")


@app.command()
def status(
    study: StudyArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the study is over.")] = False,
) -> None:
    """Show where a study stands."""
    import time

    from study.lock import is_driven
    from study.progress import Display, Progress
    from study.service import summarise
    from study.spec import parse_spec

    home, store = _open()
    with store.opened():
        _require_study(store, study)
        spec = parse_spec(store.spec(study) or {}, f"study {study}")
        metric = spec.valued_by

        def where() -> RenderableType | None:
            driver = store.driver(study) if is_driven(home, store, study) else None
            return None if driver is None else printing.driver_lines(driver)

        progress = Progress(store, study, metric, driven=lambda: is_driven(home, store, study), where=where)
        if watch and is_driven(home, store, study):
            with Display(progress, out):
                while is_driven(home, store, study):
                    time.sleep(1)
        else:
            out.print(progress.render())
        runs = store.runs(study)
        info = store.info(study)
        driven = is_driven(home, store, study)
        students = bool(spec.methods)
        counts = summarise(study, runs, wall_seconds=info["wall_seconds"], stopped_by=None, students=students)
        out.print(
            printing.state_word(counts.state, driven, len(runs)),
            f"after {printing.duration(info['wall_seconds'])} of wall time",
        )
        for note in info.get("warnings", ()):
            out.print(f"note: {note}", markup=False, style="yellow")
        if not driven and counts.state == "stopped":
            out.print(f"Go on with: {printing.command()} run {study}")


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")],
    log: Annotated[bool, typer.Option("--log", help="All of its log, rather than the end.")] = False,
) -> None:
    """Show one run: what it is made of, how it went, and what its driver heard of it."""
    from study import runlog

    home, store = _open()
    with store.opened():
        found = store.find_runs(run_id)
        ids = sorted({run.run_id for _, run in found})
        if not ids:
            raise RequestError(f"no run begins with {run_id!r}; `kdstudy status STUDY` and MLflow show the ids")
        if len(ids) > 1:
            raise RequestError(f"{run_id!r} begins {len(ids)} runs: {', '.join(ids[:4])} …; give more of the id")
        printing.print_run(found, store.history(ids[0]))
        printing.print_log(runlog.read(home, ids[0]), whole=log)


@app.command()
def stop(study: StudyArgument) -> None:
    """Ask a running study to stop; `kdstudy run` goes on with it."""
    from study.lock import is_driven

    home, store = _open()
    with store.opened():
        _require_study(store, study)
        if not is_driven(home, store, study):
            raise RequestError(f"study {study} is not running")
        store.request(study, "stop")
    out.print(f"Asked {study} to stop; its runs go on from their checkpoints at the next `kdstudy run {study}`.")


@app.command()
def retry(study: StudyArgument) -> None:
    """Let the failed runs of a study begin again."""
    from study.lock import is_driven
    from study.store import FAILED

    home, store = _open()
    with store.opened():
        _require_study(store, study)
        failed = len({run.run_id for run in store.runs(study) if run.state == FAILED})
        if not failed:
            raise RequestError(f"study {study} has no failed runs")
        store.request(study, "retry")
        then = "its driver takes them up" if is_driven(home, store, study) else f"now: kdstudy run {study}"
    out.print(f"{failed} failed runs of {study} will begin again; {then}.")


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Free it; without this it is only said.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="The checkpoints of failed runs too.")] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="Those of finished runs too; `export` then has nothing to write.")
    ] = False,
) -> None:
    """Say what this home no longer needs, and free it with --yes.

    The last checkpoint of every run that a study has stays, unless --failed or --finished say otherwise. Stored logits
    are another matter: `kdstudy logits list` and `drop`.
    """
    from study import gc as garbage

    home, store = _open()
    with store.opened():
        try:
            found = garbage.find(home, store, failed=failed, finished=finished)
            for kind in found if yes else ():
                kind.remove()
        except OSError as error:
            raise RequestError(f"KDSTUDY_STORAGE: {error}") from None
    table = printing.table_of("what", ">how many", ">MB")
    for kind in found:
        table.add_row(kind.what, f"{kind.count:,}", "?" if kind.bytes is None else f"{kind.bytes / 1e6:,.1f}")
    if not found:
        out.print("There is nothing that is not needed.")
        return
    out.print(table)
    out.print("All of it is gone." if yes else f"Free it with: {printing.command()} gc --yes")


@app.command()
def sync(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="One study; by default all.")] = None,
) -> None:
    """Bring MLflow to what the store holds."""
    from study import tracking
    from study.lock import hold

    home, store = _open()
    with store.opened():
        names = [study] if study else store.study_names()
        for name in names:
            _require_study(store, name)
        tracking.probe(home.tracking_uri)
        for name in names:
            with hold(home, store, name):
                try:
                    tracking.Tracker(home, store, name).sync(live=False)
                except Exception as error:
                    raise RequestError(
                        f"MLflow at {home.tracking_uri} does not take {name}: {one_line(error)}"
                    ) from None
            out.print(f"{name}: MLflow holds what the store holds")


@app.command()
def report(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="One study or several.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to write it.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the stored report is not what the runs give now.")
    ] = False,
) -> None:
    """Write the report: one HTML page, tables and figures.

    Markdown, CSV and LaTeX tables and SVG and PNG figures lie beside it.
    """
    if not check:
        _conclude(studies, True, output)
        return
    with _analysing("writing the report again …") as (analysis, home):
        folder = output or home.report("+".join(studies))
        found = analysis.changed(home.tracking_uri, studies, folder)
    if found:
        rest = f" and {len(found) - 5} more" if len(found) > 5 else ""
        out.print(f"{folder}: no longer what the runs give: {', '.join(found[:5])}{rest}", markup=False, style="red")
        raise typer.Exit(RUNS_FAILED)
    out.print(f"{folder}: what the runs give", markup=False)


@app.command()
def export(
    study: StudyArgument,
    run_id: Annotated[str | None, typer.Option("--run", metavar="RUN", help="This run, not the best point's.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = None,
) -> None:
    """Write the best student as a checkpoint."""
    from study.exporting import export_student

    home, store = _open()
    with store.opened():
        _require_study(store, study)
        path, sentence = export_student(home, store, study, run_id, output)
    out.print(sentence, markup=False)
    out.print(f"Wrote {path}", markup=False, soft_wrap=True)


@app.command()
def ui(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Name the page of this study.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's pages on this home (on this machine only)."""
    import socket

    from study import mlflow_page, tracking
    from study.home import open_home

    home = open_home()
    if not home.own_tracking:
        out.print(f"MLflow runs elsewhere: {home.tracking_uri}", soft_wrap=True)
        return
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise RequestError(f"--port: {port} is in use; try --port {port + 1}")
    tracking.configure()
    server = f"http://127.0.0.1:{port}/"
    out.print(f"MLflow: {server} (it takes a quarter of a minute to start; Ctrl-C ends it)", soft_wrap=True)
    if study is not None:
        from mlflow.tracking import MlflowClient

        experiment = MlflowClient(tracking_uri=home.tracking_uri).get_experiment_by_name(study)
        if experiment is None:
            raise RequestError(f"MLflow has no study {study} yet; `kdstudy list` shows the studies")
        for what, charts in (("runs:  ", False), ("charts:", True)):
            page = mlflow_page.address(server, experiment.experiment_id, charts=charts)
            out.print(f"{what} {page}", soft_wrap=True)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            home.tracking_uri,
            "--default-artifact-root",
            str(home.artifacts),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ],
    )


@app.command("import-results")
def import_results(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, or JSON lines; one row a run.")],
    study: Annotated[str, typer.Option(help="What to call them, as a study of their own.")],
    source: Annotated[str, typer.Option(help="Whose they are; shown in every report.")],
    protocol: Annotated[str, typer.Option(help="The protocol that they were made with.")] = "unknown",
    classes: Annotated[int | None, typer.Option(min=2, help="Number of classes; by default the data set's.")] = None,
) -> None:
    """Take results of others into MLflow, so that `report` can show them beside one's own, marked as imported.

    Columns: dataset, teacher, student, method, seed, alpha, tau, beta, gamma, state, reason, test_top1_last,
    test_top5_last, test_top1_best (percent), mis_instruction_ratio (0 to 1), device, device_seconds. Needed are
    dataset, student, method, seed and, of a run that is done, test_top1_last.
    """
    from study import results
    from study.home import open_home
    from study.store import Store

    home = open_home()
    with Store(home.store_url).opened() as store:
        taken = store.study_names()
    number = results.import_results(home, taken, file, study=study, source=source, protocol=protocol, classes=classes)
    out.print(f"{number} runs of {source} are in MLflow as {study}; {printing.command()} report {study}", markup=False)


@app.command()
def doctor() -> None:
    """Check what kdstudy needs on this machine."""
    from study.checks import check_all

    table = printing.table_of("check", "", "found")
    healthy = True
    with out.status("checking …"):
        for check in check_all():
            healthy = healthy and check.ok
            table.add_row(check.name, "[green]ok[/]" if check.ok else "[bold red]not ok[/]", check.found)
    out.print(table)
    raise typer.Exit(0 if healthy else RUNS_FAILED)


# Teachers


@teacher_app.command("import")
def teacher_import(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A state dict as torch.save writes it, a file of `teacher export`, or torchvision for its weights.",
        ),
    ],
    model: Annotated[str | None, typer.Option(help="Its architecture (`kdstudy models`).")] = None,
    dataset: Annotated[str | None, typer.Option(help="What it classifies (`kdstudy datasets`).")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it; by default the file's name.")] = None,
    mean: Annotated[str | None, typer.Option(help="Its normalisation, by channel: 0.5071,0.4867,0.4408")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise; by default the data set's.")] = None,
    trained_on: Annotated[
        str,
        typer.Option(help="What it saw of the training images: all, none, or unknown, which counts as all."),
    ] = "unknown",
    protocol: Annotated[str, typer.Option(help="Whose views its mis-instruction ratio is measured on.")] = "crd-240",
) -> None:
    """Check a checkpoint, measure it and keep it; a file of `teacher export` is kept with the record it has."""
    from study.home import open_home
    from study.importing import TORCHVISION, import_file, import_teacher

    home = open_home()
    record = None if checkpoint == TORCHVISION else import_file(home, Path(checkpoint))
    if record is None:
        if model is None or dataset is None:
            missing = "--model" if model is None else "--dataset"
            raise RequestError(f"{missing}: a plain checkpoint does not say what it is; give --model and --dataset")
        with out.status(f"measuring {Path(checkpoint).name} on {dataset} …"):
            record = import_teacher(
                home,
                checkpoint,
                model=model,
                dataset=dataset,
                root=root,
                name=name,
                mean=mean,
                std=std,
                trained_on=trained_on,
                protocol=protocol,
            )
    printing.print_teachers([record])
    out.print(f"Mis-instruction on {record.ratio_on}.", soft_wrap=True)
    out.print(f"Use it with: teacher: {{checkpoint: {record.name}}}", markup=False)


@teacher_app.command("export")
def teacher_export(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Its name, or the beginning of its hash.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = None,
) -> None:
    """Write a teacher with all that is known of it to one file, for `teacher import` on another machine."""
    from study.home import open_home
    from trainables import teachers
    from trainables.files import CheckpointError

    path = output or Path(f"{teacher}.teacher.pt")
    try:
        record = teachers.export_file(open_home(create=False).root, teacher, path)
    except CheckpointError as error:
        raise RequestError(str(error)) from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be written ({error.strerror})") from None
    out.print(f"Wrote {path}: {record.name}, {record.model}, {record.hash[:16]}", markup=False, soft_wrap=True)


@teacher_app.command("train")
def teacher_train(
    spec: SpecArgument,
    set_: SetOption = None,
    device: DeviceOption = None,
    concurrency: ConcurrencyOption = None,
    track_later: TrackLaterOption = False,
) -> None:
    """Train the teachers that a study needs and does not name, without its students."""
    resolved = _load(spec, set_)
    _check_device(device)
    from study import service

    summary = service.run(
        resolved, console=out, device=device, concurrency=concurrency, track_later=track_later, teachers_only=True
    )
    if summary.stopped_by != service.TEACHERS_DONE and summary.state != "finished":
        printing.print_summary(summary)
        raise typer.Exit(summary.exit_code)
    teacher_list()


@teacher_app.command("list")
def teacher_list() -> None:
    """List the teachers of this home."""
    from study.home import open_home
    from trainables import teachers
    from trainables.files import CheckpointError

    try:
        records = teachers.list_records(open_home(create=False).root)
    except CheckpointError as error:
        raise RequestError(str(error)) from None
    if records:
        printing.print_teachers(records)
    else:
        out.print("No teacher yet; `kdstudy teacher import` brings one in, and a study trains what it needs.")


# Stored logits


@logits_app.command("build")
def logits_build(
    spec: SpecArgument,
    set_: SetOption = None,
    device: DeviceOption = None,
    concurrency: ConcurrencyOption = None,
) -> None:
    """Ask a study's teachers now about every view that its runs will meet. Runs fill in what is missing anyway."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    resolved = _load(spec, set_)
    _check_device(device)
    from study import logits

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    asked = 0
    with _planned(resolved, device, concurrency) as (plan, store, machine):
        processes = machine.concurrency if machine.device == "cpu" else 1
        steps = logits.build(plan, store, device=machine.device, processes=processes)
        with Progress(*columns, console=out) as progress:
            task = progress.add_task("epochs of views")
            for done, total, asked in steps:
                progress.update(task, completed=done, total=total, description=f"epochs of views, {asked:,} asked")
    out.print(f"The teachers were asked about {asked:,} views; the rest was there.")
    logits_list()


@logits_app.command("list")
def logits_list() -> None:
    """List what is stored: whose logits, on what, and the room that they take."""
    from study import logits
    from study.home import open_home
    from trainables.logits import stored

    home = open_home(create=False)
    printing.print_logits(stored(home.logits), logits.text_stored(home.logits), logits.teacher_names(home))


@logits_app.command("drop")
def logits_drop(
    which: Annotated[list[str] | None, typer.Argument(metavar="TEACHER|ID", help="Whose, or which.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Remove stored logits; whoever needs them asks the teacher again."""
    from study import logits
    from study.home import open_home
    from trainables.logits import drop, stored

    home = open_home(create=False)
    if bool(which) == every:
        raise RequestError("logits drop: name a teacher or an id of `kdstudy logits list`, or give --all")
    of_text = logits.text_stored(home.logits) if every else []
    found = stored(home.logits) if every else []
    for name in which or ():
        mine = logits.find_text(home, name)
        of_text += mine
        found += [] if mine else logits.find(home, name)
    unique = {one.folder: one for one in found}
    for one in unique.values():
        drop(one)
    unique_text = {one.id: one for one in of_text}
    for kept in unique_text.values():
        kept.drop()
    freed = sum(one.bytes for one in unique.values()) + sum(kept.bytes for kept in unique_text.values())
    out.print(f"Dropped {len(unique) + len(unique_text)}: {freed / 1e6:,.1f} MB are free again.")


# Registries


@app.command()
def protocols() -> None:
    """List the training protocols, every field of each."""
    from trainables import protocol

    names = protocol.names()
    identities = {name: protocol.resolve(name).identity() for name in names}
    table = printing.table_of("field", *names)
    for field in next(iter(identities.values())):
        table.add_row(field, *(printing.plain(identities[name][field]) for name in names))
    out.print(table)


@app.command()
def methods() -> None:
    """List the training objectives, their formulas and parameters."""
    from search_spaces.spaces import written
    from trainables import objectives

    for entry in map(objectives.get, objectives.names()):
        source = f"  [dim]({escape(entry.source)})[/]" if entry.source != "-" else ""
        out.print(f"[bold]{entry.name}[/]  {escape(entry.summary)}{source}")
        out.print(f"    {entry.formula}", markup=False)
        for parameter in entry.parameters:
            default = "the protocol's" if parameter.default is None else f"{parameter.default:g}"
            out.print(f"    {parameter.name}: {parameter.help}; {parameter.allowed}; default {default}", markup=False)
        for option in entry.options:
            choices = ", ".join(map(written, option.choices))
            out.print(f"    {option.name}: {option.help}; one of {choices}; default the first", markup=False)


@app.command("models")
def models_() -> None:
    """List the networks, with parameters and multiply-adds."""
    from trainables import models
    from trainables.text import models as text_models

    table = printing.table_of("model", "input", ">classes", ">parameters", ">MMACs", "source")
    for entry in map(models.get, models.names()):
        network = models.build(entry.name, entry.num_classes)
        table.add_row(
            entry.name,
            "x".join(map(str, entry.input_shape)),
            str(entry.num_classes),
            f"{models.count_parameters(network):,}",
            f"{models.count_macs(network, entry.input_shape) / 1e6:.2f}",
            entry.source if entry.source != "-" else entry.summary,
        )
    out.print(table)
    out.print(
        "For text: the causal models below, and hf:NAME for a folder NAME of KDSTUDY_MODELS; _every10 takes every"
    )
    out.print("tenth layer of a model, _tiny, _small and _base are fresh ones with its tokenizer.")
    out.print("  " + ", ".join(text_models.names()), markup=False)


@app.command("datasets")
def datasets_() -> None:
    """List the data sets."""
    from trainables import data
    from trainables.text import corpora

    for entry in map(data.get, data.names()):
        out.print(f"[bold]{entry.name}[/]  {escape(entry.summary)}")
        if entry.num_classes and entry.sizes and entry.shape:
            shape, (train, test) = "x".join(map(str, entry.shape)), entry.sizes
            out.print(f"    {entry.num_classes} classes, {train:,} training and {test:,} test images of {shape}")
        out.print(f"    from: {entry.source}", markup=False)
    for corpus in map(corpora.CORPORA.get, corpora.names()):
        part = "text" if corpus.train else "text, to evaluate on"
        out.print(f"[bold]{corpus.name}[/]  {escape(corpus.summary)} ({part})")
        out.print(f"    from: {corpus.source}", markup=False)


@app.command("pairs")
def pairs_() -> None:
    """List the named pairs, and the shipped studies."""
    from search_spaces import pairs, shipped

    table = printing.table_of("pair", "teacher", "student", "where it is from", "its own defaults")
    for pair in pairs.PAIRS.values():
        defaults = ", ".join(f"{name} {value:g}" for name, value in pair.defaults.items())
        table.add_row(pair.name, pair.teacher, pair.student, pair.remark, defaults)
    out.print(table)
    out.print("Any two models for images of as many channels make a pair too: TEACHER-STUDENT.\n")
    table = printing.table_of("shipped study", "question")
    for name in shipped.names():
        table.add_row(name, shipped.question(name))
    out.print(table)


# Helpers


def _load(source: str, overrides: list[str] | None) -> Spec:
    """A spec from a file, a study in the store, or a shipped name; a study that is there goes on as it was asked."""
    from search_spaces import shipped
    from study.home import open_home
    from study.spec import apply_overrides, load_spec
    from study.store import Store

    is_file = source.endswith((".yaml", ".yml")) or Path(source).is_file()
    if not is_file and (home := open_home(create=False)).has_store:
        with Store(home.store_url).opened() as store:
            stored = store.spec(source)
        renamed = any(override.startswith("name=") for override in overrides or [])
        if stored is not None and not (renamed and shipped.path(source)):
            return apply_overrides(stored, overrides or [], f"study {source}")
    return load_spec(source, overrides or [])


@contextmanager
def _planned(spec: Spec, device: str | None, concurrency: int | None) -> Iterator[tuple[Plan, Store | None, Machine]]:
    """A study that may not have begun: its plan, the store where there is one, and what its runs may use here."""
    from study import launcher, sharing
    from study.home import open_home
    from study.plan import Plan
    from study.store import Store

    home = open_home()
    plan = Plan(spec, home)
    machine = launcher.this_machine(device, concurrency, lambda: sharing.runs_a_gpu(plan))
    with Store(home.store_url).opened() if home.has_store else nullcontext() as store:
        yield plan, store, machine


def _variable(given: str) -> tuple[str, str]:
    name, found, value = given.partition("=")
    if not found or not name.isidentifier():
        raise RequestError(f"--env: {given!r} is not NAME=VALUE")
    return name, value


def _open() -> tuple[Home, Store]:
    from study.home import open_home
    from study.store import Store

    home = open_home(create=False)
    if not home.has_store:
        raise RequestError(f"{home.root}: no studies here; set KDSTUDY_HOME, or begin with `kdstudy run quickstart`")
    return home, Store(home.store_url)


def _require_study(store: Store, study: str) -> None:
    from trainables.naming import unknown

    names = store.study_names()
    if study not in names:
        raise RequestError(unknown("study", study, names))


def _check_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    if device not in ("cpu", "cuda"):
        raise RequestError(f"--device: {device!r} is neither cpu nor cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device: cuda, but this machine has no accelerator that PyTorch can use")


def _check_execution(execution: str | None, device: str | None) -> None:
    if execution is None:
        return
    import torch

    from trainables.engine import EXECUTIONS

    if execution not in EXECUTIONS:
        raise RequestError(f"--execution: {execution!r} is none of {', '.join(EXECUTIONS)}")
    if execution == "graphs" and (device == "cpu" or not torch.cuda.is_available()):
        raise RequestError("--execution: graphs are for a GPU; use eager or compiled")


def _conclude(studies: list[str], report: bool, output: Path | None = None) -> None:
    """Say what the studies found: the answer, then what stands against it. With `report`, write their report too."""
    with _analysing("reading the runs …") as (analysis, home):
        loads = (analysis.load_runs, analysis.load_history, analysis.load_studies)
        frames = [load(home.tracking_uri, studies) for load in loads]
        sentences = analysis.verdicts(*frames)
    for sentence in sentences:
        out.print(f"• {sentence}", markup=False)
    if not report:
        return
    with _analysing("writing the report …") as (analysis, home):
        folder = output or home.report("+".join(studies))
        try:
            page = analysis.write_report(*frames, folder, analysis.generations_of(home.tracking_uri, frames[2]))
        except OSError as error:
            raise RequestError(f"{folder}: cannot be written ({error.strerror})") from None
    out.print(f"Report:  {page}", markup=False, soft_wrap=True)


@contextmanager
def _analysing(doing: str) -> Iterator[tuple[ModuleType, Home]]:
    """`analysis` and the home, with MLflow's client set up; what cannot be analysed becomes a wrong request."""
    from study import tracking
    from study.home import open_home

    tracking.configure()
    import analysis

    try:
        with out.status(doing):
            yield analysis, open_home(create=False)
    except analysis.ReportError as error:
        raise RequestError(str(error)) from None
