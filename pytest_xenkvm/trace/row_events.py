"""From the rows of event blocks to events without a time; what comes again is decoded once.

Nearly all rows repeat earlier ones, but for the time. Hypercalls seldom do: those that a row of integers
tells, with or without the bytes behind one pointer, are one object if they agree in all but those bytes,
arguments 2 ... 5 and an address in argument 1, which are read anew each time. Everything else goes by the
tables in `fields`.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as StructError  # noqa: N812 (it is a class)
from typing import Any, Final

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN_HCALL, U64_MAX
from pytest_xenkvm.trace.events import (
    BRIEF_BYTES,
    LEAST_POINTER,
    Event,
    Header,
    Hypercall,
    HypercallExit,
    Seen,
    TimedEvent,
    Told,
    as_told,
    is_small,
    made_of,
)
from pytest_xenkvm.trace.fields import MAX_CPL, check_event, decode_event
from pytest_xenkvm.trace.rows import (
    AFTER_TS,
    ARGS,
    CODE,
    CODES,
    COMPAT,
    EXIT,
    HANDLED,
    HYPERCALL,
    KERNEL,
    KINDS,
    LONGMODE,
    PLAIN,
    RAX_KNOWN,
    SHAPE,
    TS,
    USERSPACE,
    VIA_PAGE,
    Row,
    RowDecoder,
    plain_flags,
    plain_vcpus,
)
from pytest_xenkvm.trace.values import HYPERCALL_ARGS, S64_MAX, U64

_BEHIND: Final = ("behind",)
_BEHIND_ITEM: Final = ("arg", "data")
_NOW_PLUS_AT: Final = ("now_plus_at",)
_CLOCK_BYTES: Final = 8
_KEY: Final = Struct("7Q")
_UNDEFINED: Final = -1
"""The number of a shape that the block hasn't defined."""

_REST: Final = slice(AFTER_TS, None)
_VALUES: Final = AFTER_TS + 1
"""Where the values stand in a row that is no hypercall."""

_MAX_KNOWN: Final = 2048
"""Rows whose events are remembered; the trace may hold any number of different ones."""
_MAX_CALLS: Final = 1024

_NO_CALL: Final = (None, None)

MORE: Final = object()
"""Stands for whatever comes after the rows that were read."""

_Known = dict[int, dict[Row, Event]]


def _nothing_known() -> _Known:
    return {code: {} for code in CODES.values() if code != HYPERCALL}


