"""An ioctl event's argument as bytes on a host, and those bytes as the trace writes them."""

from __future__ import annotations

from struct import pack as struct_pack
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.memory import HVA_BASE
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.trace.events import Ioctl, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm.files import IoctlMade
from pytest_xenkvm.vmm.ioctl_bytes import (
    NO_SUCH_FD,
    REQUEST_NAMES,
    RUNSTATE_MEMBERS,
    UNMAPPED_HVA,
    Names,
    as_event,
    pack,
    unpack,
)

MEMORY: Final = 0x10_0000
FDS: Final = {1: 40, 9: 41}
"""Symbolic numbers of eventfds, and the host's."""
NOW: Final = 1000
UNKNOWN_TYPE: Final = 0xFFFF


def make_names() -> Names:
    """Names on a VM with 1 MiB of memory and two eventfds, its clock at `NOW`."""
    shape = VmShape(
        irqchip="full",
        memory=(MemorySlot(gpa=0, size=MEMORY),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=1)),
    )
    vm = EmulatedHost(profile=LINUX_7_3).create_vm(shape)
    vm.pass_time(ns=NOW)
    return Names(vm, dict(FDS))


U8: Final = st.integers(0, 2**8 - 1)
U32: Final = st.integers(0, 2**32 - 1)
U64: Final = st.integers(0, 2**64 - 1)
NOT_OURS: Final = st.integers(0, HVA_BASE - 1) | st.integers(HVA_BASE + MEMORY, 2**64 - 1)
HVA: Final = NOT_OURS | st.integers(0, MEMORY - 1).map(lambda gpa: {"gpa": gpa})
PRIORITY: Final = U32
PORT: Final = st.fixed_dictionaries({"port": U32, "vcpu": U32, "priority": PRIORITY})
EVENTFD: Final = st.sampled_from(sorted(FDS)).map(lambda fd: {"eventfd": {"port": 0, "fd": fd}})
RUNSTATE: Final = {"runstate": st.fixed_dictionaries(dict.fromkeys(RUNSTATE_MEMBERS, U64))}


