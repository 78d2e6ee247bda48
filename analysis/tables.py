"""Tables, each in four forms: HTML (by the page's template), Markdown, CSV at full precision, LaTeX (booktabs)."""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import PARAMETERS
from analysis.papers import not_comparable, published
from analysis.points import BASELINE, SYMBOLS, Point, compared, number, pairs, resolved, result_stage, varying
from analysis.scores import TOP1, Score, score_of
from analysis.statistics import EQUIVALENT, Estimate, estimate

NOTHING = "–"
MINUS = "−"
SEED_COUNTS = (3, 5, 8, 12, 20, 40)
MAX_GAINS = 6  # columns of the table of gains: more do not fit a page
PARTS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Column:
    """One column: its heading, what a reader sees of a row, and the raw values (name -> value) for the CSV file."""

    heading: str
    show: Callable[[Any], str]
    raw: Mapping[str, Callable[[Any], Any]]
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A titled table of rows of any kind, read by its columns; `strong` marks a row."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    notes: Sequence[str] = ()
    strong: Callable[[Any], bool] = lambda row: False

    def cells(self) -> list[list[str]]:
        """What a reader sees, row by row, unescaped."""
        return [[column.show(row) for column in self.columns] for row in self.rows]

    def csv(self) -> str:
        """Comma-separated values at full precision, nothing rounded; an empty cell where there is no number."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in column.raw])
        for row in self.rows:
            writer.writerow([_raw(read(row)) for column in self.columns for read in column.raw.values()])
        return out.getvalue()

    def markdown(self) -> str:
        """A pipe table with its notes."""
        lines = [
            "| " + " | ".join(markdown_escape(column.heading) for column in self.columns) + " |",
            "|" + "|".join(" ---: " if column.numeric else " :--- " for column in self.columns) + "|",
        ]
        for row, cells in zip(self.rows, self.cells(), strict=True):
            texts = [markdown_escape(cell) for cell in cells]
            if self.strong(row):
                texts = [f"**{text}**" if text else text for text in texts]
            lines.append("| " + " | ".join(texts) + " |")
        notes = [f"\n{markdown_escape(note)}\n" for note in self.notes]
        return "\n".join(lines) + "\n" + "".join(notes)

    def latex(self) -> str:
        """A table environment for the package booktabs."""
        spec = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(self.title)}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            " & ".join(latex_escape(column.heading) for column in self.columns) + r" \\",
            r"\midrule",
        ]
        for row, cells in zip(self.rows, self.cells(), strict=True):
            texts = [latex_escape(cell) for cell in cells]
            if self.strong(row):
                texts = [rf"\textbf{{{text}}}" if text else text for text in texts]
            lines.append(" & ".join(texts) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip\footnotesize {latex_escape(note)}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}", ""])


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", MINUS: "$-$",
    "±": r"$\pm$", "–": "--", "…": r"\ldots{}", "·": r"$\cdot$", "×": r"$\times$",
    "→": r"$\to$", "≥": r"$\ge$", "≤": r"$\le$", "α": r"$\alpha$", "τ": r"$\tau$", "β": r"$\beta$", "γ": r"$\gamma$",
    "Δ": r"$\Delta$", "\n": " ", "\r": " ",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def markdown_escape(text: Any) -> str:
    """Text that Markdown prints as it stands, on one line, HTML included."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}#|~$])", r"\\\1", flat)


