"""The Unicorn engine behind the host protocol: what the guest executes, and what its host sees of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.cpu import pool
from pytest_xenkvm.hosts import guest_image
from pytest_xenkvm.hosts.hypercall_pages import INSTRUCTIONS
from pytest_xenkvm.hosts.protocol import GuestCall, HostError
from pytest_xenkvm.hosts.unicorn_host import UnicornHost, UnicornVm
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

MEMORY: Final = 4 << 20
MSR: Final = 0x4000_0000
PAGE: Final = 0x30_0000
INTERCEPT: Final = 0x2
ARGS: Final = (0x1_0000_0001, 2, 3, 4, 5, 0xFFFF_FFFF_FFFF_FFFF)
UNKNOWN: Final = 99
"""A hypercall that is always forwarded."""

MODES: Final[dict[str, dict[str, Any]]] = {
    "64-bit": {"longmode": True},
    "32-bit": {"longmode": False},
    "compat": {"longmode": False, "compat": True},
}


def create(cpu_vendor: str = "amd", vcpus: int = 1) -> UnicornVm:
    """A VM with 4 MiB whose hypercalls are intercepted."""
    shape = VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=MEMORY),),
        vcpus=tuple(VcpuShape(index=index, id=index) for index in range(vcpus)),
    )
    vm = UnicornHost(profile=LINUX_7_3).create_vm(shape, cpu_vendor=cpu_vendor)
    vm.machine.configure(HvmConfig(flags=INTERCEPT, msr=MSR))
    return vm


def call(nr: int = UNKNOWN, *, mode: str = "64-bit", cpl: int = 0, via_page: bool = False) -> GuestCall:
    """A hypercall with arguments that fill their registers."""
    return GuestCall(nr=nr, args=ARGS, cpl=cpl, via_page=via_page, **MODES[mode])


@pytest.mark.parametrize("cpu_vendor", INSTRUCTIONS)
@pytest.mark.parametrize("cpl", range(4))
@pytest.mark.parametrize("mode", MODES)
def test_a_forwarded_hypercall_arrives_with_the_guests_registers(
    mode: str, cpl: int, cpu_vendor: str
) -> None:
    """In every mode, at every level and on both vendors' CPUs, the VMM sees what the guest passed."""
    vm = create(cpu_vendor)
    seen = vm.hypercall(0, call(mode=mode, cpl=cpl)).exit
    assert seen is not None
    mask = (1 << 64) - 1 if mode == "64-bit" else U32_MAX
    assert (seen.longmode, seen.cpl, seen.input) == (int(mode == "64-bit"), cpl, UNKNOWN)
    assert seen.params == tuple(arg & mask for arg in ARGS)
    assert vm.complete(0, (1 << 64) - 38) == mask - 37


@pytest.mark.parametrize("mode", MODES)
def test_the_guest_leaves_no_mark_in_the_vms_memory(mode: str) -> None:
    """Hypercalls, interrupts and a refused MSR write leave the VM's memory all zero."""
    vm = create()
    vm.hypercall(0, call(mode=mode, cpl=3))
    vm.complete(0, 0)
    vm.machine.state.vcpus[0].irr = 1 << 0x55
    assert vm.take_interrupt(0) == 0x55
    assert not vm.wrmsr(0, MSR + 1, 0, longmode=True).ok
    assert vm.read_memory(0, MEMORY) == bytes(MEMORY)


