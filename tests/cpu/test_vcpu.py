"""A vCPU by itself: why it stops, and what the guest's handlers are given."""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final

import pytest
from attrs import evolve

from pytest_xenkvm.cpu import descriptors, paging
from pytest_xenkvm.cpu.engine import Engine, EngineError, Stop
from pytest_xenkvm.cpu.vcpu import RAX, RSP, Vcpu
from pytest_xenkvm.cpu.vmcb import EFER_LMA, EFER_LME, CpuState

SIZE: Final = 4 << 20
CODE: Final = 0x1000
STACK: Final = 0x8000
IDT: Final = 0x2000
HANDLERS: Final = 0x1_0000
GDT: Final = 0x3000
TABLES: Final = 0x10_0000
LARGE: Final = paging.PRESENT | paging.WRITABLE | paging.USER | paging.LARGE
TABLE: Final = paging.PRESENT | paging.WRITABLE | paging.USER


class Memory:
    """Guest memory at address 0."""

    def __init__(self) -> None:
        self.bytes = mmap(-1, SIZE)

    def read(self, gpa: int, size: int) -> bytes | None:
        """The bytes."""
        return self.bytes[gpa : gpa + size] if gpa + size <= SIZE else None

    def write(self, gpa: int, data: bytes) -> bool:
        """Store."""
        self.bytes[gpa : gpa + len(data)] = data
        return True


def long_state(cpl: int = 0) -> CpuState:
    """64-bit mode; only the first 4 MiB are mapped."""
    data = descriptors.data(0x10, cpl)
    return CpuState(
        cr0=0x8000_0033,
        cr3=TABLES,
        cr4=0x20,
        efer=EFER_LMA | EFER_LME,
        cpl=cpl,
        rflags=2,
        cs=descriptors.code_64(0x8, cpl),
        ss=data,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        gdtr=descriptors.table(GDT, 0x18),
        idtr=descriptors.table(IDT, 4096),
    )


def boot(code: str, state: CpuState | None = None) -> tuple[Vcpu, Memory]:
    """A vCPU before `code`; handlers of all vectors halt."""
    memory = Memory()
    for entry, value in (
        (TABLES, TABLES + 0x1000 | TABLE),
        (TABLES + 0x1000, TABLES + 0x2000 | TABLE),
        (TABLES + 0x2000, LARGE),
        (TABLES + 0x2008, 0x20_0000 | LARGE),
    ):
        memory.write(entry, value.to_bytes(8, "little"))
    memory.write(GDT + 8, descriptors.descriptor(descriptors.code_64(8, 0)))
    memory.write(GDT + 16, descriptors.descriptor(descriptors.data(16, 0)))
    for vector in range(256):
        memory.write(IDT + 16 * vector, descriptors.gate_64(8, HANDLERS + vector))
    memory.write(HANDLERS, b"\xf4" * 256)
    memory.write(CODE, bytes.fromhex(code.replace(" ", "")))
    engine = Engine()
    engine.map(0, memory.bytes)
    vcpu = Vcpu(engine, memory, state or long_state(), CODE)
    vcpu.general[RSP] = STACK
    return vcpu, memory


@pytest.mark.parametrize(
    ("code", "stop"),
    [
        ("0f01d9", Stop.VMMCALL),
        ("0f01c1", Stop.VMMCALL),
        ("f4", Stop.HLT),
        ("0fa2", Stop.CPUID),
        ("0f31", Stop.RDTSC),
        ("0f30", Stop.MSR),
        ("ebfe", Stop.LIMIT),
    ],
)
def test_why_it_stops(code: str, stop: int) -> None:
    """What concerns the host stops the run with RIP at the instruction."""
    vcpu, _memory = boot(code)
    assert vcpu.run(100) == stop
    assert vcpu.rip == CODE


