"""The attribute EVTCHN: the table of outbound ports."""

from __future__ import annotations

from errno import EBADF, EEXIST, EINVAL, ENOENT

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX, EvtchnFlag, EvtchnStat, HvmAttr

from .kit.demands import FORWARDED
from .kit.hosts import Builder

pytestmark = pytest.mark.source(
    "kvm_xen_hvm_set_attr(KVM_XEN_ATTR_TYPE_EVTCHN): kvm_xen_setattr_evtchn, kvm_xen_eventfd_assign, "
    "kvm_xen_eventfd_update, kvm_xen_eventfd_deassign, kvm_xen_eventfd_reset"
)

IPI, INTERDOMAIN = EvtchnStat.IPI, EvtchnStat.INTERDOMAIN
LAYOUTS = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
NO_SUCH_FD = 77


@LAYOUTS
def test_bounds_of_the_port(new_vm: Builder, *, long_mode: bool) -> None:
    """Outbound ports are 1 up to the layout's limit; others are -EINVAL, in whatever is done to them."""
    vm = new_vm.ready(long_mode=long_mode)
    limit = 4096 if long_mode else 1024
    for port in (1, limit - 1):
        vm.outbound(port, port=5)
    for port in (0, limit, limit + 1, 0x7FFF_FFFF, 0x8000_0000, U32_MAX):
        for flags in (EvtchnFlag.ASSIGN, EvtchnFlag.DEASSIGN, EvtchnFlag.UPDATE):
            vm.outbound(port, port=5, flags=flags, ret=-EINVAL)


@LAYOUTS
def test_bounds_of_the_target(new_vm: Builder, *, long_mode: bool) -> None:
    """The local port that an interdomain channel is delivered to is below the layout's limit, too."""
    vm = new_vm.ready(long_mode=long_mode)
    limit = 4096 if long_mode else 1024
    for port in (limit, limit + 1, 0x8000_0000, U32_MAX):
        vm.outbound(9, port=port, ret=-EINVAL)
    vm.outbound(9, port=limit - 1)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(limit - 1)


def test_other_types(new_vm: Builder) -> None:
    """Types other than EVTCHNSTAT_interdomain and EVTCHNSTAT_ipi are -EINVAL."""
    vm = new_vm.ready()
    for type_ in (0, 1, 3, 4, 6, 7, U32_MAX):
        vm.outbound(9, type_=type_, port=9, ret=-EINVAL)
        vm.outbound(9, type_=type_, fd=vm.eventfd(), ret=-EINVAL)
        vm.vcpus[0].evtchn_send(9, answers=FORWARDED)


def test_ipi_goes_to_its_own_number(new_vm: Builder) -> None:
    """An IPI is delivered to its own port number, else -EINVAL."""
    vm = new_vm.ready()
    for port in (0, 8, 10):
        vm.outbound(9, type_=IPI, port=port, ret=-EINVAL)
    vm.outbound(9, type_=IPI, port=9)


@pytest.mark.parametrize("type_", [IPI, INTERDOMAIN], ids=["ipi", "interdomain"])
def test_priority(new_vm: Builder, type_: int) -> None:
    """A priority other than 2LEVEL is -EINVAL."""
    vm = new_vm.ready()
    for priority in (0, 1, 0xFFFF_FFFE):
        vm.outbound(9, type_=type_, port=9, priority=priority, ret=-EINVAL)
        vm.vcpus[0].evtchn_send(9, answers=FORWARDED)


def test_target_need_not_exist(new_vm: Builder) -> None:
    """The target vCPU need not exist when a port is assigned."""
    vm = new_vm.ready()
    vm.outbound(9, port=5, vcpu=99)
    vm.outbound(10, type_=IPI, port=10, vcpu=U32_MAX)


def test_assigned_once(new_vm: Builder) -> None:
    """A port that is assigned already is -EEXIST, and stays as it was."""
    vm = new_vm.ready()
    vm.outbound(9, port=5)
    vm.outbound(9, port=6, ret=-EEXIST)
    vm.outbound(9, type_=IPI, port=9, ret=-EEXIST)
    vm.outbound(9, fd=vm.eventfd(), ret=-EEXIST)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(5)


def test_eventfd_must_be_open(new_vm: Builder) -> None:
    """An eventfd that is not open is -EBADF, also on a port that is assigned already."""
    vm = new_vm.ready()
    vm.outbound(9, fd=NO_SUCH_FD, ret=-EBADF)
    vm.outbound(9, port=5)
    vm.outbound(9, fd=NO_SUCH_FD, ret=-EBADF)


