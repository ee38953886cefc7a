"""Opening trace files and replacing them atomically; what goes wrong becomes a `TraceError`."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pytest_xenkvm.trace.errors import TraceError


@contextmanager
def complaining(path: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` into a `TraceError`: `path` can't be `doing` ("read", "written")."""
    try:
        yield
    except OSError as error:
        raise TraceError(f"{path}: cannot be {doing}: {error.strerror or error}") from error


@contextmanager
def reading(path: Path, expected: str = "a trace file") -> Iterator[BinaryIO]:
    """Open a regular file for reading; an `OSError` in the body is one of reading it.

    `expected` says what the file should be. Raises TraceError.
    """
    if "\0" in str(path):
        raise TraceError(f"{str(path)!a}: is no file name")
    with complaining(path, "read"):
        # Asked before opening: opening a FIFO would wait for its writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise TraceError(f"{path}: is {found}, expected {expected}")
        with path.open("rb") as file:
            yield file


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when whole; on any exception nothing is left behind."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with complaining(path, "written"):
        file = draft.open("xb")
    try:
        try:
            yield file
            with complaining(path, "written"):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with complaining(path, "written"):  # closing tries again what failed before
                file.close()
        with complaining(path, "written"):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