def _raw(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with a real minus sign, a dash where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference: with its sign."""
    text = fixed(value, digits)
    return text if text == NOTHING or text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def mean_sd(around: Estimate) -> str:
    """Mean ± SD, the mean alone for one seed."""
    return fixed(around.mean) if around.sd is None else f"{fixed(around.mean)} ± {fixed(around.sd)}"


def with_seeds(around: Estimate | None) -> str:
    """Mean ± SD (n), a dash where there is nothing."""
    return NOTHING if around is None or not around.n else f"{mean_sd(around)} ({around.n})"


def interval(around: Estimate | None, show: Callable[[float | None], str] = fixed) -> str:
    """An interval as `low to high`, a dash where there is none."""
    if around is None or around.low is None:
        return NOTHING
    return f"{show(around.low)} to {show(around.high)}"


def share(value: float) -> str:
    """A ratio as percent; one that is not zero never reads as zero."""
    if math.isnan(value):
        return NOTHING
    return "< 0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def p_value(p: float | None) -> str:
    """A p-value, not smaller than it can be told."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _n(point: Point) -> str:
    if point.last.n == point.asked:
        return str(point.last.n)
    lost = [(point.failed, "failed"), (point.pruned, "pruned")]
    lost.append((point.asked - point.last.n - point.failed - point.pruned, "unfinished"))
    return f"{point.last.n} of {point.asked} ({', '.join(f'{count} {word}' for count, word in lost if count)})"


def _published_text(point: Point) -> str:
    printed = published(point.dataset, point.teacher, point.student, point.method, point.alpha)
    return "; ".join(f"{fixed(each.value)} ({each.where})" for each in printed) or NOTHING


def _one(
    name: str, heading: str, show: Callable[[Any], str], read: Callable[[Any], Any], numeric: bool = True
) -> Column:
    return Column(heading, show, {name: read}, numeric)


def _around(prefix: str, read: Callable[[Any], Estimate | None]) -> dict[str, Callable[[Any], Any]]:
    """Raw columns of an estimate."""

    def field(name: str) -> Callable[[Any], Any]:
        return lambda row: getattr(read(row), name, None)

    return {f"{prefix}_{name}": field(name) for name in ("mean", "sd", "low", "high")}


def ablation(found: Sequence[Point], study: Mapping[str, Any], name: str) -> Table:
    """Every point of one pair: what was asked, what came out, how far it is from KD.

    The published number stands beside a row only where the protocol is the paper's, uncut.
    """
    baselines = list(dict.fromkeys(row.baseline for row in found if row.difference is not None)) or [BASELINE]
    against = baselines[0] if len(baselines) == 1 else "baseline"
    score = score_of(study)
    columns = [
        _one("method", "method", lambda row: row.method, lambda row: row.method, numeric=False),
        _one("alpha", "α", lambda row: NOTHING if math.isnan(row.alpha) else number(row.alpha), lambda row: row.alpha),
        *(_parameter(key, SYMBOLS.get(key, key)) for key in varying(found)),
        Column("n", _n, {"n": lambda row: row.last.n, **_fields("asked", "failed", "pruned", "taken_over")}),
        Column(f"last epoch{score.heading}", lambda row: mean_sd(row.last), _around("last", lambda row: row.last)),
        Column(f"best epoch{score.heading}", lambda row: mean_sd(row.best), _around("best", lambda row: row.best)),
        Column(f"Δ to {against} (95 % interval)", _gain, _around("difference", lambda row: row.difference)),
        Column("p (Holm)", _p_values, _gain_fields("n", "p", "corrected")),
        Column("p of none", lambda row: p_value(getattr(row.difference, "same_p", None)), _gain_fields("same_p")),
        Column("mis-instructed", lambda row: share(row.mis_instruction_ratio), _fields("mis_instruction_ratio")),
        Column("capped", lambda row: share(row.capped_ratio), _fields("capped_ratio")),
    ]
    notes = [
        f"{score.name[0].upper()}{score.name[1:]} on the test set, mean ± SD over n seeds. Δ is to "
        f"{', '.join(baselines)} (of the same parameters where "
        "there is one, else the best), last epoch, paired by seed (only seeds that both have). Intervals are Student's "
        "t, bootstrapped from eight seeds on; p is the paired t test's, in brackets corrected by Holm's method for all "
        f"comparisons of this table. A small p of none excludes a difference of {EQUIVALENT:g} points and more (two "
        "one-sided tests); where both are large, these seeds tell neither. Where one seed is left, or every seed gave "
        "the same difference, there is no interval. The best epoch is chosen by test "
        f"{score.called}, so it reads higher.",
        f"Ratios are shares of all training {score.shown}: mis-instructed ones, and ones that left the simplex and "
        f"were capped.",
    ]
    reasons = not_comparable(study, found[0].dataset)
    if not reasons:
        columns.append(Column("published", _published_text, {"published": _published_text}))
    else:
        notes.append(f"No published numbers beside these: {'; '.join(reasons)}.")
    hashes = {row.protocol_hash for row in found}
    if len(hashes) > 1:
        notes.append(f"The rows come from {len(hashes)} protocols and are not averaged across them.")
    best = max((row.last.mean for row in found if row.last.n), default=math.nan)
    return Table(
        name, f"{result_title(study)} of {found[0].pair}", columns, found, notes, lambda row: row.last.mean == best
    )


def confirmed(fresh: Sequence[Point], before: Sequence[Point], name: str) -> Table:
    """The best points of one pair on seeds that did not choose them, beside what they came to when they were chosen.

    Args:
        fresh: points of the confirmation.
        before: the pair's points of the result stage.
        name: file name without ending.
    """
    score = fresh[0].score
    chosen = {each.setting: each.last for each in before if each.last.n}

    def earlier(point: Point) -> Estimate | None:
        return chosen.get(point.setting)

    def fall(point: Point) -> float | None:
        known = earlier(point)
        return None if known is None else point.last.mean - known.mean

    columns = [
        _one("point", "point", lambda row: row.label, lambda row: row.label, numeric=False),
        *(_parameter(key, SYMBOLS.get(key, key)) for key in varying(fresh)),
        Column(f"when chosen{score.heading}", lambda row: with_seeds(earlier(row)), _around("chosen", earlier)),
        Column(
            f"on fresh seeds{score.heading}", lambda row: with_seeds(row.last), _around("fresh", lambda row: row.last)
        ),
        _one("change", "change", lambda row: signed(fall(row)), fall),
        Column("Δ to baseline (95 % interval)", _gain, _around("difference", lambda row: row.difference)),
        Column("p (Holm)", _p_values, _gain_fields("n", "p", "corrected")),
    ]
    notes = [
        "Top-1 of the last epoch on the test set, mean ± SD (seeds). The best of several points reads high because "
        "luck helped to choose it; seeds that were not there when it was chosen do not share that luck. Holm's "
        "correction is over the points of this table."
    ]
    best = max((row.last.mean for row in fresh), default=math.nan)
    return Table(
        name, f"Confirmed on fresh seeds: {fresh[0].pair}", columns, fresh, notes, lambda row: row.last.mean == best
    )


def resolution(found: Sequence[Point], name: str) -> Table | None:
    """What so many seeds would resolve for one pair, from the spread of its paired differences; None without one.

    80 % power at the 5 % level, for one comparison and for all of the pair's (Holm's first step).
    """
    if resolved(found) is None:
        return None
    comparisons = compared(found)
    had = max(each.difference.n for each in found if each.difference is not None)
    rows = sorted({*SEED_COUNTS, had} - {1})
    columns = [
        _one("seeds", "seeds", lambda n: f"{n} (this study)" if n == had else str(n), lambda n: n),
        _one("one", "one comparison, points", lambda n: fixed(resolved(found, 1, n)), lambda n: resolved(found, 1, n)),
    ]
    if comparisons > 1:
        columns.append(
            _one(
                "all",
                f"each of {comparisons}, points",
                lambda n: fixed(resolved(found, comparisons, n)),
                lambda n: resolved(found, comparisons, n),
            )
        )
    notes = [
        "The smallest true difference to the baseline that so many paired seeds find in four of five studies, if "
        "differences spread as they did here. Smaller gains may be real; these seeds would mostly miss them."
    ]
    return Table(name, f"What seeds resolve: {found[0].pair}", columns, rows, notes, lambda n: n == had)


def gains(found: Sequence[Point], name: str) -> Table | None:
    """One row a pair: how often its teacher is wrong, and what each calibrated point gained there; then the mean of
    pairs.

    None where there is one pair, or no calibrated point; the points that most pairs have come first, six at most.
    """
    names = pairs(found)
    labels = [each.label for each in found if not math.isnan(each.alpha) and each.difference is not None]
    common = sorted(dict.fromkeys(labels), key=lambda label: -labels.count(label))[:MAX_GAINS]
    if len(names) < 2 or not common:
        return None
    rows = []
    for pair in names:
        own = [each for each in found if each.pair == pair]
        ratios = [each.mis_instruction_ratio for each in own if not math.isnan(each.mis_instruction_ratio)]
        ratio = sum(ratios) / len(ratios) if ratios else math.nan
        rows.append({"pair": pair, "ratio": ratio, "gains": {each.label: each.difference for each in own}})
    rows.append({"pair": f"mean over {len(names)} pairs", "ratio": math.nan, "gains": _over_pairs(rows, common)})

    def of(label: str) -> Column:
        def gain(row: Any) -> Any:
            return row["gains"].get(label)

        return Column(f"Δ {label}", lambda row: _around_text(gain(row)), _around(f"difference {label}", gain))

    columns = [
        _text("pair", "pair"),
        _one("mis_instruction_ratio", "mis-instructed", lambda row: share(row["ratio"]), itemgetter("ratio")),
        *map(of, common),
    ]
    against = ", ".join(dict.fromkeys(each.baseline for each in found if each.label in common))
    notes = [
        f"Δ is to {against}, last epoch, in points, paired by seed, with its 95 % interval. The mean over pairs counts "
        "each pair once, and its interval is over pairs: it speaks of pairs like these, not of these seeds; it stands "
        "where all pairs have the point."
    ]
    return Table(name, "Gain by pair", columns, rows, notes, lambda row: row is rows[-1])


def _over_pairs(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Estimate]:
    """The mean gain over pairs of the points that all of them have, with its interval over pairs."""
    found = {}
    for label in labels:
        gains = [row["gains"].get(label) for row in rows]
        means = [gain.mean for gain in gains if gain is not None and gain.n]
        if len(means) == len(rows):
            found[label] = estimate(means)
    return found


def result_title(study: Mapping[str, Any]) -> str:
    """What the table of results is called: an ablation, or the final stage of a search."""
    return {"ablation": "Ablation", "final": "Final stage", "search": "Searched points"}[result_stage(study)]


def _gain(point: Point) -> str:
    return _around_text(point.difference)


def _around_text(gain: Estimate | None) -> str:
    """A mean difference with its interval."""
    if gain is None or not gain.n:
        return NOTHING
    around = interval(gain, signed)
    return signed(gain.mean) + (f" ({around})" if around != NOTHING else "")


def _p_values(point: Point) -> str:
    """The p-value of a gain, and the same by Holm's method."""
    if point.difference is None or point.difference.p is None:
        return NOTHING
    return f"{p_value(point.difference.p)} ({p_value(point.difference.corrected)})"


def _gain_fields(*names: str) -> dict[str, Callable[[Any], Any]]:
    def read(name: str) -> Callable[[Any], Any]:
        return lambda row: getattr(row.difference, name, None)

    return {f"difference_{name}": read(name) for name in names}


def _fields(*names: str) -> dict[str, Callable[[Any], Any]]:
    return {name: attrgetter(name) for name in names}


def _parameter(key: str, heading: str) -> Column:
    return _one(
        key,
        heading,
        lambda row: number(row.parameters[key]) if key in row.parameters else NOTHING,
        lambda row: row.parameters.get(key),
    )


def lost_runs(runs: pd.DataFrame, name: str, score: Score = TOP1) -> Table | None:
    """Runs that gave no result, with their reasons; None where every run finished."""
    lost = runs[(runs["state"] != "DONE") | unmeasured(runs, score)]
    if lost.empty:
        return None
    columns = [
        _text("state", "state"),
        _text("stage", "stage"),
        _text("pair", "pair"),
        _text("method", "method"),
        _searched_parameter("alpha"),
        _one("seed", "seed", lambda row: str(row["seed"]), itemgetter("seed")),
        _text("reason", "reason"),
        _text("run_id", "run"),
    ]
    return Table(name, "Runs without a result", columns, lost.to_dict("records"))


def unmeasured(runs: pd.DataFrame, score: Score) -> pd.Series:
    """Which runs have no score, on neither part."""
    columns = [name for name in (score.column("test", "last"), score.column("val", "last")) if name in runs]
    return runs[columns].isna().all(axis=1)


def _text(key: str, heading: str) -> Column:
    return _one(key, heading, lambda row: str(row[key]), itemgetter(key), numeric=False)


def all_runs(runs: pd.DataFrame, name: str, score: Score = TOP1) -> Table:
    """Every run of a study, with its id here and in MLflow."""
    numbers = [key for key in PARAMETERS if runs[key].notna().any()]
    last = score.column("test", "last")
    columns = [
        _text("run_id", "run"),
        _text("pair", "pair"),
        _text("method", "method"),
        *(_searched_parameter(key) for key in numbers),
        _one("seed", "seed", lambda row: str(row["seed"]), itemgetter("seed")),
        _text("stage", "stage"),
        _text("state", "state"),
        _one(last, f"last epoch{score.heading}", lambda row: fixed(row.get(last, math.nan)), lambda row: row.get(last)),
        _one("device_seconds", "device, s", lambda row: fixed(row["device_seconds"], 1), itemgetter("device_seconds")),
        _text("mlflow_run_id", "in MLflow"),
    ]
    return Table(name, "Every run", columns, runs.to_dict("records"))


def searched(runs: pd.DataFrame, history: pd.DataFrame, part: str = "val", score: Score = TOP1) -> pd.DataFrame:
    """The search's own points in the order of their start: parameters, mean accuracy, state, seeds.

    A point is PRUNED or FAILED when any of its runs is: it was told to the sampler as that. The value of a pruned point
    is the accuracy at which it was stopped. `part` is what the search values points on: "val", or "test" where it
    chooses as the papers do.
    """
    mine = runs[runs["stage"] == "search"]
    by_epoch, last = score.column(part), score.column(part, "last")
    measured = history[history["stage"] == "search"]
    measured = measured.dropna(subset=[by_epoch]).sort_values("epoch") if by_epoch in measured else measured[:0]
    reached = measured.groupby("run_id")[by_epoch].last() if len(measured) else pd.Series(dtype=float)
    rows = []
    for point, group in mine.groupby("point", sort=False):
        states = set(group["state"])
        state = next((each for each in ("FAILED", "PRUNED", "RUNNING", "WAITING") if each in states), "DONE")
        done = group[group["state"] == "DONE"]
        first = group.iloc[0]
        kept = done[~done["screening"]] if (~done["screening"]).any() else done
        rows.append(
            {
                "started": group["started"].min(),
                "point": point,
                "pair": first["pair"],
                "method": first["method"],
                **{key: float(first[key]) for key in PARAMETERS},
                "value": _value(state, kept[last], group, reached),
                "seeds": len(done),
                "asked": len(group),
                "screening_only": bool(group["screening"].all()),
                "state": state,
                "origin": first["origin"],
            }
        )
    told = ["value", "seeds", "asked", "screening_only", "state", "origin"]
    columns = ["started", "point", "pair", "method", *PARAMETERS, *told]
    frame = pd.DataFrame(rows, columns=columns).sort_values(["started", "point"], kind="stable", ignore_index=True)
    frame["order"] = np.arange(1, len(frame) + 1)
    return frame


def _value(state: str, kept: pd.Series, group: pd.DataFrame, reached: pd.Series) -> float:
    if state == "PRUNED":
        return float(reached.reindex(group.loc[group["state"] == "PRUNED", "run_id"]).mean())
    return float(kept.mean())


def search_table(tried: pd.DataFrame, name: str, part: str = "val", score: Score = TOP1) -> Table:
    """Every point that a search tried, in order of its start."""
    columns = [
        _one("order", "#", lambda row: str(row["order"]), itemgetter("order")),
        _text("pair", "pair"),
        _text("method", "method"),
        *([_text("origin", "proposed by")] if (tried["origin"] != "").any() else []),
        *(_searched_parameter(key) for key in PARAMETERS if tried[key].notna().any()),
        Column(
            "n",
            lambda row: f"{row['seeds']} of {row['asked']}",
            {"seeds": itemgetter("seeds"), "asked": itemgetter("asked")},
        ),
        _one(
            "value",
            f"{PARTS[part]} {score.name}{', %' if score.unit else ''}",
            lambda row: fixed(_of_whole_runs(row)),
            _of_whole_runs,
        ),
        _text("state", "state"),
    ]
    notes = [
        f"Last-epoch {PARTS[part]} {score.called}, mean over seeds; the screening seed is left out where others "
        f"follow it. A "
        "pruned point has none: a part of a run is not comparable with a whole one."
    ]
    return Table(name, "Points tried by the search", columns, tried.to_dict("records"), notes)


def _of_whole_runs(row: Mapping[str, Any]) -> float:
    return math.nan if row["state"] == "PRUNED" else row["value"]


def _searched_parameter(key: str) -> Column:
    return _one(key, SYMBOLS[key], lambda row: NOTHING if math.isnan(row[key]) else number(row[key]), itemgetter(key))


def conditions(study: Mapping[str, Any], name: str) -> Table | None:
    """The data and the protocol of each pair; None where there is one pair on the data as they are."""
    rows = [
        {"pair": pair, **each["data"], "protocol": each["protocol"]["base"], "changes": each["protocol_changes"]}
        for pair, each in study.get("pairs", {}).items()
    ]
    if len(rows) < 2 and not any(row["label_noise"] or row["classes_of"] for row in rows):
        return None
    items = score_of(study).items
    columns = [
        _text("pair", "pair"),
        _one("num_classes", "classes", _classes, itemgetter("num_classes")),
        _one("train_images", f"training {items}", lambda row: _count(row["train_images"]), itemgetter("train_images")),
        _one("label_noise", "wrong labels", lambda row: share(row["label_noise"]), itemgetter("label_noise")),
        _one("test_images", f"test {items}", lambda row: _count(row["test_images"]), itemgetter("test_images")),
        _text("protocol", "protocol"),
        _one("changes", "changed", _changes, _changes, numeric=False),
    ]
    return Table(name, "Data and protocol of each pair", columns, rows)


def _classes(row: Mapping[str, Any]) -> str:
    return f"{row['num_classes']} of {row['classes_of']}" if row["classes_of"] else f"{row['num_classes']}"


def _changes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{each['field']} {each['value']}" for each in row["changes"]) or "nothing"


def teachers(study: Mapping[str, Any], name: str) -> Table | None:
    """The teachers of a study as they were measured before it; None where it has none."""
    if not study["teachers"]:
        return None
    score = score_of(study)
    accuracy = score.column("test")
    columns = [
        _text("pair", "pair"),
        _text("model", "model"),
        _text("regime", "regime"),
        _text("trained_on", "trained on"),
        _one("trained_images", score.items, _trained_images, lambda row: row.get("trained_images")),
        _one(accuracy, score.axis("test").replace(" (%)", ", %"), teacher_score, itemgetter(accuracy)),
        _one(
            "mis_instruction_ratio",
            "mis-instructed",
            lambda row: share(row["mis_instruction_ratio"]),
            itemgetter("mis_instruction_ratio"),
        ),
        _text("ratio_on", "measured on"),
        _one("hash", "hash", lambda row: str(row["hash"])[:16], itemgetter("hash"), numeric=False),
    ]
    keys = ("pair", "model", "regime", "trained_on", "ratio_on", "hash")
    rows = [
        {**dict.fromkeys(keys, ""), accuracy: math.nan, "mis_instruction_ratio": math.nan}
        | {key: value for key, value in teacher.items() if value is not None}
        for teacher in study["teachers"]
    ]
    return Table(name, "Teachers", columns, rows)


def _trained_images(row: Mapping[str, Any]) -> str:
    return _count(row.get("trained_images"))


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def teacher_score(row: Mapping[str, Any]) -> str:
    """The accuracy or ROUGE-L of a teacher, of a cross-fitted set the mean with the range over its networks."""
    if "test_rouge_l" in row:
        return fixed(row["test_rouge_l"])
    folds = row.get("fold_top1")
    of_folds = f" ({len(folds)} networks: {fixed(min(folds))} to {fixed(max(folds))})" if folds else ""
    return fixed(row["test_top1"]) + of_folds
