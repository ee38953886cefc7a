"""From the bytes of ioctl arguments to the core's values, and back."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EFAULT
from struct import Struct
from typing import Any, Final

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.routing import GsiRoute
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

_U8: Final = Struct("<B")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_UNION: Final = ioctls.ATTR_HEADER.size

_VM_SCALARS: Final[dict[int, Struct]] = {
    HvmAttr.LONG_MODE: _U8,
    HvmAttr.SHARED_INFO: _U64,
    HvmAttr.UPCALL_VECTOR: _U8,
    HvmAttr.XEN_VERSION: _U32,
    HvmAttr.RUNSTATE_UPDATE_FLAG: _U8,
    HvmAttr.SHARED_INFO_HVA: _U64,
}
_VCPU_SCALARS: Final[dict[int, Struct]] = {
    VcpuAttr.VCPU_INFO: _U64,
    VcpuAttr.VCPU_TIME_INFO: _U64,
    VcpuAttr.RUNSTATE_ADDR: _U64,
    VcpuAttr.VCPU_ID: _U32,
    VcpuAttr.UPCALL_VECTOR: _U8,
    VcpuAttr.VCPU_INFO_HVA: _U64,
}
_RUNSTATES: Final = (VcpuAttr.RUNSTATE_CURRENT, VcpuAttr.RUNSTATE_DATA, VcpuAttr.RUNSTATE_ADJUST)


def attribute_type(argument: bytearray) -> int:
    """The u16 type of an attribute structure."""
    type_: int = ioctls.ATTR_HEADER.unpack_from(argument)[0]
    return type_


def load_vm_value(argument: bytearray, type_: int) -> Any:
    """The union's member for a VM attribute; None for a type that has none."""
    if type_ == HvmAttr.EVTCHN:
        send_port, kind, flags, port, vcpu, priority = ioctls.ATTR_EVTCHN.unpack_from(argument, _UNION)
        return OutboundRequest(
            send_port=send_port, type=kind, flags=flags, port=port, vcpu=vcpu, priority=priority
        )
    return _load_scalar(_VM_SCALARS, argument, type_)


def store_vm_value(argument: bytearray, type_: int, value: Any) -> None:
    """Store a VM attribute's value, to be set or as it was read."""
    if type_ == HvmAttr.EVTCHN:
        target = (value.port, value.vcpu, value.priority)
        ioctls.ATTR_EVTCHN.pack_into(argument, _UNION, value.send_port, value.type, value.flags, *target)
        return
    _VM_SCALARS[type_].pack_into(argument, _UNION, value)


def load_vcpu_value(argument: bytearray, type_: int) -> Any:
    """The union's member for a vCPU attribute; None for a type that has none."""
    if type_ == VcpuAttr.TIMER:
        port, priority, expires_ns = ioctls.ATTR_TIMER.unpack_from(argument, _UNION)
        return TimerSetting(port=port, priority=priority, expires_ns=expires_ns)
    if type_ in _RUNSTATES:
        return ioctls.ATTR_RUNSTATE.unpack_from(argument, _UNION)
    return _load_scalar(_VCPU_SCALARS, argument, type_)


def store_vcpu_value(argument: bytearray, type_: int, value: Any) -> None:
    """Store a vCPU attribute's value, to be set or as it was read."""
    if type_ == VcpuAttr.TIMER:
        ioctls.ATTR_TIMER.pack_into(argument, _UNION, value.port, value.priority, value.expires_ns)
    elif type_ in _RUNSTATES:
        for index, member in enumerate(value):
            _U64.pack_into(argument, _UNION + index * _U64.size, member)
    else:
        _VCPU_SCALARS[type_].pack_into(argument, _UNION, value)


def load_config(argument: bytearray) -> HvmConfig:
    """The argument of KVM_XEN_HVM_CONFIG."""
    flags, msr, addr_32, addr_64, size_32, size_64 = ioctls.HVM_CONFIG.unpack_from(argument)
    return HvmConfig(
        flags=flags,
        msr=msr,
        blob_addr_32=addr_32,
        blob_addr_64=addr_64,
        blob_size_32=size_32,
        blob_size_64=size_64,
    )


def load_routes(argument: bytearray) -> Sequence[GsiRoute]:
    """The entries of KVM_SET_GSI_ROUTING; raises KvmError -EFAULT if there are fewer than announced."""
    count, _flags = ioctls.GSI_ROUTING_HEADER.unpack_from(argument)
    entries = memoryview(argument)[ioctls.GSI_ROUTING_HEADER.size :]
    size = ioctls.GSI_ROUTING_ENTRY.size
    if len(entries) < count * size:
        raise KvmError(EFAULT)
    unpacked = (ioctls.GSI_ROUTING_ENTRY.unpack_from(entries, index * size) for index in range(count))
    return [
        GsiRoute(gsi=gsi, type=type_, port=port, vcpu_id=vcpu, priority=priority)
        for gsi, type_, _entry_flags, _pad, port, vcpu, priority in unpacked
    ]


def _load_scalar(layouts: dict[int, Struct], argument: bytearray, type_: int) -> Any:
    layout = layouts.get(type_)
    return None if layout is None else layout.unpack_from(argument, _UNION)[0]
