"""What the arguments of the Xen-related ioctls look like: one table row an ioctl, one an attribute type.

Widths are those of the structures in the Linux UAPI header `linux/kvm.h`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_xenkvm.abi.ioctls import IOCTLS, VCPU_IOCTLS
from pytest_xenkvm.abi.numbers import KVM_IRQ_ROUTING_XEN_EVTCHN, KVM_MAX_IRQ_ROUTES, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import Ioctl
from pytest_xenkvm.trace.values import (
    ADDRESS,
    TIME_MEMBER,
    U8,
    U16,
    U32,
    U64,
    Kind,
    Unfit,
    as_object,
    check_members,
    members,
    unexpected,
    within,
)

Members = Mapping[str, Kind]


def _one_member(value: Any, choices: Members, expected: str) -> Any:
    if sum(key in choices for key in as_object(value)) != 1:
        raise unexpected(value, expected)
    check_members(value, {}, choices)
    return value


_XEN_EVTCHN: Final[Members] = {"port": U32, "vcpu": U32, "priority": U32}
_DELIVER: Final[Members] = {
    "port": members(_XEN_EVTCHN),
    "eventfd": members({"port": U32, "fd": U32}),
}
_EVTCHN: Final[Members] = {
    "send_port": U32,
    "type": U32,
    "flags": U32,
    "deliver": Kind(lambda value: _one_member(value, _DELIVER, 'an object with either "port" or "eventfd"')),
}
_TIMER: Final[Members] = {"port": U32, "priority": U32, "expires_ns": TIME_MEMBER}
_RUNSTATE: Final[Members] = dict.fromkeys(
    ("state", "state_entry_time", "time_running", "time_runnable", "time_blocked", "time_offline"), U64
)
_GFN: Final[Members] = {"gfn": U64}
_HVA: Final[Members] = {"hva": ADDRESS}


def _union(name: str, shape: Members) -> tuple[Members, Members]:
    """Return a structure of an attribute's union: whole, as set, and in part, as read back."""
    return {name: members(shape)}, {name: members({}, shape)}


def _scalar(name: str, kind: Kind) -> tuple[Members, Members]:
    return {name: kind}, {name: kind}


HVM_ATTRS: Final[Mapping[int, tuple[Members, Members]]] = {
    HvmAttr.LONG_MODE: _scalar("long_mode", U8),
    HvmAttr.SHARED_INFO: _union("shared_info", _GFN),
    HvmAttr.UPCALL_VECTOR: _scalar("vector", U8),
    HvmAttr.EVTCHN: _union("evtchn", _EVTCHN),
    HvmAttr.XEN_VERSION: _scalar("xen_version", U32),
    HvmAttr.RUNSTATE_UPDATE_FLAG: _scalar("runstate_update_flag", U8),
    HvmAttr.SHARED_INFO_HVA: _union("shared_info", _HVA),
}
VCPU_ATTRS: Final[Mapping[int, tuple[Members, Members]]] = {
    VcpuAttr.VCPU_INFO: _scalar("gpa", U64),
    VcpuAttr.VCPU_TIME_INFO: _scalar("gpa", U64),
    VcpuAttr.RUNSTATE_ADDR: _scalar("gpa", U64),
    VcpuAttr.RUNSTATE_CURRENT: _union("runstate", _RUNSTATE),
    VcpuAttr.RUNSTATE_DATA: _union("runstate", _RUNSTATE),
    VcpuAttr.RUNSTATE_ADJUST: _union("runstate", _RUNSTATE),
    VcpuAttr.VCPU_ID: _scalar("vcpu_id", U32),
    VcpuAttr.TIMER: _union("timer", _TIMER),
    VcpuAttr.UPCALL_VECTOR: _scalar("vector", U8),
    VcpuAttr.VCPU_INFO_HVA: _scalar("hva", ADDRESS),
}

_TYPE: Final[Members] = {"type": U16}


