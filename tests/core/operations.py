"""What can be done to a VM, as plain data: operations by name, so that a sequence can be done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from xen_vms import registers

from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenVm

UNSEEN: Final = "unseen"
"""Result of a hypercall that depends on memory that nobody saw."""


def hypercall(vm: XenVm, vcpu: int, call: tuple[Any, ...], block_for: int | None, *, seen: bool) -> Any:
    """`call`: longmode, cpl, number and arguments; `seen`: whether guest memory is known."""
    longmode, cpl, nr, *args = call

    def read(address: int, size: int, _needed: int) -> bytes | None:
        if not seen:
            raise UnseenMemory
        return vm.state.memory.read(address, size)

    until = None if block_for is None else vm.state.now + block_for
    made = registers(nr, *args, longmode=longmode, cpl=cpl)
    return vm.hypercall(vm.state.vcpus[vcpu], made, read, block_until=until)


def open_file(vm: XenVm, fd: int, *, is_eventfd: bool) -> None:
    """The VMM opens an eventfd, or a file of another kind."""
    if is_eventfd:
        vm.open_eventfd(fd)
    else:
        vm.state.files[fd] = None


def wait_for_cpu(vm: XenVm, vcpu: int, ns: int) -> None:
    """The host's scheduler keeps a vCPU waiting."""
    vm.state.vcpus[vcpu].run_delay += ns


OPERATIONS: Final[dict[str, Callable[..., Any]]] = {
    "configure": XenVm.configure,
    "set_attr": XenVm.set_attr,
    "get_attr": XenVm.get_attr,
    "set_vcpu_attr": lambda vm, vcpu, *rest: vm.set_vcpu_attr(vm.state.vcpus[vcpu], *rest),
    "get_vcpu_attr": lambda vm, vcpu, *rest: vm.get_vcpu_attr(vm.state.vcpus[vcpu], *rest),
    "send": lambda vm, port, vcpu_id, priority: vm.evtchn_send(port=port, vcpu_id=vcpu_id, priority=priority),
    "set_gsi_routing": XenVm.set_gsi_routing,
    "set_irq_line": lambda vm, gsi, level: vm.set_irq_line(gsi=gsi, level=level),
    "set_irqfd": lambda vm, fd, gsi, flags: vm.set_irqfd(fd=fd, gsi=gsi, flags=flags),
    "open_file": lambda vm, fd, is_eventfd: open_file(vm, fd, is_eventfd=is_eventfd),
    "write_eventfd": lambda vm, fd, value: vm.eventfd(fd).write(value),
    "drain_eventfd": lambda vm, fd: vm.eventfd(fd).drain(),
    "enter": lambda vm, vcpu: vm.enter(vm.state.vcpus[vcpu]),
    "hypercall": lambda vm, vcpu, call, block_for, seen: hypercall(vm, vcpu, call, block_for, seen=seen),
    "complete": lambda vm, vcpu, rip: vm.complete_hypercall(vm.state.vcpus[vcpu], linear_rip=rip),
    "wrmsr": lambda vm, vcpu, msr, value, active: vm.wrmsr(
        vm.state.vcpus[vcpu], msr, value, long_mode_active=active
    ),
    "take_vector": lambda vm, vcpu: vm.take_vector(vm.state.vcpus[vcpu]),
    "advance": lambda vm, by: vm.advance(vm.state.now + by),
    "set_clock": XenVm.set_clock,
    "wait_for_cpu": wait_for_cpu,
    "store": lambda vm, gpa, data: vm.state.memory.write(gpa, data),
}


def perform(vm: XenVm, name: str, *args: Any) -> Any:
    """Do an operation; its result, UNSEEN, or a `KvmError`."""
    try:
        return OPERATIONS[name](vm, *args)
    except KvmError as refused:
        return refused
    except UnseenMemory:
        return UNSEEN
