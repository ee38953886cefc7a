"""Engines that are used again are like new, and never more than a few; what can't be like new isn't used."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from mmap import mmap
from threading import Thread
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicorn import x86_const as x86

from pytest_xenkvm.cpu import descriptors, paging, pool
from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu.engine import ControlBlock, Engine, EngineError, Start, Stop
from pytest_xenkvm.cpu.unicorn_library import LIBRARY, OpenEngine
from pytest_xenkvm.cpu.vcpu import Vcpu
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


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    """Each test begins with an empty pool."""
    pool._kept.clear()
    yield
    pool._kept.clear()


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


@given(
    registers=st.dictionaries(st.sampled_from(WRITABLE), st.binary(min_size=LARGEST, max_size=LARGEST)),
    dirt=st.lists(st.sampled_from(sorted(DIRT)), max_size=6),
    at=st.sampled_from([CODE, ELSEWHERE + CODE]),
)
def test_a_used_engine_is_like_a_new_one(registers: dict[int, bytes], dirt: list[str], at: int) -> None:
    """Whatever a guest executed and whatever was written to registers: nothing that can be read tells."""
    pool._kept.clear()
    _stop, engine = run(" ".join(DIRT[name] for name in dirt) + HLT, at=at)
    used = opened(engine.unicorn)
    for number, content in registers.items():
        write_any(engine.unicorn, number, content)
    dirty = state(engine.unicorn)
    del engine
    again, new = api.Unicorn(), api.Unicorn()
    assert used == opened(again) != opened(new)
    assert dirty != state(new)
    assert portrait(again) == portrait(new)
    del again
    assert run("90" * 0x80 + HLT, at=at)[0] == Stop.HLT  # old translations, and traps, would stop elsewhere


@pytest.mark.parametrize("name", DIRT)
def test_what_a_guest_left_is_not_executed(name: str) -> None:
    """Code of another guest at the same address runs as it stands there."""
    stop, engine = run(DIRT[name] + HLT)
    used = opened(engine.unicorn)
    del engine
    stops = [run(code)[0] for code in (HLT, "0f01d9", HLT)]
    assert stops == [Stop.HLT, Stop.VMMCALL, Stop.HLT]
    assert stop in {Stop.HLT, Stop.LIMIT, Stop.VMMCALL, Stop.CPUID, Stop.RDTSC, Stop.MSR} or stop < 0x100
    assert opened(api.Unicorn()) == used


def test_memory_of_another_guest_is_gone() -> None:
    """A guest sees nothing where the one before had its memory, and that memory is free."""
    memory = new_memory(HLT)
    engine = Engine()
    engine.map(0, memory)
    assert enter(engine, ELSEWHERE + CODE) == Stop.HLT
    used = opened(engine.unicorn)
    del engine
    memory.close()  # raises BufferError while an engine has it
    engine = Engine()
    assert opened(engine.unicorn) == used
    assert enter(engine, ELSEWHERE + CODE) == Stop.PAGE_FAULT


def after_foreign_code(engine: Engine) -> None:
    """A `Vcpu` runs anybody's code, which may set breakpoints: no saved CPU state has them."""
    Vcpu(engine, NoMemory(), long_state(), CODE)


def after_ports(engine: Engine) -> None:
    """IN and OUT call somebody."""
    engine.unicorn.hook_ports(lambda _port, _size: 0, lambda _port, _size, _value: None)


def after_a_foreign_msr(engine: Engine) -> None:
    """A memory type range register: no saved CPU state has it."""
    engine.unicorn.write_msr(0x200, 6)


def after_a_failure(engine: Engine) -> None:
    """The guest can't go on."""
    engine.map(0, new_memory("a1 0000200000000000"))
    with pytest.raises(EngineError):
        enter(engine, CODE)


def after_much_memory(engine: Engine) -> None:
    """It would take long to take it away."""
    engine.map(0, mmap(-1, pool.MEMORY_KEPT))


