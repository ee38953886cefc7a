"""Event channels: delivery, outbound ports, GSI routes and irqfds."""

from __future__ import annotations

from errno import EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENXIO

import pytest
from xen_vms import (
    EVTCHN_SEND,
    PAGE,
    PRIORITY,
    SHARED_INFO,
    VCPU_INFO,
    changed,
    observable,
    ready_vm,
    refusal,
)

from pytest_xenkvm.abi.numbers import INVALID_GFN, INVALID_GPA, EvtchnFlag, EvtchnStat, HvmAttr, VcpuAttr
from pytest_xenkvm.core.evtchn import Delivery, deliver
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.routing import GsiRoute
from pytest_xenkvm.core.state import EvtchnDelivery

PENDING = SHARED_INFO + 0x800
MASK = SHARED_INFO + 0xA00
XEN_ROUTE = 5
OTHER_ROUTE = 1


def send(vm: XenVm, port: int, vcpu_id: int = 0, priority: int = PRIORITY) -> int:
    """KVM_XEN_HVM_EVTCHN_SEND; its errno."""
    return refusal(vm.evtchn_send, port=port, vcpu_id=vcpu_id, priority=priority)


def word(vm: XenVm, gpa: int) -> int:
    """A 64-bit word of guest memory."""
    return int.from_bytes(vm.state.memory.read(gpa, 8) or b"", "little")


def test_a_delivered_event_is_seen_at_every_level() -> None:
    """Pending bit, selector bit and upcall_pending are set, on the vCPU with that KVM id."""
    vm = ready_vm(vcpu_ids=(0, 7))
    assert send(vm, 4095, vcpu_id=7) == 0
    assert word(vm, PENDING + 63 * 8) == 1 << 63
    assert word(vm, VCPU_INFO + 64 + 8) == 1 << 63
    assert word(vm, VCPU_INFO + 64) == 1
    assert vm.state.memory.read(VCPU_INFO, 64) == bytes(64)


def test_a_masked_event_stays_pending() -> None:
    """Behind a mask only the pending bit is set; once pending, later events coalesce even when unmasked."""
    vm = ready_vm()
    vm.state.memory.write(MASK, b"\x20")
    target = EvtchnDelivery(port=5, vcpu_id=0)
    assert deliver(vm.state, target.port, target.vcpu_id) is Delivery.MASKED
    assert (word(vm, PENDING), word(vm, VCPU_INFO), word(vm, VCPU_INFO + 8)) == (0x20, 0, 0)
    vm.state.memory.write(MASK, b"\0")
    assert deliver(vm.state, target.port, target.vcpu_id) is Delivery.COALESCED
    assert (word(vm, VCPU_INFO), word(vm, VCPU_INFO + 8)) == (0, 0)


