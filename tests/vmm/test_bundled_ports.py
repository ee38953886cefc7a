"""The event channels that `qemu` gives its guest."""

from __future__ import annotations

from errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH
from struct import pack
from typing import Any, Final

import pytest
from calling_guest import LONG_MODE, NOWHERE, SHARED_INFO_GFN, CallingGuest
from duties_guest import MS

from pytest_xenkvm.abi.numbers import EvtchnOp, VcpuAttr
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import DOMID_QEMU, DOMID_SELF, PortStatus, Virq
from pytest_xenkvm.trace.events import Mem

STORE: Final = 1
"""The port that every guest has from the start."""
OTHER_DOMAIN: Final = 5
Op = tuple[int, bytes]


def bind_virq(virq: int, vcpu: int) -> Op:
    """EVTCHNOP_bind_virq."""
    return EvtchnOp.bind_virq, pack("<III", virq, vcpu, 0)


def bind_ipi(vcpu: int) -> Op:
    """EVTCHNOP_bind_ipi."""
    return EvtchnOp.bind_ipi, pack("<II", vcpu, 0)


def bind_vcpu(port: int, vcpu: int) -> Op:
    """EVTCHNOP_bind_vcpu."""
    return EvtchnOp.bind_vcpu, pack("<II", port, vcpu)


def alloc_unbound(domain: int = DOMID_SELF, remote: int = DOMID_SELF) -> Op:
    """EVTCHNOP_alloc_unbound."""
    return EvtchnOp.alloc_unbound, pack("<HHI", domain, remote, 0)


def bind_interdomain(port: int, remote: int = DOMID_SELF) -> Op:
    """EVTCHNOP_bind_interdomain."""
    return EvtchnOp.bind_interdomain, pack("<HxxII", remote, port, 0)


def status(port: int, domain: int = DOMID_SELF) -> Op:
    """EVTCHNOP_status."""
    return EvtchnOp.status, pack("<HxxIIIII", domain, port, 0, 0, 0, 0)


def on_port(op: int, port: int) -> Op:
    """An operation that takes a port only."""
    return op, pack("<I", port)


def evtchn(*ops: Op, guest: CallingGuest | None = None, **more: Any) -> CallingGuest:
    """A guest that does this with event channels."""
    guest = guest or CallingGuest()
    for op, at in ops:
        guest.call(Nr.event_channel_op, op, at=at, **more)
    return guest


def test_binding_virqs() -> None:
    """One of a kind for each vCPU; the VM's own on vCPU 0 only; no more than there are."""
    expected = [
        (bind_virq(Virq.TIMER, 0), 0),
        (bind_virq(Virq.TIMER, 0), -EEXIST),
        (bind_virq(Virq.TIMER, 1), 0),
        (bind_virq(Virq.DEBUG, 0), 0),
        (bind_virq(3, 0), 0),
        (bind_virq(3, 1), -EINVAL),
        (bind_virq(24, 0), -EINVAL),
        (bind_virq(Virq.TIMER, 2), -ENOENT),
    ]
    guest = evtchn(*(op for op, _answer in expected))
    assert guest.answers() == [answer for _op, answer in expected]
    assert [guest.left(call, 4, 8) for call in (0, 2, 3, 4)] == [2, 3, 4, 5]


def test_ports_are_numbered_from_below() -> None:
    """The guest is told the lowest free number; a closed one is free again."""
    guest = evtchn(bind_ipi(0), bind_ipi(0), on_port(EvtchnOp.close, 2), bind_ipi(1))
    assert guest.answers() == [0, 0, 0, 0]
    assert [guest.left(call, 4, 4) for call in (0, 1, 3)] == [2, 3, 2]
    assert evtchn(bind_ipi(7)).answers() == [-ENOENT]


def test_ports_run_out() -> None:
    """A 32-bit guest has 1023 of them, one of which is the store's."""
    assert evtchn(*[bind_ipi(0)] * 1023).answers() == [*[0] * 1022, -28]


