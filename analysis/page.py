"""The report: one self-contained HTML page, the same in Markdown, and every table and figure as a file of its own."""

import base64
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import figures, tables
from analysis.answers import Answer, answers, teacher_sentences, warnings
from analysis.figures import Drawing
from analysis.frames import (
    GENERATION_COLUMNS,
    ReportError,
    finished,
    generations_of,
    load_history,
    load_runs,
    load_studies,
    section,
    teachers_only,
)
from analysis.paper_tables import paper_tables
from analysis.papers import not_comparable, published_curve
from analysis.points import CONFIRM, Point, pairs, points, result_stage
from analysis.responses import by_set, case_table, cases, compared_table, data_table
from analysis.scores import TOP1, Score, score_of
from analysis.statistics import Difference
from analysis.tables import Table
from analysis.wording import methods_text

SHOWN_RUNS = 500
MARK = '<meta name="generator" content="kdstudy">'
ENTRIES = ("report.html", "report.md", "tables", "figures")


@dataclass(frozen=True)
class PairPart:
    """One pair's part of a report."""

    pair: str
    answer: Answer
    alpha_curve: Drawing | None
    ablation: Table
    learning_curves: Drawing | None
    cost: Drawing | None
    by_set: Drawing | None
    responses: Table | None
    cases: Table | None
    text_data: Table | None
    confirmed: Table | None
    resolution: Table | None
    printed: str

    @property
    def tiles(self) -> list[tuple[str, str]]:
        """The answer's numbers, each with its meaning."""
        best = self.answer.best
        shown = TOP1.shown if best is None else best.score.shown
        found = []
        if best is not None:
            found.append(
                (
                    f"{tables.fixed(best.last.mean)}{best.score.unit}",
                    f"test {best.score.name} of {best.label}, last epoch",
                )
            )
            gain: Difference | None = best.difference
            if gain is not None and gain.n:
                over = "" if gain.low is None else f", 95 %: {tables.interval(gain, tables.signed)}"
                found.append((tables.signed(gain.mean), f"points to KD{over}"))
            found.append((str(best.last.n), "seed" if best.last.n == 1 else "seeds"))
        if self.answer.resolvable is not None:
            found.append((tables.fixed(self.answer.resolvable), "points is the least these seeds resolve"))
        if self.answer.ratio == self.answer.ratio:
            found.append((tables.share(self.answer.ratio), f"of {shown} mis-instructed"))
        return found


@dataclass(frozen=True)
class StudyPart:
    """One study's part of a report."""

    study: Mapping[str, Any]
    said: Sequence[str]  # the answer of a study without methods, which has no pairs' parts
    pairs: Sequence[PairPart]
    warnings: Sequence[str]
    mis_instruction: Drawing | None
    search_drawings: Sequence[Drawing]
    methods: Sequence[str]
    conditions: Table | None
    gains: Table | None
    search_table: Table | None
    lost: Table | None
    teachers: Table | None
    runs: Table

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure."""
        found = [
            each for pair in self.pairs for each in (pair.alpha_curve, pair.by_set, pair.learning_curves, pair.cost)
        ]
        return [each for each in [*found, self.mis_instruction, *self.search_drawings] if each is not None]

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        found = [
            self.conditions,
            self.gains,
            *(pair.ablation for pair in self.pairs),
            *(pair.confirmed for pair in self.pairs),
            *(pair.responses for pair in self.pairs),
            *(pair.cases for pair in self.pairs),
            *(pair.text_data for pair in self.pairs),
            *(pair.resolution for pair in self.pairs),
            self.search_table,
            self.lost,
            self.teachers,
        ]
        return [each for each in found if each is not None]

    @property
    def score(self) -> Score:
        """What its students are valued by."""
        return score_of(self.study)

    @property
    def protocol(self) -> list[tuple[str, str, str]]:
        """Each field of the protocol: name, value, and the base's value where it was changed."""
        changed = {change["field"]: plain(change["base"]) for change in self.study["protocol_changes"]}
        return [(name, plain(value), changed.get(name, "")) for name, value in self.study["protocol"].items()]


@dataclass(frozen=True)
class Overall:
    """What a report shows of all its studies and pairs together."""

    drawings: Sequence[Drawing]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Content:
    """Everything that a report shows."""

    parts: Sequence[StudyPart]
    overall: Overall

    @property
    def drawings(self) -> list[Drawing]:
        """Every figure."""
        return [*(each for part in self.parts for each in part.drawings), *self.overall.drawings]

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        return [*(each for part in self.parts for each in part.tables), *self.overall.tables]


