"""Events as flat msgpack rows, the content of an xkt file's event blocks.

A plain hypercall is a row of 13 integers (`PLAIN`); a hypercall that has more to tell carries the rest in a
14th field. Every other event is `(code, ts, shape, values...)`. A JSON object is `(shape, values...)` and a
list `(None, items...)`: `shape` numbers a tuple of keys, which a row `(0, keys...)` has defined earlier in
the same block. `ts` is the difference to the previous event that has one, modulo 2^64; None without a time.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError  # noqa: N812 (it is a class)
from typing import Any, Final, TypeGuard

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN_HCALL, U64_MAX
from pytest_xenkvm.trace.events import EVENTS, Header, Hypercall
from pytest_xenkvm.trace.fields import MAX_CPL, MAX_VCPUS
from pytest_xenkvm.trace.values import MAX_DEPTH, MAX_VALUES, Unfit, shown

Row = tuple[Any, ...]
PlainRow = tuple[int, ...]

SHAPE: Final = 0
HYPERCALL: Final = 1
KINDS: Final = (
    "shape",
    "hypercall",
    "ioctl",
    "eventfd",
    "eventfd_read",
    "eventfd_write",
    "mem",
    "wrmsr",
    "wait",
    "irq",
    "vcpu_run",
)
"""What a row's first field counts up; the numbers are part of the format."""
CODES: Final = {kind: code for code, kind in enumerate(KINDS) if kind in EVENTS}

CODE: Final = 0
TS: Final = 1
AFTER_TS: Final = 2
VCPU: Final = 2
FLAGS: Final = 3
CPL: Final = 4
NR: Final = 5
ARGS: Final = slice(6, 12)
RAX: Final = 12
PLAIN: Final = 13
"""Fields of a plain hypercall row; the names above are their places."""

LONGMODE: Final = 1
COMPAT: Final = 2
VIA_PAGE: Final = 4
KERNEL: Final = 8
USERSPACE: Final = 16
RAX_KNOWN: Final = 32
EXIT: Final = 64
"""KVM_EXIT_XEN delivered just what the guest passed: type 1, its mode, CPL, number and arguments."""

_OUTER_DEPTH: Final = 3
"""What an event puts around a free object: the event, a list, an object in it (`behind`)."""

HANDLED: Final = {0: None, KERNEL: "kernel", USERSPACE: "userspace"}
_ALL_U64: Final = Struct(f"{PLAIN}Q")
_HANDLED_BITS: Final = {name: bits for bits, name in HANDLED.items()}


def plain_vcpus(header: Header) -> int:
    """How many vCPUs a plain row of this trace may name."""
    return MAX_VCPUS if header.vm is None else len(header.vm.vcpus)


def plain_flags(header: Header) -> frozenset[int]:
    """The flags that a plain row of this trace may have."""
    outcomes = [KERNEL | RAX_KNOWN]
    outcomes += [USERSPACE | answer | left for answer in (0, RAX_KNOWN) for left in (0, EXIT)]
    if header.scope == "hypercalls":
        outcomes += [0, RAX_KNOWN, KERNEL]
    modes = range((LONGMODE | COMPAT | VIA_PAGE) + 1)
    return frozenset(mode | outcome for mode in modes for outcome in outcomes)


def plain_check(header: Header) -> Callable[[Any], TypeGuard[PlainRow]]:
    """Return what tells the rows that are plain hypercalls of this trace, and in order, from all others.

    A bool passes as the 0 or 1 that it is.
    """
    vcpus, known_flags, pack = plain_vcpus(header), plain_flags(header), _ALL_U64.pack

    def plain(row: Any) -> TypeGuard[PlainRow]:
        if type(row) is not tuple:
            return False
        try:
            pack(*row)  # the fastest way to ask whether these are 13 integers 0 ... 2^64-1
        except StructError:
            return False
        return (
            row[CODE] == HYPERCALL and row[FLAGS] in known_flags and row[VCPU] < vcpus and row[CPL] <= MAX_CPL
        )

    return plain


def plain_row(event: Hypercall, ts: int | None) -> Row | None:
    """Return the unchecked row of a hypercall that has nothing to tell beyond one; else None.

    The same row as `RowEncoder` makes, at a tenth of the price.
    """
    if event.behind is not None or event.raw is not None or event.run_ret is not None:
        return None
    if event.inferred or event.extra or event.via not in (None, "page") or event.handled not in _HANDLED_BITS:
        return None
    flags = _HANDLED_BITS[event.handled] | LONGMODE * event.longmode | COMPAT * event.compat
    if event.via is not None:
        flags |= VIA_PAGE
    if event.rax is not None:
        flags |= RAX_KNOWN
    if event.exit is not None:
        left = event.exit
        delivered = (left.type, left.longmode, left.cpl, left.input, left.params)
        if delivered != (KVM_EXIT_XEN_HCALL, event.longmode, event.cpl, event.nr, event.args) or left.extra:
            return None
        flags |= EXIT
    row = (HYPERCALL, ts, event.vcpu, flags, event.cpl, event.nr, *event.args, event.rax or 0)
    return row if [*map(type, row)].count(int) == PLAIN else None