@pytest.mark.parametrize(
    ("op", "closed"), [(EvtchnOp.close, -ENOENT), (EvtchnOp.send, -EINVAL), (EvtchnOp.unmask, -EINVAL)]
)
def test_ports_that_are_not_there(op: int, closed: int) -> None:
    """Numbers out of range are -EINVAL; what is closed is refused by each operation in its own way."""
    guest = evtchn(on_port(op, 0), on_port(op, 1024), on_port(op, 9))
    assert guest.answers() == [-EINVAL, -EINVAL, closed]
    assert evtchn(on_port(op, 1024), guest=CallingGuest().add(LONG_MODE)).answers() == [closed]


def test_what_event_channel_op_does_not_have() -> None:
    """FIFO event channels and unknown operations are -ENOSYS without a look at the argument."""
    guest = CallingGuest()
    for op in (EvtchnOp.init_control, EvtchnOp.expand_array, EvtchnOp.set_priority, 99):
        guest.call(Nr.event_channel_op, op, NOWHERE)
    assert guest.answers() == [-ENOSYS] * 4


def test_arguments_that_are_not_mapped() -> None:
    """-EFAULT, whatever the operation."""
    guest = CallingGuest()
    for op in (EvtchnOp.bind_virq, EvtchnOp.bind_ipi, EvtchnOp.close, EvtchnOp.status):
        guest.call(Nr.event_channel_op, op, NOWHERE)
    assert guest.answers() == [-EFAULT] * 4


def test_which_ports_can_be_moved() -> None:
    """IPIs and a vCPU's own VIRQs stay where they are; others go to a vCPU that is there."""
    guest = evtchn(
        bind_ipi(0),
        bind_virq(Virq.TIMER, 0),
        bind_virq(3, 0),
        *(bind_vcpu(port, 1) for port in (2, 3, 4, STORE, 9)),
        bind_vcpu(STORE, 5),
    )
    assert guest.answers() == [0, 0, 0, -EINVAL, -EINVAL, 0, 0, -EINVAL, -ENOENT]
    assert guest.vmm.state.ports.get(4).vcpu == 1


def test_a_channel_of_the_guest_to_itself() -> None:
    """Each end sends to the other; with one end closed, the other waits again."""
    guest = CallingGuest().add(LONG_MODE).maps_shared_info()
    evtchn(
        alloc_unbound(),
        on_port(EvtchnOp.send, 2),
        bind_interdomain(2),
        on_port(EvtchnOp.send, 2),
        on_port(EvtchnOp.send, 3),
        bind_interdomain(2),
        on_port(EvtchnOp.close, 3),
        on_port(EvtchnOp.send, 2),
        bind_interdomain(2),
        guest=guest,
    )
    assert guest.answers() == [0, 0, 0, 0, 0, 0, -EINVAL, 0, 0, 0]
    assert guest.sent == [3, 2]
    assert guest.left(3, 4, 8) == 3


def test_domains_and_ports_that_are_refused() -> None:
    """The guest may bind to itself; the VMM offers no port that waits, and other domains aren't there."""
    expected = [
        (alloc_unbound(OTHER_DOMAIN), -ESRCH),
        (alloc_unbound(DOMID_SELF, OTHER_DOMAIN), -EPERM),
        (alloc_unbound(DOMID_SELF, DOMID_QEMU), 0),
        (bind_interdomain(0), -EINVAL),
        (bind_interdomain(2, OTHER_DOMAIN), -ESRCH),
        (bind_interdomain(2, DOMID_QEMU), -ENOENT),
        (status(STORE, OTHER_DOMAIN), -ESRCH),
        (status(0), -EINVAL),
        ((EvtchnOp.reset, pack("<H", OTHER_DOMAIN)), -ESRCH),
    ]
    assert evtchn(*(op for op, _answer in expected)).answers() == [answer for _op, answer in expected]


def test_sends_to_the_vmm_end_there() -> None:
    """The store's port signals an eventfd, in the kernel; nobody answers."""
    guest = CallingGuest().add(LONG_MODE).maps_shared_info()
    assert evtchn(on_port(EvtchnOp.send, STORE), guest=guest).answers() == [0, 0]
    assert guest.sent == []


