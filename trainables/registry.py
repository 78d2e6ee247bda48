"""Registries: things that can be named, whether they come with kdstudy, from another package, or from a user's module.

A name is looked up among our own entries, then among the entry points of the registry's group that installed packages
declare, and `package.module:factory` is imported as it stands. So a method, a model or a data set of one's own needs no
fork. What is found must be an entry of the registry's type, or a callable without arguments that returns one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from trainables.naming import unknown

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name, in the order of registration.

    Args:
        kind: what an entry is called in messages (`method`).
        group: the group of entry points that other packages may use (`kdstudy.methods`).
        entry_type: the dataclass of the entries; it has a field `name`.
        entries: our own.
    """

    def __init__(self, kind: str, group: str, entry_type: type[Entry], entries: Iterable[Entry]) -> None:
        self.kind = kind
        self.group = group
        self._type = entry_type
        self._own: dict[str, Entry] = {}
        for entry in entries:
            name = str(entry.name)  # type: ignore[attr-defined]
            if name in self._own:
                raise ValueError(f"{kind} {name} is registered twice")
            self._own[name] = entry
        self._imported: dict[str, Entry] = {}

    def names(self) -> list[str]:
        """Names of all entries: ours, then those of installed packages."""
        return [*self._own, *(name for name in self._points if name not in self._own)]

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ValueError: there is none (the nearest names are given), or what the name leads to is no entry; one line.
        """
        if name in self._own:
            return self._own[name]
        if name not in self._imported:
            if name in self._points:
                self._imported[name] = self._entry(name, self._points[name].load)
            elif ":" in name:
                self._imported[name] = self._entry(name, lambda: _import(name))
            else:
                raise ValueError(unknown(self.kind, name, self.names()))
        return self._imported[name]

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def _entry(self, name: str, load: Any) -> Entry:
        try:
            found = load()
            if not isinstance(found, self._type) and callable(found):
                found = found()
        except Exception as error:  # whatever a user's module raises
            raise ValueError(f"{self.kind} {name}: cannot be imported ({type(error).__name__}: {error})") from None
        if not isinstance(found, self._type):
            wanted = f"{self._type.__module__}.{self._type.__qualname__}"
            raise ValueError(
                f"{self.kind} {name}: it is a {type(found).__name__}; wanted: a {wanted}, or a callable without "
                "arguments that returns one"
            )
        # Under the name by which it was asked for, so that a worker finds it by the same.
        return dataclasses.replace(found, name=name)  # type: ignore[type-var]


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
