"""The guest code that a vCPU of a real KVM executes: an event, then `out`, which leads back to the VMM.

`out` leaves the guest at every privilege level (IOPL is 3) and keeps its registers. No run starts at an
`out`: KVM would take it for the one that it has still to step over. `CPUID` is an exit that the kernel
handles on its own at every privilege level: after such an exit it delivers what it deferred.

An interrupt's handler sends EOI and stops at an `out` of its own, whose address tells the vector; nobody
returns from it, since the next event sets all registers anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pytest_xenkvm.hosts.guest_image import (
    CODE,
    HANDLER_SIZE,
    HANDLERS_32,
    HANDLERS_64,
    VECTORS,
)

SETTLE: Final = CODE
"""Lets the kernel deliver what it deferred."""
HYPERCALL: Final = CODE + 0x10
CALL_PAGE: Final = CODE + 0x20
"""Calls the stub of a hypercall page that RAX points at."""
WRMSR: Final = CODE + 0x30
IDLE: Final = CODE + 0x40

GENERAL_PROTECTION: Final = 13
FIRST_INTERRUPT: Final = 16
"""Exceptions that this code can cause have lower vectors; Xen's upcalls have none of those."""

_OUT: Final = b"\xe6\xe8"
"""To port 0xe8, which no interrupt controller in the kernel has."""
_CPUID: Final = b"\x0f\xa2"
_WRMSR: Final = b"\x0f\x30"
_CALL_RAX: Final = b"\xff\xd0"
_NOP: Final = b"\x90"
_STORE_EAX: Final = b"\xa3"
"""To an address of 64 bits in 64-bit code, of 32 bits in 32-bit code; touches no register."""
_EOI: Final = 0xFEE0_00B0
"""Register of the local APIC; any value will do."""


def code(instruction: bytes, *, has_local_apic: bool) -> Iterator[tuple[int, bytes]]:
    """What belongs where in the image; `instruction` is VMCALL or VMMCALL."""
    yield SETTLE, _CPUID + _OUT
    yield HYPERCALL, instruction + _OUT
    yield CALL_PAGE, _CALL_RAX + _OUT
    yield WRMSR, _WRMSR + _OUT
    yield IDLE, _NOP + _OUT
    for handlers, size in ((HANDLERS_64, 8), (HANDLERS_32, 4)):
        eoi = _STORE_EAX + _EOI.to_bytes(size, "little") if has_local_apic else b""
        for vector in range(VECTORS):
            yield handlers + vector * HANDLER_SIZE, (eoi if vector >= FIRST_INTERRUPT else b"") + _OUT


def vector_at(offset: int) -> int | None:
    """The vector whose handler has that offset in the image; None if there is none."""
    for handlers in (HANDLERS_64, HANDLERS_32):
        if handlers <= offset < handlers + VECTORS * HANDLER_SIZE:
            return (offset - handlers) // HANDLER_SIZE
    return None
