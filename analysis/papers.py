"""The numbers that papers print (`analysis/published/*.csv`) and when they may stand beside measured ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import StringIO
from typing import Any

import pandas as pd

PAPER_PROTOCOLS = {"cifar100": "crd-240", "imagenet": "imagenet-100"}
# Names of networks here that the papers' tables write without their data set.
_PREFIX = "imagenet_"
_COLUMNS = ["source", "table", "dataset", "teacher", "student", "method", "alpha", "metric", "value", "trials", "epoch"]


def network(name: str) -> str:
    """A network's name as the papers' tables write it: without its data set."""
    return name.removeprefix(_PREFIX)


@dataclass(frozen=True)
class Published:
    """One printed number: percent, and where it stands (`LoCa, Table 2`)."""

    value: float
    where: str


@cache
def load_published() -> pd.DataFrame:
    """Every published accuracy: source, table, dataset, teacher, student, method, alpha, metric, value, trials, epoch.

    The papers' row "student" (trained without a teacher) is called `ce` here, as the method is. `alpha` is nan for
    methods without it; `epoch` says last or best where the source does.
    """
    parts = []
    for file in sorted(files("analysis").joinpath("published").iterdir(), key=lambda each: each.name):
        if file.name.endswith(".csv"):
            part = pd.read_csv(StringIO(file.read_text(encoding="utf-8")), dtype={"table": "string"})
            if {"dataset", "student", "metric", "value"} <= set(part.columns):
                parts.append(part.reindex(columns=_COLUMNS))
    frame = pd.concat(parts, ignore_index=True)
    frame["method"] = frame["method"].replace({"student": "ce"})
    return frame


@cache
def text_data() -> pd.DataFrame:
    """The paper's Table 5: dataset, usage (train, valid, test) and samples of its data of instructions."""
    file = files("analysis").joinpath("published", "table5_text_data.csv")
    return pd.read_csv(StringIO(file.read_text(encoding="utf-8")))


def not_comparable(study: Mapping[str, Any], dataset: str) -> list[str]:
    """Why a study's accuracies may not stand beside published ones; empty where they may.

    Args:
        study: a study's `study.json`.
        dataset: the pair's data set.
    """
    base = PAPER_PROTOCOLS.get(dataset)
    if base is None:
        return [f"the papers have no numbers for {dataset}"]
    reasons = []
    used = study.get("protocol", {}).get("base")
    if used != base:
        reasons.append(f"the papers' protocol is {base}, this study's {used}")
    reasons += [
        f"{change['field']} is {change['value']}, the papers' is {change['base']}"
        for change in study.get("protocol_changes", [])
        if not any(cut.startswith(f"{change['field']} ") for cut in study.get("cuts", []))
    ]
    reasons += [f"cut: {cut}" for cut in study.get("cuts", [])]
    data = dict(study.get("data", {}))
    if study.get("mode") == "search" and study.get("selection") == "validation":
        # The final stage trains on the whole training set again.
        data["train_images"] += data["validation_images"]
    if data.get("label_noise"):
        reasons.append(f"{data['label_noise']:.0%} of the training labels are wrong on purpose")
    if data.get("classes_of"):
        reasons.append(f"{data.get('num_classes')} of {data['classes_of']} classes")
    for part, whole, what in (
        ("train_images", "full_train_images", "training"),
        ("test_images", "full_test_images", "test"),
    ):
        if data.get(part) != data.get(whole) and not any(what in cut for cut in study.get("cuts", [])):
            reasons.append(f"{data.get(part)} of {data.get(whole)} {what} images")
    return reasons


def published(
    dataset: str, teacher: str, student: str, method: str, alpha: float = math.nan, metric: str = "top1"
) -> list[Published]:
    """What the papers print for one point, each value once; several where they contradict each other."""
    frame = load_published()
    match = (
        (frame["dataset"] == dataset)
        & (frame["teacher"] == network(teacher))
        & (frame["student"] == network(student))
        & (frame["method"] == method)
        & (frame["metric"] == metric)
    )
    match &= frame["alpha"].isna() if math.isnan(alpha) else (frame["alpha"] - alpha).abs() < 1e-9
    # LoCa's own tables first: their numbers are the ones that a study of LoCa repeats.
    rows = frame[match].sort_values("source", key=lambda column: column != "loca", kind="stable")
    return [Published(float(row["value"]), _where(row)) for row in rows.drop_duplicates("value").to_dict("records")]


def published_curve(dataset: str, teacher: str, student: str) -> list[tuple[float, Published]]:
    """LoCa's published (alpha, top-1) points of a pair, by alpha."""
    frame = load_published()
    names = network(teacher), network(student)
    match = (frame["dataset"] == dataset) & (frame["teacher"] == names[0]) & (frame["student"] == names[1])
    rows = frame[match & (frame["method"] == "loca") & (frame["metric"] == "top1")].sort_values("alpha", kind="stable")
    return [(float(row["alpha"]), Published(float(row["value"]), _where(row))) for row in rows.to_dict("records")]


def _where(row: Mapping[Any, Any]) -> str:
    names = {"loca": "LoCa", "dkd": "DKD", "crd": "CRD", "logit_standardization": "logit standardisation"}
    where = names.get(row["source"], row["source"])
    if not pd.isna(row["table"]):
        where += f", Table {row['table']}"
    if not pd.isna(row["epoch"]):
        where += f", {row['epoch']} epoch"
    return where


@cache
def load_times() -> dict[tuple[str, str], float]:
    """LoCa's Table 7 by (method, quantity): `kd_loss` and `batch_of_64` in ms, `epoch` in s."""
    text = files("analysis").joinpath("published", "table7_time.csv").read_text(encoding="utf-8")
    return {(row["method"], row["quantity"]): row["value"] for row in pd.read_csv(StringIO(text)).to_dict("records")}
