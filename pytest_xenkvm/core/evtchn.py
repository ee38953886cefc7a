"""Event channels (2-level ABI): delivery of a port to a vCPU, and what waits for a guest entry.

One delivery, first row that matches (`kvm_xen_set_evtchn`, `kvm_xen_set_evtchn_fast`; all supported
kernels):

    no such vCPU, or port >= the layout's limit   -EINVAL
    shared_info off / refused                     -EINVAL / -EFAULT
    pending bit already set                       COALESCED
    mask bit set                                  pending bit set; MASKED; wakes the vCPU if it polls the
                                                  port, or any number of ports but one
    otherwise                                     pending bit set; DELIVERED; the vCPU's selector bit is set
                                                  and, if it was clear, evtchn_upcall_pending := 1 and the
                                                  vCPU's own upcall vector is raised

Selector bits of a vCPU whose vcpu_info is not mapped are kept and merged at its next guest entry with one.

The merge marks vcpu_info's page dirty; a delivery marks neither that page nor shared_info's: the VMM of a
live migration must copy them by itself.
"""

from __future__ import annotations

from enum import Enum
from errno import EINVAL
from typing import Final

from pytest_xenkvm.abi.layout import EVTCHN_PENDING, VCPU_INFO_UPCALL_PENDING
from pytest_xenkvm.abi.numbers import KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.lapic import request_upcall_vector
from pytest_xenkvm.core.state import ANY_PORT, VcpuState, VmState


class Delivery(Enum):
    """What became of an event."""

    DELIVERED = "delivered"
    COALESCED = "already pending"
    MASKED = "masked"


_DELIVERED: Final = Delivery.DELIVERED
_COALESCED: Final = Delivery.COALESCED
_MASKED: Final = Delivery.MASKED

_BYTE_BITS: Final = 8


def deliver(vm: VmState, port: int, vcpu_id: int) -> Delivery:
    """Deliver an event to a KVM vCPU id as the table above says; raises KvmError -EINVAL or -EFAULT."""
    vcpu, layout = vm.vcpus_by_id.get(vcpu_id), vm.layout
    if vcpu is None or port >= layout.max_ports:
        raise KvmError(EINVAL)
    shared_info = vm.shared_info.mapped or vm.shared_info.usable(vm.memory)
    byte, bit = port // _BYTE_BITS, 1 << port % _BYTE_BITS
    place = EVTCHN_PENDING + byte
    pending = shared_info[place]
    if pending & bit:
        return _COALESCED
    shared_info[place] = pending | bit
    if shared_info[layout.evtchn_mask + byte] & bit:
        _wake_poller(vcpu, port)
        return _MASKED
    _select(vm, vcpu, port // layout.word_bits)
    return _DELIVERED


def send_from_vmm(vm: VmState, *, port: int, vcpu_id: int, priority: int) -> None:
    """KVM_XEN_HVM_EVTCHN_SEND (`kvm_xen_hvm_evtchn_send`). Raises KvmError -EINVAL or -EFAULT."""
    if priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL or not 0 < port < vm.layout.max_ports:
        raise KvmError(EINVAL)
    deliver(vm, port, vcpu_id)


def check_priority(priority: int) -> None:
    """Raise KvmError -EINVAL for any priority but 2LEVEL."""
    if priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL:
        raise KvmError(EINVAL)


def merge_deferred(vm: VmState, vcpu: VcpuState) -> None:
    """At guest entry: move kept selector bits to vcpu_info (`kvm_xen_inject_pending_events`).

    Only with a hypercall MSR configured. 64-bit layout: all bits move. 32-bit layout: bits above 31 don't
    fit and stay, and every pass sets evtchn_upcall_pending again.
    """
    if not vcpu.deferred_sel or not vm.xen_enabled:
        return
    info = vcpu.vcpu_info.refresh(vm.memory)
    if info is None:
        return
    word, start = vm.layout.word_bits, vm.layout.pending_sel
    movable = vcpu.deferred_sel & ((1 << word) - 1)
    selector = info[start : start + word // _BYTE_BITS]
    selector[:] = (int.from_bytes(selector, "little") | movable).to_bytes(len(selector), "little")
    vcpu.deferred_sel &= ~movable
    info[VCPU_INFO_UPCALL_PENDING] = 1
    vcpu.vcpu_info.mark_dirty()
    if vcpu.upcall_vector:
        request_upcall_vector(vm, vcpu)


def is_pending(vm: VmState, port: int) -> bool:
    """Whether the port's pending bit is set; shared_info must be usable."""
    return _test(vm.shared_info.usable(vm.memory), EVTCHN_PENDING, port)


def _select(vm: VmState, vcpu: VcpuState, word: int) -> None:
    info = vcpu.vcpu_info.mapped
    if info is None:
        if not vcpu.deferred_sel & 1 << word:
            vcpu.deferred_sel |= 1 << word
            vcpu.kicked = True
        return
    if _test_and_set(info, vm.layout.pending_sel, word):
        return
    info[VCPU_INFO_UPCALL_PENDING] = 1
    vcpu.kicked = True
    if vcpu.upcall_vector:
        request_upcall_vector(vm, vcpu)


def _wake_poller(vcpu: VcpuState, port: int) -> None:
    if vcpu.polling in (port, ANY_PORT):
        vcpu.kicked = True


def _test(area: memoryview, start: int, bit: int) -> bool:
    return area[start + bit // _BYTE_BITS] >> bit % _BYTE_BITS & 1 == 1


def _test_and_set(area: memoryview, start: int, bit: int) -> bool:
    place, mask = start + bit // _BYTE_BITS, 1 << bit % _BYTE_BITS
    byte = area[place]
    area[place] = byte | mask
    return byte & mask != 0
