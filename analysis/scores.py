"""What students are valued by: top-1 accuracy of images, ROUGE-L of text; and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A score, larger is better, from 0 to 100.

    key: as metrics are called (`test_<key>_last`). name: of it. called: in a sentence. unit: ` %` or nothing. shown:
    what a teacher is right or wrong on. items: what the data set has. counted: whether it is a share of these, so that
    their number bounds its precision.
    """

    key: str
    name: str
    called: str
    unit: str
    shown: str
    items: str
    counted: bool

    def column(self, part: str, which: str = "") -> str:
        """The column of a part (`test`, `val`): by epoch, or of a run (`last`, `best`)."""
        return f"{part}_{self.key}{f'_{which}' if which else ''}"

    @property
    def heading(self) -> str:
        """The unit in a table's heading."""
        return ", %" if self.unit else f", {self.name}"

    def axis(self, part: str, remark: str = "") -> str:
        """The label of an axis."""
        return f"{part} {self.name}{remark}{' (%)' if self.unit else ''}"


TOP1 = Score("top1", "top-1", "accuracy", " %", "views", "images", True)
ROUGE_L = Score("rouge_l", "ROUGE-L", "ROUGE-L", "", "tokens", "examples", False)

_SCORES = {score.key: score for score in (TOP1, ROUGE_L)}


def score_of(study: Mapping[str, Any]) -> Score:
    """What a study's record says that its students are valued by."""
    return _SCORES.get(str(study.get("score", "top1")), TOP1)


def is_score(metric: str) -> bool:
    """Whether a run's final metric is a result of text: those of images are always there."""
    return metric.endswith(("_rouge_l_last", "_rouge_l_best", "_rouge_l_at_best_val", "_loss_last")) or (
        metric.startswith("test_rouge_l.") and metric.endswith("_last")
    )
