"""A VMM behaviour made of decorated functions."""

from __future__ import annotations

from errno import ENOSYS
from typing import Final

import pytest

from pytest_xenkvm.abi.numbers import Hypercall
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.events import Header, MemorySlot, VcpuShape, VmShape, Wait
from pytest_xenkvm.trace.events import Hypercall as HypercallEvent
from pytest_xenkvm.vmm import FunctionVmm, Vcpu, Vm, XenExit
from pytest_xenkvm.vmm.behaviour import behaviour_name

HEADER: Final = Header(
    vm=VmShape(
        irqchip="split", memory=(MemorySlot(gpa=0, size=0x10_0000),), vcpus=(VcpuShape(index=0, id=0),)
    )
)


def answers(vmm: FunctionVmm, *numbers: int) -> list[int | None]:
    """What the guest's hypercalls with these numbers are answered, time passing behind them."""
    calls = [
        HypercallEvent(vcpu=0, longmode=True, cpl=0, nr=number, args=(0,) * 6, handled="userspace", rax=0)
        for number in numbers
    ]
    observations = vmm_replay(EmulatedHost(profile=LINUX_7_3), HEADER, lambda: [*calls, Wait(ns=9)], vmm)
    return [seen.answer for seen in observations if isinstance(seen.event, HypercallEvent)]


def test_functions_are_registered() -> None:
    """Each function serves what its decorator says, and can still be called as itself."""
    vmm = FunctionVmm("mine")
    called: list[str] = []

    @vmm.configures
    def configure(vm: Vm) -> None:
        vm.xen_hvm_config()
        vm.vcpus[0].start_vmm_timer(5)

    @vmm.answers(Hypercall.vcpu_op, Hypercall.sched_op)
    def scheduling(_vcpu: Vcpu, xen_exit: XenExit) -> int:
        return xen_exit.input + 100

    @vmm.answers
    async def others(vcpu: Vcpu, _exit: XenExit) -> int:
        fd = vcpu.vm.open_eventfd()
        vcpu.vm.assign_eventfd(7, fd)
        vcpu.vm.write_eventfd(fd, 2)
        return 1

    @vmm.serves_timers
    def expired(vcpu: Vcpu, expires_ns: int) -> None:
        called.append(f"timer {vcpu.index} {expires_ns}")

    @vmm.serves_event_channels
    def signalled(_vm: Vm, _fd: int, count: int) -> None:
        called.append(f"signal {count}")

    @vmm.migrates
    def move(source: Vm, target: Vm) -> None:
        called.append(f"move {source is not target}")

    @vmm.closes
    def close() -> None:
        called.append("close")

    assert behaviour_name(vmm) == "mine"
    assert answers(vmm, Hypercall.vcpu_op, Hypercall.memory_op) == [124, 1]
    assert called == ["timer 0 5", "signal 2", "move True", "close"]
    for function in (configure, others, expired, signalled, move, close):
        assert function.__name__ in repr(function)
    assert scheduling.__name__ == "scheduling"


def test_what_has_no_function_is_done_as_by_vmm() -> None:
    """Without functions, hypercalls get -ENOSYS."""
    vmm = FunctionVmm()
    assert behaviour_name(vmm) == "FunctionVmm"
    vmm.configures(lambda vm: vm.xen_hvm_config())
    vmm.answers(Hypercall.memory_op)(lambda *_: 3)
    assert answers(vmm, Hypercall.memory_op, Hypercall.vcpu_op) == [3, 2**64 - ENOSYS]


def test_two_functions_for_one_thing() -> None:
    """A second one is refused with what it is for, and so are decorators that name nothing."""
    vmm = FunctionVmm("twice")
    vmm.configures(print)
    with pytest.raises(ValueError, match="twice has two functions for configure"):
        vmm.configures(print)

    def zero(_vcpu: Vcpu, _exit: XenExit) -> int:
        return 0

    vmm.answers(24)(zero)
    with pytest.raises(ValueError, match="twice has two functions that answer hypercall 24"):
        vmm.answers(12, 24)(zero)
    vmm.answers(zero)
    with pytest.raises(ValueError, match="twice has two functions that answer all other hypercalls"):
        vmm.answers(zero)
    with pytest.raises(ValueError, match=r"answers\(\) names no hypercall"):
        vmm.answers()
