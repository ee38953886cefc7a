"""What installed packages add to this one, by entry points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

_Kind = TypeVar("_Kind")


class NotLoadable(ValueError):
    """An entry point that can't be loaded; `str()` is one sentence for the user."""


def load_entry(entry: EntryPoint) -> Any:
    """What an entry point names; raises NotLoadable."""
    try:
        return entry.load()
    except Exception as error:  # importing a module runs whatever it holds
        raise NotLoadable(f"{_words(entry)} can't be loaded: {type(error).__name__}: {error}") from error


def load_all(group: str, kind: type[_Kind]) -> Iterator[_Kind]:
    """The members of all iterables that a group's entry points name; raises NotLoadable."""
    for entry in entry_points(group=group):
        loaded = load_entry(entry)
        members = tuple(loaded) if isinstance(loaded, Iterable) else (loaded,)
        for member in members:
            if not isinstance(member, kind):
                raise NotLoadable(f"{_words(entry)} has {member!r}, expected a {kind.__name__}")
            yield member


def _words(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name}" if entry.dist is not None else ""
    return f"the entry point {entry.name} = {entry.value}{package} ({entry.group})"