def test_a_selector_bit_that_is_set_raises_no_upcall() -> None:
    """If the selector bit was there already, upcall_pending and the vCPU's vector are left alone."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR, 0x55)
    vm.state.memory.write(VCPU_INFO + 8, b"\1")
    assert send(vm, 5) == 0
    assert (word(vm, VCPU_INFO), vm.next_vector(vcpu)) == (0, None)
    assert send(vm, 64) == 0
    assert (word(vm, VCPU_INFO), vm.take_vector(vcpu), vm.next_vector(vcpu)) == (1, 0x55, None)


@pytest.mark.parametrize(
    ("port", "vcpu_id", "priority", "errno"),
    [
        (0, 0, PRIORITY, EINVAL),
        (1, 0, PRIORITY, 0),
        (4095, 0, PRIORITY, 0),
        (4096, 0, PRIORITY, EINVAL),
        (1, 1, PRIORITY, EINVAL),
        (1, 0, 0, EINVAL),
        (1, 0, PRIORITY - 1, EINVAL),
    ],
)
def test_what_the_vmm_may_send(port: int, vcpu_id: int, priority: int, errno: int) -> None:
    """Port 1 ... max-1, an existing vCPU and priority 2LEVEL; else -EINVAL, with nothing changed."""
    vm = ready_vm()
    before = observable(vm)
    assert send(vm, port, vcpu_id, priority) == errno
    assert bool(changed(before, observable(vm))) == (errno == 0)


def test_events_need_a_usable_shared_info() -> None:
    """Without shared_info an event is -EINVAL, with a refused one -EFAULT."""
    vm = ready_vm()
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    assert send(vm, 1) == EINVAL
    assert refusal(vm.set_attr, HvmAttr.SHARED_INFO, 999) == EFAULT
    assert send(vm, 1) == EFAULT


@pytest.mark.parametrize("switch_off", [True, False])
def test_without_vcpu_info_the_selector_bit_waits(*, switch_off: bool) -> None:
    """A vcpu_info that is off or refused keeps the bit in the kernel until an entry with a usable one."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR, 0x55)
    gone = INVALID_GPA if switch_off else 99 * PAGE
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.VCPU_INFO, gone) == (0 if switch_off else EFAULT)
    assert (send(vm, 64), send(vm, 65), vcpu.deferred_sel) == (0, 0, 2)
    vm.enter(vcpu)
    assert (vcpu.deferred_sel, vm.next_vector(vcpu)) == (2, None)
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, VCPU_INFO)
    vm.state.memory.write(VCPU_INFO + 8, b"\1")
    vm.enter(vcpu)
    assert (vcpu.deferred_sel, word(vm, VCPU_INFO + 8), word(vm, VCPU_INFO)) == (0, 3, 1)
    assert vm.take_vector(vcpu) == 0x55


def outbound(vm: XenVm, send_port: int, **members: int) -> int:
    """Set the EVTCHN attribute, by default an interdomain channel to port 9 of vCPU 0; its errno."""
    defaults = {"type": EvtchnStat.INTERDOMAIN, "flags": 0, "port": 9, "vcpu": 0, "priority": PRIORITY}
    request = OutboundRequest(send_port=send_port, **{**defaults, **members})
    return refusal(vm.set_attr, HvmAttr.EVTCHN, request)


@pytest.mark.parametrize(
    ("send_port", "members", "errno"),
    [
        (0, {}, EINVAL),
        (1, {}, 0),
        (4095, {}, 0),
        (4096, {}, EINVAL),
        (5, {}, EEXIST),
        (1, {"port": 4095}, 0),
        (1, {"port": 4096}, EINVAL),
        (1, {"vcpu": 99}, 0),
        (1, {"priority": 0}, EINVAL),
        (1, {"type": EvtchnStat.IPI}, EINVAL),
        (9, {"type": EvtchnStat.IPI}, 0),
        (9, {"type": 1}, EINVAL),
        (9, {"type": 3}, EINVAL),
        (1, {"port": 0, "vcpu": 3}, 0),
        (1, {"port": 0, "vcpu": 4}, EINVAL),
        (1, {"port": 0, "vcpu": 5}, EBADF),
        (1, {"port": 0, "vcpu": 3, "priority": 0}, 0),
        (5, {"port": 0, "vcpu": 5}, EBADF),
        (5, {"port": 0, "vcpu": 3}, EEXIST),
        (5, {"flags": EvtchnFlag.DEASSIGN}, 0),
        (1, {"flags": EvtchnFlag.DEASSIGN}, ENOENT),
        (5, {"flags": EvtchnFlag.UPDATE, "vcpu": 99}, 0),
        (1, {"flags": EvtchnFlag.UPDATE}, ENOENT),
        (5, {"flags": EvtchnFlag.UPDATE, "port": 8}, EINVAL),
        (5, {"flags": EvtchnFlag.UPDATE, "type": EvtchnStat.IPI}, EINVAL),
        (5, {"flags": EvtchnFlag.UPDATE, "priority": 0}, EINVAL),
        (6, {"flags": EvtchnFlag.UPDATE, "port": 0}, EINVAL),
        (4096, {"flags": EvtchnFlag.RESET}, 0),
        (4096, {"flags": EvtchnFlag.DEASSIGN}, EINVAL),
        (5, {"flags": 3}, EINVAL),
        (5, {"flags": 5}, EINVAL),
        (5, {"flags": 8}, EINVAL),
    ],
)
def test_outbound_ports(send_port: int, members: dict[str, int], errno: int) -> None:
    """What the EVTCHN attribute accepts with port 5 assigned, port 6 on an eventfd and fd 4 no eventfd."""
    vm = ready_vm()
    vm.open_eventfd(3)
    vm.state.files[4] = None
    assert (outbound(vm, 5), outbound(vm, 6, port=0, vcpu=3)) == (0, 0)
    before = observable(vm)
    assert outbound(vm, send_port, **members) == errno
    assert changed(before, observable(vm)) == (set() if errno else {"outbound"})


