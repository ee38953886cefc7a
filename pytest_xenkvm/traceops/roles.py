"""Which events set a VM up, so that what follows means the same without the rest of what came before."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.abi.numbers import (
    U32_MAX,
    EvtchnOp,
    GrantTableOp,
    HvmOp,
    MemoryOp,
    PhysdevOp,
    SchedOp,
    VcpuOp,
)
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace.events import Event, Eventfd, Hypercall, Ioctl, Wrmsr

_PASSING_IOCTLS: Final = frozenset(
    {
        "KVM_CHECK_EXTENSION",
        "KVM_XEN_HVM_GET_ATTR",
        "KVM_XEN_VCPU_GET_ATTR",
        "KVM_XEN_HVM_EVTCHN_SEND",
        "KVM_IRQ_LINE",
    }
)
"""Ioctls that ask, or that send an event: they configure nothing."""

_SETTING_CALLS: Final[dict[int, frozenset[int]]] = {
    Nr.memory_op: frozenset({MemoryOp.add_to_physmap, MemoryOp.add_to_physmap_batch}),
    Nr.vcpu_op: frozenset(
        {
            VcpuOp.initialise,
            VcpuOp.up,
            VcpuOp.down,
            VcpuOp.register_vcpu_info,
            VcpuOp.register_runstate_memory_area,
            VcpuOp.register_vcpu_time_memory_area,
            VcpuOp.set_periodic_timer,
            VcpuOp.stop_periodic_timer,
        }
    ),
    Nr.sched_op: frozenset({SchedOp.watchdog}),
    Nr.event_channel_op: frozenset(
        set(EvtchnOp) - {EvtchnOp.send, EvtchnOp.status, EvtchnOp.unmask},
    ),
    Nr.hvm_op: frozenset({HvmOp.set_param, HvmOp.set_evtchn_upcall_vector, HvmOp.altp2m}),
    Nr.physdev_op: frozenset({PhysdevOp.map_pirq, PhysdevOp.unmap_pirq}),
    Nr.grant_table_op: frozenset({GrantTableOp.setup_table, GrantTableOp.set_version}),
}
"""Sub-operations by which a guest sets up what later calls rely on; the VMM, or a later ioctl, keeps it."""

_SETTING_NUMBERS: Final = frozenset({Nr.vm_assist})
"""Hypercalls that do so whatever their first argument."""


def sets_up(event: Event) -> bool:
    """Whether an event configures the VM, or tells the VMM something to keep, rather than pass by.

    Hypercalls that the kernel handled aren't of this kind: timers and polls pass.
    """
    match event:
        case Eventfd() | Wrmsr():
            return True
        case Ioctl():
            return event.name not in _PASSING_IOCTLS
        case Hypercall():
            return event.handled != "kernel" and _is_setting_call(event)
    return False


def _is_setting_call(event: Hypercall) -> bool:
    if event.nr in _SETTING_NUMBERS:
        return True
    op = event.args[0] if event.args else None
    if event.nr == Nr.vcpu_op and isinstance(op, int):
        op &= U32_MAX
    return op in _SETTING_CALLS.get(event.nr, ())
