"""Ioctl request numbers and the byte layout of their arguments.

The argument of an attribute ioctl is a u16 type, 6 bytes of padding and a 64-byte union. Source: the
Linux UAPI header `linux/kvm.h`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


def argument_size(request: int) -> int:
    """Bytes of the structure that a request number announces (without a variable tail)."""
    return request >> 16 & 0x3FFF


HVM_CONFIG: Final = Struct("<IIQQBB30x")
"""flags, msr, blob_addr_32, blob_addr_64, blob_size_32, blob_size_64 (pages)."""

ATTR_HEADER: Final = Struct("<H6x")
ATTR_UNION_SIZE: Final = 64
ATTR_SIZE: Final = ATTR_HEADER.size + ATTR_UNION_SIZE

XEN_EVTCHN: Final = Struct("<III")
"""port, vcpu (KVM vCPU id), priority."""

ATTR_EVTCHN: Final = Struct("<IIIIII")
"""send_port, type, flags, then `deliver`: port, vcpu (or the eventfd's number), priority."""

ATTR_TIMER: Final = Struct("<IIQ")
"""port, priority, expires_ns."""

ATTR_RUNSTATE: Final = Struct("<QQQQQQ")
"""state, state_entry_time, time_running, time_runnable, time_blocked, time_offline."""

GSI_ROUTING_HEADER: Final = Struct("<II")
"""nr, flags."""

GSI_ROUTING_ENTRY: Final = Struct("<IIIIIII20x")
"""gsi, type, flags, pad, then the union: port, vcpu, priority for type 5."""

IRQFD: Final = Struct("<IIII16x")
"""fd, gsi, flags, resamplefd."""

IRQ_LINE: Final = Struct("<II")
"""irq (GSI), level."""

CLOCK_DATA: Final = Struct("<QI4xQQ16x")
"""clock (ns), flags, realtime (ns), host_tsc."""

KVM_CHECK_EXTENSION: Final = _request(0, 0x03, 0)
KVM_IRQ_LINE: Final = _request(_WRITE, 0x61, IRQ_LINE.size)
KVM_IRQ_LINE_STATUS: Final = _request(_READ | _WRITE, 0x67, IRQ_LINE.size)
"""Stores the status (s32) over `irq`; traces don't hold it."""
KVM_SET_GSI_ROUTING: Final = _request(_WRITE, 0x6A, GSI_ROUTING_HEADER.size)
KVM_IRQFD: Final = _request(_WRITE, 0x76, IRQFD.size)
KVM_XEN_HVM_CONFIG: Final = _request(_WRITE, 0x7A, HVM_CONFIG.size)
KVM_SET_CLOCK: Final = _request(_WRITE, 0x7B, CLOCK_DATA.size)
KVM_GET_CLOCK: Final = _request(_READ, 0x7C, CLOCK_DATA.size)
KVM_XEN_HVM_GET_ATTR: Final = _request(_READ | _WRITE, 0xC8, ATTR_SIZE)
KVM_XEN_HVM_SET_ATTR: Final = _request(_WRITE, 0xC9, ATTR_SIZE)
KVM_XEN_VCPU_GET_ATTR: Final = _request(_READ | _WRITE, 0xCA, ATTR_SIZE)
KVM_XEN_VCPU_SET_ATTR: Final = _request(_WRITE, 0xCB, ATTR_SIZE)
KVM_XEN_HVM_EVTCHN_SEND: Final = _request(_WRITE, 0xD0, XEN_EVTCHN.size)

IOCTLS: Final[dict[str, int]] = {
    "KVM_CHECK_EXTENSION": KVM_CHECK_EXTENSION,
    "KVM_IRQ_LINE": KVM_IRQ_LINE,
    "KVM_SET_GSI_ROUTING": KVM_SET_GSI_ROUTING,
    "KVM_IRQFD": KVM_IRQFD,
    "KVM_XEN_HVM_CONFIG": KVM_XEN_HVM_CONFIG,
    "KVM_XEN_HVM_GET_ATTR": KVM_XEN_HVM_GET_ATTR,
    "KVM_XEN_HVM_SET_ATTR": KVM_XEN_HVM_SET_ATTR,
    "KVM_XEN_VCPU_GET_ATTR": KVM_XEN_VCPU_GET_ATTR,
    "KVM_XEN_VCPU_SET_ATTR": KVM_XEN_VCPU_SET_ATTR,
    "KVM_XEN_HVM_EVTCHN_SEND": KVM_XEN_HVM_EVTCHN_SEND,
}
"""UAPI names and request numbers of the ioctls that a trace may hold."""

VCPU_IOCTLS: Final = frozenset({"KVM_XEN_VCPU_GET_ATTR", "KVM_XEN_VCPU_SET_ATTR"})
"""Those that are made on a vCPU's file descriptor."""
