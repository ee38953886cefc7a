"""What a timeline is made of: marks of a few kinds, kept in columns, and bounded.

A trace may hold ten million events, so marks live in arrays of integers. What a mark says (lane, kind, words)
is a row of a table, since nearly all of them say what earlier ones said. Marks beyond the limit are kept
compressed until it is known which of them lie around a finding.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from math import gcd
from typing import Any, Final

from attrs import Factory, define, frozen

MAX_MARKS: Final = 200_000
"""Marks that a timeline keeps from the start of a trace."""

MAX_MARKS_AROUND: Final = 50_000
"""Marks beyond those that it keeps because they lie around findings."""

AROUND: Final = 50
"""Events before and after a finding whose marks are kept."""

MAX_ROWS: Final = 4000
"""Different things that marks may say in full; what comes later is said in fewer words."""

_CHUNK: Final = 1 << 16
"""Marks that are compressed together."""

FAILED: Final = 1
INFERRED: Final = 2
BY_VMM: Final = 4
DIVERGED: Final = 8
UNJUDGED: Final = 16
"""Flags of a row: it failed; nobody saw it, but it is implied; the VMM under test did it; it differs from the
recording; the recording could not see an outcome."""

VMM_LANE: Final = -1
MEMORY_LANE: Final = -2
"""Lanes besides those of vCPUs, which count from 0."""


@frozen
class MarkKind:
    """A kind of mark: its name in the file, words for people, and the tracks of its lane that show it."""

    id: str
    label: str
    tracks: tuple[str, ...]


KINDS: Final = (
    MarkKind("kernel", "Hypercall in the kernel", ("kernel",)),
    MarkKind("forwarded", "Hypercall forwarded", ("forwarded",)),
    MarkKind("unknown", "Hypercall, unknown who answered", ("unknown",)),
    MarkKind("armed", "Timer armed", ("kernel", "timer")),
    MarkKind("vmm-armed", "Timer armed by the VMM", ("timer",)),
    MarkKind("expired", "Timer expired", ("timer",)),
    MarkKind("vmm-event", "Event from the VMM", ("events",)),
    MarkKind("guest-event", "Event from a vCPU", ("events",)),
    MarkKind("upcall", "Interrupt taken", ("upcalls",)),
    MarkKind("acknowledged", "Upcall acknowledged", ("upcalls",)),
    MarkKind("entry", "Guest entry or MSR write", ("entries",)),
    MarkKind("ioctl", "Ioctl", ("ioctls",)),
    MarkKind("eventfd", "Eventfd", ("eventfds",)),
    MarkKind("wait", "Time passes", ("waits",)),
    MarkKind("store", "Store to guest memory", ("stores",)),
    MarkKind("read", "Guest memory looked at", ("reads",)),
)
"""All kinds, in the order of their tracks in a lane. `armed` is a hypercall in the kernel, too."""

KIND_NUMBERS: Final = {kind.id: number for number, kind in enumerate(KINDS)}


@frozen
class Row:
    """What a mark says. `lane`: a vCPU's index, VMM_LANE or MEMORY_LANE; `kind`: an id of `KINDS`."""

    lane: int
    kind: str
    name: str
    outcome: str = ""
    flags: int = 0


@define
class _Columns:
    times: array[int] = Factory(lambda: array("q"))
    """ns."""
    events: array[int] = Factory(lambda: array("q"))
    rows: array[int] = Factory(lambda: array("i"))
    deltas: array[int] = Factory(lambda: array("q"))
    """How far ahead a timer was armed (ns), -1 for all else."""

    def parts(self) -> tuple[array[int], ...]:
        return self.times, self.events, self.rows, self.deltas


@frozen
class _Packed:
    """Columns of `_CHUNK` marks, compressed; the events that they belong to lie in [first, last]."""

    first: int
    last: int
    parts: tuple[bytes, ...]

    @classmethod
    def of(cls, columns: _Columns) -> _Packed:
        parts = tuple(zlib.compress(part.tobytes(), 1) for part in columns.parts())
        return cls(min(columns.events), max(columns.events), parts)

    def columns(self) -> _Columns:
        columns = _Columns()
        for part, packed in zip(columns.parts(), self.parts, strict=True):
            part.frombytes(zlib.decompress(packed))
        return columns


@define
class Marks:
    """Marks in the order of their times."""

    limit: int = MAX_MARKS
    limit_around: int = MAX_MARKS_AROUND
    total: int = 0
    """Marks that were added."""
    rows: dict[Row, int] = Factory(dict)
    _first: _Columns = Factory(_Columns)
    _open: _Columns = Factory(_Columns)
    _packed: list[_Packed] = Factory(list)

    def row(self, row: Row) -> int:
        """The number of a row, of one in fewer words if there are very many."""
        number = self.rows.get(row)
        if number is None:
            if len(self.rows) >= MAX_ROWS:
                row = Row(row.lane, row.kind, "(too many to be named)", flags=row.flags)
            number = self.rows.setdefault(row, len(self.rows))
        return number

    def add(self, time: int, event: int, row: int, delta: int = -1) -> None:
        """Add a mark at `time` (ns), no earlier than those before, for the event of that index."""
        columns = self._first if self.total < self.limit else self._open
        columns.times.append(time)
        columns.events.append(event)
        columns.rows.append(row)
        columns.deltas.append(delta)
        self.total += 1
        if len(self._open.times) == _CHUNK:
            self._packed.append(_Packed.of(self._open))
            self._open = _Columns()

    def as_json(self, around: Iterable[int]) -> dict[str, Any]:
        """The marks kept: the first `limit`, and those of events near the indexes in `around`."""
        kept, gaps, count = _Columns(), [], 0
        for number, mark in self._kept(sorted(set(around))):
            if number != count:
                gaps.append([len(kept.times), number - count])
            count = number + 1
            for column, value in zip(kept.parts(), mark, strict=True):
                column.append(value)
        if count != self.total:
            gaps.append([len(kept.times), self.total - count])
        tick = gcd(*kept.times) or 1
        return {
            "marks": self.total,
            "gaps": gaps,
            "tick_ns": tick,
            "t": _steps(time // tick for time in kept.times),
            "event": _steps(kept.events),
            "row": kept.rows.tolist(),
            "ahead_ns": [delta for delta in kept.deltas if delta >= 0],
            "ahead": _steps(number for number, delta in enumerate(kept.deltas) if delta >= 0),
        }

    def _kept(self, around: list[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        yield from enumerate(_marks(self._first))
        start, left = len(self._first.times), self.limit_around
        for packed in self._packed:
            if left and _is_near(around, packed.first, packed.last):
                for number, mark in _near(around, start, packed.columns(), left):
                    left -= 1
                    yield number, mark
            start += _CHUNK
        yield from _near(around, start, self._open, left)


def _near(
    around: list[int], start: int, columns: _Columns, limit: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The first `limit` marks near an index of the sorted list `around`; they count from `start`."""
    marks = enumerate(_marks(columns), start)
    return islice(((number, mark) for number, mark in marks if _is_near(around, mark[1], mark[1])), limit)


def _marks(columns: _Columns) -> Iterator[tuple[int, ...]]:
    return zip(*columns.parts(), strict=True)


def _is_near(around: list[int], first: int, last: int) -> bool:
    """Whether an index of the sorted list `around` is within `AROUND` of [first, last]."""
    at = bisect_left(around, first - AROUND)
    return at < len(around) and around[at] <= last + AROUND


def _steps(values: Iterable[int]) -> list[int]:
    """Each value less the one before it; the first less 0."""
    steps, before = [], 0
    for value in values:
        steps.append(value - before)
        before = value
    return steps