class RowEncoder:
    """Turns events into rows; `fresh` collects the shape rows that must stand before the next event's."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], int] = {}
        self._values = 0
        self.fresh: list[Row] = []

    def row(self, kind: str, members: dict[str, Any], ts: int | None) -> Row:
        """Return the row of an event given its members (bytes as bytes) and the time to store.

        Raises `Unfit` if they are more values than the format allows.
        """
        self._values = 0
        members = {**members}
        members.pop("ts", None)
        if kind == "hypercall":
            return self._hypercall(members, ts)
        return (CODES[kind], ts, *self.value(members))

    def _hypercall(self, members: dict[str, Any], ts: int | None) -> Row:
        flags = _HANDLED_BITS[members.pop("handled")]
        flags |= LONGMODE * members.pop("longmode") | COMPAT * members.pop("compat", False)
        flags |= VIA_PAGE * (members.pop("via", None) is not None)
        vcpu, cpl, nr, args, rax = (members.pop(key) for key in ("vcpu", "cpl", "nr", "args", "rax"))
        if members.get("exit") == _mirrored_exit(flags, cpl, nr, args):
            flags |= EXIT
            del members["exit"]
        if rax is not None:
            flags |= RAX_KNOWN
        numbers = [arg if type(arg) is int else 0 for arg in args]
        if numbers != args:
            members["args"] = args
        row = (HYPERCALL, ts, vcpu, flags, cpl, nr, *numbers, rax or 0)
        return (*row, self.value(members)) if members else row

    def value(self, value: Any) -> Any:
        """Return a JSON value with its objects and lists as tuples."""
        if type(value) in (dict, list):
            self._values += len(value)
            if self._values > MAX_VALUES:
                raise Unfit(f"holds more than {MAX_VALUES} values")
        if type(value) is dict:
            return (self._shape(tuple(value)), *map(self.value, value.values()))
        if type(value) is list:
            return (None, *map(self.value, value))
        return value

    def _shape(self, keys: tuple[str, ...]) -> int:
        number = self._shapes.get(keys)
        if number is None:
            number = self._shapes[keys] = len(self._shapes)
            self.fresh.append((SHAPE, *keys))
        return number


class RowDecoder:
    """Turns the rows of one block back into events' members. Raises `Unfit`."""

    def __init__(self) -> None:
        self._shapes: list[tuple[str, ...]] = []

    def define(self, row: Any) -> int:
        """Take a shape row; the shape's number."""
        if type(row) is not tuple or row[:1] != (SHAPE,):
            raise Unfit(f"is damaged: {shown(row)} stands where a shape is expected")
        keys = row[1:]
        if not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
            raise Unfit("is damaged: a shape's keys are not all different strings")
        self._shapes.append(keys)
        return len(self._shapes) - 1

    def members(self, row: Row) -> tuple[str, dict[str, Any]]:
        """Return the kind and the members of the event in a row, its time left out."""
        if type(row[CODE]) is not int or not HYPERCALL <= row[CODE] < len(KINDS):
            raise Unfit(f"is damaged: a row's code is {shown(row[CODE])}")
        kind = KINDS[row[CODE]]
        members = self._hypercall(row) if kind == "hypercall" else self.value(row[2:])
        if type(members) is not dict:
            raise Unfit(f"is damaged: the row of an event {kind} holds no object")
        return kind, members

    def _hypercall(self, row: Row) -> dict[str, Any]:
        if len(row) not in (PLAIN, PLAIN + 1):
            raise Unfit(f"is damaged: the row of a hypercall has {len(row)} fields")
        flags = row[FLAGS]
        bits = flags & (KERNEL | USERSPACE) if type(flags) is int else -1
        if bits not in HANDLED or not 0 <= flags < EXIT << 1:
            raise Unfit(f"is damaged: the flags of a hypercall are {shown(flags)}")
        members = {
            "vcpu": row[VCPU],
            "longmode": bool(flags & LONGMODE),
            "cpl": row[CPL],
            "nr": row[NR],
            "args": list(row[ARGS]),
            "handled": HANDLED[bits],
            "rax": row[RAX] if flags & RAX_KNOWN else None,
        }
        members |= {"via": "page"} if flags & VIA_PAGE else {}
        members |= {"compat": True} if flags & COMPAT else {}
        rest = self.value(row[PLAIN]) if len(row) > PLAIN else {}
        if type(rest) is not dict:
            raise Unfit("is damaged: the 14th field of a hypercall is no object")
        members |= rest
        if flags & EXIT:
            members["exit"] = _mirrored_exit(flags, row[CPL], row[NR], members["args"])
        return members

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return the JSON value that was made into tuples."""
        if type(value) is not tuple:
            return value
        if depth > MAX_DEPTH + _OUTER_DEPTH:
            raise Unfit(f"is nested more than {MAX_DEPTH} deep")
        if not value:
            raise Unfit("is damaged: an object without a shape")
        shape, *values = value
        decoded = [self.value(item, depth + 1) for item in values]
        if shape is None:
            return decoded
        if type(shape) is not int or not 0 <= shape < len(self._shapes):
            raise Unfit(f"is damaged: an object's shape is {shown(shape)}, which is not defined")
        keys = self._shapes[shape]
        if len(keys) != len(decoded):
            raise Unfit(f"is damaged: an object has {len(decoded)} values for its {len(keys)} keys")
        return dict(zip(keys, decoded, strict=True))


def _mirrored_exit(flags: int, cpl: Any, nr: Any, args: list[Any]) -> dict[str, Any]:
    return {
        "type": KVM_EXIT_XEN_HCALL,
        "longmode": flags & LONGMODE,
        "cpl": cpl,
        "input": nr,
        "params": args,
    }


def elapsed(ts: int | None, previous: int) -> int | None:
    """Return the time to store for an event after one at `previous`, both ns."""
    return None if ts is None else ts - previous & U64_MAX
