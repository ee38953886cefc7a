"""Tables of how often things happened in a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from pytest_xenkvm.trace.decode import has_failed, hypercall_name
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl

_MAX_NAMES: Final = 1000
"""Rows of one table: a hostile trace may hold any number of hypercall numbers."""
_OTHERS: Final = "(others)"
_COLUMNS: Final = ("kernel", "forwarded", "unknown", "failed")


def count_lines(events: Iterable[Event]) -> Iterator[str]:
    """Two tables: events by kind (ioctls by name); hypercalls with who answered and how many failed."""
    kinds: Counter[str] = Counter()
    calls: dict[str, Counter[str]] = {}
    for event in events:
        kinds[_kind(event)] += 1
        if isinstance(event, Hypercall):
            name = hypercall_name(event.nr, event.args[0] if event.args else None)
            if name not in calls and len(calls) >= _MAX_NAMES:
                name = _OTHERS
            calls.setdefault(name, Counter()).update(_columns(event))
    yield from _table(("event", "count"), [(kind, count) for kind, count in kinds.most_common()])
    if calls:
        yield ""
        rows = sorted(calls.items(), key=lambda row: (-row[1]["count"], row[0]))
        shown = [(name, count["count"], *(count[column] for column in _COLUMNS)) for name, count in rows]
        yield from _table(("hypercall", "count", *_COLUMNS), shown)


def _kind(event: Event) -> str:
    return text(event.name) if isinstance(event, Ioctl) else event.kind


def _columns(event: Hypercall) -> Iterator[str]:
    yield "count"
    yield {"kernel": "kernel", "userspace": "forwarded"}.get(event.handled or "", "unknown")
    if has_failed(event):
        yield "failed"


def _table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    width = max(len(str(row[0])) for row in (heading, *rows))
    for first, *numbers in (heading, *rows):
        yield "  ".join([f"{first!s:{width}}", *(f"{value!s:>9}" for value in numbers)])
    if not rows:
        yield "(nothing)"