def _routes(value: Any) -> Any:
    if type(value) is not list or len(value) > KVM_MAX_IRQ_ROUTES:
        raise unexpected(value, f"a list of at most {KVM_MAX_IRQ_ROUTES}")
    for number, entry in enumerate(value):
        within(f"[{number}]", _check_route, entry)
    return value


def _check_route(entry: Any) -> None:
    check_members(entry, _ROUTE, {})
    if entry["type"] == KVM_IRQ_ROUTING_XEN_EVTCHN:
        check_members(entry, _XEN_ROUTE, {})


_ROUTE: Final[Members] = {"gsi": U32, "type": U32}
_XEN_ROUTE: Final[Members] = {"xen_evtchn": members(_XEN_EVTCHN)}

ARGUMENTS: Final[Mapping[str, Members]] = {
    "KVM_CHECK_EXTENSION": {"cap": U64},
    "KVM_XEN_HVM_CONFIG": {
        "flags": U32,
        "msr": U32,
        "blob_addr_32": ADDRESS,
        "blob_addr_64": ADDRESS,
        "blob_size_32": U8,
        "blob_size_64": U8,
    },
    "KVM_XEN_HVM_GET_ATTR": _TYPE,
    "KVM_XEN_HVM_SET_ATTR": _TYPE,
    "KVM_XEN_VCPU_GET_ATTR": _TYPE,
    "KVM_XEN_VCPU_SET_ATTR": _TYPE,
    "KVM_XEN_HVM_EVTCHN_SEND": _XEN_EVTCHN,
    "KVM_SET_GSI_ROUTING": {"entries": Kind(_routes)},
    "KVM_IRQFD": {"fd": U32, "gsi": U32, "flags": U32},
    "KVM_IRQ_LINE": {"irq": U32, "level": U32},
}
"""Members that an ioctl's `arg` must have; an attribute's union comes on top."""

_ATTRS_SET: Final = {"KVM_XEN_HVM_SET_ATTR": HVM_ATTRS, "KVM_XEN_VCPU_SET_ATTR": VCPU_ATTRS}
_ATTRS_READ: Final = {"KVM_XEN_HVM_GET_ATTR": HVM_ATTRS, "KVM_XEN_VCPU_GET_ATTR": VCPU_ATTRS}


def check_ioctl(event: Ioctl) -> None:
    """Check that name, vCPU, argument and output go together. Raises `Unfit`."""
    if event.name not in IOCTLS:
        raise unexpected(event.name, f"one of {', '.join(sorted(IOCTLS))}").inside("name")
    if event.name in VCPU_IOCTLS and event.vcpu is None:
        raise Unfit(f'has no "vcpu", which {event.name} needs')
    if event.name not in VCPU_IOCTLS and event.vcpu is not None:
        raise Unfit(f'has a "vcpu", but {event.name} is not made on a vCPU')
    within("arg", lambda arg: _check_argument(event.name, arg), event.arg)
    for key, output in (("out", event.out), ("undetermined", event.undetermined)):
        if output is not None:
            within(key, lambda output: _check_output(event, output), output)


def _check_argument(name: str, arg: Mapping[str, Any]) -> None:
    check_members(arg, ARGUMENTS[name], {})
    attrs = _ATTRS_SET.get(name)
    if attrs is None:
        return
    if arg["type"] in attrs:
        check_members(arg, attrs[arg["type"]][0], {})
    elif len(arg) > 1:
        raise Unfit(f"has more than its type, but attribute type {arg['type']} is unknown")


def _check_output(event: Ioctl, output: Mapping[str, Any]) -> None:
    attrs = _ATTRS_READ.get(event.name)
    if attrs is None:
        raise Unfit(f"is there, but {event.name} writes nothing back")
    _whole, part = attrs.get(event.arg["type"], ({}, {}))
    check_members(output, {}, {"type": U16, **part})