@pytest.mark.parametrize(
    ("code", "vector", "error", "rip"),
    [
        ("0f0b", 6, None, CODE),
        ("31c9 f7f1", 0, None, CODE + 2),
        ("66b83412 8ed8", 13, 0x1234, CODE + 4),
        ("48a1 0000000100000000", 14, 0, CODE),
        ("48a3 0000000100000000", 14, 2, CODE),
        ("cc", 3, None, CODE + 1),
        ("cd80", 0x80, None, CODE + 2),
        ("0f01d9 0f0b", 6, None, CODE + 3),
    ],
)
def test_faults_go_to_the_guest(code: str, vector: int, error: int | None, rip: int) -> None:
    """An exception arrives at its gate with the frame of long mode, its error code and the right RIP."""
    vcpu, memory = boot(code)
    stop = vcpu.run(100)
    if stop == Stop.VMMCALL:
        vcpu.skip(3)
        stop = vcpu.run(100)
    assert stop == Stop.LIMIT
    assert vcpu.run(100) == Stop.HLT
    assert vcpu.rip == HANDLERS + vector
    stack = vcpu.general[RSP]
    if error is not None:
        assert memory.read(stack, 8) == error.to_bytes(8, "little")
        stack += 8
    frame = struct.unpack("<5Q", memory.read(stack, 40) or b"")
    assert (frame[0], frame[1], frame[3]) == (rip, 8, STACK)
    if vector == Stop.PAGE_FAULT:
        assert vcpu.state.cr2 == 0x100_0000


def test_a_fault_after_a_fault_is_no_double_fault() -> None:
    """Exceptions that were delivered are forgotten: the next one is itself."""
    vcpu, memory = boot("66b83412 8ed8")
    memory.write(HANDLERS + 13, bytes.fromhex("8ed8"))
    for _ in range(3):
        assert vcpu.run(100) == Stop.LIMIT
        assert vcpu.rip == HANDLERS + 13


def test_int_n_above_the_gates_level_is_a_protection_fault() -> None:
    """At CPL 3, INT n through a gate of level 0 is #GP at the INT, which here can't be delivered."""
    vcpu, _memory = boot("cd80", long_state(cpl=3))
    assert vcpu.run(100) == Stop.SHUTDOWN  # no task state segment: nowhere to switch stacks to
    assert vcpu.rip == CODE


def test_a_gate_with_a_stack_of_its_own_but_no_task_state() -> None:
    """An interrupt stack without a task state segment is a shutdown."""
    vcpu, memory = boot("0f0b")
    memory.write(IDT + 16 * 6 + 4, b"\x01")
    assert vcpu.run(100) == Stop.SHUTDOWN


def test_an_interrupt_needs_if_and_no_shadow() -> None:
    """Interrupts are taken with IF set, but not right behind the STI that set it."""
    vcpu, _memory = boot("fb 90 90")
    seen = [vcpu.takes_interrupts]
    for _ in range(2):
        vcpu.run(1)
        seen.append(vcpu.takes_interrupts)
    assert seen == [False, False, True]
    assert vcpu.interrupt(0x20) == Stop.LIMIT
    assert vcpu.rip == HANDLERS + 0x20
    assert not vcpu.takes_interrupts


def test_state_survives_what_the_guest_does_to_it() -> None:
    """Segment bases, control registers and the registers of a guest are kept across stops."""
    vcpu, _memory = boot("0f20e0 480d00020000 0f22e0 f4 b801000000 f4")  # set CR4.OSFXSR
    vcpu.state = evolve(vcpu.state, gs=evolve(vcpu.state.gs, base=0x1234_5678_9ABC))
    assert vcpu.run(100) == Stop.HLT
    assert vcpu.state.cr4 == 0x220
    vcpu.skip(1)
    assert vcpu.run(100) == Stop.HLT
    assert (vcpu.general[RAX], vcpu.state.gs.base, vcpu.state.cr4) == (1, 0x1234_5678_9ABC, 0x220)


def test_memory_that_is_not_there_ends_the_run() -> None:
    """A mapped page without memory behind it is no fault of the guest's, but the engine's end."""
    vcpu, memory = boot("a1 0000400000000000")
    memory.write(TABLES + 0x2010, (0x40_0000 | LARGE).to_bytes(8, "little"))
    with pytest.raises(EngineError, match="can't go on"):
        vcpu.run(100)
