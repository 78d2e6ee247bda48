"""What a study's runs say, in plain sentences: the answer first, then what stands against it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.frames import section, teachers_only
from analysis.points import BASELINE, CONFIRM, Point, compared, number, pairs, points, resolved
from analysis.scores import Score, score_of
from analysis.statistics import EQUIVALENT, LEVEL, finite_test_interval, pooled_sd, seeds_needed
from analysis.tables import fixed, p_value, share, signed, teacher_score, unmeasured

LOW_RATIO = 0.01  # below this share of changed views even a large effect on each is lost in the seeds
FELL = 2.0  # points from the best to the last test epoch; published logs average 0.3
JUMP = 10.0  # points lost from one epoch to the next in the second half of training


@dataclass(frozen=True)
class Answer:
    """One pair's answer: a sentence, its qualification, and the numbers that they stand on."""

    pair: str
    sentence: str
    support: str
    best: Point | None
    resolvable: float | None
    ratio: float


def verdicts(runs: pd.DataFrame, history: pd.DataFrame, studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Plain sentences about each study: for each pair the answer and what supports it, then every warning.

    Args:
        runs: as `load_runs` returns it.
        history: as `load_history` returns it.
        studies: as `load_studies` returns it.
    """
    said = []
    for study in studies:
        found = points(runs, history, study)
        said += teacher_sentences(study) if teachers_only(study) else []
        for answer in answers(found, points(runs, history, study, CONFIRM)):
            said += [answer.sentence, answer.support]
        said += warnings(runs, history, study, found)
    return said


def teacher_sentences(study: Mapping[str, Any]) -> list[str]:
    """What a study without methods answers: how often each of its teachers is wrong on what it would teach."""
    score = score_of(study)
    return [
        f"{each['pair']}: the teacher {each['name']} ({teacher_score(each)}{score.unit} on the test set, "
        f"{str(each['regime']).replace('_', ' ')}) is mis-instructing on {share(each['mis_instruction_ratio'])} of "
        f"{each['ratio_on']}."
        for each in study["teachers"]
    ]


def answers(found: Sequence[Point], fresh: Sequence[Point] = ()) -> list[Answer]:
    """The answer for each pair among the points of one study.

    Args:
        found: the points of its result stage.
        fresh: those of its confirmation.
    """
    given = [_answer(pair, [each for each in found if each.pair == pair]) for pair in pairs(found)]
    return [replace(each, support=f"{each.support}{_confirmed(each, fresh)}") for each in given]


def _confirmed(answer: Answer, fresh: Sequence[Point]) -> str:
    """What fresh seeds say of the best point."""
    best = answer.best
    again = next((each for each in fresh if best is not None and each.setting == best.setting), None)
    gain = again.difference if again is not None else None
    if best is None or gain is None or not gain.n:
        return ""
    told = signed(gain.mean)
    if gain.low is not None and gain.high is not None:
        told += f" ({signed(gain.low)} to {signed(gain.high)})"
    verdict = "which is a gain" if gain.shown and gain.mean > 0 else "which shows no gain"
    if gain.shown and gain.mean < 0:
        verdict = "which is a loss"
    return f" On {gain.n} fresh seeds it came out {told} points against {_baseline(best)}, {verdict}."


def ratio_of(found: Sequence[Point]) -> float:
    """Mean mis-instruction ratio over points that have a teacher, nan where none has."""
    ratios = [each.mis_instruction_ratio for each in found if not math.isnan(each.mis_instruction_ratio)]
    return float(np.mean(ratios)) if ratios else math.nan


def _answer(pair: str, found: Sequence[Point]) -> Answer:
    swept = [each for each in found if not math.isnan(each.alpha) and each.last.n]
    ratio, least = ratio_of(found), resolved(found)
    if not swept:
        told = [f"{each.label} {fixed(each.last.mean)}{each.score.unit}" for each in found if each.last.n]
        sentence = f"No point with an alpha has finished for {pair}, so nothing can be said about alpha."
        return Answer(pair, sentence, f"Finished: {', '.join(told) or 'nothing'}.", None, least, ratio)
    best = max(swept, key=lambda each: each.last.mean)
    return Answer(
        pair, _sentence(pair, best, compared(found)), _support(best, swept, found, least, ratio), best, least, ratio
    )


def _name(point: Point) -> str:
    options = ", ".join(f"{name} {value}" for name, value in point.parameters.items() if isinstance(value, str))
    named = "LoCa" if point.method == "loca" else point.method
    return f"{named} at alpha {number(point.alpha)}{f' ({options})' if options else ''}"


def _valued(point: Point) -> str:
    return f"{fixed(point.last.mean)}{point.score.unit or f' {point.score.name}'}"


def _first(found: Sequence[Point]) -> Score:
    return found[0].score


def _baseline(point: Point) -> str:
    return "KD" if point.baseline == BASELINE else point.baseline


def _sentence(pair: str, best: Point, tried: int) -> str:
    gain = best.difference
    if gain is None:
        return (
            f"{_name(best)} did best for {pair} with {_valued(best)} (n = {best.last.n}), but there is no "
            f"one {best.baseline} to compare with, so no gain can be told."
        )
    if gain.n == 0:
        return (
            f"{_name(best)} did best for {pair}, but shares no finished seed with {best.baseline}: no gain can be told."
        )
    if gain.n == 1:
        return (
            f"{_name(best)} came out {signed(gain.mean)} points against {_baseline(best)} for {pair} with one seed: "
            "one seed gives no interval, so this shows nothing yet."
        )
    if gain.low is None or gain.high is None:
        return (
            f"{_name(best)} came out {signed(gain.mean)} points against {_baseline(best)} for {pair} with each of "
            f"{gain.n} seeds: a difference without any spread has no interval."
        )
    half = (gain.high - gain.low) / 2
    if gain.shown and gain.mean > 0 and gain.corrected is not None and gain.corrected >= LEVEL:
        return (
            f"{_name(best)} came out {fixed(gain.mean)} ± {fixed(half)} points above {_baseline(best)} for {pair}: a "
            f"lead to confirm on fresh seeds (kdstudy confirm), no more, since among {tried} comparisons one is "
            "above by chance too often."
        )
    if gain.shown and gain.mean > 0:
        return f"{_name(best)} gained {fixed(gain.mean)} ± {fixed(half)} points over {_baseline(best)} for {pair}."
    if gain.shown:
        lost = f"lost {fixed(-gain.mean)} ± {fixed(half)} points to it"
        return f"No alpha reached {_baseline(best)} for {pair}: the best, {_name(best)}, {lost}."
    if gain.same:
        return (
            f"{_name(best)}, the best for {pair}, is no different from {_baseline(best)} by as much as {EQUIVALENT:g} "
            f"points: {signed(gain.mean)} ± {fixed(half)}."
        )
    return (
        f"No gain over {_baseline(best)} could be shown for {pair}: the best, {_name(best)}, came out "
        f"{signed(gain.mean)} ± {fixed(half)} points, which includes zero."
    )


def _support(best: Point, swept: Sequence[Point], found: Sequence[Point], least: float | None, ratio: float) -> str:
    parts = []
    gain = best.difference
    if gain is not None and gain.p is not None:
        parts.append(
            f"paired with {_baseline(best)} by seed (n = {gain.n}), the 95 % interval is {signed(gain.low)} to "
            f"{signed(gain.high)} points and p = {p_value(gain.p)}".replace("p = <", "p <")
        )
        if compared(found) > 1:
            corrected = f"p = {p_value(gain.corrected)}".replace("p = <", "p <")
            parts[-1] += f" ({corrected} by Holm's correction for {compared(found)} comparisons)"
    if least is not None:
        lead = ", and less than that may be luck" if gain is not None and 0 < gain.mean < least else ""
        many = resolved(found, compared(found))
        of_many = f", {fixed(many)} after that correction" if many is not None and compared(found) > 1 else ""
        parts.append(f"seeds like these resolve a difference of {fixed(least)} points (80 % power){of_many}{lead}")
        sd = pooled_sd([each.difference for each in found if each.difference is not None])
        if gain is not None and sd and not gain.shown and abs(gain.mean) > 0.05:
            needed = seeds_needed(gain.mean, sd, paired=True)
            parts.append(f"a true difference of {fixed(abs(gain.mean))} would need {needed} seeds")
    if not math.isnan(ratio):
        parts.append(f"the teacher was mis-instructing on {share(ratio)} of the {best.score.shown}")
    text = "; ".join(parts)
    text = f"{text[:1].upper()}{text[1:]}." if text else ""
    if len(swept) > 1:
        alphas = sorted({each.alpha for each in swept})
        text += f" It is the best of {len(swept)} points with an alpha, so its {best.score.called} reads a little high."
        if best.alpha in (alphas[0], alphas[-1]) and len(alphas) > 1:
            end = "smallest" if best.alpha == alphas[0] else "largest"
            text += f" It is also the {end} alpha tried: a better one may lie beyond."
    better = [each for each in found if math.isnan(each.alpha) and each.last.n and each.last.mean > best.last.mean]
    if better:
        named = " and ".join(f"{each.label} ({_valued(each)})" for each in better)
        text += f" Without any alpha, {named} did better than its {_valued(best)}."
    return text.strip()


def warnings(runs: pd.DataFrame, history: pd.DataFrame, study: Mapping[str, Any], found: Sequence[Point]) -> list[str]:
    """What stands against a study's answer, the gravest first; then what the study itself warned of."""
    mine = runs[runs["study"] == study["study"]]
    epochs = history[history["study"] == study["study"]]
    said = (
        [f"{study['study']} was cut ({'; '.join(study['cuts'])}): its numbers are not those of the full protocol."]
        if study["cuts"]
        else []
    )
    score = score_of(study)
    said += _unfinished(mine, score)
    said += _of_pairs(found, study)
    for pair in pairs(found):
        said += _fell([each for each in found if each.pair == pair], section(study, pair))
    said += _unstable(epochs[epochs["state"] != "RUNNING"], score)
    said += _chosen_on(study, found)
    hashes = {each.protocol_hash for each in found}
    if len(hashes) > 1:
        said.append(f"The runs come from {len(hashes)} protocols; they are shown apart and never averaged together.")
    return said + [str(each) for each in study.get("warnings", [])]


def _of_pairs(found: Sequence[Point], study: Mapping[str, Any]) -> list[str]:
    """What is said of each pair; once, where it is true of all."""
    names = pairs(found)
    of_pair = {pair: _of_pair([each for each in found if each.pair == pair], section(study, pair)) for pair in names}
    shared = (
        [each for each in of_pair.get(names[0], []) if all(each in own for own in of_pair.values())] if names else []
    )
    said = [each[0].upper() + each[1:] for each in shared]
    for pair, own in of_pair.items():
        said += [f"{pair}: {each}" for each in own if each not in shared]
    return said + _finite_test(found, study)


def _finite_test(found: Sequence[Point], study: Mapping[str, Any]) -> list[str]:
    """How far the test images alone leave the best accuracy open; of several pairs for the one with the best."""
    done = [each for each in found if each.last.n]
    if not done:
        return []
    best = max(done, key=lambda each: each.last.mean)
    images = int(section(study, best.pair)["data"].get("test_images") or 0)
    if not images or not best.score.counted:
        return []
    low, high = finite_test_interval(best.last.mean, images)
    return [
        f"The {images:,} test images place an accuracy of {fixed(best.last.mean)} % between {fixed(low, 1)} and "
        f"{fixed(high, 1)} % for images like these; differences on the same images are surer than that."
    ]


def _unfinished(runs: pd.DataFrame, score: Score) -> list[str]:
    said = []
    for state, one, many in (
        ("FAILED", "failed and is in no mean", "failed and are in no mean"),
        (
            "PRUNED",
            "was stopped early by the pruner and is in no mean",
            "were stopped early by the pruner and are in no mean",
        ),
        ("RUNNING", "is still running", "are still running"),
        ("WAITING", "is still waiting", "are still waiting"),
    ):
        count = int((runs["state"] == state).sum())
        if count:
            said.append(f"{count} of {len(runs)} runs {one if count == 1 else many}.")
    blank = int(((runs["state"] == "DONE") & unmeasured(runs, score)).sum())
    if blank:
        said.append(f"{blank} of {len(runs)} runs ended without a finite {score.called}, in no mean either.")
    return said


def _of_pair(found: Sequence[Point], study: Mapping[str, Any]) -> list[str]:
    said = []
    done = [each for each in found if each.last.n]
    if done and max(each.last.n for each in done) == 1:
        said.append("one seed a point, so there are no intervals and no difference can be told from chance.")
    elif any(each.last.n == 1 for each in done):
        single = ", ".join(each.label for each in done if each.last.n == 1)
        said.append(f"only one seed finished for {single}, which gives no interval.")
    ratio = ratio_of(found)
    if ratio < LOW_RATIO:
        said.append(
            f"the teacher was mis-instructing on {share(ratio)} of the {done[0].score.shown if done else 'views'}, "
            f"too few for LoCa to change much; "
            "a teacher trained on another part of the data (regime held_out) has a higher ratio."
        )
    swept = [each.difference for each in found if not math.isnan(each.alpha) and each.difference is not None]
    told = [each for each in swept if each.n > 1]
    least = resolved(found)
    if told and least is not None and all(not each.shown and abs(each.mean) < least for each in told):
        said.append(f"nothing moved that these seeds could resolve: every alpha is within {fixed(least)} points of KD.")
    capped = [each for each in found if each.capped_ratio > 0]
    if capped:
        where = ", ".join(
            f"alpha {number(each.alpha)} ({share(each.capped_ratio)} of all {each.score.shown})" for each in capped
        )
        said.append(f"{capped[0].score.shown} left the simplex and were capped at {where}.")
    return said


def _fell(found: Sequence[Point], study: Mapping[str, Any]) -> list[str]:
    """Points whose accuracy fell from best to last by more than chance over the epochs explains."""
    images = int(study["data"].get("test_images") or 0)
    fallen = []
    for each in found:
        if not each.best.n or not each.last.n:
            continue
        # Two standard errors of a finite test set: the best of many epochs reads that much high by luck alone.
        noise = (
            200 * math.sqrt(max(each.last.mean * (100 - each.last.mean), 0) / 10_000 / images)
            if images and each.score.counted
            else 0.0
        )
        if each.best.mean - each.last.mean > max(FELL, noise):
            fallen.append(f"{each.label} {fixed(each.best.mean)} to {fixed(each.last.mean)}")
    return (
        [
            f"{_first(found).called[0].upper()}{_first(found).called[1:]} fell from the best to the last epoch: "
            f"{', '.join(fallen)}."
        ]
        if fallen
        else []
    )


def _unstable(epochs: pd.DataFrame, score: Score) -> list[str]:
    """Runs that lost many points from one epoch to the next in the second half of training."""
    there = [epochs[name] for name in (score.column("test"), score.column("val")) if name in epochs]
    if not there:
        return []
    measure = there[0] if len(there) == 1 else there[0].fillna(there[1])
    rows = epochs.assign(measure=measure).dropna(subset=["measure"]).sort_values(["run_id", "epoch"], kind="stable")
    late = rows["epoch"] > rows.groupby("run_id")["epoch"].transform("max") / 2
    jumped = rows[(rows.groupby("run_id")["measure"].diff() < -JUMP) & late]
    count = jumped["run_id"].nunique()
    if not count:
        return []
    names = ", ".join(dict.fromkeys(jumped["method"]))
    return [
        f"Training was unstable: {count} run(s) ({names}) lost more than {JUMP:g} points from one epoch to the next in "
        "the second half of training."
    ]


def _chosen_on(study: Mapping[str, Any], found: Sequence[Point]) -> list[str]:
    score = score_of(study)
    told = "These are test accuracies" if score.counted else f"This is {score.name} on the test set"
    if study["mode"] == "ablation" and len({each.alpha for each in found if not math.isnan(each.alpha)}) > 1:
        return [
            f"{told}: taking the alpha that does best here chooses by test {score.called}. To choose an "
            "alpha, give it as a range: a search chooses on a validation part and tests the choice on fresh seeds."
        ]
    if study["selection"] == "paper":
        return [
            f"Points were chosen by test {score.called} (selection: paper), as the papers do: the numbers read high "
            f"for that."
        ]
    return []
