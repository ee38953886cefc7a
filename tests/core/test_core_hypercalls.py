"""Hypercalls, forwarded and handled, and the hypercall page."""

from __future__ import annotations

from errno import EFAULT, EINVAL
from struct import pack

import pytest
from xen_vms import (
    EVTCHN_SEND,
    FORWARDED,
    INTERCEPT,
    NOWHERE,
    PAGE,
    PRIORITY,
    SCRATCH,
    SHARED_INFO,
    changed,
    hypercall,
    make_vm,
    observable,
    outcome,
    ready_vm,
    refusal,
    registers,
    with_timer,
)

from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    U32_MAX,
    U64_MAX,
    XEN_VCPU_ID_INVALID,
    EvtchnOp,
    HvmAttr,
    Hypercall,
    SchedOp,
    VcpuAttr,
    VcpuOp,
)
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_2, LINUX_7_3, PROFILES, Profile
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

SET, STOP = VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer


@pytest.mark.parametrize("named", [0, 1, XEN_VCPU_ID_INVALID, 1 << 32 | XEN_VCPU_ID_INVALID])
@pytest.mark.parametrize("sub_op", [SET, STOP])
@pytest.mark.parametrize(
    ("profile", "forwards"), [(LINUX_6_12, False), (LINUX_7_2, False), (LINUX_7_3, True)]
)
def test_singleshot_calls_while_the_id_is_unset(
    *, profile: Profile, forwards: bool, sub_op: int, named: int
) -> None:
    """From Linux 7.3 they are forwarded whatever vCPU is named, the sentinel too; before, the ID was 0."""
    vm = ready_vm(profile, vcpu_ids=(0, 1))
    vcpu = vm.state.vcpus[1]
    vm.set_vcpu_attr(vcpu, VcpuAttr.TIMER, TimerSetting(port=3))
    vm.state.memory.write(SCRATCH, pack("<QII", 1000, 0, 0))
    result = hypercall(vm, Hypercall.vcpu_op, sub_op, named, SCRATCH, vcpu=vcpu)
    if forwards:
        assert isinstance(result, XenExit)
        assert result.params == (sub_op, named, SCRATCH, 0, 0, 0)
    else:
        assert result == (0 if named == 0 else U64_MAX + 1 - EINVAL)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((SET, 0, SCRATCH), 0),
        ((SET, 0, NOWHERE), -EFAULT),
        ((SET, 1, NOWHERE), -EINVAL),
        ((SET, XEN_VCPU_ID_INVALID, SCRATCH), -EINVAL),
        ((SET, 1 << 32, SCRATCH), 0),
        ((1 << 32 | SET, 0, SCRATCH), 0),
        ((STOP, 0, NOWHERE), 0),
        ((STOP, 1, 0), -EINVAL),
        ((VcpuOp.set_periodic_timer, 0, SCRATCH), FORWARDED),
        ((VcpuOp.register_vcpu_info, 0, SCRATCH), FORWARDED),
    ],
)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_singleshot_calls_with_an_id(profile: Profile, args: tuple[int, ...], expected: int | str) -> None:
    """With ID 0 set, the ID is checked before the pointer, and both in 32 bits, on every kernel."""
    assert outcome(with_timer(profile), Hypercall.vcpu_op, *args) == expected


def test_singleshot_calls_without_a_timer_port() -> None:
    """Without a timer port they are forwarded before the ID is looked at."""
    vm = with_timer()
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=0))
    assert outcome(vm, Hypercall.vcpu_op, SET, 1, NOWHERE) == FORWARDED
    assert outcome(vm, Hypercall.set_timer_op, 5) == FORWARDED


@pytest.mark.parametrize("longmode", [True, False])
def test_the_singleshot_argument_ends_where_its_mode_has_it(*, longmode: bool) -> None:
    """16 bytes must be readable in 64-bit mode, 12 in 32-bit mode."""
    vm = with_timer()
    end = 8 * PAGE
    size = 16 if longmode else 12
    for distance, expected in ((size, 0), (size - 1, (U64_MAX if longmode else U32_MAX) + 1 - EFAULT)):
        result = hypercall(vm, Hypercall.vcpu_op, SET, 0, end - distance, longmode=longmode)
        assert result == expected


