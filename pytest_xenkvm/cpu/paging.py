"""Page tables: walking a guest's in software, as KVM does for pointers in hypercalls.

The walk of 4-level tables looks at bits 0-47 of an address only, so non-canonical addresses alias; PAE and
2-level tables cover 32 bits. Reads need no more than present entries and, for user code, the user bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX
from pytest_xenkvm.cpu.vmcb import EFER_LMA, CpuState

CR0_PE: Final = 1 << 0
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
LARGE: Final = 1 << 7
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_USER_CPL: Final = 3
_WIDE: Final = 8
_PAGE_SHIFT: Final = PAGE_SIZE.bit_length() - 1
_CR3_PAE: Final = ADDRESS | 0xFE0

ReadPhysical = Callable[[int, int], "bytes | None"]
"""Reads (physical address, size); None where there is no memory."""


@frozen
class _Level:
    shift: int
    bits: int
    large_allowed: bool
    checked: bool = True
    """Whether the entry's user and write bits count."""


_LONG: Final = (_Level(39, 9, False), _Level(30, 9, True), _Level(21, 9, True), _Level(12, 9, True))  # noqa: FBT003
_PAE: Final = (_Level(30, 2, False, checked=False), _Level(21, 9, True), _Level(12, 9, True))  # noqa: FBT003
_TWO_LEVEL: Final = (_Level(22, 10, True), _Level(12, 10, True))  # noqa: FBT003


def translate(state: CpuState, linear: int, read: ReadPhysical, *, write: bool = False) -> int | None:
    """The guest physical address behind a linear one for the code that runs in `state`; None: page fault."""
    if not state.cr0 & CR0_PG:
        return linear & U32_MAX
    levels: tuple[_Level, ...]
    if state.efer & EFER_LMA:
        levels, size, table = _LONG, _WIDE, state.cr3 & ADDRESS
    elif state.cr4 & CR4_PAE:
        levels, size, table = _PAE, _WIDE, state.cr3 & _CR3_PAE
    else:
        levels, size, table = _TWO_LEVEL, 4, state.cr3 & ADDRESS
    needed = PRESENT | (USER if state.cpl == _USER_CPL else 0) | (WRITABLE if write else 0)
    for level in levels:
        index = linear >> level.shift & (1 << level.bits) - 1
        data = read(table + index * size, size)
        entry = 0 if data is None else int.from_bytes(data, "little")
        demanded = needed if level.checked else PRESENT
        if entry & demanded != demanded:
            return None
        table = entry & ADDRESS
        large = entry & LARGE and level.large_allowed and (size == _WIDE or state.cr4 & CR4_PSE)
        if level.shift == _PAGE_SHIFT or large:
            inside = (1 << level.shift) - 1
            return (table & ~inside) | (linear & inside)
    return None