def test_reset_drops_every_outbound_port() -> None:
    """RESET leaves no port; DEASSIGN only takes its own."""
    vm = ready_vm()
    assert [outbound(vm, port) for port in (5, 6, 7)] == [0, 0, 0]
    assert outbound(vm, 6, flags=EvtchnFlag.DEASSIGN) == 0
    assert set(vm.state.outbound) == {5, 7}
    assert outbound(vm, 0, flags=EvtchnFlag.RESET) == 0
    assert vm.state.outbound == {}


def route(gsi: int, port: int = 5, *, type_: int = XEN_ROUTE, priority: int = PRIORITY) -> GsiRoute:
    """A route of a GSI to a port of vCPU 0."""
    return GsiRoute(gsi=gsi, type=type_, port=port, vcpu_id=0, priority=priority)


def test_a_raised_line_delivers_its_event() -> None:
    """KVM_IRQ_LINE delivers at level 1, does nothing at level 0, and never says what became of the event."""
    vm = ready_vm()
    vm.set_gsi_routing([route(20, 5), route(21, 9999)])
    assert vm.set_irq_line(gsi=20, level=0) == -1
    assert vm.set_irq_line(gsi=21, level=1) == -1
    assert vm.set_irq_line(gsi=22, level=1) == -1
    assert word(vm, PENDING) == 0
    assert [vm.set_irq_line(gsi=20, level=1) for _ in range(2)] == [1, 0]
    assert word(vm, PENDING) == 1 << 5


@pytest.mark.parametrize(
    "entries",
    [
        [route(1), route(4096)],
        [route(1), route(1)],
        [route(1), route(1, type_=OTHER_ROUTE)],
        [route(1, priority=0)],
    ],
)
def test_refused_routes_leave_the_old_ones(entries: list[GsiRoute]) -> None:
    """A GSI >= 4096, a second route of a Xen GSI, and a bad priority are -EINVAL and change nothing."""
    vm = ready_vm()
    vm.set_gsi_routing([route(20)])
    before = observable(vm)
    assert refusal(vm.set_gsi_routing, entries) == EINVAL
    assert changed(before, observable(vm)) == set()


def test_routes_of_other_types_are_not_xens() -> None:
    """A route to an irqchip pin or MSI is accepted, whatever its priority, and delivers no Xen event."""
    vm = ready_vm()
    vm.set_gsi_routing([route(1, type_=OTHER_ROUTE, priority=0), route(1, type_=OTHER_ROUTE), route(4095, 6)])
    assert vm.state.routes.keys() == {4095}
    vm.set_irq_line(gsi=1, level=1)
    assert word(vm, PENDING) == 0


def test_routes_that_cannot_be_set_together() -> None:
    """A GSI with a Xen route has no other, whichever comes first, and there are at most 4096 entries."""
    vm = ready_vm()
    for routes in (
        [route(1), route(1, type_=OTHER_ROUTE)],
        [route(1, type_=OTHER_ROUTE), route(1)],
        [route(1, type_=OTHER_ROUTE)] * 4097,
    ):
        assert refusal(vm.set_gsi_routing, routes) == EINVAL
    assert refusal(vm.set_gsi_routing, [route(1, type_=OTHER_ROUTE)] * 4096) == 0


