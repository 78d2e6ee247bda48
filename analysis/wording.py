"""The report's section on methods, as a paper would have it, written from a study's record."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.points import Point, pairs
from analysis.scores import score_of
from analysis.statistics import BOOTSTRAP_FROM, EQUIVALENT

_METHODS = {
    "ce": "cross entropy with the labels, without a teacher",
    "sft": "cross entropy with the given responses, without a teacher",
    "seqkd": "cross entropy with the responses that the teacher wrote (Kim and Rush 2016; the paper's KD of text)",
    "label_smoothing": "cross entropy with smoothed labels",
    "tf_kd": "distillation from a made-up teacher (Yuan et al. 2020)",
    "kd": "distillation with the teacher's softened probabilities (Hinton et al. 2015)",
    "kd_drop": "KD without the views on which the teacher is wrong",
    "kd_swap": "KD with the label's and the top class's probabilities exchanged where the teacher is wrong",
    "kd_one_hot": "KD with the label alone where the teacher is wrong",
    "loca": "KD with the teacher's probabilities calibrated where its largest other probability is at least the "
    "label's: those of the other classes are scaled by s = α · σ, and the label is given the rest (LoCa, arXiv "
    "2409.04778)",
    "dkd": "decoupled distillation (Zhao et al. 2022)",
    "loca_dkd": "DKD with LoCa's probabilities",
    "nkd": "normalised distillation (Yang et al. 2023)",
    "ctkd": "distillation at a temperature that is learnt by curriculum (Li et al. 2023)",
    "mlkd": "distillation at several levels of predictions (Jin et al. 2023)",
}


def methods_text(study: Mapping[str, Any], found: Sequence[Point]) -> list[str]:
    """Paragraphs on data, training, methods, selection and statistics of one study."""
    data, protocol = study["data"], study["protocol"]
    names = list(dict.fromkeys(each.method for each in found))
    score = score_of(study)
    said = [
        _data(data),
        f"Training. Protocol {protocol['base']}"
        + "".join(f", {name} {protocol[name]:g}" for name in ("epochs", "batch_size", "lr") if name in protocol)
        + ". "
        + (_deviations(study) or "Nothing deviates from it."),
    ]
    if study.get("imported"):
        said.append(
            "Whose runs. They were imported: kdstudy has not run them, and what they were trained with is what their "
            "source says."
        )
    if names:
        explained = [f"{name}: {_explained(name)}" for name in names]
        seeds = len(study["seeds"])
        said.append(
            f"Methods. {'; '.join(explained)}. Every method was trained on {'each of ' if seeds > 1 else ''}{seeds} "
            f"seed{'s' if seeds > 1 else ''}, which decide{'' if seeds > 1 else 's'} the initial weights, the order of "
            f"the {'images and their views' if score.counted else 'examples'} alike for all methods, for "
            f"{len(pairs(found))} pair"
            f"{'s' if len(pairs(found)) > 1 else ''} of teacher and student."
        )
    said += [
        f"Selection. {_selection(study)}",
        f"Statistics. {_scored(study)} Differences are paired by seed; intervals "
        f"cover 95 % (Student's t, bias-corrected and accelerated bootstrap from {BOOTSTRAP_FROM} seeds on); p-values "
        "are of paired t tests, corrected by Holm's method over all comparisons of a pair; no difference means that "
        f"two one-sided tests exclude one of {EQUIVALENT:g} points. The seeds stand for training again on the same "
        "data with the same teacher: they say nothing of other data or teachers.",
    ]
    return said


def _scored(study: Mapping[str, Any]) -> str:
    """What the score is, and of what."""
    if score_of(study).counted:
        return "Accuracy is top-1 of the last epoch on the test set."
    protocol = study["protocol"]
    chosen = "the likeliest token each time"
    if protocol["decoding"] == "sample":
        chosen = f"sampling (top-p {protocol['top_p']:g}), mean over {protocol['decoding_seeds']} decoding seeds"
    return (
        "The score is ROUGE-L (F, with the stemmer of the package rouge-score, 0 to 100) of the responses that a "
        "student "
        f"writes to the test instructions after its last epoch: {chosen}, {protocol['max_response']} tokens at "
        f"most, the "
        "best of an instruction's right responses."
    )


def _text_data(data: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{count:,} of {name}" for name, count in data["evaluated"].items())
    kept = data.get("top_k")
    text = (
        f"Data. {data['name']}: {data['train_images']:,} of {data['full_train_images']:,} training examples, "
        f"{data['validation_images']:,} for validation; evaluated on {sets}. Students foretell each token of a "
        f"response "
        f"from what comes before it, among {data['num_classes']:,}; the prompt's tokens do not count."
    )
    if kept is not None:
        text += (
            f" Of the teacher's logits the {kept:,} largest of each token and the label's are kept, and the mass of "
            f"the "
            "others is spread evenly over them; lost_teacher_mass in a run's history is what that changes."
        )
    return text


def _data(data: Mapping[str, Any]) -> str:
    if data.get("task") == "text":
        return _text_data(data)
    if data["train_images"] is None:
        return f"Data. {data['name']}, {data['num_classes']} classes; how many images is not known."
    text = (
        f"Data. {data['name']}, {data['num_classes']} classes: {data['train_images']:,} of "
        f"{data['full_train_images']:,} training images, {data['validation_images']:,} for validation, "
        f"{data['test_images']:,} of {data['full_test_images']:,} test images."
    )
    if data.get("label_noise"):
        text += f" {data['label_noise']:.0%} of the training labels are wrong on purpose."
    return text


def _explained(name: str) -> str:
    base = name.removesuffix("_ls")
    text = _METHODS.get(base, "a method of the user's own")
    return f"{text}, on standardised logits (Sun et al. 2024)" if name != base else text


def _deviations(study: Mapping[str, Any]) -> str:
    told = [f"{each['field']} {each['value']} instead of {each['base']}" for each in study["protocol_changes"]]
    return f"Deviations from it: {', '.join(told)}." if told else ""


def _selection(study: Mapping[str, Any]) -> str:
    if study["mode"] == "ablation":
        return "Nothing was chosen: every point asked for was trained and is shown."
    if study["selection"] == "paper":
        return (
            f"Points were chosen by test {score_of(study).called}, as the papers do, so what is best here reads high."
        )
    return (
        f"Points were proposed and chosen on a validation part of the training set by last-epoch "
        f"{score_of(study).called}; the chosen "
        "ones and the baselines were then trained on the whole training set with seeds that chose nothing, and the "
        "test set was used only there."
    )