class NoMemory:
    """A guest's memory that nobody needs."""

    def read(self, _gpa: int, _size: int) -> bytes | None:
        """There is none."""

    def write(self, _gpa: int, _data: bytes) -> bool:
        """Likewise."""
        return False


@pytest.mark.parametrize(
    "use", [after_foreign_code, after_ports, after_a_foreign_msr, after_a_failure, after_much_memory]
)
def test_what_might_not_be_like_new_is_closed(use: Callable[[Engine], None]) -> None:
    """An engine to which something was done that can't be undone, or not cheaply, is used by nobody else."""
    engine = Engine()
    use(engine)
    del engine
    assert not pool._kept
    Engine()
    assert len(pool._kept) == 1


def test_breakpoints_of_a_guest_are_why() -> None:
    """An engine can't be rid of a breakpoint; if ever it can, guests of any code may be pooled, too."""
    _stop, engine = run("b810100000 0f23c0 b802000000 0f23f8" + HLT)  # DR0 = 0x1010, DR7 = 2
    del engine
    assert run("90" * 0x80 + HLT)[0] == DEBUG


HOLDING: Final[dict[str, Callable[[api.Unicorn], object]]] = {
    "registers": lambda cpu: cpu.registers(api.RAX),
    "context": lambda cpu: cpu.save(),
}


@pytest.mark.parametrize("hold", HOLDING.values(), ids=HOLDING)
def test_an_engine_is_in_use_while_anything_of_it_is(hold: Callable[[api.Unicorn], object]) -> None:
    """Registers and saved states keep an engine from being given to others."""
    engine = Engine()
    held = [hold(engine.unicorn)]
    del engine
    assert not pool._kept
    held.clear()
    assert len(pool._kept) == 1


def test_few_are_kept() -> None:
    """However many engines were in use at once, a few are kept and the rest are closed."""
    engines = [OpenEngine() for _ in range(pool.KEPT + 3)]
    gone = [weakref.ref(engine) for engine in engines]
    while engines:
        pool.give_back(engines.pop())
    assert len(pool._kept) == sum(engine() is not None for engine in gone) == pool.KEPT


def test_threads_share_it() -> None:
    """Every thread has engines of its own while it uses them, whoever used them before."""
    results: list[list[int]] = []

    def work(code: str) -> None:
        results.append([run(code)[0] for _ in range(100)])

    threads = [Thread(target=work, args=(code,)) for code in (HLT, "0f01d9", "0fa2", "0f31") * 2]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    expected = [[stop] * 100 for stop in (Stop.HLT, Stop.VMMCALL, Stop.CPUID, Stop.RDTSC) * 2]
    assert sorted(results) == sorted(expected)
    assert 0 < len(pool._kept) <= pool.KEPT


def test_a_forked_process_has_its_own() -> None:
    """A child starts with no engine of its parent's kept, and what it does with one in use stays there."""
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60)


FORKING: Final = """
import os
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.cpu import pool
from pytest_xenkvm.hosts.protocol import GuestCall
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

def create():
    shape = VmShape(irqchip="none", memory=(MemorySlot(gpa=0, size=4096),), vcpus=(VcpuShape(index=0, id=0),))
    return UnicornHost(profile=LINUX_7_3).create_vm(shape)

def call(vm, longmode):
    return vm.hypercall(0, GuestCall(nr=99, args=(0,) * 6, longmode=longmode, cpl=0)).rax

def private(vm):
    return vm.cpu._engine._control[:], vm.cpu._image.memory[:]

vm, other = create(), create()
expected = call(vm, True), call(other, False)
del other
before = private(vm)
child = os.fork()
if not child:
    good = not pool._kept and (call(vm, True), call(vm, False)) == expected and private(vm) != before
    good = good and call(create(), True) == expected[0] and len(pool._kept) == 1
    os._exit(not good)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert private(vm) == before and len(pool._kept) == 1
assert (call(vm, True), call(create(), False)) == expected
"""
