"""vcpu_op and set_timer_op as `qemu` serves them: areas, and the timers that the kernel doesn't run."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOENT, ENOSYS, ETIME
from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, U64_MAX, VcpuOp
from pytest_xenkvm.abi.xen_numbers import VCPU_SSHOTTMR_FUTURE
from pytest_xenkvm.core.timer import LINUX_WORKAROUND_DELAY_NS, LINUX_WORKAROUND_LIMIT_NS, signed
from pytest_xenkvm.vmm.bundled.calls import Call, Refusal
from pytest_xenkvm.vmm.bundled.state import VCPU_INFO_SIZE, State, as_answer
from pytest_xenkvm.vmm.handles import Vcpu

_VCPU_INFO: Final = Struct("<QII")
_AREA: Final = Struct("<Q")
_PERIODIC: Final = Struct("<Q")
SINGLESHOT: Final = Struct("<QI")
"""A singleshot timer: its timeout and flags."""
_TIME_INFO_SIZE: Final = 32
_SHORTEST_PERIOD_NS: Final = 1_000_000
_LONGEST_PERIOD_NS: Final = 1 << 62
"""So that now plus a period is a time."""


def vcpu_op(state: State, call: Call) -> int:
    """Serve a forwarded vcpu_op: the vCPU first, then the operation."""
    target = state.vcpu(call.xen_exit.params[1] & U32_MAX, ENOENT)
    handler = _HANDLERS.get(call.op)
    return -ENOSYS if handler is None else handler(state, call, target)


def set_timer_op(state: State, call: Call) -> int:
    """Serve a forwarded set_timer_op; Linux may overflow its time, which Xen takes for 100 ms from now."""
    low, high, *_ = call.xen_exit.params
    timeout = low if call.xen_exit.longmode else (high & U32_MAX) << 32 | low & U32_MAX
    now = state.vm.get_clock()
    if not timeout:
        state.singleshot.pop(call.vcpu.index, None)
    elif signed(timeout) < 0 or signed(timeout - now) >= LINUX_WORKAROUND_LIMIT_NS:
        state.singleshot[call.vcpu.index] = now + LINUX_WORKAROUND_DELAY_NS
    else:
        state.singleshot[call.vcpu.index] = timeout
    state.run_timer(call.vcpu)
    return 0


def _set_singleshot(state: State, call: Call, target: Vcpu) -> int:
    if target is not call.vcpu:
        return -EINVAL
    timeout, flags = call.read(2, SINGLESHOT)
    if state.refuses_the_past and flags & VCPU_SSHOTTMR_FUTURE and timeout < state.vm.get_clock():
        return -ETIME
    state.singleshot[target.index] = signed(timeout)
    state.run_timer(target)
    return 0


def _stop_singleshot(state: State, call: Call, target: Vcpu) -> int:
    if target is not call.vcpu:
        return -EINVAL
    state.stop_timers(target)
    return 0


def _set_periodic(state: State, call: Call, target: Vcpu) -> int:
    (period,) = call.read(2, _PERIODIC)
    if not _SHORTEST_PERIOD_NS <= period <= _LONGEST_PERIOD_NS:
        return -EINVAL
    state.periodic[target.index] = period, state.vm.get_clock() + period
    state.run_timer(target)
    return 0


def _stop_periodic(state: State, _call: Call, target: Vcpu) -> int:
    if state.periodic.pop(target.index, None) is not None:
        state.run_timer(target)
    return 0


def _register_info(state: State, call: Call, target: Vcpu) -> int:
    state.newest = target.index
    frame, offset, _reserved = call.read(2, _VCPU_INFO)
    if frame is None:
        return 0
    if offset > PAGE_SIZE - VCPU_INFO_SIZE or frame > U64_MAX // PAGE_SIZE:
        return -EINVAL
    with as_answer():
        target.set_vcpu_info(frame * PAGE_SIZE + offset)
    state.own_info.add(target.index)
    return 0


def _register_time(_state: State, call: Call, target: Vcpu) -> int:
    gpa = _area(call)
    if gpa is None:
        return 0
    if gpa % PAGE_SIZE > PAGE_SIZE - _TIME_INFO_SIZE:
        return -EFAULT
    with as_answer():
        target.set_vcpu_time_info(gpa)
    return 0


def _register_runstate(_state: State, call: Call, target: Vcpu) -> int:
    gpa = _area(call)
    if gpa is None:
        return 0
    with as_answer():
        target.set_runstate_addr(gpa)
    return 0


def _area(call: Call) -> int | None:
    """Where an area is that the guest names by its virtual address; None if the recording doesn't show it.

    Xen goes through the guest's page tables each time, KVM takes where they lead now.
    """
    (gva,) = call.read(2, _AREA)
    if gva is None:
        return None
    gpa = call.vcpu.translate(gva)
    if gpa is None:
        raise Refusal(EFAULT)
    return gpa


_HANDLERS: Final[dict[int, Callable[[State, Call, Vcpu], int]]] = {
    VcpuOp.register_runstate_memory_area: _register_runstate,
    VcpuOp.set_periodic_timer: _set_periodic,
    VcpuOp.stop_periodic_timer: _stop_periodic,
    VcpuOp.set_singleshot_timer: _set_singleshot,
    VcpuOp.stop_singleshot_timer: _stop_singleshot,
    VcpuOp.register_vcpu_info: _register_info,
    VcpuOp.register_vcpu_time_memory_area: _register_time,
}
