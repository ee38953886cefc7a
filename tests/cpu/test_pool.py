"""Engines that are used again are like new, and never more than a few; what can't be like new isn't used."""

from __future__ import annotations

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
from pool_guests import (
    CODE,
    DEBUG,
    DIRT,
    ELSEWHERE,
    HLT,
    LARGEST,
    WRITABLE,
    enter,
    long_state,
    new_memory,
    opened,
    portrait,
    run,
    state,
    write_any,
)

from pytest_xenkvm.cpu import pool
from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu.engine import Engine, EngineError, Stop
from pytest_xenkvm.cpu.unicorn_library import OpenEngine
from pytest_xenkvm.cpu.vcpu import Vcpu


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    """Each test begins with an empty pool."""
    pool._kept.clear()
    yield
    pool._kept.clear()


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
