"""Inbound events: GSI routes of type Xen event channel, KVM_IRQ_LINE and irqfds.

Source: `kvm_xen_setup_evtchn`, `kvm_set_irq_routing`, `kvm_irqfd`; all supported kernels. Needs an
in-kernel interrupt controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EBUSY, EINVAL, ENXIO
from typing import Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import (
    KVM_IRQ_ROUTING_HV_SINT,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    KVM_MAX_IRQ_ROUTES,
)
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.eventfd import Eventfd, lookup
from pytest_xenkvm.core.evtchn import Delivery, check_priority, deliver
from pytest_xenkvm.core.state import EvtchnDelivery, VmState

_ROUTE_TYPES: Final = {
    "full": (
        KVM_IRQ_ROUTING_IRQCHIP,
        KVM_IRQ_ROUTING_MSI,
        KVM_IRQ_ROUTING_HV_SINT,
        KVM_IRQ_ROUTING_XEN_EVTCHN,
    ),
    "split": (KVM_IRQ_ROUTING_MSI, KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_XEN_EVTCHN),
}
"""The types of route that a VM with each irqchip may have."""

_STATUS: Final = {Delivery.DELIVERED: 1, Delivery.COALESCED: 0, Delivery.MASKED: -1, None: -1}


@frozen(kw_only=True)
class GsiRoute:
    """An entry of KVM_SET_GSI_ROUTING; port, vcpu_id and priority are those of a Xen event channel."""

    gsi: int
    type: int
    port: int
    vcpu_id: int
    priority: int


def set_gsi_routing(vm: VmState, entries: Sequence[GsiRoute]) -> None:
    """KVM_SET_GSI_ROUTING: replace all routes. Ports and vCPUs are not checked.

    Raises KvmError -EINVAL, the old routes staying, without an irqchip, for a GSI >= 4096, a type that
    this irqchip doesn't have, a priority other than 2LEVEL, a second route of a GSI (but for irqchip pins,
    of which a GSI may have one in each chip), or more than 4096 entries. Only Xen ones raise Xen events.
    """
    if vm.irqchip == "none" or len(entries) > KVM_MAX_IRQ_ROUTES:
        raise KvmError(EINVAL)
    routes: dict[int, EvtchnDelivery] = {}
    types: dict[int, int] = {}
    for entry in entries:
        before = types.setdefault(entry.gsi, entry.type) if entry.gsi in types else None
        shared_pin = before == entry.type == KVM_IRQ_ROUTING_IRQCHIP
        if entry.gsi >= KVM_MAX_IRQ_ROUTES or entry.type not in _ROUTE_TYPES[vm.irqchip]:
            raise KvmError(EINVAL)
        if before is not None and not shared_pin:
            raise KvmError(EINVAL)
        types[entry.gsi] = entry.type
        if entry.type == KVM_IRQ_ROUTING_XEN_EVTCHN:
            check_priority(entry.priority)
            routes[entry.gsi] = EvtchnDelivery(port=entry.port, vcpu_id=entry.vcpu_id)
    vm.routes = routes


def set_irq_line(vm: VmState, *, gsi: int, level: int) -> int:
    """KVM_IRQ_LINE: a non-zero level delivers the event that the GSI is routed to.

    The result is the status that KVM_IRQ_LINE_STATUS reports (`kvm_set_irq`): 1 delivered, 0 pending already,
    -1 for all the rest, masked events included. Raises KvmError -ENXIO without an irqchip.
    """
    if vm.irqchip == "none":
        raise KvmError(ENXIO)
    return _STATUS[_inject(vm, gsi)] if level else -1


def set_irqfd(vm: VmState, *, fd: int, gsi: int, flags: int) -> None:
    """KVM_IRQFD: let eventfd `fd` raise `gsi`, or (DEASSIGN) no more.

    Assigning with a pending count injects at once and leaves the count; deassigning what was not assigned
    is fine, even without an irqchip. Raises KvmError: -EINVAL for other flags, when assigning without an
    irqchip or with RESAMPLE (which takes a second eventfd that traces don't hold), -EBADF for an unknown
    eventfd, -EBUSY if the eventfd has an irqfd already.
    """
    deassign = flags & KVM_IRQFD_FLAG_DEASSIGN
    if flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE):
        raise KvmError(EINVAL)
    if not deassign and (vm.irqchip == "none" or (flags and vm.irqchip != "full")):
        raise KvmError(EINVAL)
    eventfd = lookup(vm.files, fd)
    if deassign:
        _deassign(vm, eventfd, gsi)
        return
    if flags:
        raise KvmError(EINVAL)
    if eventfd in vm.irqfds:
        raise KvmError(EBUSY)
    vm.irqfds[eventfd] = gsi

    def on_signal() -> None:
        eventfd.drain()
        _inject(vm, gsi)

    eventfd.listeners.append(on_signal)
    if eventfd.count:
        _inject(vm, gsi)


def _deassign(vm: VmState, eventfd: Eventfd, gsi: int) -> None:
    if vm.irqfds.get(eventfd) == gsi:
        del vm.irqfds[eventfd]
        eventfd.listeners.clear()
        eventfd.drain()


def _inject(vm: VmState, gsi: int) -> Delivery | None:
    target = vm.routes.get(gsi)
    if target is None:
        return None
    try:
        return deliver(vm, target.port, target.vcpu_id)
    except KvmError:
        return None
