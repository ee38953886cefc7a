"""Programs from files: ELF executables, and assembly text."""

from __future__ import annotations

import struct

import pytest
from program_vms import START, answer, create

from pytest_xenkvm.hosts.assembler import AssemblyError, assemble, is_installed
from pytest_xenkvm.hosts.elf import ElfError
from pytest_xenkvm.hosts.guest_program import Ended


def elf_file(*, bits: int, code: bytes, machine: int | None = None, address: int = START) -> bytes:
    """An executable with one segment."""
    kind = bits // 32
    ident = b"\x7fELF" + bytes([kind, 1, 1]).ljust(12, b"\0")
    machine = machine or {1: 3, 2: 62}[kind]
    if kind == 1:
        header = struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, START, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        segment = struct.pack("<8I", 1, 84, 0, address, len(code), len(code) + 16, 7, 4096)
    else:
        header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, START, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, address, len(code), len(code) + 16, 4096)
    return ident + header + segment + code


@pytest.mark.parametrize("bits", [32, 64])
def test_an_elf_file(bits: int) -> None:
    """An ELF file runs at its entry, in the mode that it is for; the rest of its segment is zero."""
    vm = create()
    vm.write_memory(START, b"\xff" * 64)
    code = bytes.fromhex("b863000000 0f01d9 fa f4")
    vm.load_elf(elf_file(bits=bits, code=code))
    assert vm.run_program(answer) is Ended.HALTED
    assert [call.longmode for call in vm.calls] == [bits == 64]
    assert vm.read_memory(START, 64) == code + bytes(16) + b"\xff" * (48 - len(code))


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        (b"", "no little-endian ELF"),
        (b"#!/bin/sh\nexit", "no little-endian ELF"),
        (elf_file(bits=64, code=b"\xf4", machine=183), "machine 183"),
        (elf_file(bits=64, code=b"\xf4")[:40], "ends within its headers"),
        (elf_file(bits=64, code=b"\xf4")[:-1], "not all there"),
        (elf_file(bits=32, code=b"\xf4", address=8 << 20), "beyond the guest's memory"),
    ],
)
def test_a_file_that_cannot_be_loaded(file: bytes, complaint: str) -> None:
    """What is no x86 executable for this guest is refused in words."""
    with pytest.raises(ElfError, match=complaint):
        create().load_elf(file)


def test_wrong_assembly_says_why() -> None:
    """What the assembler complains about is the error's text."""
    if not is_installed():
        pytest.skip("no GNU binutils")
    with pytest.raises(AssemblyError, match="frobnicate"):
        assemble("frobnicate eax", at=START)
