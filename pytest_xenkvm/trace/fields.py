"""One table an event class: its JSON keys, in canonical order, with the kind of value of each.

Decoding goes from a JSON-like dict to a frozen event, encoding back. Keys have the attributes' names. Keys
that a table doesn't know are kept in `extra`; they follow the known ones, and `ts` is always the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    Irq,
    Mem,
    VcpuRun,
    Wait,
    Wrmsr,
)
from pytest_xenkvm.trace.ioctl_args import check_ioctl
from pytest_xenkvm.trace.values import (
    BOOL,
    BYTES,
    HYPERCALL_ARGS,
    OBJECT,
    S64,
    TEXT,
    TIME,
    U8,
    U32,
    U64,
    Kind,
    Unfit,
    as_object,
    free,
    integer,
    items,
    members,
    nullable,
    one_of,
    shown,
)

MAX_VCPUS: Final = 4096
"""vCPUs of a VM, the largest KVM_MAX_VCPUS there is."""

MAX_CPL: Final = 3

_REQUIRED: Final = object()


@frozen
class Field:
    """A JSON key: its kind of value and the value that stands for "not there" (none if it must be there)."""

    key: str
    kind: Kind
    absent: Any = _REQUIRED


class Table:
    """The keys of one class in canonical order.

    `check` looks at a decoded object as a whole; `reserved` are keys that the format puts around the fields.
    """

    def __init__(
        self,
        cls: type[Any],
        *fields: Field,
        check: Callable[[Any], None] | None = None,
        reserved: tuple[str, ...] = ("ev",),
    ) -> None:
        self.cls = cls
        self.fields = fields
        self.own = {*reserved, *(field.key for field in fields)}
        self.kinds = {field.key: field.kind for field in fields}
        self.required = {field.key for field in fields if field.absent is _REQUIRED}
        self.check = check

    def decode(self, members: Mapping[str, Any]) -> Any:
        """Check the members and build the object. Raises `Unfit`."""
        values = {}
        extra = {}
        for key, value in members.items():
            kind = self.kinds.get(key)
            try:
                if kind is None:
                    extra[TEXT.decode(key)] = free(value)
                else:
                    values[key] = kind.decode(value)
            except Unfit as unfit:
                raise unfit.inside(key) from None
        if not self.required <= values.keys():
            missing = next(field.key for field in self.fields if field.key in self.required - values.keys())
            raise Unfit(f'has no "{missing}"')
        decoded = self.cls(**values, extra=extra)
        if self.check is not None:
            self.check(decoded)
        return decoded

    def encode(self, decoded: Any, *, text: bool) -> dict[str, Any]:
        """Return the members in canonical order, without those that are absent."""
        encoded = {}
        for field in self.fields:
            value = getattr(decoded, field.key)
            if field.absent is _REQUIRED or value != field.absent:
                encoded[field.key] = field.kind.encode(value, text)
        for key, value in decoded.extra.items():
            if key in self.own:
                raise Unfit(f"holds {shown(key)}, a key of the format's own", "extra")
            encoded[key] = value
        if "ts" in encoded:
            encoded["ts"] = encoded.pop("ts")
        return encoded

    def nested(self) -> Kind:
        """Return the kind of value that is such an object inside another."""
        return Kind(
            lambda value: self.decode(as_object(value)),
            lambda value, text: self.encode(value, text=text),
        )


VCPU: Final = integer(0, MAX_VCPUS - 1)
CPL: Final = integer(0, MAX_CPL)
BIT: Final = integer(0, 1)
REGISTERS: Final = items(TIME, HYPERCALL_ARGS)
_OFFSET_AND_DELTA: Final = items(S64, 2)
NOW_PLUS_AT: Final = items(_OFFSET_AND_DELTA)
_COMMON: Final = (Field("inferred", BOOL, absent=False), Field("ts", U64, absent=None))
_CLOCK_BYTES: Final = 8


def _check_now_plus_at(event: Mem | Behind) -> None:
    for offset, _delta in event.now_plus_at:
        if not 0 <= offset <= len(event.data) - _CLOCK_BYTES:
            raise Unfit(f"names 8 bytes at {offset}, but the data has {len(event.data)}", "now_plus_at")


def _check_mem(event: Mem) -> None:
    _check_now_plus_at(event)
    if event.mask is None:
        return
    if event.op != "read":
        raise Unfit('is there, but only a "read" has one', "mask")
    if len(event.mask) != len(event.data):
        raise Unfit(f"has {len(event.mask)} bytes, expected {len(event.data)} as in data", "mask")


def _check_hypercall(event: Hypercall) -> None:
    if event.exit is not None and event.handled != "userspace":
        raise Unfit('is there, but only a hypercall handled in "userspace" has one', "exit")


EXIT: Final = Table(
    HypercallExit,
    Field("type", U32),
    Field("longmode", BIT),
    Field("cpl", CPL),
    Field("input", U64),
    Field("params", REGISTERS),
)
BEHIND: Final = Table(
    Behind,
    Field("arg", integer(0, HYPERCALL_ARGS - 1)),
    Field("data", BYTES),
    Field("now_plus_at", NOW_PLUS_AT, absent=()),
    check=_check_now_plus_at,
)

TABLES: Final[Mapping[str, Table]] = {
    table.cls.kind: table
    for table in (
        Table(
            Ioctl,
            Field("name", TEXT),
            Field("vcpu", VCPU, absent=None),
            Field("arg", OBJECT),
            Field("ret", S64),
            Field("out", OBJECT, absent=None),
            Field("undetermined", OBJECT, absent=None),
            Field("sum_ok", BOOL, absent=None),
            *_COMMON,
            check=check_ioctl,
        ),
        Table(Eventfd, Field("fd", U32), *_COMMON),
        Table(EventfdRead, Field("fd", U32), Field("value", U64), *_COMMON),
        Table(EventfdWrite, Field("fd", U32), Field("value", U64), *_COMMON),
        Table(
            Hypercall,
            Field("vcpu", VCPU),
            Field("longmode", BOOL),
            Field("cpl", CPL),
            Field("nr", U64),
            Field("args", REGISTERS),
            Field("handled", nullable(one_of("kernel", "userspace"))),
            Field("exit", EXIT.nested(), absent=None),
            Field("rax", nullable(U64)),
            Field("behind", items(BEHIND.nested()), absent=None),
            Field("via", one_of("page"), absent=None),
            Field("compat", BOOL, absent=False),
            Field("raw", members({"nr": U64, "args": items(U64, HYPERCALL_ARGS)}), absent=None),
            Field("run_ret", S64, absent=None),
            *_COMMON,
            check=_check_hypercall,
        ),
        Table(
            Mem,
            Field("op", one_of("read", "write")),
            Field("gpa", U64),
            Field("data", BYTES),
            Field("mask", BYTES, absent=None),
            Field("now_plus_at", NOW_PLUS_AT, absent=()),
            Field("sum_ok", BOOL, absent=None),
            *_COMMON,
            check=_check_mem,
        ),
        Table(
            Wrmsr,
            Field("vcpu", VCPU),
            Field("longmode", BOOL),
            Field("msr", U32),
            Field("value", U64),
            Field("ok", BOOL),
            Field("compat", BOOL, absent=False),
            Field("run_ret", S64, absent=None),
            *_COMMON,
        ),
        Table(Wait, Field("ns", U64), *_COMMON),
        Table(Irq, Field("vcpu", VCPU), Field("vector", U8), *_COMMON),
        Table(VcpuRun, Field("vcpu", VCPU), *_COMMON),
    )
}


def decode_event(kind: Any, members: Mapping[str, Any]) -> Event:
    """Build the event of kind `kind` (its `ev`) from its other members. Raises `Unfit`."""
    table = TABLES.get(kind) if type(kind) is str else None
    if table is None:
        raise Unfit(f"is {shown(kind)}, expected one of {', '.join(TABLES)}", "ev")
    try:
        event: Event = table.decode(members)
    except Unfit as unfit:
        raise Unfit(f"{kind}: {unfit}") from None
    return event


def encode_event(event: Event, *, text: bool) -> dict[str, Any]:
    """Return the members of an event without `ev`, in canonical order; bytes as hex if `text`."""
    return TABLES[event.kind].encode(event, text=text)


def check_event(event: Event, header: Header) -> None:
    """Check what an event must have in common with its header. Raises `Unfit`."""
    vcpu = getattr(event, "vcpu", None)
    if header.vm is not None and vcpu is not None and vcpu >= len(header.vm.vcpus):
        raise Unfit(f"{event.kind}: vcpu is {vcpu}, but the header names {len(header.vm.vcpus)} vCPUs")
    if isinstance(event, Hypercall) and header.scope == "full" and event.run_ret is None:
        if event.handled is None:
            raise Unfit('hypercall: handled is null, which only scope "hypercalls" allows')
        if event.rax is None and event.handled == "kernel":
            raise Unfit('hypercall: rax is null, which in scope "full" only a forwarded one\'s may be')
