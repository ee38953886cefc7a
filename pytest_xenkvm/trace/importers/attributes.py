"""Attribute structures from the bytes that a probe saw: the first ones of the 64-byte union.

The fields are those of the trace format. A structure of which too little was seen has no argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pytest_xenkvm.abi.ioctls import ATTR_EVTCHN, ATTR_RUNSTATE, ATTR_TIMER
from pytest_xenkvm.abi.layout import U32, U64
from pytest_xenkvm.abi.numbers import EvtchnFlag, EvtchnStat, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import JsonObject
from pytest_xenkvm.trace.importers.config import Config

_Decode = Callable[[bytes], JsonObject]


def _u8(name: str) -> tuple[int, _Decode]:
    return 1, lambda union: {name: union[0]}


def _u32(name: str) -> tuple[int, _Decode]:
    return U32.size, lambda union: {name: U32.unpack_from(union)[0]}


def _u64(name: str) -> tuple[int, _Decode]:
    return U64.size, lambda union: {name: U64.unpack_from(union)[0]}


def _shared_info(name: str) -> tuple[int, _Decode]:
    return U64.size, lambda union: {"shared_info": {name: U64.unpack_from(union)[0]}}


def _evtchn(union: bytes) -> JsonObject:
    send_port, kind, flags, port, vcpu, priority = ATTR_EVTCHN.unpack_from(union)
    deliver: dict[str, Any] = {"port": {"port": port, "vcpu": vcpu, "priority": priority}}
    if (kind, flags, port) == (EvtchnStat.INTERDOMAIN, EvtchnFlag.ASSIGN, 0):
        deliver = {"eventfd": {"port": port, "fd": vcpu}}
    return {"evtchn": {"send_port": send_port, "type": kind, "flags": flags, "deliver": deliver}}


def _timer(union: bytes) -> JsonObject:
    port, priority, expires_ns = ATTR_TIMER.unpack_from(union)
    return {"timer": {"port": port, "priority": priority, "expires_ns": expires_ns}}


_RUNSTATE: Final = (
    "state",
    "state_entry_time",
    "time_running",
    "time_runnable",
    "time_blocked",
    "time_offline",
)


def _runstate(union: bytes) -> JsonObject:
    return {"runstate": dict(zip(_RUNSTATE, ATTR_RUNSTATE.unpack_from(union), strict=True))}


def _state(union: bytes) -> JsonObject:
    # KVM takes the state alone; the format asks for all of the structure, so what was not seen of it is 0.
    return _runstate(union.ljust(ATTR_RUNSTATE.size, b"\0"))


_Table = Mapping[int, tuple[int, _Decode]]
"""By attribute type: how many bytes of the union it takes, and what they say."""

_HVM: Final[_Table] = {
    HvmAttr.LONG_MODE: _u8("long_mode"),
    HvmAttr.SHARED_INFO: _shared_info("gfn"),
    HvmAttr.UPCALL_VECTOR: _u8("vector"),
    HvmAttr.EVTCHN: (ATTR_EVTCHN.size, _evtchn),
    HvmAttr.XEN_VERSION: _u32("xen_version"),
    HvmAttr.RUNSTATE_UPDATE_FLAG: _u8("runstate_update_flag"),
    HvmAttr.SHARED_INFO_HVA: _shared_info("hva"),
}

_VCPU: Final[_Table] = {
    VcpuAttr.VCPU_INFO: _u64("gpa"),
    VcpuAttr.VCPU_TIME_INFO: _u64("gpa"),
    VcpuAttr.RUNSTATE_ADDR: _u64("gpa"),
    VcpuAttr.RUNSTATE_CURRENT: (U64.size, _state),
    VcpuAttr.RUNSTATE_DATA: (ATTR_RUNSTATE.size, _runstate),
    VcpuAttr.RUNSTATE_ADJUST: (ATTR_RUNSTATE.size, _runstate),
    VcpuAttr.VCPU_ID: _u32("vcpu_id"),
    VcpuAttr.TIMER: (ATTR_TIMER.size, _timer),
    VcpuAttr.UPCALL_VECTOR: _u8("vector"),
    VcpuAttr.VCPU_INFO_HVA: _u64("hva"),
}


def determined(out: JsonObject, config: Config) -> JsonObject:
    """Return what a GET_ATTR wrote back without what a replay can't know: times, and who was running.

    Host addresses become symbolic if the guest address behind them is known, else they are left out.
    """
    match out:
        case {"runstate": _}:
            return {"type": out["type"]}
        case {"timer": {"expires_ns": _, **rest}}:
            return {"type": out["type"], "timer": rest}
        case {"shared_info": {"hva": hva}} if hva:
            gpa = config.gpa_of(hva)
            return {"type": out["type"], **({} if gpa is None else {"shared_info": {"hva": {"gpa": gpa}}})}
        case {"hva": hva} if hva:
            gpa = config.gpa_of(hva)
            return {"type": out["type"], **({} if gpa is None else {"hva": {"gpa": gpa}})}
    return out


_TABLES: Final[Mapping[str, _Table]] = {"KVM_XEN_HVM_SET_ATTR": _HVM, "KVM_XEN_VCPU_SET_ATTR": _VCPU}


def attribute(ioctl: str, kind: int, union: bytes) -> JsonObject | None:
    """Return the argument of a SET_ATTR ioctl, `{"type": kind, ...}`.

    `union`: the bytes that were seen. None if the type needs more of them; a type that the ABI doesn't
    know has nothing but its number.
    """
    entry = _TABLES[ioctl].get(kind)
    if entry is None:
        return {"type": kind}
    size, decode = entry
    return {"type": kind, **decode(union)} if len(union) >= size else None
