"""Segments, descriptor tables and gates as x86 has them, for those who build a guest's tables.

Layouts: Intel SDM volume 3A, sections 3.4.5, 7.2 and 7.14.
"""

from __future__ import annotations

import struct
from typing import Final

from pytest_xenkvm.cpu.vmcb import Segment

PRESENT: Final = 1 << 7
CODE: Final = 0x1B
"""Code segment: executable, readable, accessed."""
DATA: Final = 0x13
"""Data segment: writable, accessed."""
TSS: Final = 0x09
"""A task state segment; QEMU, and so Unicorn, aborts the process when a cached one is marked busy."""
DEFAULT_32: Final = 1 << 10
PAGES: Final = 1 << 11
LONG: Final = 1 << 9

_FLAT_LIMIT: Final = 0xFFFF_FFFF
_INTERRUPT_GATE: Final = 0x8E
"""Present, DPL 0."""
_GATE_64: Final = struct.Struct("<HHBBHII")
_GATE_32: Final = struct.Struct("<HHBBH")
TSS_LIMIT: Final = 0x67


def code_64(selector: int, dpl: int) -> Segment:
    """A 64-bit code segment."""
    return _flat(selector, CODE | LONG, dpl)


def code_32(selector: int, dpl: int) -> Segment:
    """A flat 32-bit code segment."""
    return _flat(selector, CODE | DEFAULT_32, dpl)


def data(selector: int, dpl: int) -> Segment:
    """A flat data segment."""
    return _flat(selector, DATA | DEFAULT_32, dpl)


def tss(selector: int, base: int) -> Segment:
    """A task state segment, 32-bit or 64-bit by the mode of the CPU."""
    return Segment(selector=selector, attributes=PRESENT | TSS, limit=TSS_LIMIT, base=base)


def table(base: int, size: int) -> Segment:
    """What GDTR or IDTR holds for a table of `size` bytes."""
    return Segment(limit=size - 1, base=base)


def descriptor(segment: Segment) -> bytes:
    """The 8 bytes of a descriptor that loads as `segment` (base 0, flat)."""
    value = 0xFFFF | 0xF << 48 | (segment.attributes & 0xFF) << 40 | (segment.attributes >> 8) << 52
    return value.to_bytes(8, "little")


def gate_64(selector: int, offset: int) -> bytes:
    """A 64-bit interrupt gate."""
    return _GATE_64.pack(
        offset & 0xFFFF, selector, 0, _INTERRUPT_GATE, offset >> 16 & 0xFFFF, offset >> 32, 0
    )


def gate_32(selector: int, offset: int) -> bytes:
    """A 32-bit interrupt gate."""
    return _GATE_32.pack(offset & 0xFFFF, selector, 0, _INTERRUPT_GATE, offset >> 16)


def tss_64(rsp0: int) -> bytes:
    """A 64-bit task state segment that switches to `rsp0` for ring 0."""
    return struct.pack("<IQ", 0, rsp0).ljust(TSS_LIMIT + 1, b"\0")


def tss_32(esp0: int, ss0: int) -> bytes:
    """A 32-bit task state segment that switches to `ss0`:`esp0` for ring 0."""
    return struct.pack("<III", 0, esp0, ss0).ljust(TSS_LIMIT + 1, b"\0")


def _flat(selector: int, type_: int, dpl: int) -> Segment:
    attributes = type_ | PRESENT | PAGES | dpl << 5
    return Segment(selector=selector, attributes=attributes, limit=_FLAT_LIMIT)
