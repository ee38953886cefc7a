"""The virtual machine control block of AMD-V: how a CPU state is handed to Unicorn.

VMLOAD and VMRUN load a whole CPU state from it, whatever the guest's tables hold: mode, privilege level and
the hidden parts of segment registers, as KVM_SET_SREGS does. Offsets: AMD64 Architecture Programmer's Manual,
volume 2, appendix B.
"""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen

SIZE: Final = 4096

EXIT_HLT: Final = 0x78
EXIT_CPUID: Final = 0x72
EXIT_RDTSC: Final = 0x6E
EXIT_MSR: Final = 0x7C
EXIT_SHUTDOWN: Final = 0x7F
EXIT_VMMCALL: Final = 0x81

_FIRST_INTERCEPT: Final = 0x60
"""Exit code of bit 0 of the general intercepts."""
_INTERCEPTS: Final = (EXIT_HLT, EXIT_CPUID, EXIT_RDTSC, EXIT_MSR, EXIT_SHUTDOWN, 0x80, EXIT_VMMCALL)
"""0x80: VMRUN, which AMD-V wants to be intercepted."""

_EVENT_VALID: Final = 1 << 31
_G_PAT: Final = 0x0007_0406_0007_0406
_SEGMENT: Final = struct.Struct("<HHIQ")
_U64: Final = struct.Struct("<Q")

_INTERCEPTS_AT: Final = 0x00C
_IOPM_AT: Final = 0x040
_MSRPM_AT: Final = 0x048
_ASID_AT: Final = 0x058
_EVENT_AT: Final = 0x0A8
_CPL_AT: Final = 0x4CB
_RIP_AT: Final = 0x578
_RSP_AT: Final = 0x5D8
_RAX_AT: Final = 0x5F8
_REGISTERS_AT: Final = {
    "star": 0x600,
    "lstar": 0x608,
    "cstar": 0x610,
    "fmask": 0x618,
    "kernel_gs_base": 0x620,
    "cr2": 0x640,
    "efer": 0x4D0,
    "cr4": 0x548,
    "cr3": 0x550,
    "cr0": 0x558,
    "rflags": 0x570,
}
_SEGMENTS_AT: Final = {
    "es": 0x400,
    "cs": 0x410,
    "ss": 0x420,
    "ds": 0x430,
    "fs": 0x440,
    "gs": 0x450,
    "gdtr": 0x460,
    "ldtr": 0x470,
    "idtr": 0x480,
    "tr": 0x490,
}
_DR7_AT: Final = 0x560
_DR6_AT: Final = 0x568
_PAT_AT: Final = 0x668
_DR7_RESET: Final = 0x400
_DR6_RESET: Final = 0xFFFF_0FF0


@frozen(kw_only=True)
class Segment:
    """A segment register with its hidden part.

    `attributes`: bits 40-47 and 52-55 of a descriptor, as 12 bits.
    """

    selector: int = 0
    attributes: int = 0
    limit: int = 0
    base: int = 0


@frozen(kw_only=True)
class CpuState:
    """What decides how a CPU executes: control registers, privilege level, segments, flags."""

    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int
    cr2: int = 0
    star: int = 0
    lstar: int = 0
    cstar: int = 0
    fmask: int = 0
    kernel_gs_base: int = 0
    cpl: int = 0
    rflags: int
    es: Segment
    cs: Segment
    ss: Segment
    ds: Segment
    fs: Segment
    gs: Segment
    gdtr: Segment = Segment()
    ldtr: Segment = Segment()
    idtr: Segment = Segment()
    tr: Segment = Segment()

    @property
    def long_mode_active(self) -> bool:
        """EFER.LMA: 64-bit or compatibility mode."""
        return bool(self.efer & EFER_LMA)

    @property
    def executes_64_bit(self) -> bool:
        """EFER.LMA and CS.L: 64-bit code."""
        return bool(self.efer & EFER_LMA and self.cs.attributes & ATTRIBUTE_LONG)


EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_SVME: Final = 1 << 12
ATTRIBUTE_LONG: Final = 1 << 9


def pack(state: CpuState, *, iopm: int, msrpm: int) -> bytearray:
    """A control block for `state`, intercepting what leaves the guest.

    `iopm`, `msrpm`: physical addresses of the permission maps for ports and MSRs.
    """
    block = bytearray(SIZE)
    intercepts = sum(1 << code - _FIRST_INTERCEPT for code in _INTERCEPTS)
    for offset, value in (
        (_INTERCEPTS_AT, intercepts),
        (_IOPM_AT, iopm),
        (_MSRPM_AT, msrpm),
        (_ASID_AT, 1),
        (_DR7_AT, _DR7_RESET),
        (_DR6_AT, _DR6_RESET),
        (_PAT_AT, _G_PAT),
    ):
        _U64.pack_into(block, offset, value)
    for name, offset in _REGISTERS_AT.items():
        _U64.pack_into(block, offset, getattr(state, name))
    _U64.pack_into(block, _REGISTERS_AT["efer"], state.efer | EFER_SVME)
    for name, offset in _SEGMENTS_AT.items():
        segment: Segment = getattr(state, name)
        _SEGMENT.pack_into(block, offset, segment.selector, segment.attributes, segment.limit, segment.base)
    block[_CPL_AT] = state.cpl
    return block


def set_registers(block: bytearray, *, rip: int, rsp: int, rax: int, vector: int | None) -> None:
    """Set those general registers that VMRUN loads, and the interrupt that it delivers (None: none)."""
    _U64.pack_into(block, _RIP_AT, rip)
    _U64.pack_into(block, _RSP_AT, rsp)
    _U64.pack_into(block, _RAX_AT, rax)
    _U64.pack_into(block, _EVENT_AT, 0 if vector is None else _EVENT_VALID | vector)
