"""Opening a recording, whatever its recorder wrote: text, text in gzip, or trace-cmd's trace.dat."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pytest_xenkvm.trace.blocks import MAGIC
from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.importers.text import bounded_lines, open_text
from pytest_xenkvm.trace.storage import reading

_TRACE_DAT: Final = b"\x17\x08\x44tracing"
_PERF_DATA: Final = (b"PERFILE2", b"2ELIFREP")
_LONGEST: Final = max(len(_TRACE_DAT), len(MAGIC), *map(len, _PERF_DATA))

_REPORT: Final = ("report", "-N", "-t")
"""With whole timestamps, and without plugins, which would print some events in another way."""


def open_recording(path: str | Path) -> Iterator[str]:
    """Yield the lines of a recording, without their line ends; those of a trace.dat as trace-cmd prints them.

    Raises `Malformed` for a line that is too long, for broken gzip data and for files that are known to be
    something else, `TraceError` if the file can't be read or trace-cmd can't be had.
    """
    path = Path(path)
    with reading(path, "a recording") as file:
        start = file.read(_LONGEST)
    if start.startswith(_TRACE_DAT):
        return _trace_dat(path)
    if start.startswith(_PERF_DATA):
        what = "is perf's own data; import what `perf script --header --ns --show-lost-events` prints of it"
        raise Malformed(what, str(path))
    if start.startswith(MAGIC):
        raise Malformed("is a trace already, expected a recording", str(path))
    return open_text(path)


def _trace_dat(path: Path) -> Iterator[str]:
    """Yield what trace-cmd prints of a trace.dat, first the recorded host's uname if it holds that."""
    program = shutil.which("trace-cmd")
    if program is None:
        raise TraceError(
            f"{path}: is a trace.dat, which needs the program trace-cmd to be read, and there is none here: "
            "install it, or import what `trace-cmd report -t` prints elsewhere"
        )
    file = ("-i", str(path.resolve()))
    yield from _printed([program, "report", "--uname", *file], str(path))
    count = 0
    for count, line in enumerate(_printed([program, *_REPORT, *file], str(path)), 1):  # noqa: B007 - used below
        yield line
    if count <= 1:  # not even an event after the number of CPUs; trace-cmd says nothing of damage
        raise Malformed("holds no event that trace-cmd can print; is it damaged or cut off?", str(path))


def _printed(command: Sequence[str], path: str) -> Iterator[str]:
    with subprocess.Popen(  # noqa: S603  # trace-cmd, with a file's name
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        try:
            yield from bounded_lines(process.stdout, path)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        what = f"cannot be read by trace-cmd, which ended with status {process.returncode}; is it damaged?"
        raise Malformed(what, path)
