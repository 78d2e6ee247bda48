"""The responses that a teacher generates (SeqKD), written once and kept for every run that learns from them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.files import write_atomic

VERSION = 1  # raised when what is kept, or how, changes


class Responses:
    """A file of JSON lines, one an example; a line that was torn by a crash is not believed.

    Args:
        root: the folder of all such files.
        decides: what decides the responses: teacher, data, template, lengths, how they are chosen.
    """

    def __init__(self, root: Path, decides: dict[str, Any]) -> None:
        text = json.dumps([VERSION, decides], sort_keys=True)
        self.file = root / f"responses-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        self._decides = text

    def of(
        self, indices: Sequence[int], generate: Callable[[list[int]], Iterable[tuple[int, list[int]]]]
    ) -> dict[int, list[int]]:
        """The tokens of some examples' responses; what is not there is generated and kept.

        One process generates at a time, and the others find what it has written.

        Args:
            indices: of the examples in the training set.
            generate: from indices to pairs of an index and its response's tokens.
        """
        found = self._read()
        missing = [index for index in indices if index not in found]
        if missing:
            with self._alone():
                found = self._read()
                missing = [index for index in indices if index not in found]
                write_atomic(self.file.with_suffix(".json"), self._decides.encode())
                with self.file.open("a", encoding="utf-8") as stream:
                    for index, tokens in generate(missing) if missing else ():
                        line = json.dumps({"index": index, "tokens": tokens, "check": _check(index, tokens)})
                        # After a torn line a new one begins.
                        stream.write(f"{line}\n")
                        stream.flush()
                        found[index] = tokens
        return {index: found[index] for index in indices}

    @staticmethod
    def digest(responses: dict[int, list[int]]) -> str:
        """SHA-256 (hex) of responses."""
        return hashlib.sha256(json.dumps(sorted(responses.items())).encode()).hexdigest()

    def _read(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                row = json.loads(line)
                if row["check"] == _check(row["index"], row["tokens"]):
                    found.setdefault(row["index"], row["tokens"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)  # gone with the process that holds it
            if self.file.is_file() and self.file.read_bytes()[-1:] not in (b"\n", b""):
                with self.file.open("a", encoding="utf-8") as stream:
                    stream.write("\n")
            yield
        finally:
            os.close(handle)


def _check(index: int, tokens: list[int]) -> str:
    return hashlib.sha256(json.dumps([index, tokens]).encode()).hexdigest()[:12]
