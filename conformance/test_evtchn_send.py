"""EVTCHNOP_send: which ports the kernel serves, and what becomes of the event."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.layout import EVTCHN_PENDING
from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    PAGE_SIZE,
    U32_MAX,
    U64_MAX,
    EvtchnOp,
    EvtchnStat,
    HvmAttr,
    Hypercall,
    XenHvmFlag,
)

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import ARGUMENT, MEMORY, MODES, MODES_32, NOWHERE, SHARED_INFO, VCPU_INFO, Mode

pytestmark = pytest.mark.source("kvm_xen_hcall_evtchn_send; Xen's public/event_channel.h: EVTCHNOP_send")

EVENT_CHANNEL_OP = Hypercall.event_channel_op


@pytest.mark.parametrize("mode", MODES)
def test_to_a_local_port(new_vm: Builder, mode: Mode) -> None:
    """A send to an interdomain channel with a local port is delivered there, on its vCPU."""
    vm = new_vm.ready(ids=(0, 4))
    vm.outbound(9, port=70, vcpu=4)
    vm.vcpus[0].evtchn_send(9, mode=mode)
    vm.pending(70)
    vm.vcpus[1].upcall(1)
    vm.vcpus[0].quiet()


@pytest.mark.parametrize("mode", MODES)
def test_ipi(new_vm: Builder, mode: Mode) -> None:
    """A send to an IPI channel is delivered to the same port on its vCPU."""
    vm = new_vm.ready(vcpus=2)
    vm.outbound(9, type_=EvtchnStat.IPI, port=9, vcpu=1)
    vm.vcpus[0].evtchn_send(9, mode=mode)
    vm.pending(9)
    vm.vcpus[1].upcall(0)


@pytest.mark.parametrize("mode", MODES)
def test_eventfd(new_vm: Builder, mode: Mode) -> None:
    """A send to a channel with an eventfd adds 1 to it, each time, and touches no memory."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    for _ in range(3):
        vm.vcpus[0].evtchn_send(9, mode=mode)
    vm.eventfd_holds(fd, 3)
    vm.pending()
    vm.vcpus[0].quiet()


def test_eventfd_that_is_full(new_vm: Builder) -> None:
    """A send to an eventfd at its limit of 2^64-2 leaves 2^64-1, and a second one changes nothing."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    vm.eventfd_write(fd, U64_MAX - 1)
    vm.vcpus[0].evtchn_send(9)
    vm.vcpus[0].evtchn_send(9)
    vm.eventfd_holds(fd, U64_MAX)


def test_unknown_port(new_vm: Builder) -> None:
    """A send to a port that is not in the table of outbound ports goes to the VMM."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    for port in (0, 8, 10, 4096, 0x8000_0000, U32_MAX):
        vm.vcpus[0].evtchn_send(port, answers=FORWARDED)
        vm.pending()


@pytest.mark.parametrize("mode", MODES)
def test_unreadable_argument(new_vm: Builder, mode: Mode) -> None:
    """An argument whose 4 bytes can't be read is -EFAULT, not forwarded."""
    vcpu = new_vm.ready().vcpus[0]
    for at in (NOWHERE, MEMORY, MEMORY - 3, MEMORY - 1):
        vcpu.call(EVENT_CHANNEL_OP, EvtchnOp.send, at, answers=-EFAULT, mode=mode)


def test_argument_at_the_end_of_memory(new_vm: Builder) -> None:
    """The argument is the u32 of the port and no more."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    vm.vcpus[0].evtchn_send(9, at=MEMORY - 4)
    vm.vcpus[0].evtchn_send(9, at=ARGUMENT + PAGE_SIZE - 2)
    vm.eventfd_holds(fd, 2)


def test_pending_or_masked_counts_as_sent(new_vm: Builder) -> None:
    """A send whose target is pending or masked is 0, not forwarded."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.vcpus[0].evtchn_send(9)
    vm.store(VCPU_INFO, bytes(16))
    vm.vcpus[0].evtchn_send(9)
    vm.vcpus[0].quiet()
    vm.clear_events()
    vm.mask(70)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(70)
    vm.vcpus[0].quiet()