def report(tracking_uri: str, studies: str | Sequence[str], out_dir: Path | str) -> Path:
    """Write a report of one study or several.

    The folder gets `report.html` (self-contained), `report.md`, `tables/` (CSV, Markdown, LaTeX) and `figures/` (SVG,
    PNG). The same store gives the same bytes. The parts are written beside the folder and moved in when all are there;
    an older report is replaced, other files in its folder stay.

    Args:
        tracking_uri: MLflow's address.
        studies: one study's name, or several.
        out_dir: a folder that is new, empty, or holds an older report.

    Returns:
        The path of report.html.

    Raises:
        ReportError: unknown study, none of its runs finished, MLflow does not answer, or a folder that cannot be used.
    """
    records = load_studies(tracking_uri, studies)
    runs = load_runs(tracking_uri, studies)
    finished(runs, records)
    generations = generations_of(tracking_uri, records)
    return write_report(runs, load_history(tracking_uri, studies), records, out_dir, generations)


def write_report(
    runs: pd.DataFrame,
    history: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    out_dir: Path | str,
    generations: pd.DataFrame | None = None,
) -> Path:
    """Write a report from frames that were loaded already; see `report`. `generations`: None where there is no text.

    Raises:
        ReportError: none of a study's runs finished, or a folder that cannot be used.
    """
    out = Path(out_dir)
    _check(out)
    finished(runs, studies)
    content = build(runs, history, studies, generations)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent, ignore_cleanup_errors=True) as beside:
            _write(content, Path(beside) / "new")
            _swap(Path(beside) / "new", out, Path(beside) / "old")
    except OSError as error:
        raise ReportError(f"report folder {out}: {error.strerror or error}") from error
    return out / "report.html"


def changed(tracking_uri: str, studies: str | Sequence[str], out_dir: Path | str) -> list[str]:
    """Files of a stored report that its runs would not give now: other bytes, missing, or left over.

    Args: as for `report`; `out_dir` holds the stored one.

    Raises:
        ReportError: as `report`, or a folder without a report.
    """
    out = Path(out_dir)
    if not (out / "report.html").is_file():
        raise ReportError(f"report folder {out}: there is no report to check")
    with tempfile.TemporaryDirectory() as folder:
        new = report(tracking_uri, studies, Path(folder) / "report").parent
        files = sorted(
            {path.relative_to(root).as_posix() for root in (new, out) for path in _files(root)},
            key=lambda name: (name != "report.html", name),
        )
        return [name for name in files if not _same(new / name, out / name)]


def _files(root: Path) -> list[Path]:
    """The report's own files in a folder."""
    found = [path for name in ENTRIES for path in [root / name, *(root / name).rglob("*")]]
    return [path for path in found if path.is_file()]


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def build(
    runs: pd.DataFrame,
    history: pd.DataFrame,
    studies: Sequence[Mapping[str, Any]],
    generations: pd.DataFrame | None = None,
) -> Content:
    """Everything that a report shows, study by study; file names carry the study and the pair where there are several.

    Args: as `load_runs`, `load_history`, `load_studies` and `load_generations` return them.
    """
    responses = pd.DataFrame(columns=list(GENERATION_COLUMNS)) if generations is None else generations
    names = _Names()
    found = [points(runs, history, study) for study in studies]
    parts = [
        _study_part(runs, history, study, own, names, responses, several=len(studies) > 1)
        for study, own in zip(studies, found, strict=True)
    ]
    return Content(parts, _overall([each for own in found for each in own], history, studies, names))


