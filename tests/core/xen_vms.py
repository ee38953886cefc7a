"""Small VMs for the tests of the core, what can be seen of them, and short ways to drive them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import Any, Final

from attrs import astuple, evolve

from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.eventfd import Eventfd
from pytest_xenkvm.core.hypercalls import HypercallRegisters
from pytest_xenkvm.core.machine import XenExit, XenVm
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.core.profile import LINUX_7_3, HostLimits, Profile
from pytest_xenkvm.core.state import HvmConfig, VcpuState
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

PAGE: Final = 4096
MSR: Final = 0x4000_0000
SHARED_INFO: Final = 1 * PAGE
VCPU_INFO: Final = 2 * PAGE
SCRATCH: Final = 3 * PAGE
"""Where `ready_vm` puts things; the rest of its memory is free."""
MEMORY_SIZE: Final = 8 * PAGE
INTERCEPT: Final = 0x2
EVTCHN_SEND: Final = 0x20
PRIORITY: Final = 0xFFFF_FFFF
NOWHERE: Final = 100 * PAGE
"""An address without memory."""
FORWARDED: Final = "forwarded"


def make_vm(
    profile: Profile = LINUX_7_3,
    *,
    vcpu_ids: Sequence[int] = (0,),
    limits: HostLimits | None = None,
    slots: Sequence[tuple[int, int]] = ((0, MEMORY_SIZE),),
    **machine: Any,
) -> XenVm:
    """A VM right after its creation; `slots` are (gpa, size) pairs, `machine` goes to `XenVm.create`."""
    vm = XenVm.create(
        profile,
        GuestMemory([(gpa, bytearray(size)) for gpa, size in slots]),
        limits=limits or HostLimits(),
        **machine,
    )
    for vcpu_id in vcpu_ids:
        vm.create_vcpu(vcpu_id)
    return vm


def ready_vm(profile: Profile = LINUX_7_3, *, flags: int = INTERCEPT | EVTCHN_SEND, **shape: Any) -> XenVm:
    """A VM in long mode with shared_info, a vcpu_info for each vCPU and an intercepted hypercall MSR."""
    vm = make_vm(profile, **shape)
    vm.configure(HvmConfig(flags=flags, msr=MSR))
    vm.set_attr(HvmAttr.LONG_MODE, 1)
    vm.set_attr(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE)
    for vcpu in vm.state.vcpus:
        vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, VCPU_INFO + 64 * vcpu.index)
    return vm


def with_timer(profile: Profile = LINUX_7_3, **shape: Any) -> XenVm:
    """A ready VM whose first vCPU has timer port 3 and ID 0; a singleshot argument (1000 ns) at SCRATCH."""
    vm = ready_vm(profile, **shape)
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.TIMER, TimerSetting(port=3))
    vm.set_vcpu_attr(vm.state.vcpus[0], VcpuAttr.VCPU_ID, 0)
    vm.state.memory.write(SCRATCH, pack("<QII", 1000, 0xDEAD_BEEF, 0))
    return vm


def refusal(operation: Callable[..., object], *args: Any, **named: Any) -> int:
    """The errno that an operation is refused with; 0 if it succeeds."""
    try:
        operation(*args, **named)
    except KvmError as error:
        return error.errno
    return 0


def registers(nr: int, *args: int, longmode: bool = True, cpl: int = 0) -> HypercallRegisters:
    """A hypercall's registers; arguments not given are 0."""
    a0, a1, a2, a3, a4, a5 = (*args, *(0,) * (6 - len(args)))
    return HypercallRegisters(nr, (a0, a1, a2, a3, a4, a5), longmode=longmode, cpl=cpl)


def hypercall(
    vm: XenVm, nr: int, *args: int, vcpu: VcpuState | None = None, block_until: int | None = None, **mode: Any
) -> int | XenExit:
    """The first vCPU makes a hypercall, with guest virtual = guest physical addresses."""
    return vm.hypercall(
        vcpu or vm.state.vcpus[0],
        registers(nr, *args, **mode),
        lambda address, size, _needed: vm.state.memory.read(address, size),
        block_until=block_until,
    )


def outcome(vm: XenVm, nr: int, *args: int, **mode: Any) -> int | str:
    """The result of a hypercall as a signed number, or FORWARDED."""
    result = hypercall(vm, nr, *args, **mode)
    if isinstance(result, XenExit):
        return FORWARDED
    return result - (1 << 64) if result >> 63 else result


def observable(vm: XenVm) -> dict[str, Any]:
    """Everything that can be seen of a VM: what GETs answer, guest memory, and what is waiting.

    The TIMER attribute and the eventfds are looked at from inside, since reading them has an effect.
    """
    state = vm.state
    numbers = {id(eventfd): fd for fd, eventfd in state.files.items()}

    def target(value: Any) -> Any:
        return ("eventfd", numbers[id(value)]) if isinstance(value, Eventfd) else value

    seen: dict[str, Any] = {
        "now": state.now,
        "config": state.config,
        "memory": [bytes(slot.buffer[0 : len(slot.buffer)]) for slot in state.memory.slots],
        "outbound": {port: (found.type, target(found.target)) for port, found in state.outbound.items()},
        "routes": dict(state.routes),
        "irqfds": [(numbers[id(eventfd)], gsi) for eventfd, gsi in state.irqfds.items()],
        "eventfds": {fd: eventfd and eventfd.count for fd, eventfd in state.files.items()},
    }
    for attr in set(HvmAttr) - {HvmAttr.EVTCHN}:
        seen[attr.name] = answer(vm.get_attr, attr)
    for vcpu in state.vcpus:
        for vcpu_attr in set(VcpuAttr) - {VcpuAttr.TIMER, VcpuAttr.RUNSTATE_ADJUST}:
            seen[f"{vcpu_attr.name} {vcpu.index}"] = answer(vm.get_vcpu_attr, vcpu, vcpu_attr)
        inside = (evolve(vcpu.timer), vcpu.deferred_sel, vcpu.irr, vcpu.polling)
        seen[f"inside {vcpu.index}"] = (*map(_plain, inside), vm.next_vector(vcpu))
    return seen


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The names of what differs between two looks at a VM."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def answer(operation: Callable[..., Any], *args: Any) -> Any:
    """What a GET answers: its value, or the errno it is refused with."""
    try:
        return operation(*args)
    except KvmError as error:
        return f"-{error.errno}"


def _plain(value: Any) -> Any:
    return astuple(value) if hasattr(value, "__attrs_attrs__") else value
