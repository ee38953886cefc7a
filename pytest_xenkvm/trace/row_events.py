"""From the rows of one block to events without a time; what differs in time only is decoded once.

Hypercalls seldom repeat, so those that a row of integers tells, with or without the bytes behind one pointer,
have a way of their own. Everything else goes by the tables in `fields`.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812 (it is a class)
from typing import Any, Final

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN_HCALL
from pytest_xenkvm.trace.events import Behind, Event, Header, Hypercall, HypercallExit, made_of
from pytest_xenkvm.trace.fields import MAX_CPL, check_event, decode_event
from pytest_xenkvm.trace.rows import (
    AFTER_TS,
    CODE,
    COMPAT,
    EXIT,
    HANDLED,
    HYPERCALL,
    KERNEL,
    LONGMODE,
    NR,
    PLAIN,
    RAX,
    RAX_KNOWN,
    USERSPACE,
    VIA_PAGE,
    Row,
    RowDecoder,
    plain_flags,
    plain_vcpus,
)
from pytest_xenkvm.trace.values import HYPERCALL_ARGS, S64_MAX, S64_MIN

_NUMBERS: Final = slice(AFTER_TS, PLAIN)
"""What is left of a plain row without its code and time."""
_ALL_U64: Final = Struct(f"{PLAIN - AFTER_TS}Q")

_BEHIND: Final = ("behind",)
_BEHIND_ITEM: Final = ("arg", "data")
_NOW_PLUS_AT: Final = "now_plus_at"
_CLOCK_BYTES: Final = 8
_UNDEFINED: Final = -1
"""The number of a shape that the block hasn't defined."""
_ARGS: Final = slice(NR + 1 - AFTER_TS, RAX - AFTER_TS)


class RowEvents:
    """The events in the rows of one block; shapes count within the block."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._decoder = RowDecoder()
        self.known: dict[Any, dict[Row, Event]] = {}
        """Events of this block other than hypercalls, by their rows' code and all that follows the time."""
        self._vcpus = plain_vcpus(header)
        self._told = {flags: _told_by(flags) for flags in plain_flags(header)}
        self._behind_shape = _UNDEFINED
        self._item_shapes: dict[int, tuple[str, ...]] = {}
        """Keys behind "arg" and "data" of the shapes that begin with those."""

    def next_block(self) -> None:
        """Forget shapes and what they helped to decode."""
        self._decoder = RowDecoder()
        self.known.clear()
        self._behind_shape = _UNDEFINED
        self._item_shapes.clear()

    def define(self, row: Any) -> None:
        """Take a shape row. Raises `Unfit`."""
        number = self._decoder.define(row)
        if row[1:] == _BEHIND:
            self._behind_shape = number
        elif row[1:3] == _BEHIND_ITEM:
            self._item_shapes[number] = row[3:]

    def event(self, row: Row) -> Event:
        """The event of a row that has a code and a time, without its time. Raises `Unfit`."""
        code = row[CODE]
        if code == HYPERCALL:
            return self._hypercall(row) or self._decoded(row)
        event = self._decoded(row)
        self.known.setdefault(code, {})[row[AFTER_TS:]] = event
        return event

    def _decoded(self, row: Row) -> Event:
        event = decode_event(*self._decoder.members(row))
        check_event(event, self._header)
        return event

    def _hypercall(self, row: Row) -> Hypercall | None:
        """A hypercall of integers and the bytes behind one pointer at most; None if it is more or wrong.

        A bool passes as the 0 or 1 that it is.
        """
        try:
            # The fastest way to ask whether these are integers 0 ... 2^64-1.
            numbers = _ALL_U64.unpack(_ALL_U64.pack(*row[_NUMBERS]))
        except StructError:
            return None
        vcpu, flags, cpl, nr = numbers[: NR + 1 - AFTER_TS]
        told = self._told.get(flags)
        if told is None or vcpu >= self._vcpus or cpl > MAX_CPL:
            return None
        behind = None
        if len(row) != PLAIN:
            behind = self._behind(row[PLAIN])
            if behind is None or len(row) != PLAIN + 1:
                return None
        args = numbers[_ARGS]
        values = {**told, "vcpu": vcpu, "cpl": cpl, "nr": nr, "args": args, "behind": behind, "extra": {}}
        if flags & RAX_KNOWN:
            values["rax"] = numbers[-1]
        if flags & EXIT:
            values["exit"] = made_of(
                HypercallExit,
                {
                    "type": KVM_EXIT_XEN_HCALL,
                    "longmode": flags & LONGMODE,
                    "cpl": cpl,
                    "input": nr,
                    "params": args,
                    "extra": {},
                },
            )
        return made_of(Hypercall, values)

    def _behind(self, rest: Any) -> tuple[Behind] | None:
        """What a row's 14th field tells, if that is the bytes behind one pointer and nothing else."""
        try:
            shape, (no_shape, (item_shape, arg, data, *told)) = rest
        except (TypeError, ValueError):
            return None
        keys = self._item_shapes.get(item_shape) if shape == self._behind_shape else None
        if keys is None or no_shape is not None or len(told) != len(keys):
            return None
        if type(arg) is not int or not 0 <= arg < HYPERCALL_ARGS or type(data) is not bytes:
            return None
        values: dict[str, Any] = {"arg": arg, "data": data, "now_plus_at": (), "extra": {}}
        for key, value in zip(keys, told):  # noqa: B905 - they are as many
            if key == _NOW_PLUS_AT:
                place = _one_clock(value, len(data))
                if place is None:
                    return None
                values[key] = (place,)
            elif type(value) is int:
                values["extra"][key] = value
            else:
                return None
        return (made_of(Behind, values),)


def _one_clock(places: Any, size: int) -> tuple[int, int] | None:
    """The one place of `now_plus_at` in data of this size; None if it is more or wrong."""
    try:
        outer, (inner, offset, delta) = places
    except (TypeError, ValueError):
        return None
    if outer is not None or inner is not None or type(offset) is not int or type(delta) is not int:
        return None
    fits = 0 <= offset <= size - _CLOCK_BYTES and S64_MIN <= delta <= S64_MAX
    return (offset, delta) if fits else None


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
