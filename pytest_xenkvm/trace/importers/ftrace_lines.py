"""Lines of ftrace text: `TASK-PID  [CPU] FLAGS SECONDS: EVENT: FIELDS`.

The columns of `trace-cmd report` (no flags) and `perf script` (a blank before the PID, `GROUP:EVENT`)
are understood too. Times become ns by string arithmetic: a float can't hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.model import ImportReport

_LINE: Final = re.compile(
    r"(?P<task>.{1,64}?)(?:-|\s+)(?:\d{1,10}/)?(?P<pid>\d{1,10})\s+"
    r"(?:\([ \d-]{1,16}\)\s+)?"  # the thread group, if that option was on
    r"\[\d{1,5}\]\s+"
    r"(?:(?P<flags>[^\s:]{4,8})\s+)?"
    r"(?P<seconds>\d{1,12})\.(?P<fraction>\d{1,9}):\s+"
    r"(?:[a-z]\w{0,63}:)?(?P<event>[A-Za-z_]\w{0,63})(?P<fields>[:( ].*)"
)
_LOST: Final = re.compile(r"CPU:\d{1,5} \[LOST (\d{1,18}) EVENTS\]")
_FIELD: Final = re.compile(r"\b(\w{1,32})=(-?(?:0x[0-9a-f]{1,16}|\d{1,20}))(?=\s|$)")
_CALLER: Final = re.compile(r"\((\w+)")

_NS_DIGITS: Final = 9
_HARDIRQ_COLUMN: Final = 2
_HARDIRQ: Final = frozenset("hHzZ")
"""The third flag inside a hard interrupt or NMI."""


@frozen(kw_only=True)
class TraceLine:
    """One event of the recording.

    `ns` is the trace clock; `in_irq`: inside a hard interrupt, so not the thread's own doing;
    `fields`: the text after the event's name.
    """

    path: str
    number: int
    task: str
    pid: int
    in_irq: bool
    ns: int
    event: str
    fields: str

    def numbers(self) -> dict[str, int]:
        """Return all `NAME=VALUE` fields of a kprobe event."""
        return {name: int(value, 16 if "x" in value else 10) for name, value in _FIELD.findall(self.fields)}

    def values(self, *names: str, bits: int = 64, signed: bool = False) -> tuple[int, ...] | None:
        """Return these fields of a kprobe event, or None if the probe couldn't read memory.

        Raises `Malformed` if one is missing or needs more than `bits`.
        """
        found = self.numbers()
        if "(fault)" in self.fields and any(name not in found for name in names):
            return None
        lowest, end = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
        if not all(name in found and lowest <= found[name] < end for name in names):
            raise self.malformed(" ".join(f"{name}=NUMBER" for name in names) + f" of {bits} bits")
        return tuple(found[name] for name in names)

    @property
    def caller(self) -> str:
        """The function that a return probe returned to, without its suffixes; "" if not shown."""
        match = _CALLER.search(self.fields)
        return match[1] if match else ""

    def malformed(self, expected: str) -> Malformed:
        """Return the error for fields that are not as expected."""
        what = f"{self.event} holds {self.fields[:120]!r}, expected {expected}"
        return Malformed(what, self.path, line=self.number)


def parse_line(text: str, path: str, number: int) -> TraceLine | None:
    """Return the event of one line, or None if it holds none."""
    match = _LINE.fullmatch(text.strip())
    if match is None:
        return None
    flags = match["flags"] or ""
    return TraceLine(
        path=path,
        number=number,
        task=match["task"].strip(),
        pid=int(match["pid"]),
        in_irq=flags[_HARDIRQ_COLUMN : _HARDIRQ_COLUMN + 1] in _HARDIRQ,
        ns=int(match["seconds"]) * 10**_NS_DIGITS + int(match["fraction"].ljust(_NS_DIGITS, "0")),
        event=match["event"],
        fields=match["fields"],
    )


def read_ftrace(lines: Iterable[str], path: str, report: ImportReport) -> Iterator[TraceLine]:
    """Yield the events; comments, losses and lines that are none are counted in `report`.

    The caller accounts for each event that it gets. Raises `Malformed` if there was none at all.
    """
    found = False
    for number, text in enumerate(lines, 1):
        report.lines += 1
        line = parse_line(text, path, number)
        if line is not None:
            found = True
            yield line
        elif lost := _LOST.match(text.strip()):
            report.lost += int(lost[1])
            report.skip("notes of lost events")
        elif not text.strip() or text.lstrip().startswith("#"):
            report.skip("comments and blank lines")
        else:
            report.skip("lines that are no ftrace event")
    if not found:
        raise Malformed("no ftrace event found, expected lines 'TASK-PID [CPU] FLAGS TIME: EVENT: ...'", path)
