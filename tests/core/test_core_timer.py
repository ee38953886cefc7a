"""The timers of vCPUs and the VM's clock."""

from __future__ import annotations

import pytest
from xen_vms import PAGE, SHARED_INFO, VCPU_INFO, hypercall, make_vm, ready_vm

from pytest_xenkvm.abi.numbers import INVALID_GFN, U64_MAX, HvmAttr, Hypercall, VcpuAttr
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.timer import next_deadline, signed
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

PENDING = SHARED_INFO + 0x800
MS_100 = 100_000_000


def pending(vm: XenVm) -> bytes | None:
    """The pending bits of ports 0-15."""
    return vm.state.memory.read(PENDING, 2)


def arm(vm: XenVm, index: int, port: int, expires_ns: int) -> None:
    """Set a vCPU's TIMER attribute."""
    setting = TimerSetting(port=port, expires_ns=expires_ns)
    vm.set_vcpu_attr(vm.state.vcpus[index], VcpuAttr.TIMER, setting)


def expiry(vm: XenVm, index: int = 0) -> int:
    """What the TIMER attribute shows as expiry."""
    shown: TimerSetting = vm.get_vcpu_attr(vm.state.vcpus[index], VcpuAttr.TIMER)
    return shown.expires_ns


def test_a_timer_fires_when_the_clock_reaches_it() -> None:
    """One ns before its expiry a timer is running, at its expiry the event is there and the expiry 0."""
    vm = ready_vm()
    arm(vm, 0, 3, 1000)
    vm.advance(999)
    assert (pending(vm), expiry(vm)) == (b"\0\0", 1000)
    vm.advance(1000)
    assert (pending(vm), expiry(vm)) == (b"\x08\0", 0)


def test_timers_fire_in_the_order_of_their_expiry() -> None:
    """Several expiries in one step fire at their own times, the lower vCPU index first if they are equal."""
    vm = ready_vm(vcpu_ids=(4, 3, 2))
    for index, (port, expires_ns) in enumerate([(1, 500), (2, 300), (3, 500)]):
        arm(vm, index, port, expires_ns)
    deadlines = []
    while (deadline := next_deadline(vm.state)) is not None:
        deadlines.append(deadline)
        vm.advance(deadline)
    assert (deadlines, vm.state.now, pending(vm)) == ([300, 500], 500, b"\x0e\0")


def test_the_clock_never_goes_back() -> None:
    """An earlier time changes nothing."""
    vm = ready_vm()
    vm.advance(500)
    arm(vm, 0, 3, 600)
    vm.advance(400)
    assert (vm.state.now, pending(vm), expiry(vm)) == (500, b"\0\0", 600)


def test_the_clock_stops_at_its_largest_value() -> None:
    """The clock never exceeds 2^64-1, so that the guest's clocks and accounts can still be written."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_TIME_INFO, 5 * PAGE)
    vm.advance(U64_MAX)
    arm(vm, 0, 3, 5)
    vm.advance(2 * U64_MAX)
    vm.enter(vcpu)
    assert vm.state.now == U64_MAX
    assert vm.state.memory.read(5 * PAGE + 16, 8) == b"\xff" * 8
    assert vm.get_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_DATA)[1] == U64_MAX
    assert pending(vm) == b"\x08\0", "5 lies 6 ns ahead of 2^64-1"


@pytest.mark.parametrize("now", [0, 400, 600, 10_000])
def test_a_clock_that_is_set_does_not_move_timers(now: int) -> None:
    """A timer that runs fires after as much time as before, at whatever the clock then says."""
    vm = ready_vm()
    vm.advance(500)
    arm(vm, 0, 3, 600)
    vm.set_clock(now)
    assert (vm.state.now, expiry(vm)) == (now, 600)
    vm.advance(now + 99)
    assert pending(vm) == b"\0\0"
    vm.advance(now + 100)
    assert pending(vm) == b"\x08\0"


def test_a_clock_that_is_set_reaches_the_guest() -> None:
    """The pvclock structures are written anew at the next entry, also of a VM in which no timer runs."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_TIME_INFO, 5 * PAGE)
    vm.enter(vcpu)
    vm.set_clock(77)
    assert vm.state.memory.read(5 * PAGE + 16, 8) == bytes(8)
    vm.enter(vcpu)
    assert vm.state.memory.read(5 * PAGE + 16, 8) == (77).to_bytes(8, "little")