def test_deassign(new_vm: Builder) -> None:
    """DEASSIGN drops a port, which needs nothing but its number, and which can be assigned anew."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(9, flags=EvtchnFlag.DEASSIGN, ret=-ENOENT)
    for _ in range(2):
        vm.outbound(9, port=5)
        vm.outbound(10, fd=fd)
        vm.outbound(9, type_=0, port=99, priority=0, flags=EvtchnFlag.DEASSIGN)
        vm.vcpus[0].evtchn_send(9, answers=FORWARDED)
        vm.outbound(9, flags=EvtchnFlag.DEASSIGN, ret=-ENOENT)
        vm.vcpus[0].evtchn_send(10)
        vm.outbound(10, flags=EvtchnFlag.DEASSIGN)
        vm.vcpus[0].evtchn_send(10, answers=FORWARDED)
    vm.eventfd_holds(fd, 2)


def test_update_moves_to_another_vcpu(new_vm: Builder) -> None:
    """UPDATE changes the target vCPU, which need not exist."""
    vm = new_vm.ready(ids=(0, 3))
    for port, type_ in ((9, INTERDOMAIN), (10, IPI)):
        vm.outbound(port, type_=type_, port=10)
        vm.outbound(port, type_=type_, port=10, vcpu=3, flags=EvtchnFlag.UPDATE)
        vm.vcpus[0].evtchn_send(port)
        vm.vcpus[1].upcall(0)
        vm.vcpus[0].quiet()
        vm.clear_events()
        vm.outbound(port, type_=type_, port=10, vcpu=99, flags=EvtchnFlag.UPDATE)
        vm.vcpus[0].evtchn_send(port, answers=FORWARDED)


def test_update_to_the_same_vcpu(new_vm: Builder) -> None:
    """UPDATE that names the target vCPU anew leaves the port as it was."""
    vm = new_vm.ready(ids=(0, 3))
    for port, type_ in ((9, INTERDOMAIN), (10, IPI)):
        vm.outbound(port, type_=type_, port=10, vcpu=3)
        for _ in range(2):
            vm.outbound(port, type_=type_, port=10, vcpu=3, flags=EvtchnFlag.UPDATE)
            vm.vcpus[0].evtchn_send(port)
            vm.pending(10)
            vm.vcpus[1].upcall(0)
            vm.vcpus[0].quiet()
            vm.clear_events()


@pytest.mark.parametrize(
    "change",
    [{"type_": IPI}, {"type_": 0}, {"port": 6}, {"port": 0}, {"priority": 0}, {"priority": 0xFFFF_FFFE}],
    ids=str,
)
def test_update_changes_nothing_else(new_vm: Builder, change: dict[str, int]) -> None:
    """UPDATE with another type, delivery port or priority is -EINVAL and changes nothing."""
    vm = new_vm.ready(vcpus=2)
    vm.outbound(9, port=5)
    how = {"type_": INTERDOMAIN, "port": 5, "vcpu": 1, **change}
    vm.outbound(9, flags=EvtchnFlag.UPDATE, **how, ret=-EINVAL)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(5)
    vm.vcpus[0].upcall(0)


def test_update_of_what_isnt_there(new_vm: Builder) -> None:
    """UPDATE of a port that was never assigned is -ENOENT."""
    new_vm.ready().outbound(9, port=5, flags=EvtchnFlag.UPDATE, ret=-ENOENT)


def test_update_of_an_eventfd(new_vm: Builder) -> None:
    """UPDATE of a port with an eventfd is -EINVAL."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    vm.outbound(9, fd=fd, flags=EvtchnFlag.UPDATE, ret=-EINVAL)
    vm.outbound(9, port=0, flags=EvtchnFlag.UPDATE, ret=-EINVAL)
    vm.vcpus[0].evtchn_send(9)
    vm.eventfd_holds(fd, 1)


@pytest.mark.parametrize("port", [0, 9, 4096, U32_MAX])
def test_reset(new_vm: Builder, port: int) -> None:
    """RESET drops all ports, whatever port and type it names."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(8, fd=fd)
    vm.outbound(9, port=5)
    vm.outbound(10, type_=IPI, port=10)
    vm.outbound(port, type_=7, flags=EvtchnFlag.RESET, priority=0)
    for gone in (8, 9, 10):
        vm.vcpus[0].evtchn_send(gone, answers=FORWARDED)
    vm.outbound(port, flags=EvtchnFlag.RESET)
    vm.eventfd_holds(fd, 0)


@pytest.mark.parametrize("flags", [3, 5, 6, 7, 8, 0x8000_0000, U32_MAX])
def test_other_flags(new_vm: Builder, flags: int) -> None:
    """Flags other than exactly one of DEASSIGN, UPDATE and RESET are -EINVAL, and nothing changes."""
    vm = new_vm.ready()
    vm.outbound(9, port=5, flags=flags, ret=-EINVAL)
    vm.outbound(9, port=5)
    vm.outbound(9, port=5, flags=flags, ret=-EINVAL)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(5)


def test_registered_in_the_other_layout(new_vm: Builder) -> None:
    """A port that was registered in the 64-bit layout can't be changed in the 32-bit one."""
    vm = new_vm.ready()
    vm.outbound(2000, port=5)
    vm.set(HvmAttr.LONG_MODE, 0)
    for flags in (EvtchnFlag.DEASSIGN, EvtchnFlag.UPDATE, EvtchnFlag.ASSIGN):
        vm.outbound(2000, port=5, flags=flags, ret=-EINVAL)
    vm.set(HvmAttr.LONG_MODE, 1)
    vm.outbound(2000, flags=EvtchnFlag.DEASSIGN)


def test_many_ports(new_vm: Builder) -> None:
    """All ports of the layout can be assigned at once, each with its own target."""
    vm = new_vm.ready()
    for port in range(1, 4096, 13):
        vm.outbound(port, port=4096 - port)
    for port in (1, 14, 2003, 4083):
        vm.vcpus[0].evtchn_send(port)
        vm.pending(4096 - port)
        vm.clear_events()


def test_cant_be_read(new_vm: Builder) -> None:
    """EVTCHN can't be read: -ENOENT."""
    vm = new_vm.ready()
    vm.outbound(9, port=5)
    vm.get(HvmAttr.EVTCHN, ret=-ENOENT)
