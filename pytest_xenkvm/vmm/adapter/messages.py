"""The messages of the adapter protocol: one table row a message, with its members in the order they are sent.

docs/reference/adapter-protocol.md tells what they mean; `schema/` holds the same as a JSON Schema a message.
What an adapter sends is untrusted: only what fits its row gets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from pytest_xenkvm.abi.ioctls import IOCTLS
from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.trace.events import Ioctl
from pytest_xenkvm.trace.fields import MAX_VCPUS, VCPU
from pytest_xenkvm.trace.ioctl_args import check_ioctl
from pytest_xenkvm.trace.values import (
    BYTES,
    OBJECT,
    S64_MIN,
    TEXT,
    U32,
    U64,
    Kind,
    Unfit,
    integer,
    items,
    nullable,
    one_of,
    shown,
    unexpected,
    within,
)

PROTOCOL: Final = 1
"""The version of the protocol, which changes with anything that an adapter could notice."""

JSON: Final = "json"
MSGPACK: Final = "msgpack"
SOURCE: Final = "source"
TARGET: Final = "target"
CAPABILITIES: Final = ("timer", "event_channel", "migrate")
"""Messages that are sent only to an adapter whose hello names them."""

MAX_NAME: Final = 100
"""Characters of an adapter's name."""
MAX_ACCESS: Final = 1 << 16
"""Bytes of guest memory, or of an ioctl's structure, in one message."""

Members = Mapping[str, Kind]


@frozen
class Row:
    """A message: the members that it has besides `type`, and those that it may have."""

    required: Members = field(factory=dict)
    optional: Members = field(factory=dict)

    def kind(self, key: str) -> Kind | None:
        """What a member is."""
        return self.required.get(key) or self.optional.get(key)


def _checked(kind: Kind, is_fine: Any, expected: str) -> Kind:
    def decode(value: Any) -> Any:
        decoded = kind.decode(value)
        if not is_fine(decoded):
            raise unexpected(value, expected)
        return decoded

    return Kind(decode, kind.encode)


_ANY_64: Final = integer(S64_MIN, U64_MAX, "an integer -2^63 ... 2^64-1")
_SIZE: Final = integer(1, MAX_ACCESS)
_DATA: Final = _checked(BYTES, lambda data: 1 <= len(data) <= MAX_ACCESS, f"1 ... {MAX_ACCESS} bytes")
_NAME: Final = _checked(
    TEXT, lambda text: 1 <= len(text) <= MAX_NAME, f"a string of 1 ... {MAX_NAME} characters"
)
_CAPABILITIES: Final = _checked(
    items(one_of(*CAPABILITIES)), lambda words: len({*words}) == len(words), "each of them once"
)
_VM: Final = {"vm": one_of(SOURCE, TARGET)}
_VCPU: Final = {"vcpu": VCPU}
_FD: Final = {"fd": U32}

TO_ADAPTER: Final[Mapping[str, Row]] = {
    "start": Row({"protocol": integer(1, 0xFFFF), "harness": TEXT}),
    "configure": Row({"vcpus": integer(1, MAX_VCPUS), "ids": items(U32)}),
    "hypercall": Row(
        {
            **_VCPU,
            "longmode": integer(0, 1),
            "cpl": integer(0, 3),
            "input": U64,
            "params": items(U64, 6),
        }
    ),
    "timer": Row({**_VCPU, "expires_ns": U64}),
    "event_channel": Row({**_FD, "count": U64}),
    "migrate": Row(),
    "result": Row({"ret": _ANY_64}, {"out": OBJECT, "data": BYTES}),
    "shutdown": Row(),
}
"""What the harness sends."""

REQUESTS: Final[Mapping[str, Row]] = {
    "ioctl": Row({"name": one_of(*IOCTLS), "arg": OBJECT}, {**_VCPU, **_VM}),
    "raw_ioctl": Row({"request": U32, "data": _DATA}, {**_VCPU, **_VM}),
    "get_clock": Row({}, _VM),
    "set_clock": Row({"ns": U64}, _VM),
    "read_memory": Row({"gpa": U64, "size": _SIZE}, _VM),
    "write_memory": Row({"gpa": U64, "data": _DATA}, _VM),
    "gpa_to_hva": Row({"gpa": U64}, _VM),
    "hva_to_gpa": Row({"hva": U64}, _VM),
    "read_virtual": Row({**_VCPU, "gva": U64, "size": _SIZE}),
    "write_virtual": Row({**_VCPU, "gva": U64, "data": _DATA}),
    "translate": Row({**_VCPU, "gva": U64}),
    "start_vmm_timer": Row({**_VCPU, "expires_ns": U64}),
    "stop_vmm_timer": Row(_VCPU),
    "open_eventfd": Row({}, _VM),
    "read_eventfd": Row(_FD, _VM),
    "write_eventfd": Row({**_FD, "value": U64}, _VM),
}
"""What an adapter may ask for while the harness waits for its answer."""

FROM_ADAPTER: Final[Mapping[str, Row]] = {
    "hello": Row(
        {"protocol": integer(1, 0xFFFF)},
        {"name": _NAME, "capabilities": _CAPABILITIES, "encoding": one_of(JSON, MSGPACK)},
    ),
    "done": Row(),
    "answer": Row({"rax": nullable(_ANY_64)}),
    **REQUESTS,
}
"""What an adapter sends."""


def check_message(table: Mapping[str, Row], message: object) -> tuple[str, dict[str, Any]]:
    """A message's type and its members, decoded. Raises `Unfit` for one that `table` doesn't allow."""
    if type(message) is not dict:
        raise Unfit(f"{shown(message)}, expected an object")
    if "type" not in message:
        raise Unfit('an object without "type"')
    members = {**message}
    type_ = members.pop("type")
    if type(type_) is not str or type_ not in table:
        raise Unfit(f"a message of type {shown(type_)}, expected one of {', '.join(table)}")
    try:
        decoded = _check_members(table[type_], members)
        if type_ == "ioctl":
            check_ioctl(as_event(decoded))
    except Unfit as unfit:
        what = unfit if unfit.where else f"it {unfit}"
        raise Unfit(f"a malformed {type_}: {what}") from None
    return type_, decoded


def _check_members(row: Row, members: Mapping[str, Any]) -> dict[str, Any]:
    for key in row.required:
        if key not in members:
            raise Unfit(f'has no "{key}"')
    decoded = {}
    for key, value in members.items():
        kind = row.kind(key)
        if kind is None:
            raise Unfit(f"has an unknown member {shown(key)}")
        decoded[key] = within(key, kind.decode, value)
    return decoded


def as_event(ioctl: Mapping[str, Any]) -> Ioctl:
    """The event of an ioctl that an adapter asks for; its result is yet to come."""
    return Ioctl(name=ioctl["name"], vcpu=ioctl.get("vcpu"), arg=ioctl["arg"], ret=0)


def build_message(type_: str, members: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
    """A message to the adapter, in the order of its row; bytes as hex if `text`; None is left out."""
    row = TO_ADAPTER[type_]
    message: dict[str, Any] = {"type": type_}
    for key, kind in (*row.required.items(), *row.optional.items()):
        value = members.get(key)
        if value is not None:
            message[key] = kind.encode(value, text)
    return message
