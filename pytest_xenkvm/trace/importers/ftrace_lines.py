"""ftrace's own text (`trace`, `trace_pipe`): `TASK-PID  [CPU] FLAGS SECONDS: EVENT: FIELDS`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from pytest_xenkvm.trace.importers.lines import Syntax, TraceLine, read_lines
from pytest_xenkvm.trace.importers.model import ImportReport

__all__ = ["FTRACE", "TraceLine", "parse_line", "read_ftrace"]

FTRACE: Final = Syntax(
    recorder="ftrace",
    columns="TASK-PID [CPU] FLAGS TIME: EVENT: ...",
    line=re.compile(
        r"(?P<task>.{1,64}?)-(?P<pid>\d{1,7})\s{1,16}"
        r"(?:\([ \d-]{1,16}\)\s{1,8})?"  # the thread group, if that option is on
        r"\[\d{1,5}\]\s{1,8}"
        r"(?:(?P<flags>[^\s:]{4,8})\s{1,16})?"
        r"(?P<seconds>\d{1,10})\.(?P<fraction>\d{1,9}):\s"
        r"(?P<event>[A-Za-z_]\w{0,63})(?P<fields>[:( ].*)",
        re.ASCII,
    ),
    lost=re.compile(r"CPU:\d{1,5} \[LOST (\d{1,18}) EVENTS\]", re.ASCII),
)
"""ftrace's text. Functions have their names in it, and flags tell interrupts."""


def parse_line(text: str, path: str, number: int) -> TraceLine | None:
    """Return the event of one line, or None if it holds none."""
    return FTRACE.parse(text, path, number)


def read_ftrace(lines: Iterable[str], path: str, report: ImportReport) -> Iterator[TraceLine]:
    """Yield the events; comments, losses and lines that are none are counted in `report`.

    The caller accounts for each event that it gets. Raises `Malformed` if there was none at all.
    """
    return read_lines(lines, path, report, FTRACE)
