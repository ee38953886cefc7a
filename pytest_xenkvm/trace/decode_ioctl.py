"""Ioctls in words: the names of attributes and flags, what a GET wrote back. Total, as all decoding is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pytest_xenkvm.abi import names
from pytest_xenkvm.abi.numbers import (
    KVM_CAP_XEN_HVM,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    EvtchnFlag,
    EvtchnStat,
    HvmAttr,
    Runstate,
    VcpuAttr,
    XenHvmFlag,
)
from pytest_xenkvm.trace.decode_values import (
    Words,
    absolute,
    address,
    anything,
    bits,
    duration,
    enough,
    frame,
    hexadecimal,
    named,
    number,
    result,
    text,
    vcpu_id,
)
from pytest_xenkvm.trace.events import Ioctl, JsonObject

_ATTRIBUTES: Final[Mapping[str, Words]] = {
    "KVM_XEN_HVM_SET_ATTR": named({attr.value: attr.name for attr in HvmAttr}),
    "KVM_XEN_HVM_GET_ATTR": named({attr.value: attr.name for attr in HvmAttr}),
    "KVM_XEN_VCPU_SET_ATTR": named({attr.value: attr.name for attr in VcpuAttr}),
    "KVM_XEN_VCPU_GET_ATTR": named({attr.value: attr.name for attr in VcpuAttr}),
}

_UNION_STRUCTURES: Final = frozenset({"shared_info", "evtchn", "timer", "runstate"})
"""Members of the attribute union whose fields are shown as if they were the attribute's own."""


def _expiry(ns: int) -> str:
    return absolute(ns) if ns else "0"


def _xen_version(version: int) -> str:
    return f"{version >> 16}.{version & 0xFFFF} ({version:#x})" if 0 <= version < 1 << 32 else number(version)


_FIELDS: Final[Mapping[str, Words]] = {
    "gpa": address,
    "hva": hexadecimal,
    "gfn": frame,
    "msr": hexadecimal,
    "vector": hexadecimal,
    "blob_addr_32": hexadecimal,
    "blob_addr_64": hexadecimal,
    "vcpu_id": vcpu_id,
    "xen_version": _xen_version,
    "expires_ns": _expiry,
    "state": named({state.value: state.name for state in Runstate}),
    "state_entry_time": duration,
    "time_running": duration,
    "time_runnable": duration,
    "time_blocked": duration,
    "time_offline": duration,
}

_LABELS: Final[Mapping[str, str]] = {"expires_ns": "expires"}
"""Fields whose value is shown with its unit."""

_EVTCHN_FIELDS: Final[Mapping[str, Words]] = {
    "type": named({stat.value: stat.name.lower() for stat in EvtchnStat}),
    "flags": named({flag.value: flag.name for flag in EvtchnFlag}),
}

_CONFIG_FIELDS: Final[Mapping[str, Words]] = {**_FIELDS, "flags": bits(XenHvmFlag)}


def ioctl_action(event: Ioctl) -> str:
    """`KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1)`: the ioctl and its argument."""
    arguments = _ARGUMENTS.get(event.name, _fields)
    return f"{text(event.name)}({enough(arguments(event.arg, event.name))})"


def ioctl_outcome(event: Ioctl) -> str:
    """`-EINVAL (-22)`, or `0, vcpu_id=1` for a GET."""
    flags = event.name == "KVM_CHECK_EXTENSION" and event.arg.get("cap") == KVM_CAP_XEN_HVM
    returned = hexadecimal(event.ret) if flags and event.ret > 0 else result(event.ret)
    determined = enough([returned, *_members(event.out or {})])
    undetermined = enough(_members(event.undetermined or {}))
    return f"{determined}; undetermined: {undetermined}" if undetermined else determined


def _fields(arg: JsonObject, name: str) -> Iterator[str]:
    del name
    yield from (_field(key, value, _FIELDS) for key, value in arg.items())


def _field(key: str, value: object, words: Mapping[str, Words]) -> str:
    match value:
        case {"gpa": int(gpa), **rest} if not rest:
            return f"{text(key)}=host address of {gpa:#x}"
    return f"{_LABELS.get(key) or text(key)}={anything(value, words.get(key, number))}"


def _attribute(arg: JsonObject, name: str) -> Iterator[str]:
    yield anything(arg.get("type"), _ATTRIBUTES[name])
    yield from _members(arg)


def _members(union: JsonObject) -> Iterator[str]:
    """The fields of an attribute's union, those of its structures without the structure's name."""
    for key, value in union.items():
        if key == "type":
            continue
        if key in _UNION_STRUCTURES and isinstance(value, Mapping):
            words = {**_FIELDS, **_EVTCHN_FIELDS} if key == "evtchn" else _FIELDS
            yield from (
                _member(name, field, words) for name, field in value.items() if not _usual(name, field)
            )
        else:
            yield _member(key, value, _FIELDS)


def _member(key: str, value: object, words: Mapping[str, Words]) -> str:
    match key, value:
        case "deliver", {"eventfd": {"fd": fd, **_unused}}:
            return f"deliver=eventfd {anything(fd)}"
        case "deliver", {"port": {"port": _port, **_unused} as target}:
            return f"deliver={_target(target)}"
    return _field(key, value, words)


def _usual(key: object, value: object) -> bool:
    """The one priority that KVM accepts says nothing."""
    return key == "priority" and value == KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL


def _target(arg: Mapping[Any, Any]) -> str:
    """`port 5 to vCPU 1`: where an event goes; the vCPU by its KVM id."""
    words = f"port {anything(arg.get('port'))} to vCPU {anything(arg.get('vcpu'))}"
    priority = arg.get("priority")
    return words if _usual("priority", priority) else f"{words} (priority {anything(priority)}, not 2LEVEL)"


def _extension(arg: JsonObject, name: str) -> Iterator[str]:
    del name
    yield anything(arg.get("cap"), named(names.CAPS))


def _config(arg: JsonObject, name: str) -> Iterator[str]:
    """Flags and MSR; of the blobs only what is not zero, as zero is the rule under INTERCEPT_HCALL."""
    del name
    for key, value in arg.items():
        if value != 0 or not key.startswith("blob_"):
            yield _field(key, value, _CONFIG_FIELDS)


def _send(arg: JsonObject, name: str) -> Iterator[str]:
    del name
    yield _target(arg)


def _routing(arg: JsonObject, name: str) -> Iterator[str]:
    entries = arg.get("entries")
    if not isinstance(entries, (list, tuple)):
        yield from _fields(arg, name)
        return
    for entry in entries:
        match entry:
            case {"gsi": gsi, "xen_evtchn": {**target}}:
                yield f"gsi {anything(gsi)}: {_target(target)}"
            case _:
                yield anything(entry)


_ARGUMENTS: Final[Mapping[str, Callable[[JsonObject, str], Iterator[str]]]] = {
    "KVM_CHECK_EXTENSION": _extension,
    "KVM_XEN_HVM_CONFIG": _config,
    "KVM_XEN_HVM_EVTCHN_SEND": _send,
    "KVM_SET_GSI_ROUTING": _routing,
    **dict.fromkeys(_ATTRIBUTES, _attribute),
}
