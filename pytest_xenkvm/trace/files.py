"""Traces by file name: a format is recognised by its content, written by its suffix, found by pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from pytest_xenkvm.trace.blocks import MAGIC
from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.events import Event, Header
from pytest_xenkvm.trace.jsonl import GZIP_MAGIC, JsonlTrace, JsonlWriter
from pytest_xenkvm.trace.storage import reading
from pytest_xenkvm.trace.xkt import XktTrace, XktWriter

BUNDLED_PREFIX: Final = "@"
"""What stands before the name of a trace that comes with the package."""

_XKT: Final = ".xkt"
_JSONL: Final = (".jsonl", ".jsonl.gz")
_PACKAGE: Final = Path(__file__).parents[1]


class Trace(Protocol):
    """A trace in a file: its header at hand, its events read anew by each call of `events()`."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def name(self) -> str:
        """The file's name, without its folder."""

    @property
    def header(self) -> Header:
        """What the header says."""

    def events(self) -> Iterator[Event]:
        """Read the events in order, holding few of them in memory. Raises `TraceError`."""

    def counts(self) -> Mapping[str, int] | None:
        """Return the number of events of each kind that occurs, if that takes no reading; else None."""


def open_trace(path: str | Path) -> Trace:
    """Open a trace, whatever its format: xkt, JSON Lines, or gzip-compressed JSON Lines.

    A name such as `@linux-boot` is that of a bundled trace. Raises `TraceError` if there is no such file or
    it is no trace; `Malformed` if it is a broken one.
    """
    if str(path).startswith(BUNDLED_PREFIX):
        return XktTrace(_bundled(str(path)))
    path = Path(path)
    with reading(path) as file:
        start = file.read(len(MAGIC))
        if start == MAGIC:
            return XktTrace(path, file=file)
    if start.startswith(GZIP_MAGIC) or start.lstrip().startswith(b"{"):
        return JsonlTrace(path)
    if not start:
        raise Malformed("is empty, expected a trace", str(path))
    raise Malformed(f"is neither JSON Lines nor xkt: it begins with {start!a}", str(path))


def write_trace(path: str | Path, header: Header, events: Iterable[Event]) -> int:
    """Write a trace in the format of its suffix: `.xkt`, `.jsonl` or `.jsonl.gz`; return the events written.

    The file appears when it is whole. Raises `TraceError`, whatever `events` raises, and `Malformed` for an
    event that could not be read back.
    """
    path = Path(path)
    writer: XktWriter | JsonlWriter
    if path.name.endswith(_XKT):
        writer = XktWriter(path, header)
    elif path.name.endswith(_JSONL):
        writer = JsonlWriter(path, header)
    else:
        raise TraceError(f"{path}: does not end in .xkt, .jsonl or .jsonl.gz")
    with writer:
        for event in events:
            writer.write(event)
    return writer.written


def find_traces(spec: str | Path) -> list[Path]:
    """Return the traces that `spec` names, sorted by path.

    A file; a folder, searched with all folders in it for `.xkt`, `.jsonl` and `.jsonl.gz`; a glob pattern
    (`**` for any folders), of which files of any suffix count; `@NAME`, a bundled trace. Raises
    `TraceError` if there is none.
    """
    if str(spec).startswith(BUNDLED_PREFIX):
        return [_bundled(str(spec))]
    path = Path(spec)
    if path.is_dir():
        found = [
            Path(folder, name)
            for folder, _folders, names in os.walk(path)
            for name in names
            if name.endswith((_XKT, *_JSONL))
        ]
    elif path.exists() or not glob.has_magic(str(spec)):
        return [path] if path.exists() else _none(f"{spec}: there is no such file or folder")
    else:
        # A whole pattern, possibly absolute: `Path.glob` takes only relative ones.
        found = [Path(name) for name in glob.glob(str(spec), recursive=True) if Path(name).is_file()]  # noqa: PTH207
    return sorted(found) or _none(f"{spec}: there are no traces here")


def _none(sentence: str) -> list[Path]:
    raise TraceError(sentence)


def bundled_traces() -> dict[str, Path]:
    """Return the traces that come with the package by name, in a source checkout those of its `traces`."""
    return {path.stem: path for path in sorted(_bundle().glob(f"*{_XKT}"))}


def golden_folder() -> Path:
    """The folder of the golden traces that come with the package: KERNEL/KIND/NAME.jsonl.gz."""
    return _bundle() / "golden"


def _bundle() -> Path:
    folder = _PACKAGE / "_bundled"
    if not folder.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file():
        folder = _PACKAGE.parent / "traces"
    return folder


def _bundled(name: str) -> Path:
    bundled = bundled_traces()
    path = bundled.get(name.removeprefix(BUNDLED_PREFIX))
    if path is None:
        known = ", ".join(BUNDLED_PREFIX + known for known in bundled) or "none"
        raise TraceError(f"{name}: there is no bundled trace of this name (known: {known})")
    return path