@pytest.mark.parametrize("nr", [*Hypercall, 11, 63, 1 << 32 | Hypercall.sched_op])
@pytest.mark.parametrize("cpl", [1, 3])
def test_above_cpl_0_everything_is_forwarded(nr: int, cpl: int) -> None:
    """No hypercall is accelerated above CPL 0, and the VMM learns the CPL."""
    vm = with_timer()
    vm.set_attr(HvmAttr.XEN_VERSION, 0x40000)
    before = observable(vm)
    result = hypercall(vm, nr, 0, cpl=cpl)
    assert result == XenExit(type=1, longmode=1, cpl=cpl, input=nr, params=(0, 0, 0, 0, 0, 0))
    assert changed(before, observable(vm)) == set()


def test_a_32_bit_caller_has_32_bit_registers() -> None:
    """Every register is truncated to 32 bits before anything looks at it, in the exit too."""
    vm = ready_vm()
    high = 0xABCD << 32
    result = hypercall(vm, high | 34, *(high | n for n in range(6)), longmode=False)
    assert result == XenExit(type=1, longmode=0, cpl=0, input=34, params=(0, 1, 2, 3, 4, 5))
    vm.set_attr(HvmAttr.XEN_VERSION, 0x4_0001)
    assert hypercall(vm, high | Hypercall.xen_version, high, longmode=False) == 0x4_0001


@pytest.mark.parametrize("flags", [0, EVTCHN_SEND])
def test_without_intercept_kvms_own_abi_answers(flags: int) -> None:
    """Hypercalls of a VM that doesn't intercept them are -1000, number 1 is 0, and -1 above CPL 0."""
    vm = ready_vm(flags=flags)
    assert outcome(vm, Hypercall.xen_version) == -1000
    assert outcome(vm, 1) == 0
    assert outcome(vm, 1, cpl=3) == -1


def test_intercepting_needs_an_msr() -> None:
    """INTERCEPT_HCALL with MSR 0 intercepts nothing."""
    vm = make_vm()
    vm.configure(HvmConfig(flags=INTERCEPT))
    assert outcome(vm, Hypercall.xen_version) == -1000


