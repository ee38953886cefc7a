"""What a Linux PVHVM guest passes where the recording doesn't show it.

Recorders that watch a real guest from outside don't see the structures that its hypercalls point at. But
Linux makes these calls in an order that hardly changes: of each vCPU that comes up it registers the
vcpu_info, then binds VIRQ_TIMER, then IPIs and VIRQ_DEBUG; it maps a PIRQ before it binds it, and asks for
the console before it asks for the store. So most of what it passed can be told. Addresses can't: where they
matter, they are None here, and KVM isn't told of the area.

Source: Linux 6.12 and 7.2: arch/x86/xen (enlighten_hvm, time, smp, spinlock), drivers/xen (events, evtchn,
xenbus, grant-table), drivers/tty/hvc/hvc_xen.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import (
    EvtchnOp,
    GrantTableOp,
    HvmOp,
    Hypercall,
    MemoryOp,
    PhysdevOp,
    VcpuOp,
    XenVer,
)
from pytest_xenkvm.abi.xen_numbers import (
    DOMID_SELF,
    MAP_PIRQ_TYPE_GSI,
    HvmParam,
    MapSpace,
    PortStatus,
    Virq,
)
from pytest_xenkvm.vmm.bundled.calls import Call, Fields
from pytest_xenkvm.vmm.bundled.state import State

_CALLBACK_VECTOR: Final = 0xF3
_CALLBACK_GSI: Final = 1
"""What HVM_PARAM_CALLBACK_IRQ is set to once every vCPU has a vector of its own."""
_GRANT_VERSION: Final = 1
_TIMEOUT: Final = Struct("<Q")
_PARAMS: Final = (HvmParam.CONSOLE_EVTCHN, HvmParam.STORE_EVTCHN, HvmParam.STORE_PFN, HvmParam.CONSOLE_EVTCHN)


def assumed(state: State, call: Call) -> Fields | None:
    """The structure, in the layout that the handler reads; None if nobody can tell."""
    if (call.xen_exit.input, call.op) == (Hypercall.vcpu_op, VcpuOp.set_singleshot_timer):
        return _singleshot(call)
    assume = _ASSUMED.get((call.xen_exit.input, call.op))
    return None if assume is None else assume(state)


def _singleshot(call: Call) -> Fields:
    """A timeout without flags, which Linux hasn't passed since 4.7; recorders show the timeout alone."""
    data = call.vcpu.read_virtual(call.pointer(2), _TIMEOUT.size)
    return *_TIMEOUT.unpack(data or bytes(_TIMEOUT.size)), 0


def _param(state: State) -> Fields:
    index = _PARAMS[state.params_read % len(_PARAMS)]
    state.params_read += 1
    return DOMID_SELF, index, 0


def _physmap(state: State) -> Fields:
    mapped = state.mapped_unseen or state.shared_info is not None
    return DOMID_SELF, MapSpace.GRANT_TABLE if mapped else MapSpace.SHARED_INFO, 0, None if not mapped else 0


def _virq(state: State) -> Fields:
    has_timer = state.ports.virq(Virq.TIMER, state.newest)
    return Virq.DEBUG if has_timer else Virq.TIMER, state.newest, 0


def _pirq(state: State) -> Fields:
    """The PIRQ that was mapped last, of those that have no port."""
    bound = {port.value for _number, port in state.ports.of(PortStatus.PIRQ)}
    return next((pirq for pirq in reversed(state.pirqs) if pirq not in bound), 0), 0, 0


def _last_port(state: State) -> int:
    return next(reversed(state.ports.used), 0)


def _movable_port(state: State) -> Fields:
    found = (number for number, port in reversed(state.ports.used.items()) if port.is_movable)
    return next(found, 0), 0


def _unbound_port(state: State) -> Fields:
    return DOMID_SELF, next((number for number, _port in state.ports.of(PortStatus.UNBOUND)), 0), 0


_ASSUMED: Final[dict[tuple[int, int], Callable[[State], Fields]]] = {
    (Hypercall.xen_version, XenVer.get_features): lambda _state: (0, 0),
    (Hypercall.memory_op, MemoryOp.add_to_physmap): _physmap,
    (Hypercall.hvm_op, HvmOp.set_param): lambda _state: (DOMID_SELF, HvmParam.CALLBACK_IRQ, _CALLBACK_GSI),
    (Hypercall.hvm_op, HvmOp.get_param): _param,
    (Hypercall.hvm_op, HvmOp.set_evtchn_upcall_vector): lambda state: (state.newest, _CALLBACK_VECTOR),
    (Hypercall.vcpu_op, VcpuOp.register_vcpu_info): lambda _state: (None, 0, 0),
    (Hypercall.vcpu_op, VcpuOp.register_runstate_memory_area): lambda _state: (None,),
    (Hypercall.vcpu_op, VcpuOp.register_vcpu_time_memory_area): lambda _state: (None,),
    (Hypercall.event_channel_op, EvtchnOp.bind_virq): _virq,
    (Hypercall.event_channel_op, EvtchnOp.bind_ipi): lambda state: (state.newest, 0),
    (Hypercall.event_channel_op, EvtchnOp.bind_pirq): _pirq,
    (Hypercall.event_channel_op, EvtchnOp.bind_vcpu): _movable_port,
    (Hypercall.event_channel_op, EvtchnOp.unmask): lambda state: (_last_port(state),),
    (Hypercall.event_channel_op, EvtchnOp.close): lambda state: (_last_port(state),),
    (Hypercall.event_channel_op, EvtchnOp.alloc_unbound): lambda _state: (DOMID_SELF, DOMID_SELF, 0),
    (Hypercall.event_channel_op, EvtchnOp.bind_interdomain): _unbound_port,
    (Hypercall.physdev_op, PhysdevOp.map_pirq): lambda _state: (DOMID_SELF, MAP_PIRQ_TYPE_GSI, 1, -1),
    (Hypercall.physdev_op, PhysdevOp.eoi): lambda state: (next(reversed(state.pirqs), 0),),
    (Hypercall.physdev_op, PhysdevOp.irq_status_query): lambda state: (next(reversed(state.pirqs), 0), 0),
    (Hypercall.grant_table_op, GrantTableOp.query_size): lambda _state: (DOMID_SELF, 0, 0, 0),
    (Hypercall.grant_table_op, GrantTableOp.set_version): lambda _state: (_GRANT_VERSION,),
}
