"""SCHEDOP_poll: what it checks, and what ends it."""

from __future__ import annotations

from errno import EFAULT, EINVAL
from struct import pack

import pytest
from xen_vms import (
    EVTCHN_SEND,
    INTERCEPT,
    NOWHERE,
    SCRATCH,
    SHARED_INFO,
    VCPU_INFO,
    hypercall,
    outcome,
    ready_vm,
    with_timer,
)

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    HvmAttr,
    Hypercall,
    SchedOp,
    VcpuAttr,
)
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.vcpu_attrs import TimerSetting


def poll_ports(vm: XenVm, *ports: int, timeout: int = 0) -> None:
    """Put a sched_poll structure at SCRATCH with its ports behind it."""
    array = SCRATCH + 64
    vm.state.memory.write(SCRATCH, pack("<QIIQ", array, len(ports), 0, timeout))
    vm.state.memory.write(array, b"".join(pack("<I", port) for port in ports))


def poll(vm: XenVm, block_until: int | None = None) -> int:
    """SCHEDOP_poll with the structure at SCRATCH; the VM's clock afterwards."""
    assert hypercall(vm, Hypercall.sched_op, SchedOp.poll, SCRATCH, block_until=block_until) == 0
    assert vm.state.vcpus[0].polling is None
    return vm.state.now


def test_a_poll_ends_with_its_timeout() -> None:
    """The timeout is relative, and what the caller knows of the duration bounds it."""
    vm = with_timer()
    vm.advance(50)
    poll_ports(vm, 7, timeout=100)
    assert poll(vm) == 150
    assert poll(vm, block_until=170) == 170
    assert poll(vm, block_until=1000) == 270
    poll_ports(vm, 7)
    assert poll(vm, block_until=300) == 300
    assert poll(vm, block_until=100) == 300, "the clock doesn't go back"


def test_a_poll_with_nothing_to_wait_for_ends_at_once() -> None:
    """Without a timeout, a timer or a bound the vCPU would sleep for ever; the model lets it wake."""
    vm = with_timer()
    poll_ports(vm, 7)
    assert poll(vm) == 0


def test_a_poll_ends_with_an_event() -> None:
    """The vCPU's timer wakes it when it fires, and a later timeout is not waited for."""
    vm = with_timer()
    poll_ports(vm, 7, timeout=5000)
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=2000))
    assert poll(vm) == 2000


@pytest.mark.parametrize(("polled", "duration"), [(3, 1000), (4, 9000)])
def test_a_masked_event_wakes_who_polls_that_port(polled: int, duration: int) -> None:
    """A masked event ends a poll of that port, and no poll of another one."""
    vm = with_timer()
    vm.state.memory.write(SHARED_INFO + 0xA00, b"\xff")
    poll_ports(vm, polled, timeout=9000)
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=1000))
    assert poll(vm) == duration


@pytest.mark.parametrize("polled", [(), (4, 5), (4, 4)])
def test_a_masked_event_wakes_who_polls_any_other_number_of_ports(polled: tuple[int, ...]) -> None:
    """A poll of no port, or of several, ends with a masked event of any port."""
    vm = with_timer()
    vm.state.memory.write(SHARED_INFO + 0xA00, b"\xff")
    poll_ports(vm, *polled, timeout=9000)
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=1000))
    assert poll(vm) == 1000


def test_an_event_wakes_a_vcpu_without_vcpu_info() -> None:
    """An event whose selector bit must wait in the kernel ends a poll, and while it waits none blocks."""
    vm = with_timer()
    vcpu = vm.state.vcpus[0]
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, INVALID_GPA)
    poll_ports(vm, 7, timeout=9000)
    vm.set_vcpu_attr(vcpu, VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=1000))
    assert poll(vm) == 1000
    assert poll(vm) == 1000
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, VCPU_INFO)
    vm.enter(vcpu)
    assert poll(vm) == 10_000


def test_an_event_of_another_vcpu_does_not_wake() -> None:
    """Timers of other vCPUs fire while one polls, and leave it asleep."""
    vm = with_timer(vcpu_ids=(0, 1))
    poll_ports(vm, 7, timeout=9000)
    vm.set_vcpu_attr(vm.state.vcpus[1], VcpuAttr.TIMER, TimerSetting(port=3, expires_ns=1000))
    assert poll(vm) == 9000
    assert vm.state.memory.read(SHARED_INFO + 0x800, 1) == b"\x08"


def test_a_poll_returns_at_once_for_a_pending_port() -> None:
    """A listed port that is pending already ends the poll before it begins, masked or not."""
    vm = with_timer()
    vm.state.memory.write(SHARED_INFO + 0x800, b"\x80")
    poll_ports(vm, 6, 7, timeout=5000)
    assert poll(vm) == 0


@pytest.mark.parametrize(
    ("count", "ports_at", "expected"),
    [
        (128, SCRATCH + 64, 0),
        (129, SCRATCH + 64, -EINVAL),
        (129, NOWHERE, -EINVAL),
        (1, NOWHERE, -EFAULT),
        (0, NOWHERE, 0),
    ],
)
def test_the_ports_of_a_poll(count: int, ports_at: int, expected: int) -> None:
    """At most 128 ports, counted before the array is read; none need no array."""
    vm = ready_vm()
    vm.state.memory.write(SCRATCH, pack("<QIIQ", ports_at, count, 0, 5))
    assert outcome(vm, Hypercall.sched_op, SchedOp.poll, SCRATCH) == expected


@pytest.mark.parametrize(("long_mode", "limit"), [(0, 1024), (1, 4096)])
def test_a_polled_port_is_in_range(long_mode: int, limit: int) -> None:
    """A listed port at the layout's limit is -EINVAL, whatever mode the caller is in."""
    vm = ready_vm()
    vm.set_attr(HvmAttr.LONG_MODE, long_mode)
    for port, expected in ((limit - 1, 0), (limit, -EINVAL)):
        poll_ports(vm, port, timeout=1)
        assert outcome(vm, Hypercall.sched_op, SchedOp.poll, SCRATCH) == expected


@pytest.mark.parametrize(("flags", "irqchip"), [(INTERCEPT, "full"), (INTERCEPT | EVTCHN_SEND, "none")])
def test_a_poll_may_be_a_mere_yield(flags: int, irqchip: str) -> None:
    """Without EVTCHN_SEND or an in-kernel local APIC a poll reads nothing and returns 0."""
    vm = ready_vm(flags=flags, irqchip=irqchip)
    assert outcome(vm, Hypercall.sched_op, SchedOp.poll, NOWHERE) == 0
    assert vm.state.now == 0