def test_mask_of_the_outbound_port(new_vm: Builder) -> None:
    """The mask of the outbound port itself doesn't matter: the target's does."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.mask(9)
    vm.vcpus[0].evtchn_send(9)
    vm.vcpus[0].upcall(1)


def test_undeliverable_is_forwarded(new_vm: Builder) -> None:
    """A send that can't be delivered goes to the VMM: no such vCPU, no shared_info, port out of range."""
    vm = new_vm.ready()
    vm.outbound(9, port=70, vcpu=5)
    vm.outbound(10, port=1024)
    vm.outbound(11, port=71)
    vcpu = vm.vcpus[0]
    vcpu.evtchn_send(9, answers=FORWARDED)
    vm.set(HvmAttr.LONG_MODE, 0)
    vcpu.evtchn_send(10, answers=FORWARDED)
    vm.set(HvmAttr.LONG_MODE, 1)
    vcpu.evtchn_send(10)
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vcpu.evtchn_send(11, answers=FORWARDED)
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vcpu.evtchn_send(11, answers=FORWARDED)
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vcpu.evtchn_send(11)


def test_outbound_port_beyond_the_layout(new_vm: Builder) -> None:
    """A port that was registered in the 64-bit layout is served in the 32-bit one, too."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(2000, fd=fd)
    vm.set(HvmAttr.LONG_MODE, 0)
    vm.vcpus[0].evtchn_send(2000, mode=Mode.PROTECTED)
    vm.eventfd_holds(fd, 1)


def test_without_the_flag(new_vm: Builder) -> None:
    """EVTCHNOP_send is served without the flag EVTCHN_SEND in KVM_XEN_HVM_CONFIG."""
    vm = new_vm.ready()
    vm.config(flags=XenHvmFlag.INTERCEPT_HCALL)
    vm.outbound(9, port=70)
    vm.vcpus[0].evtchn_send(9)
    vm.pending(70)


@pytest.mark.parametrize("cpl", [1, 2, 3])
def test_above_cpl_0(new_vm: Builder, cpl: int) -> None:
    """A send from above CPL 0 goes to the VMM, whatever its pointer, and changes nothing."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.vcpus[0].evtchn_send(9, cpl=cpl, answers=FORWARDED)
    vm.vcpus[0].call(EVENT_CHANNEL_OP, EvtchnOp.send, NOWHERE, cpl=cpl, answers=FORWARDED)
    vm.pending()


def test_other_sub_ops(new_vm: Builder) -> None:
    """Other sub-operations of event_channel_op go to the VMM."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.store(ARGUMENT, b"\x09\0\0\0")
    for op in [op for op in range(14) if op != EvtchnOp.send]:
        vm.vcpus[0].call(EVENT_CHANNEL_OP, op, ARGUMENT, answers=FORWARDED)
        vm.pending()


def test_sub_op_has_64_bits(new_vm: Builder) -> None:
    """The sub-operation is compared in all 64 bits of a 64-bit call."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.store(ARGUMENT, b"\x09\0\0\0")
    for op in (EvtchnOp.send | 1 << 32, EvtchnOp.send | 1 << 63):
        vm.vcpus[0].call(EVENT_CHANNEL_OP, op, ARGUMENT, answers=FORWARDED)
    vm.pending()


@pytest.mark.parametrize("mode", MODES_32)
def test_upper_halves_of_a_32_bit_call(new_vm: Builder, mode: Mode) -> None:
    """Of a 32-bit caller's registers the upper halves don't count."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    vm.vcpus[0].evtchn_send(9, mode=mode, high_halves=U32_MAX)
    vm.pending(70)


def test_layout_is_the_vms(new_vm: Builder) -> None:
    """Events have the layout of LONG_MODE, whatever mode the sender runs in."""
    vm = new_vm.ready(long_mode=False)
    vm.outbound(9, port=40)
    vm.vcpus[0].evtchn_send(9, mode=Mode.LONG)
    vm.pending(40)
    vm.vcpus[0].upcall(1)
    vm.set(HvmAttr.LONG_MODE, 1)
    vm.clear_events()
    vm.vcpus[0].evtchn_send(9, mode=Mode.PROTECTED)
    vm.pending(40)
    vm.vcpus[0].upcall(0)


def test_argument_is_left_alone(new_vm: Builder) -> None:
    """The guest's argument and the rest of shared_info are left as they were."""
    vm = new_vm.ready()
    vm.outbound(9, port=70)
    before = vm.read(SHARED_INFO, EVTCHN_PENDING)
    vm.vcpus[0].evtchn_send(9)
    vm.holds(ARGUMENT, b"\x09" + bytes(15), "the argument")
    vm.holds(SHARED_INFO, before, "shared_info")
