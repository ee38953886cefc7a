"""An engine: one Unicorn CPU that runs guests as AMD-V's guest mode.

A tiny host stub executes VMLOAD and VMRUN once for each change of CPU state. What the guest then does that
concerns its host stops the run: `Stop.VMMCALL`, `CPUID`, `HLT`, `RDTSC` and `MSR` by AMD-V's intercepts, the
guest's exceptions by their vectors. RIP stays at the intercepted instruction. VMCALL, which this CPU doesn't
have, is an invalid opcode. After INT n and INT3, RIP is behind the instruction.

After an exception the guest must be entered anew: Unicorn doesn't deliver it, so that it would take the next
one for a double fault, and after INT n it would show every later stop at the RIP of that one.

Physical addresses from `PRIVATE_BASE` up to 2^40, where the physical address space of this CPU ends, belong
to the engine and to whoever drives it; a guest's memory lies below.
"""

from __future__ import annotations

from collections.abc import Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final, NamedTuple

from attrs import frozen

from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu import vmcb
from pytest_xenkvm.cpu.vmcb import CpuState

PRIVATE_SIZE: Final = 2 << 20
PHYSICAL_LIMIT: Final = 1 << 40
PRIVATE_BASE: Final = PHYSICAL_LIMIT - 2 * PRIVATE_SIZE
"""Where a driver may map `PRIVATE_SIZE` bytes of its own."""
_CONTROL_BASE: Final = PRIVATE_BASE + PRIVATE_SIZE
"""The engine's own pages, here by offset."""
_STUB: Final = 0x0000
_VMCB: Final = 0x1000
_HOST_SAVE: Final = 0x2000
_MSRPM: Final = 0x4000
_MSRPM_SIZE: Final = 0x2000
_IOPM: Final = 0x8000
_CONTROL_SIZE: Final = 0x10000

_VMLOAD_VMRUN: Final = b"\x0f\x01\xda\x0f\x01\xd8"
_CR4_PAE: Final = 1 << 5
_EVENTS: Final = 0x100
"""Unicorn shows an SVM exit code with this added."""
STUB_INSTRUCTIONS: Final = 2
"""How many instructions of an instruction limit `enter` takes for itself."""


class Stop:
    """Why a run stopped: an exception's vector (0 ... 255), or one of these."""

    VMMCALL: Final = _EVENTS + vmcb.EXIT_VMMCALL
    CPUID: Final = _EVENTS + vmcb.EXIT_CPUID
    HLT: Final = _EVENTS + vmcb.EXIT_HLT
    RDTSC: Final = _EVENTS + vmcb.EXIT_RDTSC
    MSR: Final = _EVENTS + vmcb.EXIT_MSR
    SHUTDOWN: Final = _EVENTS + vmcb.EXIT_SHUTDOWN
    LIMIT: Final = -1
    """The instruction limit."""

    INVALID_OPCODE: Final = 6
    GENERAL_PROTECTION: Final = 13
    PAGE_FAULT: Final = 14


class EngineError(Exception):
    """The engine can't go on, say because the guest touched memory that isn't there."""


@frozen
class ControlBlock:
    """A CPU state, ready to be entered."""

    state: CpuState
    block: bytearray

    @classmethod
    def of(cls, state: CpuState) -> ControlBlock:
        """Prepare `state`; every MSR access of the guest stops it."""
        return cls(state, vmcb.pack(state, iopm=_CONTROL_BASE + _IOPM, msrpm=_CONTROL_BASE + _MSRPM))


class Start(NamedTuple):
    """Where a guest starts, and with what in its registers (u64 each)."""

    rip: int
    rsp: int
    rax: int = 0
    others: tuple[api.Registers, Sequence[int]] | None = None
    """General registers besides RAX and RSP; those not in it are 0."""
    vector: int | None = None
    """The interrupt that it takes first."""


class Engine:
    """Runs guests, one at a time."""

    def __init__(self) -> None:
        self.unicorn = api.Unicorn()
        # Private: a process that is forked while the engine is in use has its own.
        self._control = mmap(-1, _CONTROL_SIZE, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._control[_STUB : _STUB + len(_VMLOAD_VMRUN)] = _VMLOAD_VMRUN
        self._control[_MSRPM : _MSRPM + _MSRPM_SIZE] = b"\xff" * _MSRPM_SIZE
        self.unicorn.map(_CONTROL_BASE, self._control)
        cr4 = self.unicorn.registers(api.CR4)
        cr4.write([cr4.read()[0] | _CR4_PAE])
        self.unicorn.write_msr(api.MSR_EFER, self.unicorn.read_msr(api.MSR_EFER) | vmcb.EFER_SVME)
        self.unicorn.write_msr(api.MSR_VM_HSAVE_PA, _CONTROL_BASE + _HOST_SAVE)
        self._host = self.unicorn.save()
        self._host_rax = self.unicorn.registers(api.RAX)
        self._stack = self.unicorn.registers(api.RAX, api.RSP)
        self._rip = self.unicorn.registers(api.RIP)

    def map(self, address: int, memory: mmap) -> None:
        """Share `memory` with the guest at a physical address below `PHYSICAL_LIMIT`, both page-aligned."""
        self.unicorn.map(address, memory)

    def unmap(self, address: int) -> None:
        """Take what was mapped there away."""
        self.unicorn.unmap(address)

    def enter(self, control: ControlBlock, start: Start, *, count: int) -> int:
        """Load a CPU state and run it for `count` instructions at the most: why it stopped."""
        self._host.restore()
        vmcb.set_registers(control.block, rip=start.rip, rsp=start.rsp, rax=start.rax, vector=start.vector)
        self._control[_VMCB : _VMCB + vmcb.SIZE] = control.block
        if start.others is not None:
            registers, values = start.others
            registers.write(values)
        self._host_rax.write([_CONTROL_BASE + _VMCB])
        return self._run(_CONTROL_BASE + _STUB, count)

    def restart(self, start: Start, *, count: int) -> int:
        """Like `enter`, in the CPU state that the guest is in: only RIP and general registers change.

        `start.vector` is not delivered.
        """
        self._stack.write([start.rax, start.rsp])
        if start.others is not None:
            registers, values = start.others
            registers.write(values)
        return self._run(start.rip, count)

    def resume(self, rip: int, *, count: int) -> int:
        """Let the guest go on at `rip`: why it stopped."""
        return self._run(rip, count)

    def _run(self, rip: int, count: int) -> int:
        error = self.unicorn.start(rip, count)
        if self.unicorn.interrupts:
            return self.unicorn.interrupts[0]
        if error == api.OK:
            return Stop.LIMIT
        if error == api.ERR_INSN_INVALID:
            return Stop.INVALID_OPCODE
        self.unicorn.use_up()
        raise EngineError(f"the guest can't go on at {self._rip.read()[0]:#x}: {api.describe(error)}")