class RowEvents:
    """The events in the rows of one block after the other; shapes count within a block."""

    def __init__(self, header: Header) -> None:
        self.ts = 0
        """Time of the last event that had one (ns)."""
        self.counts = [0] * len(KINDS)
        """Events read so far, by code."""
        self._header = header
        self._vcpus = plain_vcpus(header)
        self._told = {flags: _told_by(flags) for flags in plain_flags(header)}
        self._calls: dict[Row, Hypercall] = {}
        """By all that hypercalls that are one object have in common."""
        self._remembered: dict[Row, Event] = {}
        """Events other than hypercalls, by their rows as `_spelled`."""
        self.next_block()

    def next_block(self) -> None:
        """Forget the shapes."""
        self._decoder = RowDecoder()
        self._shapes: dict[int, tuple[str, ...]] = {}
        self.known = _nothing_known()
        """The same for this block, by the rows' code and all that follows the time."""
        self._behind_shape = _UNDEFINED
        self._items: dict[int, tuple[bool, str | None]] = {}
        """Shapes of what lies behind a pointer: whether it may hold a clock, and the one extra key."""

    def read(self, rows: Iterable[Any], events: list[TimedEvent]) -> Any:
        """Append the events that rows tell, as `XktTrace.timed_events` has it, and return `MORE`.

        What is neither an event nor a shape ends the reading and is returned instead. Raises `Unfit`.
        """
        ts, counts, known, call = self.ts, self.counts, self.known, self.call
        append = events.append
        for row in rows:
            event: Event | None
            told: Told | None
            try:
                code, step = row[CODE], row[TS]
                if code == HYPERCALL:
                    event, told = call(row)
                else:
                    event, told = known[code][row[_REST]], None
            except (TypeError, LookupError):  # it is new, a shape, the end, or damaged
                event, told = None, None
            if event is None:
                if type(row) is not tuple or not row:
                    self.ts = ts
                    return row
                if row[CODE] == SHAPE:
                    self.define(row)
                    continue
                event = self.event(row)
                code, step = row[CODE], row[TS]
            if type(step) is int and step >= 0:
                ts = ts + step & U64_MAX
                append((ts, event, told))
            else:
                if step is not None:
                    U64.decode(step)
                append((None, event, told))
            counts[code] += 1
        self.ts = ts
        return MORE

    def define(self, row: Any) -> None:
        """Take a shape row. Raises `Unfit`."""
        number = self._decoder.define(row)
        self._shapes[number] = row[1:]
        if row[1:] == _BEHIND:
            self._behind_shape = number
        elif row[1:3] == _BEHIND_ITEM:
            clock, keys = row[3:4] == _NOW_PLUS_AT, row[3:]
            if len(keys) <= clock + 1:
                self._items[number] = clock, keys[clock] if len(keys) > clock else None

    def event(self, row: Row) -> Event:
        """The event of a row that has a code and a time, without its time. Raises `Unfit`."""
        code = row[CODE]
        if type(code) is int and code == HYPERCALL:
            call, told = self.call(row)
            return self._decoded(row) if call is None else as_told(call, told)
        spelled = self._spelled(row)
        event = self._remembered.get(spelled) or self._decoded(row)
        if spelled and is_small(event):
            if len(self._remembered) >= _MAX_KNOWN:
                self._remembered.clear()
                self.known.update(_nothing_known())
            self._remembered[spelled] = self.known[code][row[AFTER_TS:]] = event
        return event

    def _spelled(self, row: Row) -> Row:
        """The row without its time, with keys for numbers of shapes; nothing if it is not so simple."""
        spelled = [row[CODE]]
        for value in (row[AFTER_TS:_VALUES], *row[_VALUES:]):
            if type(value) is tuple:
                keys = self._shapes.get(value[0]) if value and type(value[0]) is int else None
                if keys is None or any(type(item) is tuple for item in value):
                    return ()
                spelled.append((keys, *value[1:]))
            else:
                spelled.append(value)
        return tuple(spelled)

    def _decoded(self, row: Row) -> Event:
        event = decode_event(*self._decoder.members(row))
        check_event(event, self._header)
        return event

    def call(self, row: Row) -> tuple[Hypercall, Told] | tuple[None, None]:
        """A hypercall of integers and the bytes behind one pointer at most; nothing if it is more or wrong.

        A bool passes as the 0 or 1 that it is.
        """
        if type(row) is not tuple:
            return _NO_CALL
        try:
            if len(row) == PLAIN:
                _code, _ts, vcpu, flags, cpl, nr, a0, a1, a2, a3, a4, a5, rax = row
                seen = None
            else:
                _code, _ts, vcpu, flags, cpl, nr, a0, a1, a2, a3, a4, a5, rax, rest = row
                seen = self._seen(rest)
            # The fastest way to ask whether these are integers and none is negative; none is above 2^64-1.
            if vcpu | flags | cpl | nr | a0 | a1 | a2 | a3 | a4 | a5 | rax < 0:
                return _NO_CALL
        except (TypeError, ValueError, LookupError):
            return _NO_CALL
        number = a1 if a1 < LEAST_POINTER else LEAST_POINTER  # noqa: FURB136 - a call takes longer
        key = (vcpu, flags, cpl, nr, a0, number, rax)
        event = self._calls.get(key) or self._new_call(key, row[ARGS])
        return _NO_CALL if event is None else (event, (row[ARGS], seen))

    def _seen(self, rest: Any) -> Seen:
        """What a row's 14th field tells. Raises ValueError and others if it is more than that, or wrong."""
        shape, (no_shape, item) = rest
        if shape != self._behind_shape or no_shape is not None:
            raise ValueError
        has_clock, name = self._items[item[0]]
        offset, delta, number = None, 0, 0
        if has_clock:
            if name is None:
                _shape, arg, data, (outer, (inner, offset, delta)) = item
            else:
                _shape, arg, data, (outer, (inner, offset, delta)), number = item
            if outer is not None or inner is not None or type(offset) is not int or type(delta) is not int:
                raise ValueError
            if not 0 <= offset <= len(data) - _CLOCK_BYTES or delta > S64_MAX:  # none is below -2^63
                raise ValueError
        elif name is None:
            _shape, arg, data = item
        else:
            _shape, arg, data, number = item
        if type(arg) is not int or type(data) is not bytes or type(number) is not int:
            raise ValueError
        if not 0 <= arg < HYPERCALL_ARGS or len(data) > BRIEF_BYTES:
            raise ValueError
        return arg, data, offset, delta, name, number

    def _new_call(self, key: tuple[int, ...], args: tuple[int, ...]) -> Hypercall | None:
        try:
            vcpu, flags, cpl, nr, *_args, rax = _KEY.unpack(_KEY.pack(*key))
        except StructError:
            return None
        told = self._told.get(flags)
        if told is None or vcpu >= self._vcpus or cpl > MAX_CPL:
            return None
        values = {**told, "vcpu": vcpu, "cpl": cpl, "nr": nr, "args": args, "behind": None, "extra": {}}
        if flags & RAX_KNOWN:
            values["rax"] = rax
        if flags & EXIT:
            left = {"type": KVM_EXIT_XEN_HCALL, "longmode": flags & LONGMODE, "cpl": cpl, "input": nr}
            values["exit"] = made_of(HypercallExit, {**left, "params": args, "extra": {}})
        event = made_of(Hypercall, values)
        if len(self._calls) >= _MAX_CALLS:
            self._calls.clear()
        self._calls[key] = event
        return event


def _told_by(flags: int) -> dict[str, Any]:
    """The attributes of a hypercall that its flags tell, and those that no plain row does."""
    return {
        "ts": None,
        "inferred": False,
        "longmode": bool(flags & LONGMODE),
        "handled": HANDLED[flags & (KERNEL | USERSPACE)],
        "exit": None,
        "rax": None,
        "via": "page" if flags & VIA_PAGE else None,
        "compat": bool(flags & COMPAT),
        "raw": None,
        "run_ret": None,
    }
