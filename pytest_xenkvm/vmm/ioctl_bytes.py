"""An ioctl event's argument as the bytes of its structure on a host, and what a GET stored as JSON again.

The trace names host addresses and eventfds symbolically; `Names` knows what stands for them on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final, Protocol

from attrs import Factory, define

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, U64_MAX, EvtchnStat, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import Ioctl, JsonObject
from pytest_xenkvm.vmm.files import IoctlMade

NO_SUCH_FD: Final = 0x7FFF_FFFF
"""Stands for an eventfd that the trace never created."""

UNMAPPED_HVA: Final = 0x1_0000
"""Stands for the host address of guest memory that isn't there; 0 would switch an area off."""

RUNSTATE_MEMBERS: Final = (
    "state",
    "state_entry_time",
    "time_running",
    "time_runnable",
    "time_blocked",
    "time_offline",
)


class Addresses(Protocol):
    """The part of a `HostVm` by which names find what they stand for."""

    def gpa_to_hva(self, gpa: int) -> int | None:
        """The host address that backs a guest address."""

    def hva_to_gpa(self, hva: int) -> int | None:
        """The guest address that a host address backs."""

    def guest_clock(self, vcpu: int) -> int:
        """The guest's Xen clock now (ns)."""


@define
class Names:
    """What the trace's symbolic values stand for on one host VM."""

    vm: Addresses
    fds: dict[int, int] = Factory(dict)
    """Host file descriptor of each of the trace's eventfds."""

    def fd(self, symbol: int) -> int:
        """The host's number of an eventfd."""
        return self.fds.get(symbol, NO_SUCH_FD)

    def host_address(self, value: int | Mapping[str, int]) -> int:
        """A host address given as a number or as {"gpa": G}."""
        if isinstance(value, int):
            return value
        address = self.vm.gpa_to_hva(value["gpa"])
        return UNMAPPED_HVA + value["gpa"] % PAGE_SIZE if address is None else address

    def symbolic(self, hva: int) -> int | dict[str, int]:
        """The opposite of `host_address`."""
        gpa = self.vm.hva_to_gpa(hva)
        return hva if gpa is None else {"gpa": gpa}

    def symbolic_fd(self, number: int) -> int:
        """The opposite of `fd`; the number itself if the trace doesn't know it."""
        return next((symbol for symbol, fd in self.fds.items() if fd == number), number)

    def now_plus(self, delta: int, vcpu: int) -> int:
        """The guest's clock plus `delta` ns, as u64."""
        return self.vm.guest_clock(vcpu) + delta & U64_MAX

    def time(self, value: int | Mapping[str, int], vcpu: int) -> int:
        """An absolute guest time (u64 ns), given as a number or as {"now_plus": D}."""
        return value if isinstance(value, int) else self.now_plus(value["now_plus"], vcpu)


_U8: Final = Struct("<B")
_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")


def pack(event: Ioctl, names: Names) -> tuple[int, int | bytearray]:
    """Request number and argument of the ioctl."""
    request = ioctls.IOCTLS[event.name]
    return request, _PACKERS[event.name](event, names)


def unpack(name: str, argument: int | bytearray, names: Names) -> JsonObject:
    """An argument's bytes as the trace writes them: `arg` of a SET, `out` of a GET that succeeded."""
    if isinstance(argument, int):
        return {"cap": argument}
    return _UNPACKERS[name](argument, names)


def as_event(made: IoctlMade, names: Names) -> Ioctl:
    """The event of an ioctl whose request a trace may hold (`REQUEST_NAMES`)."""
    name = REQUEST_NAMES[made.request]
    reads = name.endswith("_GET_ATTR")
    arg = unpack(name, made.before, names)
    return Ioctl(
        name=name,
        vcpu=made.vcpu,
        arg={"type": arg["type"]} if reads else arg,
        ret=made.ret,
        out=unpack(name, made.after, names) if reads and made.ret >= 0 else None,
    )


class _Member:
    """A member of the attribute union: how it is written and read."""

    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:
        raise NotImplementedError

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:
        raise NotImplementedError


_OFFSET: Final = ioctls.ATTR_HEADER.size


@define
class _Scalar(_Member):
    key: str
    layout: Struct

    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:  # noqa: ARG002
        self.layout.pack_into(argument, _OFFSET, arg[self.key])

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:  # noqa: ARG002
        return {self.key: self.layout.unpack_from(argument, _OFFSET)[0]}


@define
class _HostAddress(_Member):
    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:  # noqa: ARG002
        _U64.pack_into(argument, _OFFSET, names.host_address(arg["hva"]))

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:
        return {"hva": names.symbolic(_U64.unpack_from(argument, _OFFSET)[0])}


@define
class _SharedInfo(_Member):
    key: str

    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:  # noqa: ARG002
        _U64.pack_into(argument, _OFFSET, names.host_address(arg["shared_info"][self.key]))

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:
        value = _U64.unpack_from(argument, _OFFSET)[0]
        return {"shared_info": {self.key: names.symbolic(value) if self.key == "hva" else value}}


