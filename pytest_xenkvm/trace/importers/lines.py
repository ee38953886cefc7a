"""Recorded events as lines of text, whoever printed them.

ftrace, trace-cmd, perf and bpftrace print the same events, each in columns of its own. A `Syntax` turns the
lines of one of them into `TraceLine`s; whatever stands above knows nothing else. Times become ns by string
arithmetic: a float can't hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Final

from attrs import frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.model import ImportReport

DETECT_LINES: Final = 5000
"""How many lines of a recording are looked at to find out what it is."""

_FIELD: Final = re.compile(r"\s(\w{1,32})=(\S*)")
_NUMBER: Final = re.compile(r"-?(?:0x[0-9a-f]{1,16}|\d{1,20})", re.ASCII)
_FAULT: Final = "(fault)"
_CALLER: Final = re.compile(r"\((?![0-9a-f]{16}\b)(\w+)", re.ASCII)
"""The function's name, which ftrace alone prints: for the others it is an address."""

_NS_DIGITS: Final = 9
_HARDIRQ_COLUMN: Final = 2
_HARDIRQ: Final = frozenset("hHzZ")
"""The third flag inside a hard interrupt or NMI."""

_REORDERED: Final = 1 << 16
"""Lines that are held back to put those of several CPUs in order."""


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

    def value(self, name: str) -> int | None:
        """Return this field of a kprobe event; None if the probe has none, or couldn't read memory.

        Raises `Malformed` for anything but a number.
        """
        return self._number(name, _FIELD.findall(self.fields))

    def values(self, *names: str, bits: int = 64, signed: bool = False) -> tuple[int, ...] | None:
        """Return these fields of a kprobe event, or None if the probe couldn't read memory.

        Raises `Malformed` if one is missing or needs more than `bits`.
        """
        lowest, end = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
        fields = _FIELD.findall(self.fields)
        found = {name: self._number(name, fields) for name in names}
        for name, value in found.items():
            unread = value is None and f" {name}={_FAULT}" in self.fields
            if not unread and (value is None or not lowest <= value < end):
                raise self.malformed(" ".join(f"{name}=NUMBER" for name in names) + f" of {bits} bits")
        known = tuple(value for value in found.values() if value is not None)
        return known if len(known) == len(names) else None

    def _number(self, name: str, fields: list[tuple[str, str]]) -> int | None:
        found = [value for known, value in fields if known == name]
        if not found or found == [_FAULT]:
            return None
        if len(found) > 1 or not _NUMBER.fullmatch(found[0]):
            raise self.malformed(f"{name}=NUMBER, once")
        return int(found[0], 16 if "x" in found[0] else 10)

    @property
    def caller(self) -> str:
        """The function that a return probe returned to, without its suffixes; "" if not shown."""
        match = _CALLER.search(self.fields)
        return match[1] if match else ""

    def malformed(self, expected: str) -> Malformed:
        """Return the error for fields that are not as expected."""
        what = f"{self.event} holds {self.fields[:120]!r}, expected {expected}"
        return Malformed(what, self.path, line=self.number)


@frozen(kw_only=True)
class Syntax:
    """How one recorder prints events.

    `recorder`: its name, as a trace's header has it. `line`: the groups task, pid, flags, seconds, fraction,
    event and fields. `lost`: a note of lost events; its group counts them, where the recorder does. `mark`:
    a line that no other recorder writes; `sure`: what an event's line holds if it can't be another's.
    `kernel`, `vendor`: lines that tell the host's release, and the vendor of its CPU as CPUID spells it.
    `ordered`: whether lines of several CPUs are in the order of time.
    """

    recorder: str
    columns: str
    line: re.Pattern[str]
    lost: re.Pattern[str]
    mark: re.Pattern[str] | None = None
    sure: re.Pattern[str] | None = None
    kernel: re.Pattern[str] | None = None
    vendor: re.Pattern[str] | None = None
    ordered: bool = True

    def parse(self, text: str, path: str, number: int) -> TraceLine | None:
        """Return the event of line `number`, or None if it holds none."""
        match = self.line.fullmatch(text.strip())
        if match is None:
            return None
        found = match.groupdict()
        flags = found.get("flags") or ""
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

    def recognises(self, text: str) -> bool:
        """Whether this line of a recording shows its recorder."""
        if self.mark is not None and self.mark.match(text):
            return True
        sure = self.sure is None or self.sure.search(text)
        return bool(sure) and self.parse(text, "", 0) is not None


def read_lines(lines: Iterable[str], path: str, report: ImportReport, syntax: Syntax) -> Iterator[TraceLine]:
    """Yield the events in order; comments, losses and lines that are none are counted in `report`.

    The caller accounts for each event that it gets. Raises `Malformed` if there was none at all.
    """
    events = _events(lines, path, report, syntax)
    return events if syntax.ordered else _in_order(events)


def _events(lines: Iterable[str], path: str, report: ImportReport, syntax: Syntax) -> Iterator[TraceLine]:
    found = False
    for number, text in enumerate(lines, 1):
        report.lines += 1
        line = syntax.parse(text, path, number)
        if line is not None:
            found = True
            yield line
        elif lost := syntax.lost.fullmatch(text.strip()):
            report.lost += int(lost[1] or 1)
            report.skip("notes of lost events")
        elif not text.strip() or text.lstrip().startswith("#"):
            report.skip("comments and blank lines")
        elif syntax.mark is not None and syntax.mark.match(text):
            report.skip("the recorder's own lines")
        else:
            report.skip(f"lines that are no event of {syntax.recorder}")
    if not found:
        raise Malformed(f"no {syntax.recorder} event found, expected lines {syntax.columns!r}", path)


def _in_order(events: Iterable[TraceLine]) -> Iterator[TraceLine]:
    waiting: list[tuple[int, int, TraceLine]] = []
    for line in events:
        heappush(waiting, (line.ns, line.number, line))
        if len(waiting) > _REORDERED:
            yield heappop(waiting)[-1]
    while waiting:
        yield heappop(waiting)[-1]
