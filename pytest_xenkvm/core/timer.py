"""The one timer of each vCPU, and the VM's clock that drives it.

States of a timer (`kvm_xen_start_timer`, `kvm_xen_stop_timer`, `xen_timer_callback`,
`kvm_xen_inject_timer_irqs`; all supported kernels):

    idle     --start, expiry ahead-->       running
    any      --start, expiry not ahead-->   fires at once
    running  --the clock reaches expiry-->  fires
    any      --stop-->                      idle
    fires    --shared_info usable, or port out of range-->
                                            idle; the event was delivered, or is lost
             --otherwise-->                 pending
    pending  --guest entry while hypercalls are intercepted, or the VMM reads the TIMER attribute-->
                                            idle; delivered, or lost if shared_info still isn't usable

Firing sets `expires_ns` to 0 once the event is delivered or lost. Expiry minus now is a signed 64-bit
difference, so expiries from 2^63 ns ahead on lie in the past.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.evtchn import deliver
from pytest_xenkvm.core.state import Timer, VcpuState, VmState

LINUX_WORKAROUND_LIMIT_NS: Final = 1 << 50
LINUX_WORKAROUND_DELAY_NS: Final = 100_000_000
"""set_timer_op: an expiry that is negative, or this far ahead, means 100 ms from now instead."""

_STALE_DEADLINES: Final = 64
"""Deadlines of timers armed anew that may lie about, beyond two for each vCPU."""

_SIGN: Final = 1 << 63


def signed(value: int) -> int:
    """A u64 read as s64."""
    return (value & U64_MAX ^ _SIGN) - _SIGN


def start(vm: VmState, vcpu: VcpuState, expires_ns: int, *, linux_workaround: bool = False) -> None:
    """Arm the timer for absolute guest time `expires_ns` (u64), replacing what ran before."""
    now, armed, deadlines = vm.now, vcpu.timer, vm.deadlines
    delta = (expires_ns - now & U64_MAX ^ _SIGN) - _SIGN  # signed(), which would take as long as the rest
    if linux_workaround and (signed(expires_ns) < 0 or delta >= LINUX_WORKAROUND_LIMIT_NS):
        delta = LINUX_WORKAROUND_DELAY_NS
        expires_ns = now + delta & U64_MAX
    armed.expires_ns, armed.pending = expires_ns, False
    if delta > 0:
        armed.deadline = now + delta
        heappush(deadlines, (armed.deadline, vcpu.index))
        if len(deadlines) > _STALE_DEADLINES + 2 * len(vm.vcpus):
            _collect_deadlines(vm)
    else:
        _fire(vm, vcpu)


def stop(vcpu: VcpuState) -> None:
    """Disarm the timer; its port stays."""
    vcpu.timer = Timer(port=vcpu.timer.port)


def inject_pending(vm: VmState, vcpu: VcpuState) -> None:
    """Deliver the event of a timer that fired while shared_info was not usable, or lose it."""
    if vcpu.timer.pending:
        _try_deliver(vm, vcpu)
        vcpu.timer.pending, vcpu.timer.expires_ns = False, 0


def advance(vm: VmState, until: int) -> int:
    """Move the VM's clock forward to `until` (ns), firing timers in the order of their expiry.

    A time that has passed already changes nothing: the clock never goes back here. It stops at 2^64-1.
    Returns a time (ns) before which no timer fires that is armed now.
    """
    deadlines = vm.deadlines
    while deadlines and deadlines[0][0] <= until:
        deadline, index = heappop(deadlines)
        vcpu = vm.vcpus[index]
        if vcpu.timer.deadline == deadline:
            vm.now = min(max(vm.now, deadline), U64_MAX)
            _fire(vm, vcpu)
    if until > vm.now:
        vm.now = until if until < U64_MAX else U64_MAX  # noqa: FURB136 - a call takes longer
    return deadlines[0][0] if deadlines else U64_MAX


def set_clock(vm: VmState, now: int) -> None:
    """KVM_SET_CLOCK: the VM's clock becomes `now` (u64 ns), forwards or backwards.

    A timer that runs is not set again: it fires after as much time as before.
    """
    for vcpu in vm.vcpus:
        if vcpu.timer.deadline is not None:
            vcpu.timer.deadline += now - vm.now
        vcpu.clock_update_due = True
    vm.now = now
    _collect_deadlines(vm)


def next_deadline(vm: VmState) -> int | None:
    """The VM's clock (ns) when the next timer fires; None if none runs."""
    due = _next_due(vm)
    return due[0] if due else None


def _next_due(vm: VmState) -> tuple[int, VcpuState] | None:
    while vm.deadlines:
        deadline, index = vm.deadlines[0]
        if vm.vcpus[index].timer.deadline == deadline:
            return deadline, vm.vcpus[index]
        heappop(vm.deadlines)
    return None


def _collect_deadlines(vm: VmState) -> None:
    """Make the heap of deadlines anew, without those of timers that were stopped or armed again."""
    vm.deadlines = [(v.timer.deadline, v.index) for v in vm.vcpus if v.timer.deadline is not None]
    heapify(vm.deadlines)


def _fire(vm: VmState, vcpu: VcpuState) -> None:
    fired = vcpu.timer
    fired.deadline = None
    if vm.shared_info.mapped is None and fired.port < vm.layout.max_ports:
        fired.pending = True
        vcpu.kicked = True
        return
    _try_deliver(vm, vcpu)
    fired.expires_ns = 0


def _try_deliver(vm: VmState, vcpu: VcpuState) -> None:
    try:
        deliver(vm, vcpu.timer.port, vcpu.id)
    except KvmError:
        """The kernel drops a timer event that can't be delivered."""