def test_a_forwarded_call_completes_where_it_was_made() -> None:
    """The guest gets the VMM's result only if its linear RIP is still the hypercall's, and only once."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    for rip_later, completes in ((0x1000, True), (0x1003, False)):
        result = vm.hypercall(vcpu, registers(34), lambda *_: None, linear_rip=0x1000)
        assert isinstance(result, XenExit)
        assert vm.complete_hypercall(vcpu, linear_rip=rip_later) is completes
        assert refusal(vm.complete_hypercall, vcpu, linear_rip=0x1000) == EINVAL


def test_completing_delivers_what_waits() -> None:
    """The entry that completes a forwarded call delivers a timer that is pending."""
    vm = with_timer()
    (vcpu,) = vm.state.vcpus
    hypercall(vm, 34)
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.set_vcpu_attr(vcpu, VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=10))
    vm.advance(10)
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    assert vcpu.timer.pending
    vm.complete_hypercall(vcpu)
    assert (vcpu.timer.pending, vm.state.memory.read(SHARED_INFO + 0x800, 1)) == (False, b"\x08")


@pytest.mark.parametrize(
    "call",
    [
        (Hypercall.vcpu_op, SET, 0, SCRATCH),
        (Hypercall.event_channel_op, EvtchnOp.send, SCRATCH),
        (Hypercall.sched_op, SchedOp.poll, SCRATCH),
    ],
)
def test_memory_that_nobody_saw_leaves_everything_unchanged(call: tuple[int, ...]) -> None:
    """If what lies behind a pointer is unknown, UnseenMemory comes out and nothing has happened."""
    vm = with_timer()
    before = observable(vm)

    def unseen(_address: int, _size: int, _needed: int) -> bytes:
        raise UnseenMemory

    nr, *args = call
    with pytest.raises(UnseenMemory):
        vm.hypercall(vm.state.vcpus[0], registers(nr, *args), unseen)
    assert changed(before, observable(vm)) == set()


def test_only_the_needed_bytes_are_asked_for() -> None:
    """Of a singleshot argument only the timeout matters; of other structures all bytes do."""
    vm = with_timer()
    asked = []

    def read(address: int, size: int, needed: int) -> bytes:
        asked.append((address, size, needed))
        return pack("<QII", SCRATCH + 64, 1, 0)[:size].ljust(size, b"\0")

    for call in ((Hypercall.vcpu_op, SET, 0, 1), (Hypercall.event_channel_op, EvtchnOp.send, 2)):
        nr, *args = call
        vm.hypercall(vm.state.vcpus[0], registers(nr, *args), read)
    assert asked == [(1, 16, 8), (2, 4, 4)]


@pytest.mark.parametrize(
    ("nr", "sub_op", "handled"),
    [
        (Hypercall.sched_op, 1 << 32 | SchedOp.yield_, True),
        (Hypercall.sched_op, SchedOp.block, False),
        (Hypercall.xen_version, 1 << 32, False),
        (Hypercall.xen_version, 0, True),
        (Hypercall.event_channel_op, 1 << 32 | EvtchnOp.send, False),
        (1 << 32 | Hypercall.sched_op, SchedOp.yield_, False),
    ],
)
def test_how_much_of_a_sub_op_counts(*, nr: int, sub_op: int, handled: bool) -> None:
    """sched_op looks at 32 bits of its sub-op, xen_version and event_channel_op at 64; all of the number."""
    vm = ready_vm()
    vm.set_attr(HvmAttr.XEN_VERSION, 0x40000)
    assert (outcome(vm, nr, sub_op, SCRATCH) != FORWARDED) == handled


def test_sending_to_a_port_of_the_vmm_is_forwarded() -> None:
    """A port that is not in the outbound table is the VMM's; an unreadable argument is -EFAULT before."""
    vm = ready_vm()
    vm.state.memory.write(SCRATCH, pack("<I", 9))
    assert outcome(vm, Hypercall.event_channel_op, EvtchnOp.send, SCRATCH) == FORWARDED
    assert outcome(vm, Hypercall.event_channel_op, EvtchnOp.send, NOWHERE) == -EFAULT


def test_a_registered_port_beyond_the_layout_is_still_served() -> None:
    """A port registered in long mode is sent in the 32-bit layout too, if its target is in range there."""
    vm = ready_vm()
    eventfd = vm.open_eventfd(3)
    for send_port, port, target in ((2000, 5, 0), (2001, 0, 3), (2002, 2002, 0)):
        request = OutboundRequest(
            send_port=send_port, type=2, flags=0, port=port, vcpu=target, priority=PRIORITY
        )
        vm.set_attr(HvmAttr.EVTCHN, request)
    vm.set_attr(HvmAttr.LONG_MODE, 0)
    outcomes = []
    for send_port in (2000, 2001, 2002):
        vm.state.memory.write(SCRATCH, pack("<I", send_port))
        outcomes.append(outcome(vm, Hypercall.event_channel_op, EvtchnOp.send, SCRATCH))
    assert (outcomes, eventfd.count) == ([0, 0, FORWARDED], 1)
    assert vm.state.memory.read(SHARED_INFO + 0x800, 1) == b"\x20"


def test_an_event_in_the_kernel_is_delivered_at_once() -> None:
    """EVTCHNOP_send to a registered port returns 0 and the event is there, also without EVTCHN_SEND."""
    vm = ready_vm(flags=INTERCEPT)
    request = OutboundRequest(send_port=9, type=2, flags=0, port=5, vcpu=0, priority=PRIORITY)
    vm.set_attr(HvmAttr.EVTCHN, request)
    vm.state.memory.write(SCRATCH, pack("<I", 9))
    assert outcome(vm, Hypercall.event_channel_op, EvtchnOp.send, SCRATCH) == 0
    assert vm.state.memory.read(SHARED_INFO + 0x800, 1) == b"\x20"