class _Names:
    """File names without ending, made of what they show, never twice the same."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __call__(self, *words: str) -> str:
        slug = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:60] for word in words)))
        name, count = slug, 1
        while name in self.used:
            count += 1
            name = f"{slug}-{count}"
        self.used.add(name)
        return name


def _overall(
    found: Sequence[Point], history: pd.DataFrame, studies: Sequence[Mapping[str, Any]], names: _Names
) -> Overall:
    records = {study["study"]: study for study in studies}
    seen: dict[str, set[str]] = {}
    for each in found:
        seen.setdefault(each.pair, set()).add(each.study)
    apart, classes = [], {}
    for each in found:
        # A pair of two studies is two: they may differ in anything.
        called = each.pair if len(seen[each.pair]) == 1 else f"{each.pair} in {each.study}"
        apart.append(replace(each, pair=called))
        classes[called] = int(section(records[each.study], each.pair)["data"]["num_classes"])
    # Gains in accuracy and in ROUGE-L are no one axis.
    apart = [each for each in apart if each.score is found[0].score]
    drawings = (
        figures.margin_curves(apart, classes, names("gain-by-margin")),
        figures.gain_against_ratio(apart, names("gain-by-ratio")),
    )
    # The papers' tables are of accuracies; of text they have a figure alone.
    of_images = [each for each in found if each.score is TOP1]
    tables_ = paper_tables(of_images, studies, history) if of_images else []
    return Overall([each for each in drawings if each is not None], tables_)


def _study_part(
    runs: pd.DataFrame,
    history: pd.DataFrame,
    study: Mapping[str, Any],
    found: Sequence[Point],
    names: _Names,
    generations: pd.DataFrame,
    several: bool,
) -> StudyPart:
    mine = runs[runs["study"] == study["study"]]
    epochs = history[history["study"] == study["study"]]
    result = epochs[epochs["stage"] == result_stage(study)]
    part = "test" if study["selection"] == "paper" else "val"
    prefix = study["study"] if several else ""
    score = score_of(study)
    tried = tables.searched(mine, epochs, part, score)
    searched = list(dict.fromkeys(tried["pair"]))
    parts = []
    fresh = points(runs, history, study, CONFIRM)
    for pair, answer in zip(pairs(found), answers(found, fresh), strict=True):
        own = [each for each in found if each.pair == pair]
        suffix = pair if len(pairs(found)) > 1 else ""
        again = [each for each in fresh if each.pair == pair and each.last.n]
        written = generations[generations["study"] == study["study"]]
        parts.append(_pair_part(own, again, mine, result, study, answer, names, prefix, suffix, written))
    measured = names(prefix, "mis-instruction")
    return StudyPart(
        study=study,
        said=teacher_sentences(study) if teachers_only(study) else [],
        pairs=parts,
        warnings=warnings(runs, history, study, found),
        mis_instruction=figures.teacher_ratios(study["teachers"], measured)
        if teachers_only(study)
        else figures.mis_instruction(found, result, study["teachers"], measured),
        search_drawings=[
            each for pair in searched for each in _search_drawings(tried, epochs, pair, part, names, prefix, score)
        ],
        methods=methods_text(study, [each for each in found if each.last.n]),
        conditions=tables.conditions(study, names(prefix, "data-and-protocol")),
        gains=tables.gains(found, names(prefix, "gains")),
        search_table=tables.search_table(tried, names(prefix, "search"), part, score) if searched else None,
        lost=tables.lost_runs(mine, names(prefix, "runs-without-result"), score),
        teachers=tables.teachers(study, names(prefix, "teachers")),
        runs=tables.all_runs(mine, names(prefix, "runs"), score),
    )


def _search_drawings(
    tried: pd.DataFrame, epochs: pd.DataFrame, pair: str, part: str, names: _Names, prefix: str, score: Score
) -> list[Drawing]:
    """A pair's search: what was tried, what the pruner saw, and of each method what mattered and where it was good."""
    own = tried[tried["pair"] == pair]
    called = tables.PARTS[part]
    found = [
        figures.search_history(own, pair, names(prefix, "search-history"), called, score),
        figures.screening_curves(epochs, pair, names(prefix, "screening"), part, score),
    ]
    for method in dict.fromkeys(own["method"]):
        of_method = own[own["method"] == method]
        title = f"{method} on {pair}"
        found.append(figures.importance(of_method, title, names(prefix, "importance", method)))
        found.append(figures.contours(of_method, title, names(prefix, "contours", method), called, score))
    return [each for each in found if each is not None]


def _pair_part(
    own: Sequence[Point],
    again: Sequence[Point],
    runs: pd.DataFrame,
    epochs: pd.DataFrame,
    study: Mapping[str, Any],
    answer: Answer,
    names: _Names,
    prefix: str,
    suffix: str,
    generations: pd.DataFrame,
) -> PairPart:
    first = own[0]
    study = section(study, first.pair)
    curve = published_curve(first.dataset, first.teacher, first.student)
    reasons = not_comparable(study, first.dataset)
    printed = ""
    if curve and reasons:
        told = ", ".join(f"{tables.fixed(each.value)} at α {alpha:g} ({each.where})" for alpha, each in curve)
        printed = f"Published for this pair, not drawn because the protocol differs ({'; '.join(reasons)}): {told}."
    return PairPart(
        pair=first.pair,
        answer=answer,
        alpha_curve=figures.alpha_curve(
            own, int(study["data"]["num_classes"]), names(prefix, "alpha-curve", suffix), [] if reasons else curve
        ),
        ablation=tables.ablation(own, study, names(prefix, "ablation", suffix)),
        learning_curves=figures.learning_curves(own, epochs, names(prefix, "learning-curves", suffix)),
        cost=figures.cost_curve(own, runs, names(prefix, "cost", suffix)),
        **_of_responses(own, runs, study, generations, names, prefix, suffix),
        confirmed=tables.confirmed(again, own, names(prefix, "confirmed", suffix)) if again else None,
        resolution=tables.resolution(own, names(prefix, "resolution", suffix)),
        printed=printed,
    )