def test_without_an_irqchip_there_are_no_gsis() -> None:
    """Routing and assigning irqfds are -EINVAL, lines -ENXIO; deassigning an irqfd is fine."""
    vm = ready_vm(irqchip="none")
    vm.open_eventfd(3)
    assert refusal(vm.set_gsi_routing, []) == EINVAL
    assert refusal(vm.set_irq_line, gsi=1, level=0) == ENXIO
    assert refusal(vm.set_irqfd, fd=3, gsi=1, flags=0) == EINVAL
    assert refusal(vm.set_irqfd, fd=3, gsi=1, flags=1) == 0


def test_an_irqfd_drains_its_eventfd() -> None:
    """Each write to the eventfd is one event and leaves no count; after deassigning the count stays."""
    vm = ready_vm()
    eventfd = vm.open_eventfd(3)
    vm.set_gsi_routing([route(20, 5)])
    eventfd.write(4)
    vm.set_irqfd(fd=3, gsi=20, flags=0)
    assert (word(vm, PENDING), eventfd.count) == (1 << 5, 4)
    vm.state.memory.write(PENDING, bytes(8))
    eventfd.write(1)
    assert (word(vm, PENDING), eventfd.count) == (1 << 5, 0)
    vm.set_irqfd(fd=3, gsi=21, flags=1)
    assert vm.state.irqfds
    vm.set_irqfd(fd=3, gsi=20, flags=1)
    vm.state.memory.write(PENDING, bytes(8))
    eventfd.write(1)
    assert (word(vm, PENDING), eventfd.count, vm.state.irqfds) == (0, 1, {})


@pytest.mark.parametrize(
    ("fd", "flags", "errno"),
    [
        (3, 0, EBUSY),
        (4, 0, EINVAL),
        (5, 0, EBADF),
        (5, 1, EBADF),
        (6, 2, EINVAL),
        (6, 0, 0),
        (6, 1, 0),
        (6, 3, 0),
    ],
)
def test_what_can_be_an_irqfd(fd: int, flags: int, errno: int) -> None:
    """Only an open eventfd that has no irqfd yet, and no flag but DEASSIGN; a refusal changes nothing."""
    vm = ready_vm()
    vm.open_eventfd(3)
    vm.open_eventfd(6)
    vm.state.files[4] = None
    vm.set_irqfd(fd=3, gsi=20, flags=0)
    before = observable(vm)
    assert refusal(vm.set_irqfd, fd=fd, gsi=20, flags=flags) == errno
    assert changed(before, observable(vm)) == ({"irqfds"} if (fd, flags) == (6, 0) else set())


def test_the_vms_eventfds_are_found_by_number() -> None:
    """The VMM finds the eventfd that it opened, and no other."""
    vm = ready_vm(flags=EVTCHN_SEND)
    assert vm.open_eventfd(3) is vm.eventfd(3)
    assert refusal(vm.eventfd, 4) == EBADF


def test_the_vm_wide_vector_comes_before_the_vcpus_own() -> None:
    """With both raised the guest takes the VM-wide vector first, for as long as the byte is not 0."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.UPCALL_VECTOR, 0x60)
    vm.set_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR, 0x55)
    assert vm.next_vector(vcpu) is None
    assert send(vm, 5) == 0
    assert [vm.take_vector(vcpu), vm.take_vector(vcpu)] == [0x60, 0x60]
    vm.state.memory.write(VCPU_INFO, b"\0")
    assert [vm.take_vector(vcpu), vm.take_vector(vcpu)] == [0x55, None]


@pytest.mark.parametrize(("irqchip", "taken"), [("none", None), ("split", 0x55), ("full", 0x55)])
def test_vectors_need_a_local_apic_in_the_kernel(irqchip: str, taken: int | None) -> None:
    """Without in-kernel local APICs neither vector is ever taken."""
    vm = ready_vm(irqchip=irqchip)
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.UPCALL_VECTOR, 0x55)
    assert send(vm, 5) == 0
    assert vm.next_vector(vcpu) == taken