@pytest.mark.parametrize(
    ("ops", "port", "told"),
    [
        ([], STORE, (PortStatus.INTERDOMAIN, 0, DOMID_QEMU)),
        ([], 9, (PortStatus.CLOSED, 0, 0)),
        ([bind_ipi(1)], 2, (PortStatus.IPI, 1, 0)),
        ([bind_virq(Virq.DEBUG, 1)], 2, (PortStatus.VIRQ, 1, Virq.DEBUG)),
        ([alloc_unbound(), bind_interdomain(2)], 3, (PortStatus.INTERDOMAIN, 0, 1)),
    ],
    ids=["store", "closed", "ipi", "virq", "loopback"],
)
def test_the_status_of_ports(ops: list[Op], port: int, told: tuple[int, int, int]) -> None:
    """Kind, vCPU, and what is at the other end."""
    guest = evtchn(*ops, status(port))
    assert guest.answers() == [0] * (len(ops) + 1)
    last = len(ops)
    assert (guest.left(last, 4, 8), guest.left(last, 4, 12), guest.left(last, 2, 16)) == told


def test_reset_closes_all_ports() -> None:
    """Timers lose theirs, and KVM forgets the outbound ones."""
    guest = evtchn(bind_virq(Virq.TIMER, 1), bind_ipi(0), (EvtchnOp.reset, pack("<H", DOMID_SELF)))
    assert guest.answers() == [0, 0, 0]
    assert guest.vmm.state.ports.used == {}
    assert guest.attribute(VcpuAttr.TIMER, 1).port == 0
    again = evtchn(*[(EvtchnOp.send, pack("<I", 3))], guest=guest)
    assert again.answers()[-1] == -EINVAL


def test_a_bound_timer_is_the_kernels() -> None:
    """KVM gets its port, and the time that the guest had set before; closed, KVM has none."""
    guest = CallingGuest()
    guest.script.singleshot(500 * MS)
    evtchn(bind_virq(Virq.TIMER, 0), guest=guest)
    assert guest.answers() == [0, 0]
    timer = guest.attribute(VcpuAttr.TIMER)
    assert timer.port == 2
    assert 500 * MS <= timer.expires_ns < 510 * MS
    assert evtchn(on_port(EvtchnOp.close, 2), guest=guest).answers() == [0, 0, 0]
    assert guest.attribute(VcpuAttr.TIMER).port == 0


@pytest.mark.parametrize(("masks", "long_mode"), [(0xA00, True), (0x880, False)])
@pytest.mark.parametrize("masked", [True, False])
def test_unmasking(masks: int, *, long_mode: bool, masked: bool) -> None:
    """An event that the mask held back comes again, in either layout of the page; others don't."""
    page, bit = SHARED_INFO_GFN << 12, pack("<Q", 1 << 2)
    guest = CallingGuest()
    if long_mode:
        guest.add(LONG_MODE)
    guest.maps_shared_info()
    evtchn(bind_ipi(0), guest=guest)
    guest.add(Mem(op="write", gpa=page + 0x800, data=bit))
    if masked:
        guest.add(Mem(op="write", gpa=page + masks, data=bit))
    evtchn(on_port(EvtchnOp.unmask, 2), guest=guest)
    assert guest.answers() == [0, 0, 0]
    assert guest.sent == ([2] if masked else [])
    assert guest.vm.read_memory(page + masks, 8) == bytes(8)
    assert guest.vm.read_memory(page + 0x800, 8) == bit


@pytest.mark.parametrize("masked", [True, False])
def test_a_pending_event_follows_its_port(*, masked: bool) -> None:
    """To the vCPU that the guest moves it to, unless it is masked."""
    page, bit = SHARED_INFO_GFN << 12, pack("<Q", 1 << 2)
    guest = CallingGuest().add(LONG_MODE).maps_shared_info()
    evtchn(bind_virq(3, 0), guest=guest).add(Mem(op="write", gpa=page + 0x800, data=bit))
    if masked:
        guest.add(Mem(op="write", gpa=page + 0xA00, data=bit))
    assert evtchn(bind_vcpu(2, 1), guest=guest).answers() == [0, 0, 0]
    assert guest.sent == ([] if masked else [2])


def test_without_the_page_there_are_no_events() -> None:
    """What is sent or unmasked before the guest maps it is answered and lost."""
    guest = evtchn(bind_ipi(0), on_port(EvtchnOp.send, 2), on_port(EvtchnOp.unmask, 2))
    assert guest.answers() == [0, 0, 0]
    assert guest.sent == []
