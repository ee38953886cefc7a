"""Recordings as lines of text, read with bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from pytest_xenkvm.trace.errors import Malformed

MAX_LINE: Final = 1 << 15
"""Bytes of a line; those about events stay below 300, but perf's header names every CPU in one."""

MAX_LINES: Final = 100_000_000
"""Lines of a recording: more come from no recorder, but from a gzip file made for the purpose."""

_GZIP_MAGIC: Final = b"\x1f\x8b"


def open_text(path: str | Path) -> Iterator[str]:
    """Yield the lines of a text file, or of a gzip file of text, without their line ends.

    What is no UTF-8 is replaced. Raises `Malformed` for a line of more than `MAX_LINE` bytes and for
    broken gzip data, `OSError` if the file can't be read.
    """
    with Path(path).open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            yield from bounded_lines(file, str(path))
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from bounded_lines(unpacked, str(path))


def bounded_lines(file: IO[bytes] | gzip.GzipFile, path: str) -> Iterator[str]:
    """Yield the lines of an open file; raises as `open_text` does."""
    number = 0
    while True:
        try:
            line = file.readline(MAX_LINE + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = f"broken gzip data after this line ({error})"
            raise Malformed(what, path, line=number) from None
        if not line:
            return
        number += 1
        if number > MAX_LINES:
            raise Malformed(f"more than {MAX_LINES:,} lines; cut the recording", path, line=number)
        if len(line) > MAX_LINE:
            raise Malformed(f"a line of more than {MAX_LINE} bytes", path, line=number)
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")