@define
class _Evtchn(_Member):
    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:  # noqa: ARG002
        evtchn = arg["evtchn"]
        deliver = evtchn["deliver"]
        if "eventfd" in deliver:
            target = (deliver["eventfd"]["port"], names.fd(deliver["eventfd"]["fd"]), 0)
        else:
            port = deliver["port"]
            target = (port["port"], port["vcpu"], port["priority"])
        head = (evtchn["send_port"], evtchn["type"], evtchn["flags"])
        ioctls.ATTR_EVTCHN.pack_into(argument, _OFFSET, *head, *target)

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:
        send_port, type_, flags, port, vcpu, priority = ioctls.ATTR_EVTCHN.unpack_from(argument, _OFFSET)
        deliver: dict[str, Any] = {"port": {"port": port, "vcpu": vcpu, "priority": priority}}
        if port == 0 and type_ == EvtchnStat.INTERDOMAIN:
            deliver = {"eventfd": {"port": 0, "fd": names.symbolic_fd(vcpu)}}
        return {"evtchn": {"send_port": send_port, "type": type_, "flags": flags, "deliver": deliver}}


@define
class _Timer(_Member):
    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:
        timer = arg["timer"]
        expires = names.time(timer["expires_ns"], vcpu)
        ioctls.ATTR_TIMER.pack_into(argument, _OFFSET, timer["port"], timer["priority"], expires)

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:  # noqa: ARG002
        port, priority, expires_ns = ioctls.ATTR_TIMER.unpack_from(argument, _OFFSET)
        return {"timer": {"port": port, "priority": priority, "expires_ns": expires_ns}}


@define
class _Runstate(_Member):
    def store(self, argument: bytearray, arg: JsonObject, names: Names, vcpu: int) -> None:  # noqa: ARG002
        values = (arg["runstate"][member] for member in RUNSTATE_MEMBERS)
        ioctls.ATTR_RUNSTATE.pack_into(argument, _OFFSET, *values)

    def load(self, argument: bytearray, names: Names) -> dict[str, Any]:  # noqa: ARG002
        values = ioctls.ATTR_RUNSTATE.unpack_from(argument, _OFFSET)
        return {"runstate": dict(zip(RUNSTATE_MEMBERS, values, strict=True))}


_VM_MEMBERS: Final[dict[int, _Member]] = {
    HvmAttr.LONG_MODE: _Scalar("long_mode", _U8),
    HvmAttr.SHARED_INFO: _SharedInfo("gfn"),
    HvmAttr.UPCALL_VECTOR: _Scalar("vector", _U8),
    HvmAttr.EVTCHN: _Evtchn(),
    HvmAttr.XEN_VERSION: _Scalar("xen_version", _U32),
    HvmAttr.RUNSTATE_UPDATE_FLAG: _Scalar("runstate_update_flag", _U8),
    HvmAttr.SHARED_INFO_HVA: _SharedInfo("hva"),
}

_VCPU_MEMBERS: Final[dict[int, _Member]] = {
    VcpuAttr.VCPU_INFO: _Scalar("gpa", _U64),
    VcpuAttr.VCPU_TIME_INFO: _Scalar("gpa", _U64),
    VcpuAttr.RUNSTATE_ADDR: _Scalar("gpa", _U64),
    VcpuAttr.RUNSTATE_CURRENT: _Runstate(),
    VcpuAttr.RUNSTATE_DATA: _Runstate(),
    VcpuAttr.RUNSTATE_ADJUST: _Runstate(),
    VcpuAttr.VCPU_ID: _Scalar("vcpu_id", _U32),
    VcpuAttr.TIMER: _Timer(),
    VcpuAttr.UPCALL_VECTOR: _Scalar("vector", _U8),
    VcpuAttr.VCPU_INFO_HVA: _HostAddress(),
}


def _pack_attribute(event: Ioctl, names: Names) -> bytearray:
    argument = bytearray(ioctls.ATTR_SIZE)
    ioctls.ATTR_HEADER.pack_into(argument, 0, event.arg["type"])
    members = _VCPU_MEMBERS if event.vcpu is not None else _VM_MEMBERS
    member = members.get(event.arg["type"])
    if member is not None and event.name.endswith("_SET_ATTR"):
        member.store(argument, event.arg, names, event.vcpu or 0)
    return argument


def _pack_config(event: Ioctl, names: Names) -> bytearray:
    arg = event.arg
    return bytearray(
        ioctls.HVM_CONFIG.pack(
            arg["flags"],
            arg["msr"],
            names.host_address(arg["blob_addr_32"]),
            names.host_address(arg["blob_addr_64"]),
            arg["blob_size_32"],
            arg["blob_size_64"],
        )
    )


def _pack_routing(event: Ioctl, _names: Names) -> bytearray:
    entries = event.arg["entries"]
    nowhere = {"port": 0, "vcpu": 0, "priority": 0}
    targets = [entry.get("xen_evtchn", nowhere) for entry in entries]
    packed = (
        ioctls.GSI_ROUTING_ENTRY.pack(
            entry["gsi"], entry["type"], 0, 0, target["port"], target["vcpu"], target["priority"]
        )
        for entry, target in zip(entries, targets, strict=True)
    )
    return bytearray(ioctls.GSI_ROUTING_HEADER.pack(len(entries), 0) + b"".join(packed))


