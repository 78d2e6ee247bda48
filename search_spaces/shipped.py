"""The studies that ship with kdstudy, as YAML files whose first lines say which question they answer."""

from __future__ import annotations

from pathlib import Path

STUDIES = Path(__file__).parent / "studies"


def names() -> list[str]:
    """Names of the shipped studies, sorted."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def path(name: str) -> Path | None:
    """The file of a shipped study, or None where no study has that name."""
    return STUDIES / f"{name}.yaml" if name in names() else None


def question(name: str) -> str:
    """The question that a shipped study answers, as one line: the comment at the head of its file to the last "?"."""
    lines = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").rstrip())
    text = " ".join(comment)
    return text[: text.rfind("?") + 1] or text
