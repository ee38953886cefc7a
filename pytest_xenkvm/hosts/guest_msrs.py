"""The CPU's own MSRs, as far as a guest program needs them: long mode, system calls, segment bases, x2APIC.

x2APIC registers keep what is written to them and do nothing: the core's local APIC takes EOI for granted.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve

from pytest_xenkvm.cpu.vcpu import Vcpu
from pytest_xenkvm.cpu.vmcb import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE

EFER: Final = 0xC000_0080
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
_STATE: Final = {
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0084: "fmask",
    0xC000_0102: "kernel_gs_base",
}
_BASES: Final = {FS_BASE: "fs", GS_BASE: "gs"}
_KEPT: Final = (0x10, 0x1B, 0x277, *range(0x800, 0x900))
"""TSC, APIC_BASE, PAT and x2APIC."""
_EFER_WRITABLE: Final = EFER_SCE | EFER_LME | EFER_NXE


def read(cpu: Vcpu, kept: dict[int, int], number: int) -> int | None:
    """The value of an MSR; None if there is no such one."""
    if number == EFER:
        return cpu.state.efer
    if number in _STATE:
        value: int = getattr(cpu.state, _STATE[number])
        return value
    if number in _BASES:
        base: int = getattr(cpu.state, _BASES[number]).base
        return base
    return kept.get(number, 0) if number in _KEPT else None


def write(cpu: Vcpu, kept: dict[int, int], number: int, value: int) -> bool:
    """Set an MSR; False if it is none of the CPU's own."""
    if number == EFER:
        efer = value & _EFER_WRITABLE | cpu.state.efer & EFER_LMA
        cpu.state = evolve(cpu.state, efer=efer)
    elif number in _STATE:
        changed: dict[str, Any] = {_STATE[number]: value}
        cpu.state = evolve(cpu.state, **changed)
    elif number in _BASES:
        name = _BASES[number]
        cpu.state = evolve(cpu.state, **{name: evolve(getattr(cpu.state, name), base=value)})
    elif number in _KEPT:
        kept[number] = value
    else:
        return False
    return True