def _pack_irqfd(event: Ioctl, names: Names) -> bytearray:
    arg = event.arg
    return bytearray(ioctls.IRQFD.pack(names.fd(arg["fd"]) & U32_MAX, arg["gsi"], arg["flags"], 0))


def _pack_irq_line(event: Ioctl, _names: Names) -> bytearray:
    return bytearray(ioctls.IRQ_LINE.pack(event.arg["irq"], event.arg["level"]))


def _pack_evtchn_send(event: Ioctl, _names: Names) -> bytearray:
    arg = event.arg
    return bytearray(ioctls.XEN_EVTCHN.pack(arg["port"], arg["vcpu"], arg["priority"]))


def _pack_capability(event: Ioctl, _names: Names) -> int:
    capability: int = event.arg["cap"]
    return capability


_PACKERS: Final[dict[str, Callable[[Ioctl, Names], int | bytearray]]] = {
    "KVM_CHECK_EXTENSION": _pack_capability,
    "KVM_XEN_HVM_CONFIG": _pack_config,
    "KVM_XEN_HVM_SET_ATTR": _pack_attribute,
    "KVM_XEN_HVM_GET_ATTR": _pack_attribute,
    "KVM_XEN_VCPU_SET_ATTR": _pack_attribute,
    "KVM_XEN_VCPU_GET_ATTR": _pack_attribute,
    "KVM_XEN_HVM_EVTCHN_SEND": _pack_evtchn_send,
    "KVM_SET_GSI_ROUTING": _pack_routing,
    "KVM_IRQFD": _pack_irqfd,
    "KVM_IRQ_LINE": _pack_irq_line,
}


def _unpack_attribute(members: Mapping[int, _Member]) -> Callable[[bytearray, Names], JsonObject]:
    def unpack_attribute(argument: bytearray, names: Names) -> JsonObject:
        type_: int = ioctls.ATTR_HEADER.unpack_from(argument)[0]
        member = members.get(type_)
        return {"type": type_} if member is None else {"type": type_, **member.load(argument, names)}

    return unpack_attribute


def _unpack_fields(layout: Struct, *keys: str) -> Callable[[bytearray, Names], JsonObject]:
    def unpack_fields(argument: bytearray, _names: Names) -> JsonObject:
        return dict(zip(keys, layout.unpack_from(argument), strict=False))

    return unpack_fields


def _unpack_config(argument: bytearray, names: Names) -> JsonObject:
    values = ioctls.HVM_CONFIG.unpack_from(argument)
    return {
        key: names.symbolic(value) if key.startswith("blob_addr") and value else value
        for key, value in zip(_CONFIG_MEMBERS, values, strict=True)
    }


def _unpack_irqfd(argument: bytearray, names: Names) -> JsonObject:
    fd, gsi, flags, _resamplefd = ioctls.IRQFD.unpack_from(argument)
    return {"fd": names.symbolic_fd(fd), "gsi": gsi, "flags": flags}


def _unpack_routing(argument: bytearray, _names: Names) -> JsonObject:
    entries = bytes(argument[ioctls.GSI_ROUTING_HEADER.size :])
    usable = len(entries) // ioctls.GSI_ROUTING_ENTRY.size * ioctls.GSI_ROUTING_ENTRY.size
    return {
        "entries": [
            {
                "gsi": gsi,
                "type": type_,
                "xen_evtchn": {"port": port, "vcpu": vcpu, "priority": priority},
            }
            for gsi, type_, _flags, _pad, port, vcpu, priority in ioctls.GSI_ROUTING_ENTRY.iter_unpack(
                entries[:usable]
            )
        ]
    }


_CONFIG_MEMBERS: Final = ("flags", "msr", "blob_addr_32", "blob_addr_64", "blob_size_32", "blob_size_64")

_UNPACKERS: Final[dict[str, Callable[[bytearray, Names], JsonObject]]] = {
    "KVM_XEN_HVM_CONFIG": _unpack_config,
    "KVM_XEN_HVM_SET_ATTR": _unpack_attribute(_VM_MEMBERS),
    "KVM_XEN_HVM_GET_ATTR": _unpack_attribute(_VM_MEMBERS),
    "KVM_XEN_VCPU_SET_ATTR": _unpack_attribute(_VCPU_MEMBERS),
    "KVM_XEN_VCPU_GET_ATTR": _unpack_attribute(_VCPU_MEMBERS),
    "KVM_XEN_HVM_EVTCHN_SEND": _unpack_fields(ioctls.XEN_EVTCHN, "port", "vcpu", "priority"),
    "KVM_SET_GSI_ROUTING": _unpack_routing,
    "KVM_IRQFD": _unpack_irqfd,
    "KVM_IRQ_LINE": _unpack_fields(ioctls.IRQ_LINE, "irq", "level"),
}

REQUEST_NAMES: Final = {request: name for name, request in ioctls.IOCTLS.items()}
"""UAPI names of the requests that a trace may hold."""
