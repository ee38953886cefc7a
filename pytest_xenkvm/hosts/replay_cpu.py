"""A CPU that makes one recorded hypercall, MSR write or interrupt after the other in the replay guest.

All vCPUs of a VM share it: between two events a vCPU is parked, and nothing of it is kept but its mode and
privilege level. Only a vCPU that waits for the answer to a forwarded hypercall keeps its CPU state.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import Final, NamedTuple

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX
from pytest_xenkvm.core.hypercalls import HypercallRegisters
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.cpu import paging
from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu.engine import (
    PRIVATE_BASE,
    STUB_INSTRUCTIONS,
    ControlBlock,
    Engine,
    Start,
    Stop,
)
from pytest_xenkvm.cpu.vmcb import EFER_LMA
from pytest_xenkvm.hosts import replay_guest
from pytest_xenkvm.hosts.guest_image import Mode
from pytest_xenkvm.hosts.hypercall_pages import INSTRUCTIONS
from pytest_xenkvm.hosts.protocol import HostError

_LIMIT: Final = 100
"""Instructions that the replay guest may execute at a time; its longest way is below ten."""
_TRAP_SIZE: Final = 3
_WRMSR_SIZE: Final = 2
_HLT_SIZE: Final = 1


class Parked(NamedTuple):
    """A vCPU between events."""

    vcpu: int
    mode: Mode = Mode.LONG
    cpl: int = 0


class MsrWriteRegisters(NamedTuple):
    """A WRMSR as the CPU has it."""

    msr: int
    value: int
    long_mode_active: bool


class ReplayCpu:
    """The CPU, the replay guest on it, and where each vCPU is parked."""

    def __init__(self, buffers: Sequence[tuple[int, mmap]], memory: GuestMemory, cpu_vendor: str) -> None:
        """Share `buffers`, which back `memory`, with the guest; raises UnicornError if that can't be."""
        self._engine = Engine()
        self._memory = memory
        self._image = replay_guest.replay_image(memory.slots, cpu_vendor)
        self._native = INSTRUCTIONS[cpu_vendor]
        self._engine.map(PRIVATE_BASE, self._image.memory)
        for gpa, buffer in buffers:
            self.share(gpa, buffer)
        registers = self._engine.unicorn.registers
        self._arguments = {
            True: registers(api.RDI, api.RSI, api.RDX, api.R10, api.R8, api.R9),
            False: registers(api.RBX, api.RCX, api.RDX, api.RSI, api.RDI, api.RBP),
        }
        self._call = {
            True: registers(api.RIP, api.RAX, api.RDI, api.RSI, api.RDX, api.R10, api.R8, api.R9),
            False: registers(api.RIP, api.RAX, api.RBX, api.RCX, api.RDX, api.RSI, api.RDI, api.RBP),
        }
        self._msr = registers(api.RCX, api.RDX)
        self._msr_write = registers(api.RCX, api.RAX, api.RDX)
        self._rax = registers(api.RAX)
        self._rip = registers(api.RIP)
        self._stack = registers(api.RSP, api.RIP)
        self._controls: dict[tuple[Mode, int], ControlBlock] = {}
        self._parked: dict[int, Parked] = {}
        self._current = Parked(0)
        self._loaded: ControlBlock | None = None
        """The CPU state that the engine is in."""
        self._waiting: int | None = None
        """The vCPU that waits for an answer with its state in the engine."""
        self._saved: dict[int, tuple[Parked, api.Context]] = {}
        """vCPUs that wait for an answer while the engine runs others."""

    @property
    def rip(self) -> int:
        """Linear RIP now."""
        return self._rip.read()[0]

    def share(self, gpa: int, buffer: mmap) -> None:
        """Let the guest have that memory; raises HostError if it can't address all of it."""
        if gpa < PRIVATE_BASE < gpa + len(buffer):
            raise HostError(f"the guest's memory at {gpa:#x} is larger than Unicorn's CPU can address")
        if gpa < PRIVATE_BASE:
            self._engine.map(gpa, buffer)

    def unshare(self, gpa: int) -> None:
        """Take the memory away that `share` gave at that address."""
        if gpa < PRIVATE_BASE:
            self._engine.unmap(gpa)

    def move(self) -> None:
        """Set RIP to code that does nothing."""
        self._rip.write([self._image.at(replay_guest.IDLE)])

    def call(
        self, parked: Parked, nr: int, args: tuple[int, int, int, int, int, int], stub: int | None
    ) -> tuple[HypercallRegisters, int]:
        """Make a hypercall with these registers, by calling `stub` if given.

        What the CPU stops with, and its linear RIP then.
        """
        long = parked.mode is Mode.LONG
        others = (self._arguments[long], args)
        if stub is None:
            stop = self._enter(parked, replay_guest.HYPERCALL, nr, others)
        else:
            stop = self._enter(parked, replay_guest.CALL_PAGE, stub, others)
        if stop not in (Stop.VMMCALL, Stop.INVALID_OPCODE):
            raise HostError(f"the replay guest made no hypercall but stopped with {stop} at {self.rip:#x}")
        if stub is not None:
            self._fix_instruction()
        rip, rax, a0, a1, a2, a3, a4, a5 = self._call[long].read()
        return HypercallRegisters(rax, (a0, a1, a2, a3, a4, a5), long, parked.cpl), rip

    def answer(self, result: int, rip: int) -> int:
        """The hypercall at `rip` is done: RAX is `result`, RIP moves on. The guest's RAX, as `go_on`."""
        self._rax.write([result])
        return self.go_on(rip + _TRAP_SIZE)

    def go_on(self, rip: int) -> int:
        """Let the guest run from `rip` until it is parked: its RAX (EAX in 32-bit mode) then."""
        self._waiting = None
        self._run_to_park(self._engine.resume(rip, count=_LIMIT))
        return self._rax.read()[0] & (U64_MAX if self._current.mode is Mode.LONG else U32_MAX)

    def wait(self, vcpu: int) -> None:
        """The hypercall of this vCPU was forwarded."""
        self._waiting = vcpu

    def continue_waiting(self, vcpu: int) -> None:
        """Bring the CPU state of a vCPU back that waits for an answer."""
        if self._waiting == vcpu:
            return
        self._keep_waiting()
        parked, context = self._saved.pop(vcpu)
        context.restore()
        self._current, self._waiting, self._loaded = parked, vcpu, self._control(parked)

    def write_msr(self, parked: Parked, msr: int, value: int) -> MsrWriteRegisters:
        """Execute WRMSR: what the CPU stops with."""
        others = (self._msr, (msr, value >> 32))
        stop = self._enter(parked, replay_guest.WRMSR, value & U32_MAX, others)
        if stop != Stop.MSR:
            raise HostError(f"the replay guest wrote no MSR but stopped with {stop} at {self.rip:#x}")
        rcx, rax, rdx = self._msr_write.read()
        state = self._controls[parked.mode, parked.cpl].state
        return MsrWriteRegisters(
            rcx & U32_MAX, (rdx & U32_MAX) << 32 | rax & U32_MAX, bool(state.efer & EFER_LMA)
        )

    def skip_msr_write(self) -> None:
        """The WRMSR is done: RIP moves on."""
        self._run_to_park(self._engine.resume(self.rip + _WRMSR_SIZE, count=_LIMIT))

    def fault_msr_write(self) -> bool:
        """The WRMSR raises #GP: whether the guest took it."""
        taken = self._take(self._current, self.rip, Stop.GENERAL_PROTECTION, error=0)
        return taken == Stop.GENERAL_PROTECTION

    def interrupt(self, vcpu: int, vector: int) -> int:
        """Deliver an interrupt to a parked vCPU: the vector whose handler ran."""
        parked = self._parked.get(vcpu) or Parked(vcpu)
        return self._take(parked, self._image.at(replay_guest.IDLE), vector, error=None)

    def translate(self, linear: int) -> int | None:
        """The physical address behind a linear one by the page tables of the guest that runs now."""
        return paging.translate(self._control(self._current).state, linear, self._read_physical)

    def flush_code(self) -> None:
        """Code in the VM's memory has changed."""
        self._engine.unicorn.flush_code()

    def _control(self, parked: Parked) -> ControlBlock:
        key = parked.mode, parked.cpl
        if key not in self._controls:
            self._controls[key] = ControlBlock.of(self._image.state(*key))
        return self._controls[key]

    def _keep_waiting(self) -> None:
        if self._waiting is not None:
            self._saved[self._waiting] = self._current, self._engine.unicorn.save()
            self._waiting = None

    def _enter(self, parked: Parked, code: int, rax: int, others: tuple[api.Registers, Sequence[int]]) -> int:
        self._keep_waiting()
        self._current = self._parked[parked.vcpu] = parked
        start = Start(self._image.at(code), self._image.stack(parked.vcpu), rax, others)
        control = self._control(parked)
        if control is self._loaded:
            return self._engine.restart(start, count=_LIMIT)
        self._loaded = control
        return self._engine.enter(control, start, count=_LIMIT)

    def _take(self, parked: Parked, rip: int, vector: int, *, error: int | None) -> int:
        """Enter the guest at `rip` with an interrupt or exception: the vector whose handler ran."""
        self._keep_waiting()
        self._current, self._loaded = parked, None
        start = Start(rip, self._image.stack(parked.vcpu), vector=vector)
        count = STUB_INSTRUCTIONS if error is not None else _LIMIT
        stop = self._engine.enter(self._control(parked), start, count=count)
        word = 4 if parked.mode is Mode.PROTECTED else 8
        if error is not None:
            rsp, rip = self._stack.read()
            self._stack.write([self._image.push(rsp, error, word), rip])
            stop = self._engine.resume(rip, count=_LIMIT)
        if stop != Stop.HLT:
            raise HostError(f"the replay guest took vector {vector} and stopped with {stop} at {self.rip:#x}")
        rsp, rip = self._stack.read()
        taken = self._image.read_stack(rsp, word)
        self._run_to_park(self._engine.resume(rip + _HLT_SIZE, count=_LIMIT))
        return taken

    def _run_to_park(self, stop: int) -> None:
        """The guest ran until it stopped with `stop`, which must be the CPUID at which it is parked."""
        if stop != Stop.CPUID:
            raise HostError(f"the replay guest is lost: it stopped with {stop} at {self.rip:#x}")

    def _read_physical(self, address: int, size: int) -> bytes | None:
        return self._image.read_physical(address, size) or self._memory.read(address, size)

    def _fix_instruction(self) -> None:
        """Where the guest's page has the other vendor's instruction, KVM puts the right one in its place.

        (`em_hypercall`, `emulator_fix_hypercall`; all supported kernels.) VMCALL on AMD counts as privileged.
        """
        gpa = self.translate(self.rip)
        found = None if gpa is None else self._memory.read(gpa, _TRAP_SIZE)
        if gpa is None or found == self._native:
            return
        if found == INSTRUCTIONS["intel"] and self._current.cpl:
            raise HostError(f"the guest executes VMCALL at CPL {self._current.cpl} on AMD: #GP on real hosts")
        self._memory.write(gpa, self._native)
        self.flush_code()
