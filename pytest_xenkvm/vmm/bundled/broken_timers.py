"""Behaviours that break one rule each: about singleshot timers that the kernel forwards."""

from __future__ import annotations

from errno import ETIME
from typing import Final

from pytest_xenkvm.abi.numbers import U32_MAX, Hypercall, VcpuOp
from pytest_xenkvm.vmm.bundled import vcpus
from pytest_xenkvm.vmm.bundled.calls import Call
from pytest_xenkvm.vmm.bundled.state import State
from pytest_xenkvm.vmm.bundled.userspace_timers import UserspaceTimers
from pytest_xenkvm.vmm.handles import Vcpu, Vm

_SINGLESHOT: Final = (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer)


def _serve_any_vcpu(state: State, call: Call) -> int:
    """vcpu_op that sets and stops the timer of whichever vCPU is named."""
    number = call.xen_exit.params[1] & U32_MAX
    if call.op not in _SINGLESHOT or number >= len(state.vm.vcpus):
        return vcpus.vcpu_op(state, call)
    if call.op == VcpuOp.stop_singleshot_timer:
        state.singleshot.pop(number, None)
    else:
        state.singleshot[number], _flags = call.read(2, vcpus.SINGLESHOT)
    state.run_timer(state.vm.vcpus[number])
    return 0


class ServesOtherVcpus(UserspaceTimers):
    """Lets a vCPU set and stop another one's timer."""

    handlers = {**UserspaceTimers.handlers, Hypercall.vcpu_op: _serve_any_vcpu}  # noqa: RUF012 - never changed


def _refuse_the_past(state: State, call: Call) -> int:
    """vcpu_op that has no timers in the past."""
    now = state.vm.get_clock()
    answer = vcpus.vcpu_op(state, call)
    if not answer and call.op == VcpuOp.set_singleshot_timer and state.singleshot[call.vcpu.index] < now:
        state.stop_timers(call.vcpu)
        return -ETIME
    return answer


class RefusesThePast(UserspaceTimers):
    """Answers -ETIME to a timeout that has passed, whether or not the guest asked for that."""

    handlers = {**UserspaceTimers.handlers, Hypercall.vcpu_op: _refuse_the_past}  # noqa: RUF012 - never changed


class _SparingState(State):
    """Starts VMM timers only where it is told to."""

    starts_past = True
    starts_future = True

    def run_timer(self, vcpu: Vcpu) -> None:
        """Forget a singleshot timer of the wrong kind."""
        expires_ns = self.singleshot.get(vcpu.index)
        if expires_ns is not None:
            past = expires_ns <= self.vm.get_clock()
            if not (self.starts_past if past else self.starts_future):
                del self.singleshot[vcpu.index]
        super().run_timer(vcpu)


class _NoPast(_SparingState):
    starts_past = False


class LosesPastTimers(UserspaceTimers):
    """Takes a timeout that has passed for one that needs no timer."""

    def new_state(self, vm: Vm) -> State:
        """Never fire at once."""
        return _NoPast(vm, kernel_timers=False, refuses_the_past=True)


class _NoFuture(_SparingState):
    starts_future = False


class LosesTimers(UserspaceTimers):
    """Says that it has set a timer, and leaves it to the kernel, which forwarded the call."""

    def new_state(self, vm: Vm) -> State:
        """Never run a timer."""
        return _NoFuture(vm, kernel_timers=False, refuses_the_past=True)


def _stop_nothing(state: State, call: Call) -> int:
    """vcpu_op whose timers can't be stopped."""
    running = state.singleshot.get(call.vcpu.index)
    answer = vcpus.vcpu_op(state, call)
    if not answer and call.op == VcpuOp.stop_singleshot_timer and running is not None:
        state.singleshot[call.vcpu.index] = running
        state.run_timer(call.vcpu)
    return answer


class StopsNoTimer(UserspaceTimers):
    """Says that it has stopped a timer, and lets it fire."""

    handlers = {**UserspaceTimers.handlers, Hypercall.vcpu_op: _stop_nothing}  # noqa: RUF012 - never changed