@pytest.mark.parametrize("expires_ns", [1, 500, 1 << 63 | 501, U64_MAX])
def test_a_past_expiry_fires_at_once(expires_ns: int) -> None:
    """An expiry that is not ahead as a signed difference fires when it is set."""
    vm = ready_vm()
    vm.advance(500)
    arm(vm, 0, 3, expires_ns)
    assert (pending(vm), expiry(vm)) == (b"\x08\0", 0)


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (501, 501),
        (500 + (1 << 50) - 1, 500 + (1 << 50) - 1),
        (500 + (1 << 50), 500 + MS_100),
        (1 << 63, 500 + MS_100),
        (U64_MAX, 500 + MS_100),
        ((1 << 63) - 1, 500 + MS_100),
        (499, 0),
    ],
)
def test_the_linux_workaround(timeout: int, expected: int) -> None:
    """set_timer_op takes a negative or far expiry for 100 ms from now, and nearer ones as they are."""
    vm = ready_vm()
    arm(vm, 0, 3, 0)
    vm.advance(500)
    assert hypercall(vm, Hypercall.set_timer_op, timeout) == 0
    assert expiry(vm) == expected


def test_the_attribute_knows_no_workaround() -> None:
    """The TIMER attribute arms a far expiry as it is."""
    vm = ready_vm()
    arm(vm, 0, 3, 1 << 62)
    assert (expiry(vm), next_deadline(vm.state)) == (1 << 62, 1 << 62)


def test_an_undeliverable_event_waits_for_the_next_entry() -> None:
    """A timer that fires without shared_info is pending, shows its expiry, and is delivered later."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    arm(vm, 0, 3, 1000)
    vm.advance(1000)
    assert (vcpu.timer.pending, vcpu.timer.expires_ns, vcpu.timer.deadline) == (True, 1000, None)
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    assert pending(vm) == b"\0\0"
    vm.enter(vcpu)
    assert (pending(vm), vcpu.timer.pending, expiry(vm)) == (b"\x08\0", False, 0)


def test_an_undeliverable_event_is_lost_at_an_entry_without_shared_info() -> None:
    """An entry while shared_info is still gone, or a GET, ends the wait: the event is lost."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    arm(vm, 0, 3, 1000)
    vm.advance(1000)
    assert expiry(vm) == 0
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    vm.enter(vcpu)
    assert pending(vm) == b"\0\0"


def test_a_pending_event_waits_while_hypercalls_are_not_intercepted() -> None:
    """An entry of a VM without INTERCEPT_HCALL leaves a pending timer event alone."""
    vm = ready_vm(flags=0)
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    arm(vm, 0, 3, 1000)
    vm.advance(1000)
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    vm.enter(vcpu)
    assert vcpu.timer.pending


def test_a_port_out_of_range_loses_its_event() -> None:
    """A timer port beyond the limit is accepted; when the timer fires nothing is delivered or kept."""
    vm = ready_vm()
    arm(vm, 0, 4096, 1000)
    before = vm.state.memory.read(SHARED_INFO, PAGE)
    vm.advance(1000)
    assert (expiry(vm), vm.state.memory.read(SHARED_INFO, PAGE)) == (0, before)
    assert not vm.state.vcpus[0].timer.pending


def test_a_port_out_of_range_is_lost_without_shared_info_too() -> None:
    """An event that could never be delivered does not wait for shared_info."""
    vm = ready_vm()
    vm.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN)
    arm(vm, 0, 4096, 1000)
    vm.advance(1000)
    timer = vm.state.vcpus[0].timer
    assert (timer.pending, timer.expires_ns, timer.deadline) == (False, 0, None)


def test_a_vm_without_timers_has_no_deadline() -> None:
    """With no timer running there is nothing that the clock could reach."""
    assert next_deadline(make_vm().state) is None


def test_signed_reads_64_bits() -> None:
    """A u64 is read as s64, higher bits are ignored."""
    assert [signed(n) for n in (0, (1 << 63) - 1, 1 << 63, U64_MAX, 1 << 64)] == [
        0,
        (1 << 63) - 1,
        -(1 << 63),
        -1,
        0,
    ]


def test_a_timer_event_goes_to_its_own_vcpu() -> None:
    """The event of a vCPU's timer raises the upcall on that vCPU alone."""
    vm = ready_vm(vcpu_ids=(9, 4))
    arm(vm, 1, 3, 10)
    vm.advance(10)
    assert vm.state.memory.read(VCPU_INFO, 1) == b"\0"
    assert vm.state.memory.read(VCPU_INFO + 64, 1) == b"\1"


def test_arming_for_ever_takes_no_more_memory() -> None:
    """A timer that is armed anew again and again leaves no trail of old deadlines."""
    vm = ready_vm()
    for expires_ns in range(1_000_000, 1_001_000):
        vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=expires_ns))
    assert len(vm.state.deadlines) < 100
    assert next_deadline(vm.state) == 1_000_999
