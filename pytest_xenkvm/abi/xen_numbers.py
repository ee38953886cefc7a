"""Numbers of Xen's public headers that only the VMM's side of an emulation looks at.

Source: Xen's public/xen.h, event_channel.h, features.h, memory.h, physdev.h, sched.h, vcpu.h, hvm/params.h.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

DOMID_SELF: Final = 0x7FF0
DOMID_QEMU: Final = 0
"""The domain of the backends."""
OWN_DOMAINS: Final = (DOMID_SELF, 1)
"""The guest itself: as such, and by the number that QEMU gives it."""

VCPU_SSHOTTMR_FUTURE: Final = 1
"""Flag of a singleshot timer: a timeout that has passed is to be refused with -ETIME."""

NR_VIRQS: Final = 24
IRQSTAT_NEEDS_EOI: Final = 1
MAP_PIRQ_TYPE_GSI: Final = 1


class Virq(IntEnum):
    """VIRQ_*: the virtual interrupts of which every vCPU has its own; others are the VM's."""

    TIMER = 0
    DEBUG = 1
    XENOPROF = 7
    XENPMU = 13


class PortStatus(IntEnum):
    """EVTCHNSTAT_*: what an event channel port is."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


class HvmParam(IntEnum):
    """HVM_PARAM_*, as far as the VMM knows them."""

    CALLBACK_IRQ = 0
    STORE_PFN = 1
    STORE_EVTCHN = 2
    CONSOLE_PFN = 17
    CONSOLE_EVTCHN = 18


class CallbackVia(IntEnum):
    """The type in bits 56 ... 63 of HVM_PARAM_CALLBACK_IRQ."""

    GSI = 0
    PCI_INTX = 1
    VECTOR = 2


class MapSpace(IntEnum):
    """XENMAPSPACE_*: what can be mapped into the guest."""

    SHARED_INFO = 0
    GRANT_TABLE = 1


class Shutdown(IntEnum):
    """SHUTDOWN_*: why a guest shuts down."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


FEATURES: Final = sum(
    1 << feature
    for feature in (
        0,  # writable_page_tables
        1,  # writable_descriptor_tables
        2,  # auto_translated_physmap
        3,  # supervisor_mode_kernel
        8,  # hvm_callback_vector
        9,  # hvm_safe_pvclock
        10,  # hvm_pirqs
    )
)
"""XENFEAT_*: what an HVM guest is told of submap 0."""
