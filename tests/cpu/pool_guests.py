"""Guests that run on engines from the pool, and what can be read of an engine."""

from __future__ import annotations

import ctypes
from mmap import mmap
from typing import Final

from unicorn import x86_const as x86

from pytest_xenkvm.cpu import descriptors, paging
from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu.engine import ControlBlock, Engine, Start
from pytest_xenkvm.cpu.unicorn_library import LIBRARY
from pytest_xenkvm.cpu.vmcb import EFER_LMA, EFER_LME, CpuState

SIZE: Final = 2 << 20
CODE: Final = 0x1000
TABLES: Final = 0x4000
ELSEWHERE: Final = 0x4000_0000
"""A linear address where the guest sees its memory, too."""
ENTRY: Final = paging.PRESENT | paging.WRITABLE | paging.USER
COUNT: Final = 1000
DEBUG: Final = 1
"""The vector of a debug exception."""
HLT: Final = "f4"
DIRT: Final = {
    "x87": "dbe3 d9e8 d9eb",
    "SSE": "660f76c0 660f76ff 66450f76ff",
    "MXCSR": "c74424f0 c09f0000 0fae5424f0",
    "CR0": "0f20c0 4883f008 0f22c0",
    "CR2": "48c7c0 34120000 0f22d0",
    "CR3": "0f20d8 0f22d8",
    "CR4": "0f20e0 480d 00020000 0f22e0",
    "CR8": "b805000000 440f22c0",
    "flags": "fd f9 fb",
    "segments": "66b81000 8ed8 8ec0 8ee0 8ee8 0f01f8",
    "tables": "c74424f0 34121111 0f015424f0 0f015c24f0",
    "global interrupts": "0f01dd",
    "code that it changes itself": "c605 01000000 f4 9090",
    "another address": "c70425 00010040 00000000",
    "VMMCALL": "0f01d9",
    "CPUID": "0fa2",
    "RDTSC": "0f31",
    "WRMSR": "0f30",
    "no end": "ebfe",
    "invalid opcode": "0f0b",
    "breakpoint": "cc",
    "INT n": "cd80",
    "page fault": "a1 0000000001000000",
    "division": "31c9 f7f1",
}
"""Guest code that leaves traces in a CPU, or stops in all the ways there are."""
WRITABLE: Final = (
    *api.GENERAL,
    *(getattr(x86, f"UC_X86_REG_XMM{n}") for n in range(16)),
    *(getattr(x86, f"UC_X86_REG_ST{n}") for n in range(8)),
    *(getattr(x86, f"UC_X86_REG_DR{n}") for n in (0, 1, 2, 3, 6, 7)),
    *(getattr(x86, f"UC_X86_REG_CR{n}") for n in (2, 3, 8)),
    *(getattr(x86, f"UC_X86_REG_{name}") for name in ("MXCSR", "FPCW", "FPSW", "FPTAG")),
    *(getattr(x86, f"UC_X86_REG_{name}") for name in ("GDTR", "IDTR", "LDTR", "TR", "FS_BASE", "GS_BASE")),
)
"""Not those that make Unicorn look into the guest's tables, nor those that decide whether it does."""
LARGEST: Final = 32
"""Bytes of the largest register."""
MSRS: Final = (
    *(number for number in range(0x800) if number != 0x10),  # but for the time stamp counter
    *range(0xC000_0080, 0xC000_0110),
    *range(0xC001_0110, 0xC001_0120),
)
HEADER: Final = 40
"""Bytes in a saved context before the CPU state; Unicorn doesn't set all of them."""

LIBRARY.uc_context_size.restype = ctypes.c_size_t


def new_memory(code: str) -> mmap:
    """2 MiB of a guest whose page tables show them at 0 and ELSEWHERE, with code at CODE."""
    memory = mmap(-1, SIZE)
    for at, entry in (
        (0, TABLES + 0x1000 | ENTRY),
        (0x1000, TABLES + 0x2000 | ENTRY),
        (0x1008, TABLES + 0x2000 | ENTRY),
        (0x2000, ENTRY | paging.LARGE),
        (0x2008, ENTRY | paging.LARGE | 1 << 32),  # where no memory is
    ):
        memory[TABLES + at : TABLES + at + 8] = entry.to_bytes(8, "little")
    content = bytes.fromhex(code)
    memory[CODE : CODE + len(content)] = content
    return memory


def long_state() -> CpuState:
    """64-bit mode."""
    data = descriptors.data(0x10, 0)
    return CpuState(
        cr0=0x8000_0033,
        cr3=TABLES,
        cr4=0x620,
        efer=EFER_LMA | EFER_LME,
        rflags=2,
        cs=descriptors.code_64(0x8, 0),
        ss=data,
        ds=data,
        es=data,
        fs=data,
        gs=data,
    )


def run(code: str, *, at: int = CODE) -> tuple[int, Engine]:
    """Run a guest on an engine: why it stopped, and the engine."""
    engine = Engine()
    engine.map(0, new_memory(code))
    return enter(engine, at), engine


def enter(engine: Engine, at: int) -> int:
    """Let the guest run from there: why it stopped."""
    return engine.enter(ControlBlock.of(long_state()), Start(at, 0x8000), count=COUNT)


def write_any(cpu: api.Unicorn, number: int, content: bytes) -> None:
    """Write a register of any size; what Unicorn refuses stays as it was."""
    LIBRARY.uc_reg_write(cpu.handle, number, ctypes.create_string_buffer(content, LARGEST))


def state(cpu: api.Unicorn) -> bytes:
    """The whole CPU state as Unicorn has it, hidden parts of registers included."""
    return cpu.save().bytes_at(HEADER, LIBRARY.uc_context_size(cpu.handle) - HEADER)


def portrait(cpu: api.Unicorn) -> dict[str, object]:
    """All that can be read of an engine that is not in guest mode; `regions`: how many it sees of memory."""
    regions, count = ctypes.c_void_p(), ctypes.c_uint32()
    LIBRARY.uc_mem_regions(cpu.handle, ctypes.byref(regions), ctypes.byref(count))
    LIBRARY.uc_free(regions)
    return {
        "state": state(cpu),
        "MSRs": {number: cpu.read_msr(number) for number in MSRS},
        "regions": count.value,
        "interrupts": list(cpu.interrupts),
    }


def opened(cpu: api.Unicorn) -> int | None:
    """Which engine that is, as long as it is open."""
    return cpu.handle.value
