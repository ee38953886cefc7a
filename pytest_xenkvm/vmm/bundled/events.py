"""event_channel_op as `qemu` serves it: 2-level event channels; FIFO ones are not there."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH
from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import EvtchnOp
from pytest_xenkvm.abi.xen_numbers import DOMID_QEMU, NR_VIRQS, OWN_DOMAINS, PortStatus, Virq
from pytest_xenkvm.vmm.bundled.calls import WORD, Call, Refusal
from pytest_xenkvm.vmm.bundled.ports import Port
from pytest_xenkvm.vmm.bundled.state import State

_BIND_VIRQ: Final = Struct("<III")
_BIND_PIRQ: Final = Struct("<III")
_BIND_IPI: Final = Struct("<II")
_BIND_VCPU: Final = Struct("<II")
_BIND_INTERDOMAIN: Final = Struct("<HxxII")
_ALLOC_UNBOUND: Final = Struct("<HHI")
_STATUS: Final = Struct("<HxxI")
_RESET: Final = Struct("<H")


def event_channel_op(state: State, call: Call) -> int:
    """Serve a forwarded event_channel_op."""
    handler = _HANDLERS.get(call.op)
    return -ENOSYS if handler is None else handler(state, call)


def close_port(state: State, number: int) -> None:
    """Free a port that is in use, and what KVM knows of it."""
    port = state.ports.get(number)
    state.ports.close(number)
    if port.status is PortStatus.VIRQ and port.value == Virq.TIMER:
        state.timer_port_changed(state.vm.vcpus[port.vcpu])
    elif port.status is PortStatus.IPI or port.to_vmm:
        state.vm.deassign(number)
    elif port.status is PortStatus.INTERDOMAIN:
        other = state.ports.get(port.value)
        other.status, other.value = PortStatus.UNBOUND, 0


def _bind_virq(state: State, call: Call) -> int:
    virq, number, _port = call.read(1, _BIND_VIRQ)
    if virq >= NR_VIRQS or (virq not in {*Virq} and number):
        return -EINVAL
    vcpu = state.vcpu(number, ENOENT)
    if state.ports.virq(virq, number):
        return -EEXIST
    port = state.ports.bind(Port(status=PortStatus.VIRQ, vcpu=number, value=virq), state.limit)
    if virq == Virq.TIMER:
        state.timer_port_changed(vcpu)
    call.write(1, 8, WORD.pack(port))
    return 0


def _bind_ipi(state: State, call: Call) -> int:
    number, _port = call.read(1, _BIND_IPI)
    vcpu = state.vcpu(number, ENOENT)
    port = state.ports.bind(Port(status=PortStatus.IPI, vcpu=number), state.limit)
    state.assign_ipi(port, vcpu)
    call.write(1, 4, WORD.pack(port))
    return 0


def _bind_pirq(state: State, call: Call) -> int:
    pirq, _flags, _port = call.read(1, _BIND_PIRQ)
    if pirq not in state.pirqs:
        return -EINVAL
    if any(port.value == pirq for _number, port in state.ports.of(PortStatus.PIRQ)):
        return -EBUSY
    port = state.ports.bind(Port(status=PortStatus.PIRQ, value=pirq), state.limit)
    call.write(1, 8, WORD.pack(port))
    return 0


def _alloc_unbound(state: State, call: Call) -> int:
    domain, remote, _port = call.read(1, _ALLOC_UNBOUND)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    if remote not in (DOMID_QEMU, *OWN_DOMAINS):
        return -EPERM
    port = Port(status=PortStatus.UNBOUND, to_vmm=False, value=0)
    call.write(1, 4, WORD.pack(state.ports.bind(port, state.limit)))
    return 0


def _bind_interdomain(state: State, call: Call) -> int:
    """Only to a port of the guest's own: the VMM offers none that wait."""
    remote, remote_port, _port = call.read(1, _BIND_INTERDOMAIN)
    if remote not in (DOMID_QEMU, *OWN_DOMAINS):
        return -ESRCH
    if not 0 < remote_port < state.limit:
        return -EINVAL
    other = state.ports.get(remote_port)
    if remote not in OWN_DOMAINS:
        return -ENOENT
    if other.status is not PortStatus.UNBOUND:
        return -EINVAL
    port = state.ports.bind(Port(status=PortStatus.INTERDOMAIN, value=remote_port), state.limit)
    other.status, other.value = PortStatus.INTERDOMAIN, port
    call.write(1, 8, WORD.pack(port))
    return 0


def _bind_vcpu(state: State, call: Call) -> int:
    number, vcpu = call.read(1, _BIND_VCPU)
    port = _valid_port(state, number)
    state.vcpu(vcpu, ENOENT)
    if port.status is PortStatus.CLOSED or not port.is_movable:
        return -EINVAL
    port.vcpu = vcpu
    state.send_again(number, unmask=False)
    return 0


def _close(state: State, call: Call) -> int:
    (number,) = call.read(1, WORD)
    if _valid_port(state, number).status is PortStatus.CLOSED:
        return -ENOENT
    close_port(state, number)
    return 0


def _send(state: State, call: Call) -> int:
    (number,) = call.read(1, WORD)
    port = _valid_port(state, number)
    if port.status is PortStatus.UNBOUND:
        return 0
    if port.status not in (PortStatus.IPI, PortStatus.INTERDOMAIN):
        return -EINVAL
    if not port.to_vmm:
        state.send(number if port.status is PortStatus.IPI else port.value)
    return 0


def _unmask(state: State, call: Call) -> int:
    (number,) = call.read(1, WORD)
    if _valid_port(state, number).status is PortStatus.CLOSED:
        return -EINVAL
    state.send_again(number, unmask=True)
    return 0


def _status(state: State, call: Call) -> int:
    domain, number = call.read(1, _STATUS)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    port = _valid_port(state, number)
    call.write(1, 8, Struct("<II").pack(port.status, port.vcpu))
    if port.status is PortStatus.INTERDOMAIN:
        call.write(1, 16, Struct("<HxxI").pack(DOMID_QEMU if port.to_vmm else OWN_DOMAINS[1], port.value))
    elif port.status in (PortStatus.PIRQ, PortStatus.VIRQ):
        call.write(1, 16, WORD.pack(port.value))
    return 0


def _reset(state: State, call: Call) -> int:
    (domain,) = call.read(1, _RESET)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    for number in [*state.ports.used]:
        close_port(state, number)
    return 0


def _valid_port(state: State, number: int) -> Port:
    """The port with that number, in use or closed; raises Refusal(EINVAL) if there is no such number."""
    if not 0 < number < state.limit:
        raise Refusal(EINVAL)
    return state.ports.get(number)


_HANDLERS: Final[dict[int, Callable[[State, Call], int]]] = {
    EvtchnOp.bind_interdomain: _bind_interdomain,
    EvtchnOp.bind_virq: _bind_virq,
    EvtchnOp.bind_pirq: _bind_pirq,
    EvtchnOp.close: _close,
    EvtchnOp.send: _send,
    EvtchnOp.status: _status,
    EvtchnOp.alloc_unbound: _alloc_unbound,
    EvtchnOp.bind_ipi: _bind_ipi,
    EvtchnOp.bind_vcpu: _bind_vcpu,
    EvtchnOp.unmask: _unmask,
    EvtchnOp.reset: _reset,
}
