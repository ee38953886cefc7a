"""Loading ELF executables for x86 into guest memory: their PT_LOAD segments, by physical address.

Layouts: System V ABI, "Object files"; ELF-32 and ELF-64, little-endian, for EM_386 and EM_X86_64.
"""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen

_MAGIC: Final = b"\x7fELF"
_MACHINES: Final = {1: 3, 2: 62}
"""EM_386 for ELF-32, EM_X86_64 for ELF-64."""
_LITTLE_ENDIAN: Final = 1
_HEADERS: Final = {1: struct.Struct("<16xHHIIIIIHHH"), 2: struct.Struct("<16xHHIQQQIHHH")}
"""Type, machine, version, entry, where the program headers are, where the section headers are, flags, size of
this header, size of a program header, number of program headers."""
_SEGMENTS: Final = {1: struct.Struct("<IIIIIII"), 2: struct.Struct("<IIQQQQQ")}
_PT_LOAD: Final = 1


class ElfError(ValueError):
    """A file that is no x86 ELF executable; `str()` says what is wrong with it."""


@frozen
class Loaded:
    """An executable: `segments` are (physical address, bytes), zero-filled to their size in memory."""

    entry: int
    bits: int
    segments: tuple[tuple[int, bytes], ...]


def parse(file: bytes, *, memory: int) -> Loaded:
    """Read an executable whose segments lie below `memory` (bytes); raises ElfError."""
    bits_class = file[4] if len(file) > _LITTLE_ENDIAN + 4 else 0
    if file[:4] != _MAGIC or bits_class not in _HEADERS or file[5] != _LITTLE_ENDIAN:
        raise ElfError("is no little-endian ELF file")
    try:
        _, machine, _, entry, table, _, _, _, size, count = _HEADERS[bits_class].unpack_from(file)
        if machine != _MACHINES[bits_class]:
            raise ElfError(f"is for machine {machine}, expected x86")
        headers = [_SEGMENTS[bits_class].unpack_from(file, table + size * index) for index in range(count)]
    except struct.error as error:
        raise ElfError("ends within its headers") from error
    segments = tuple(
        _segment(file, header, bits_class, memory) for header in headers if header[0] == _PT_LOAD
    )
    return Loaded(entry, 32 * bits_class, segments)


def _segment(file: bytes, header: tuple[int, ...], bits_class: int, memory: int) -> tuple[int, bytes]:
    if bits_class == 1:
        _, offset, _, address, in_file, in_memory, _ = header
    else:
        _, _, offset, _, address, in_file, in_memory = header
    data = file[offset : offset + in_file]
    if len(data) < in_file or in_memory < in_file:
        raise ElfError(f"has a segment at {address:#x} that is not all there")
    if address + in_memory > memory:
        raise ElfError(f"has a segment at {address:#x} of {in_memory:#x} bytes, beyond the guest's memory")
    return address, data.ljust(in_memory, b"\0")