def evtchn(type_: st.SearchStrategy[int], deliver: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The member of the EVTCHN attribute."""
    return st.fixed_dictionaries({"send_port": U32, "type": type_, "flags": U32, "deliver": deliver})


TO_PORT: Final = evtchn(
    U32, PORT.filter(lambda port: port["port"] != 0).map(lambda port: {"port": port})
) | evtchn(U32.filter(lambda type_: type_ != 2), PORT.map(lambda port: {"port": port}))
"""A delivery to port 0 of an interdomain channel is one to an eventfd."""

VM_MEMBERS: Final[dict[int, dict[str, st.SearchStrategy[Any]]]] = {
    HvmAttr.LONG_MODE: {"long_mode": U8},
    HvmAttr.SHARED_INFO: {"shared_info": st.fixed_dictionaries({"gfn": U64})},
    HvmAttr.UPCALL_VECTOR: {"vector": U8},
    HvmAttr.EVTCHN: {"evtchn": TO_PORT | evtchn(st.just(2), EVENTFD)},
    HvmAttr.XEN_VERSION: {"xen_version": U32},
    HvmAttr.RUNSTATE_UPDATE_FLAG: {"runstate_update_flag": U8},
    HvmAttr.SHARED_INFO_HVA: {"shared_info": st.fixed_dictionaries({"hva": HVA})},
    UNKNOWN_TYPE: {},
}
VCPU_MEMBERS: Final[dict[int, dict[str, st.SearchStrategy[Any]]]] = {
    VcpuAttr.VCPU_INFO: {"gpa": U64},
    VcpuAttr.VCPU_TIME_INFO: {"gpa": U64},
    VcpuAttr.RUNSTATE_ADDR: {"gpa": U64},
    VcpuAttr.RUNSTATE_CURRENT: RUNSTATE,
    VcpuAttr.RUNSTATE_DATA: RUNSTATE,
    VcpuAttr.RUNSTATE_ADJUST: RUNSTATE,
    VcpuAttr.VCPU_ID: {"vcpu_id": U32},
    VcpuAttr.TIMER: {"timer": st.fixed_dictionaries({"port": U32, "priority": PRIORITY, "expires_ns": U64})},
    VcpuAttr.UPCALL_VECTOR: {"vector": U8},
    VcpuAttr.VCPU_INFO_HVA: {"hva": HVA},
    UNKNOWN_TYPE: {},
}
ROUTE: Final = st.fixed_dictionaries({"gsi": U32, "type": st.just(5), "xen_evtchn": PORT})
BLOB: Final = st.just(0) | HVA
ARGS: Final[dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "KVM_CHECK_EXTENSION": {"cap": U32},
    "KVM_IRQ_LINE": {"irq": U32, "level": U32},
    "KVM_SET_GSI_ROUTING": {"entries": st.lists(ROUTE, max_size=4)},
    "KVM_IRQFD": {"fd": st.sampled_from(sorted(FDS)), "gsi": U32, "flags": U32},
    "KVM_XEN_HVM_CONFIG": {
        "flags": U32,
        "msr": U32,
        "blob_addr_32": BLOB,
        "blob_addr_64": BLOB,
        "blob_size_32": U8,
        "blob_size_64": U8,
    },
    "KVM_XEN_HVM_EVTCHN_SEND": {"port": U32, "vcpu": U32, "priority": PRIORITY},
}
ATTRIBUTES: Final = {"KVM_XEN_HVM": VM_MEMBERS, "KVM_XEN_VCPU": VCPU_MEMBERS}


@st.composite
def attribute_args(draw: st.DrawFn, members: dict[int, dict[str, st.SearchStrategy[Any]]]) -> dict[str, Any]:
    """An attribute of each type."""
    type_ = draw(st.sampled_from(sorted(members)))
    return {"type": type_, **draw(st.fixed_dictionaries(members[type_]))}


def packed(event: Ioctl) -> bytes:
    """The bytes of an ioctl's structure."""
    argument = pack(event, make_names())[1]
    assert isinstance(argument, bytearray)
    return bytes(argument)


def test_nothing_is_left_out() -> None:
    """Every ioctl that a trace may hold and every attribute has a strategy here."""
    attributes = {f"{scope}_{do}_ATTR" for scope in ATTRIBUTES for do in ("GET", "SET")}
    assert ARGS.keys() | attributes == ioctls.IOCTLS.keys()
    assert VM_MEMBERS.keys() - {UNKNOWN_TYPE} == set(HvmAttr)
    assert VCPU_MEMBERS.keys() - {UNKNOWN_TYPE} == set(VcpuAttr)


@given(st.data(), st.sampled_from(sorted(ARGS)))
def test_arguments_come_back(data: st.DataObject, name: str) -> None:
    """The argument of an ioctl, packed and unpacked, is as the trace had it."""
    arg = data.draw(st.fixed_dictionaries(ARGS[name]))
    names = make_names()
    request, argument = pack(Ioctl(name=name, arg=arg, ret=0), names)
    assert request == ioctls.IOCTLS[name]
    assert REQUEST_NAMES[request] == name
    assert unpack(name, argument, names) == arg
    if isinstance(argument, bytearray) and name != "KVM_SET_GSI_ROUTING":
        assert len(argument) == ioctls.argument_size(request)


@given(st.data(), st.sampled_from(sorted(ATTRIBUTES)))
def test_attributes_come_back(data: st.DataObject, scope: str) -> None:
    """A SET's attribute comes back; a GET carries the type alone, and what it read is its `out`."""
    arg = data.draw(attribute_args(ATTRIBUTES[scope]))
    names = make_names()
    vcpu = 1 if scope == "KVM_XEN_VCPU" else None
    set_ = Ioctl(name=f"{scope}_SET_ATTR", vcpu=vcpu, arg=arg, ret=0)
    request, argument = pack(set_, names)
    assert isinstance(argument, bytearray)
    assert len(argument) == ioctls.argument_size(request)
    assert unpack(set_.name, argument, names) == arg
    assert as_event(IoctlMade(request, argument, argument, 0, vcpu), names) == set_

    get = Ioctl(name=f"{scope}_GET_ATTR", vcpu=vcpu, arg={"type": arg["type"]}, ret=0, out=arg)
    get_request, asked = pack(get, names)
    assert isinstance(asked, bytearray)
    assert bytes(asked) == struct_pack("<H70x", arg["type"])
    assert as_event(IoctlMade(get_request, asked, argument, 0, vcpu), names) == get


def test_a_failed_get_has_read_nothing() -> None:
    """The event of a GET that was refused has no `out`."""
    names = make_names()
    request, argument = pack(Ioctl(name="KVM_XEN_HVM_GET_ATTR", arg={"type": 3}, ret=0), names)
    event = as_event(IoctlMade(request, argument, argument, -2, None), names)
    assert event == Ioctl(name="KVM_XEN_HVM_GET_ATTR", arg={"type": 3}, ret=-2, out=None)


def test_the_layout_of_a_timer() -> None:
    """A TIMER lies in the union as the UAPI has it, an expiry relative to the clock counted from now."""
    timer = {"port": 0x11, "priority": 0x22, "expires_ns": {"now_plus": -NOW + 5}}
    event = Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg={"type": 7, "timer": timer}, ret=0)
    assert packed(event) == struct_pack("<H6xIIQ48x", 7, 0x11, 0x22, 5)


