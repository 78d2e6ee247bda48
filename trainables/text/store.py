"""Where what a teacher of text said is kept, and what lies there."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainables.text.answers import KEY


@dataclass(frozen=True)
class TextStore:
    """root: the folder. top_k: how many logits a token; None: none, it is asked at each step. dtype: of what is kept.

    The responses that a teacher generates are kept there in either case.
    """

    root: Path
    top_k: int | None
    dtype: str


@dataclass(frozen=True)
class Stored:
    """What is kept of one teacher: its hash, what it is in words, how many examples, and the files with their bytes."""

    id: str
    teacher: str
    what: str
    examples: int
    files: tuple[Path, ...]
    bytes: int

    def drop(self) -> None:
        """Remove it; whoever needs it asks the teacher again."""
        for file in self.files:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def stored(root: Path) -> list[Stored]:
    """All that is kept of teachers of text under a folder, by teacher. What is damaged is left out."""
    return sorted(_stored(root), key=lambda one: (one.teacher, one.id))


def _stored(root: Path) -> Iterator[Stored]:
    for file in [*root.glob(f"text-*/{KEY}"), *root.glob("responses-*.json")]:
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            if file.name == KEY:
                kept = list(file.parent.glob("*.npz"))
                size = sum(each.stat().st_size for each in kept)
                what = f"{said['top_k']} logits a token, {said['dtype']}"
                yield Stored(file.parent.name, said["teacher"], what, len(kept), (file.parent,), size)
            else:
                lines = file.with_suffix(".jsonl")
                text = lines.read_text(encoding="utf-8")
                files = (lines, file, file.with_suffix(".lock"))
                yield Stored(file.stem, said[1]["teacher"], "responses", text.count("\n"), files, len(text.encode()))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
