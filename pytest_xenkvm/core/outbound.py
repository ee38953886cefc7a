"""Outbound ports: event channels that EVTCHNOP_send serves in the kernel (attribute EVTCHN).

What the attribute does depends on `flags` as a whole, first row that matches (`kvm_xen_hvm_set_attr` with
KVM_XEN_ATTR_TYPE_EVTCHN; all supported kernels):

    RESET (4)           all ports go; the port is not looked at
    any, port bad       -EINVAL (0, or >= the layout's limit)
    DEASSIGN (1)        the port goes; -ENOENT if it was not there
    UPDATE (2)          only the target vCPU changes; -ENOENT if not there, -EINVAL for another type, an
                        eventfd, another delivery port or a priority other than 2LEVEL
    0                   assigns: an IPI to its own number, or an interdomain channel to a local port or to
                        an eventfd; -EEXIST if it is there
    other               -EINVAL
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOENT
from typing import Final

from attrs import evolve, frozen

from pytest_xenkvm.abi.numbers import EvtchnFlag, EvtchnStat
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.eventfd import Eventfd, lookup
from pytest_xenkvm.core.evtchn import check_priority, deliver
from pytest_xenkvm.core.state import EvtchnDelivery, OutboundPort, VmState


@frozen(kw_only=True)
class OutboundRequest:
    """The EVTCHN attribute. With delivery port 0, `vcpu` is where the structure holds the eventfd."""

    send_port: int
    type: int
    flags: int
    port: int
    vcpu: int
    priority: int


def set_outbound(vm: VmState, request: OutboundRequest) -> None:
    """Do what the table above says; raises KvmError, also -EBADF for an eventfd that is not open."""
    if request.flags == EvtchnFlag.RESET:
        vm.outbound.clear()
        return
    action = _ACTIONS.get(request.flags)
    if action is None or not 0 < request.send_port < vm.layout.max_ports:
        raise KvmError(EINVAL)
    action(vm, request)


def _deassign(vm: VmState, request: OutboundRequest) -> None:
    if vm.outbound.pop(request.send_port, None) is None:
        raise KvmError(ENOENT)


def _update(vm: VmState, request: OutboundRequest) -> None:
    found = vm.outbound.get(request.send_port)
    if found is None:
        raise KvmError(ENOENT)
    if found.type != request.type or isinstance(found.target, Eventfd) or found.target.port != request.port:
        raise KvmError(EINVAL)
    check_priority(request.priority)
    vm.outbound[request.send_port] = evolve(found, target=evolve(found.target, vcpu_id=request.vcpu))


def _assign(vm: VmState, request: OutboundRequest) -> None:
    target = _target(vm, request)
    if request.send_port in vm.outbound:
        raise KvmError(EEXIST)
    vm.outbound[request.send_port] = OutboundPort(type=request.type, target=target)


def _target(vm: VmState, request: OutboundRequest) -> EvtchnDelivery | Eventfd:
    if request.type == EvtchnStat.INTERDOMAIN and request.port == 0:
        return lookup(vm.files, request.vcpu)
    if request.type == EvtchnStat.IPI and request.port != request.send_port:
        raise KvmError(EINVAL)
    if request.type not in (EvtchnStat.IPI, EvtchnStat.INTERDOMAIN) or request.port >= vm.layout.max_ports:
        raise KvmError(EINVAL)
    check_priority(request.priority)
    return EvtchnDelivery(port=request.port, vcpu_id=request.vcpu)


_ACTIONS: Final[dict[int, Callable[[VmState, OutboundRequest], None]]] = {
    EvtchnFlag.ASSIGN: _assign,
    EvtchnFlag.DEASSIGN: _deassign,
    EvtchnFlag.UPDATE: _update,
}


def send(vm: VmState, port: int) -> bool:
    """EVTCHNOP_send of a guest (`kvm_xen_hcall_evtchn_send`); False if it is the VMM's business.

    That is: the port is not in the table, or the event can't be delivered. A masked or pending port counts
    as sent. The port itself need not be in the layout's range any more: only the target's matters.
    """
    found = vm.outbound.get(port)
    if found is None:
        return False
    if isinstance(found.target, Eventfd):
        found.target.signal()
        return True
    try:
        deliver(vm, found.target.port, found.target.vcpu_id)
    except KvmError:
        return False
    return True
