"""Where what a teacher of text said is kept."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TextStore:
    """root: the folder. top_k: how many logits a token; None: none, it is asked at each step. dtype: of what is kept.

    The responses that a teacher generates are kept there in either case.
    """

    root: Path
    top_k: int | None
    dtype: str