def _of_responses(
    own: Sequence[Point],
    runs: pd.DataFrame,
    study: Mapping[str, Any],
    generations: pd.DataFrame,
    names: _Names,
    prefix: str,
    suffix: str,
) -> dict[str, Any]:
    """What a pair's part shows of responses; nothing where the pair has images."""
    if own[0].score is TOP1:
        return dict.fromkeys(("by_set", "responses", "cases", "text_data"))
    sets = list(study["data"]["evaluated"])
    scored = by_set(own, runs, sets)
    teacher: Mapping[str, float] = next(
        (each.get("rouge_l", {}) for each in study["teachers"] if each["pair"] == own[0].pair), {}
    )
    return {
        "by_set": figures.rouge_by_set(scored, teacher, names(prefix, "rouge-by-set", suffix)),
        "responses": compared_table(scored, names(prefix, "rouge", suffix)),
        "text_data": data_table(study["data"], names(prefix, "paper-table-5", suffix)),
        "cases": case_table(cases(own, generations, sets[0]), names(prefix, "cases", suffix)),
    }


def plain(value: Any) -> str:
    """A value of a record as a reader would write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return tables.NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes or seconds."""
    if seconds is None:
        return "not known"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.2f} h"


def _data_address(text: str, kind: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode('utf-8')).decode('ascii')}"


def _context(content: Content) -> dict[str, Any]:
    names = [part.study["study"] for part in content.parts]
    return {
        "parts": content.parts,
        "overall": content.overall,
        "title": ", ".join(names),
        "command": f"kdstudy report {' '.join(shlex.quote(name) for name in names)} -o DIR",
        "plain": plain,
        "duration": duration,
        "result_title": tables.result_title,
        "shown_runs": SHOWN_RUNS,
    }


def render_html(content: Content) -> str:
    """The page. Every text of the store is escaped; only our own SVG is passed through."""
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda drawing: Markup(drawing.inline())
    environment.filters["csv_address"] = lambda table: _data_address(table.csv(), "text/csv")
    environment.filters["latex_address"] = lambda table: _data_address(table.latex(), "text/x-tex")
    return environment.get_template("report.html.jinja").render(_context(content), mark=Markup(MARK))


def render_markdown(content: Content) -> str:
    """The same in Markdown. Every value is escaped unless it is marked as Markdown already."""
    environment = Environment(  # autoescape is HTML's; here `finalize` escapes each value instead
        loader=PackageLoader("analysis"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else tables.markdown_escape(value),
    )
    environment.filters["table"] = lambda table: Markup(table.markdown())
    environment.filters["verbatim"] = lambda text: Markup(" ".join(str(text).split()))
    return environment.get_template("report.md.jinja").render(_context(content))


def _write(content: Content, folder: Path) -> None:
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True)
    for table in content.tables:
        for ending, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            (folder / "tables" / f"{table.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")
    for part in content.parts:  # too long for a page of paper
        (folder / "tables" / f"{part.runs.name}.csv").write_text(part.runs.csv(), encoding="utf-8", newline="\n")
    for drawing in content.drawings:
        (folder / "figures" / f"{drawing.name}.svg").write_bytes(drawing.svg)
        (folder / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    (folder / "report.md").write_text(render_markdown(content), encoding="utf-8", newline="\n")
    (folder / "report.html").write_text(render_html(content), encoding="utf-8", newline="\n")


def _check(out: Path) -> None:
    """Refuse a folder that holds something else: its `tables` or `figures` may be someone's work."""
    if out.exists() and not out.is_dir():
        raise ReportError(f"report folder {out}: it is a file; name a folder")
    if out.is_dir() and any((out / name).exists() for name in ENTRIES):
        page = out / "report.html"
        if not (page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")[:2000]):
            raise ReportError(
                f"report folder {out}: it holds files of that name which are no report; name another folder"
            )


def _swap(new: Path, out: Path, old: Path) -> None:
    """Move the new report in; should that fail half-way, the older one is put back."""
    if not out.exists():
        os.rename(new, out)
        return
    old.mkdir()
    moved: list[str] = []
    try:
        for name in ENTRIES:
            if (out / name).exists():
                os.rename(out / name, old / name)
            moved.append(name)
            os.rename(new / name, out / name)
    except OSError:
        for name in moved:
            if (out / name).exists():
                _remove(out / name)
            if (old / name).exists():
                os.rename(old / name, out / name)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