def test_time_wraps() -> None:
    """A time before the clock's beginning is that far from the end of 64 bits."""
    names = make_names()
    assert names.time({"now_plus": -NOW - 1}, 0) == 2**64 - 1
    assert names.now_plus(3, 1) == NOW + 3


def test_an_eventfd_that_never_was() -> None:
    """An eventfd that the trace never created is a number that no process has open."""
    names = make_names()
    event = Ioctl(name="KVM_IRQFD", arg={"fd": 5, "gsi": 1, "flags": 0}, ret=-9)
    assert packed(event) == struct_pack("<III20x", NO_SUCH_FD, 1, 0)
    assert names.symbolic_fd(40) == 1
    assert names.symbolic_fd(77) == 77


def test_host_addresses() -> None:
    """Guest memory has host addresses and back; one without memory an address without memory."""
    names = make_names()
    assert names.symbolic(names.host_address({"gpa": 0x1234})) == {"gpa": 0x1234}
    assert names.host_address({"gpa": MEMORY + 5}) == UNMAPPED_HVA + 5
    assert names.vm.hva_to_gpa(UNMAPPED_HVA) is None
    assert names.host_address(12) == names.symbolic(12) == 12


def test_a_route_of_another_type() -> None:
    """A GSI route that isn't Xen's goes to the host with its type and nothing in the union."""
    event = Ioctl(name="KVM_SET_GSI_ROUTING", arg={"entries": [{"gsi": 3, "type": 1}]}, ret=-22)
    assert packed(event) == struct_pack("<IIII40x", 1, 0, 3, 1)


@pytest.mark.parametrize("cut", [1, 47, 48, 49])
def test_a_routing_table_cut_short(cut: int) -> None:
    """Of a table with fewer bytes than announced, the whole entries are shown."""
    argument = bytearray(struct_pack("<II", 2, 0) + struct_pack("<IIIIIII20x", 3, 5, 0, 0, 7, 1, 9) * 2)
    del argument[-cut:]
    entry = {"gsi": 3, "type": 5, "xen_evtchn": {"port": 7, "vcpu": 1, "priority": 9}}
    assert unpack("KVM_SET_GSI_ROUTING", argument, make_names()) == {
        "entries": [entry] * (2 - (cut + 47) // 48)
    }


def test_requests_that_no_trace_holds() -> None:
    """An ioctl that isn't about Xen has no name here."""
    assert ioctls.KVM_SET_CLOCK not in REQUEST_NAMES
