"""Layouts of the structures that guest and kernel share, in the 64-bit and the 32-bit ABI.

Offsets and sizes in bytes, times in ns. Source: Xen's public headers (`shared_info`, `vcpu_info`,
`vcpu_runstate_info`, `vcpu_set_singleshot_timer`, `sched_poll`, `evtchn_send`).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from attrs import frozen

VCPU_INFO_SIZE: Final = 64
VCPU_INFO_UPCALL_PENDING: Final = 0
VCPU_INFO_UPCALL_MASK: Final = 1
VCPU_INFO_TIME: Final = 32
VCPU_TIME_INFO_SIZE: Final = 32
EVTCHN_PENDING: Final = 0x800
"""Offset of the 2-level pending bits in shared_info, in both layouts."""

VCPU_TIME_INFO: Final = Struct("<IIQQIbBxx")
"""version, pad, tsc_timestamp, system_time (ns), tsc_to_system_mul, tsc_shift, flags."""

PVCLOCK_GUEST_STOPPED: Final = 2
"""pvclock flag: the guest was stopped; kept from what the structure holds."""

PVCLOCK_TSC_STABLE: Final = 1
"""pvclock flag: all vCPUs' clocks go in step."""

WALL_CLOCK: Final = Struct("<III")
"""version, sec, nsec."""

U32: Final = Struct("<I")
U64: Final = Struct("<Q")


@frozen(kw_only=True)
class GuestLayout:
    """One of the two layouts; which one follows the VM's LONG_MODE attribute or the caller's mode."""

    word_bits: int
    """Bits of a guest `unsigned long`: ports per selector bit."""
    max_ports: int
    """2-level event channel ports: word_bits squared."""
    evtchn_mask: int
    """Offset of the mask bits in shared_info."""
    wall_clock: int
    """Offset of the wall clock in shared_info."""
    wall_clock_sec_hi: int
    """Offset of the upper half of the wall clock's seconds."""
    pending_sel: int
    """Offset of evtchn_pending_sel in vcpu_info."""
    runstate_size: int
    """Bytes of vcpu_runstate_info."""
    runstate_entry_time: int
    """Offset of state_entry_time; the four times follow it."""
    singleshot: Struct
    """vcpu_set_singleshot_timer: timeout_abs_ns (s64), flags (u32)."""
    sched_poll: Struct
    """sched_poll: pointer to the ports, nr_ports (u32), timeout (ns)."""


LAYOUT_64: Final = GuestLayout(
    word_bits=64,
    max_ports=4096,
    evtchn_mask=0xA00,
    wall_clock=0xC00,
    wall_clock_sec_hi=0xC0C,
    pending_sel=8,
    runstate_size=48,
    runstate_entry_time=8,
    singleshot=Struct("<QI4x"),
    sched_poll=Struct("<QI4xQ"),
)

LAYOUT_32: Final = GuestLayout(
    word_bits=32,
    max_ports=1024,
    evtchn_mask=0x880,
    wall_clock=0x900,
    wall_clock_sec_hi=0x924,
    pending_sel=4,
    runstate_size=44,
    runstate_entry_time=4,
    singleshot=Struct("<QI"),
    sched_poll=Struct("<IIQ"),
)