@pytest.mark.parametrize("cpu_vendor", INSTRUCTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_a_call_through_the_page_stops_in_the_page(mode: str, cpu_vendor: str) -> None:
    """A hypercall via the page is executed at that number's stub in the VM's memory, behind `mov eax`."""
    vm = create(cpu_vendor)
    assert vm.wrmsr(0, MSR, PAGE, longmode=True).ok
    assert vm.hypercall(0, call(mode=mode, via_page=True)).exit is not None
    assert vm.cpu.rip == PAGE + 32 * UNKNOWN + 5
    assert vm.complete(0, 7) == 7


def test_the_other_vendors_instruction_is_put_right() -> None:
    """VMCALL in the page of a guest on AMD makes the hypercall, and VMMCALL stands there afterwards."""
    vm = create()
    vm.wrmsr(0, MSR, PAGE, longmode=True)
    at = PAGE + 32 * UNKNOWN + 5
    vm.write_memory(at, INSTRUCTIONS["intel"])
    assert vm.hypercall(0, call(via_page=True)).exit is not None
    assert vm.complete(0, 7) == 7
    assert vm.read_memory(at, 3) == INSTRUCTIONS["amd"]


def test_the_other_vendors_instruction_is_privileged_on_amd() -> None:
    """VMCALL above CPL 0 on AMD would be #GP, which no recorded hypercall can be."""
    vm = create()
    vm.wrmsr(0, MSR, PAGE, longmode=True)
    vm.write_memory(PAGE + 32 * UNKNOWN + 5, INSTRUCTIONS["intel"])
    with pytest.raises(HostError, match="VMCALL at CPL 3"):
        vm.hypercall(0, call(cpl=3, via_page=True))


def test_a_result_is_dropped_if_the_guest_is_elsewhere() -> None:
    """A forwarded hypercall completes only if RIP is still there: otherwise RAX stays the number."""
    vm = create()
    vm.hypercall(0, call())
    vm.cpu._rip.write([vm.cpu.rip + 3])
    assert vm.complete(0, 7) == UNKNOWN
    vm.hypercall(0, call())
    assert vm.complete(0, 7) == 7


def test_two_vcpus_wait_for_answers_at_once() -> None:
    """Each vCPU gets its own answer in its own mode, in whatever order they come."""
    vm = create(vcpus=3)
    vm.hypercall(0, call(mode="32-bit"))
    vm.hypercall(1, call(cpl=3))
    vm.machine.state.vcpus[2].irr = 1 << 0x40
    assert vm.take_interrupt(2) == 0x40
    assert vm.complete(0, (1 << 64) - 1) == U32_MAX
    assert vm.complete(1, (1 << 64) - 2) == (1 << 64) - 2


@pytest.mark.parametrize("cpl", range(4))
@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_runs_its_handler(mode: str, cpl: int) -> None:
    """The vector that is observed is the one that the guest's handler reports, in every mode and level."""
    vm = create()
    vm.hypercall(0, call(mode=mode, cpl=cpl))
    vm.complete(0, 0)
    for vector in (0x10, 0x55, 0xFF):
        vm.machine.state.vcpus[0].irr = 1 << vector
        assert vm.take_interrupt(0) == vector
    handlers = guest_image.HANDLERS_32 if mode == "32-bit" else guest_image.HANDLERS_64
    vm.cpu._image.memory[handlers + 0x55 * 16 + 1] = 0x66
    vm.cpu.flush_code()
    vm.machine.state.vcpus[0].irr = 1 << 0x55
    assert vm.take_interrupt(0) == 0x66


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("longmode", [False, True])
def test_a_refused_msr_write_is_a_fault_in_the_guest(*, longmode: bool, compat: bool) -> None:
    """The handler of #GP runs, and the guest goes on behind the WRMSR."""
    vm = create()
    assert not vm.wrmsr(0, MSR, PAGE + 1, longmode=longmode, compat=compat and longmode).ok
    assert vm.wrmsr(0, MSR, PAGE, longmode=longmode, compat=compat and longmode).ok
    assert vm.machine.state.long_mode == longmode


def test_unseen_memory_stops_nothing() -> None:
    """A hypercall that depends on memory that nobody saw has no outcome; the next one has."""
    vm = create()
    vm.machine.state.vcpus[0].timer.port = 3
    vm.machine.state.vcpus[0].xen_id = 0
    unseen = GuestCall(
        nr=24, args=(8, 0, 0x1000, 0, 0, 0), longmode=True, cpl=0, behind=(), unseen_memory=True
    )
    outcome = vm.hypercall(0, unseen)
    assert (outcome.rax, outcome.exit) == (None, None)
    seen = GuestCall(
        nr=24,
        args=(8, 0, 0x1000, 0, 0, 0),
        longmode=True,
        cpl=0,
        behind=((2, bytes(8)),),
        unseen_memory=True,
    )
    assert vm.hypercall(0, seen).rax == 0


def test_memory_without_a_gap_below_4_gib() -> None:
    """A VM whose memory covers all of 4 GiB runs too."""
    shape = VmShape(
        irqchip="none",
        memory=(MemorySlot(gpa=0, size=5 << 30),),
        vcpus=(VcpuShape(index=0, id=0),),
    )
    vm = UnicornHost(profile=LINUX_7_3).create_vm(shape)
    assert vm.hypercall(0, call()).rax is not None


def test_unaligned_memory_is_refused() -> None:
    """Memory that isn't made of pages is a HostError."""
    shape = VmShape(
        irqchip="none",
        memory=(MemorySlot(gpa=0x123, size=4096),),
        vcpus=(VcpuShape(index=0, id=0),),
    )
    with pytest.raises(HostError, match="given to Unicorn"):
        UnicornHost(profile=LINUX_7_3).create_vm(shape)


def resident_kib() -> int:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


@pytest.mark.parametrize("kept", [pool.MEMORY_KEPT, 0], ids=["engines used again", "engines closed"])
def test_a_thousand_vms_leak_nothing(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs are freed when they are dropped, without a garbage collection, and take their memory with them."""
    monkeypatch.setattr(pool, "MEMORY_KEPT", kept)
    pool._kept.clear()
    gc.disable()
    try:
        dropped = weakref.ref(create())
        assert dropped() is None
        for _ in range(50):
            create().hypercall(0, call())
        before = resident_kib()
        for _ in range(1000):
            create().hypercall(0, call())
        assert resident_kib() - before < 20 << 10
        assert len(pool._kept) == (1 if kept else 0)
        vms = [create() for _ in range(pool.KEPT + 2)]
        assert not pool._kept
        vms.clear()
        assert len(pool._kept) == (pool.KEPT if kept else 0)
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_after_rip_was_moved(mode: str) -> None:
    """A guest that the VMM moved elsewhere runs on there with RAX as it was."""
    vm = create()
    vm.hypercall(0, call(mode=mode))
    assert vm.complete(0, 7, moved=True) == UNKNOWN
    vm.hypercall(0, call(mode=mode))
    assert vm.complete(0, 7) == 7


def test_the_guest_executes_from_memory_added_later() -> None:
    """A slot that is added while the guest runs is memory for its CPU, too."""
    vm = create()
    vm.hypercall(0, call())
    vm.complete(0, 0)
    vm.add_memory(1 << 30, 0x1000)
    assert vm.wrmsr(0, MSR, 1 << 30, longmode=True).ok
    assert vm.hypercall(0, call(via_page=True)).exit is not None
    assert vm.cpu.rip == (1 << 30) + 32 * UNKNOWN + 5
    vm.remove_memory(1 << 30)
    vm.add_memory(1 << 30, 0x2000)
    assert vm.wrmsr(0, MSR, (1 << 30) + 0x1000, longmode=True).ok
    assert vm.hypercall(0, call(via_page=True)).exit is not None
    assert vm.cpu.rip == (1 << 30) + 0x1000 + 32 * UNKNOWN + 5
