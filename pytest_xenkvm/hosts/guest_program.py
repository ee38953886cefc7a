"""Guest programs: code of one's own that runs against the core, on a vCPU of the Unicorn engine.

A program starts in the mode and at the privilege level that its loader says, with interrupts disabled, all
registers 0 but RSP, and virtual = physical for 0 ... 4 GiB. Its tables (GDT, IDT, page tables, task state
segment) are the loader's until it brings its own. The VMM's answers to forwarded hypercalls come from a
function; OUT to ports 0xe9 and 0x3f8 is serial output.

The VM's clock moves by 1 ns for each instruction of a full slice and by 1 us for each stop; a halted guest
sleeps to the next timer. So a program's run is deterministic.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from mmap import mmap
from typing import Final

from attrs import Factory, asdict, define, evolve, field

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX
from pytest_xenkvm.core import timer
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercall_page import MsrWrite
from pytest_xenkvm.core.hypercalls import HypercallRegisters
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import LINUX_7_3, HostLimits, Profile
from pytest_xenkvm.core.state import VcpuState
from pytest_xenkvm.cpu import paging
from pytest_xenkvm.cpu.engine import PRIVATE_BASE, Engine, EngineError, Stop
from pytest_xenkvm.cpu.unicorn_api import UnicornError
from pytest_xenkvm.cpu.vcpu import RAX, RBP, RBX, RCX, RDI, RDX, RFLAGS_RESET, RSI, RSP, Vcpu
from pytest_xenkvm.hosts import elf, guest_cpuid, guest_msrs
from pytest_xenkvm.hosts.emulated import EmulatedVm, create_machine, map_slots
from pytest_xenkvm.hosts.guest_image import GuestImage, Mode
from pytest_xenkvm.hosts.hypercall_pages import INSTRUCTIONS
from pytest_xenkvm.hosts.program_parts import (
    REAL_MODE,
    KernelClock,
    Pointers,
    ProgramMemory,
    SerialOutput,
    VmmClock,
    read_port,
)
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.hosts.replay_guest import replay_image
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    HypercallExit,
    Irq,
    VmShape,
    Wrmsr,
)

Answer = Callable[[int, XenExit], int]
"""Answers a forwarded hypercall of a vCPU (its index): the guest's RAX."""

SLICE: Final = 10_000
"""Instructions that run before the clock moves and interrupts are looked for."""
STOP_NS: Final = 1_000
_R8, _R9, _R10 = 8, 9, 10
_ARGUMENTS_64: Final = (RDI, RSI, RDX, _R10, _R8, _R9)
_ARGUMENTS_32: Final = (RBX, RCX, RDX, RSI, RDI, RBP)
_TRAP_SIZE: Final = 3
_TWO_BYTES: Final = 2
_LONG_BITS: Final = 64
STACK: Final = 0x8000
"""RSP of a program when it starts."""
_RDMSR: Final = b"\x0f\x32"


class Ended(Enum):
    """How a run ended."""

    HALTED = "halted with nothing to wake it"
    LIMIT = "reached its instruction limit"
    SHUTDOWN = "shut down: an exception could not be delivered"
    UNHANDLED = "took an exception or interrupt without a handler of its own"
    STUCK = "can't go on"


@define(eq=False)
class ProgramVm(EmulatedVm):
    """A VM whose first vCPU runs a program; its ioctls are those of the emulated host."""

    image: GuestImage = field(kw_only=True)
    cpu: Vcpu = field(kw_only=True)
    shape: VmShape = field(kw_only=True)
    serial: bytearray = field(factory=bytearray, init=False)
    events: list[Event] = field(factory=list, init=False)
    """What the program did: hypercalls, MSR writes, interrupts that it took, in order."""
    msrs: dict[int, int] = field(factory=dict, init=False)
    stuck_because: str = field(default="", init=False)
    """What the engine said about the run that ended as `Ended.STUCK`."""
    _clock: VmmClock = field(init=False)
    _pointers: Pointers = field(init=False, default=Factory(lambda self: Pointers(self.cpu), takes_self=True))
    """What the program's last hypercall points at."""

    @classmethod
    def create(
        cls,
        shape: VmShape,
        *,
        profile: Profile = LINUX_7_3,
        limits: HostLimits | None = None,
        cpu_vendor: str = "amd",
    ) -> ProgramVm:
        """A VM of that shape; raises HostError if its memory can't be had."""
        slots = map_slots(shape.memory)
        machine = create_machine(profile, limits or HostLimits(), shape, slots, cpu_vendor=cpu_vendor)
        memory = machine.state.memory
        image = replay_image(memory.slots, cpu_vendor)
        try:
            engine = Engine()
            engine.map(PRIVATE_BASE, image.memory)
            for gpa, buffer in slots:
                engine.map(gpa, buffer)
        except UnicornError as error:
            raise HostError(f"the guest's memory can't be given to Unicorn: {error}") from error
        cpu = Vcpu(engine, ProgramMemory(memory, image), image.state(Mode.LONG, 0), rip=0)
        vm = cls(machine, image=image, cpu=cpu, shape=shape)
        engine.unicorn.hook_ports(read_port, SerialOutput(vm.serial).write)
        return vm

    def share(self, gpa: int, buffer: mmap) -> None:  # noqa: D102 - `EmulatedVm` says it
        self.cpu.engine.map(gpa, buffer)

    @property
    def calls(self) -> list[Hypercall]:
        """The hypercalls that the program made."""
        return [event for event in self.events if isinstance(event, Hypercall)]

    @property
    def interrupts(self) -> list[int]:
        """The vectors that the program took."""
        return [event.vector for event in self.events if isinstance(event, Irq)]

    def trace_header(self, *, notes: str = "") -> Header:
        """The header of a trace of `events`: the guest's side of the run, for a replay with a VMM behaviour.

        Stores to memory are not in it; what hypercalls point at is with the calls.
        """
        state = self.machine.state
        return Header(
            max_vcpus=state.limits.max_vcpus,
            cpu_vendor=state.cpu_vendor,
            recorder="replay",
            scope="hypercalls",
            vm=self.shape,
            notes=notes,
            unseen=("mem",),
        )

    def read_virtual(self, vcpu: int, gva: int, size: int) -> bytes | None:
        """By the program's page tables; vCPUs that run no program have none."""
        return self.read_memory(gva, size) if vcpu else self._pointers.read(gva, size, size)

    def write_virtual(self, vcpu: int, gva: int, data: bytes) -> bool:
        """Likewise; False, and nothing stored, if not all of it is mapped."""
        return self.write_memory(gva, data) if vcpu else self._pointers.write(gva, data)

    def translate(self, vcpu: int, gva: int) -> int | None:
        """Likewise."""
        gpa = gva if vcpu else self.cpu.translate(gva)
        return None if gpa is None or self.read_memory(gpa, 1) is None else gpa

    def load(
        self, code: bytes, at: int, *, mode: Mode | None = Mode.LONG, cpl: int = 0, entry: int | None = None
    ) -> None:
        """Put `code` at a guest address and start there (or at `entry`); `mode` None is 16-bit real mode."""
        self.write_memory(at, code)
        self.cpu.engine.unicorn.flush_code()
        state = REAL_MODE if mode is None else self.image.state(mode, cpl)
        self.cpu.state = evolve(state, rflags=RFLAGS_RESET)
        self.cpu.rip = at if entry is None else entry
        self.cpu.general = [0] * len(self.cpu.general)
        self.cpu.general[RSP] = STACK

    def load_elf(self, file: bytes, *, cpl: int = 0) -> None:
        """Load an ELF executable, to start in 64-bit or 32-bit mode as it is; raises ElfError."""
        end = max((slot.end for slot in self.machine.state.memory.slots), default=0)
        loaded = elf.parse(file, memory=end)
        for address, data in loaded.segments:
            if not self.write_memory(address, data):
                raise elf.ElfError(f"has a segment at {address:#x} where the guest has no memory")
        mode = Mode.LONG if loaded.bits == _LONG_BITS else Mode.PROTECTED
        self.load(b"", loaded.entry, mode=mode, cpl=cpl)

    def run_program(self, answer: Answer, *, limit: int = 1_000_000, clock: VmmClock | None = None) -> Ended:
        """Run up to about `limit` instructions; `clock` is by default the kernel's alone."""
        vcpu, self._clock = self.machine.state.vcpus[0], clock or KernelClock(self.machine)
        try:
            while limit > 0:
                self.machine.enter(vcpu)
                count = self._take_interrupt(vcpu)
                stop = self.cpu.run(min(count, limit))
                spent = count if stop == Stop.LIMIT else STOP_NS
                limit -= spent if stop == Stop.LIMIT else 1
                self._clock.pass_time(ns=spent)
                ended = self._serve(stop, vcpu, answer)
                if ended is not None:
                    return ended
        except EngineError as error:
            self.stuck_because = str(error)
            return Ended.STUCK
        return Ended.LIMIT

    def _take_interrupt(self, vcpu: VcpuState) -> int:
        """Deliver what is pending if the program lets it: how many instructions to run then."""
        if self.machine.next_vector(vcpu) is None:
            return SLICE
        if not self.cpu.takes_interrupts:
            return 1
        vector = self.machine.take_vector(vcpu)
        if vector is not None:
            self.events.append(Irq(ts=self.machine.state.now, vcpu=vcpu.index, vector=vector))
            self.cpu.interrupt(vector)
        return SLICE

    def _serve(self, stop: int, vcpu: VcpuState, answer: Answer) -> Ended | None:
        if stop == Stop.LIMIT:
            return None
        if stop == Stop.VMMCALL:
            self._hypercall(vcpu, answer)
            return None
        handlers: dict[int, Callable[[VcpuState], Ended | None]] = {
            Stop.HLT: self._halt,
            Stop.MSR: self._access_msr,
            Stop.CPUID: self._cpuid,
            Stop.RDTSC: self._rdtsc,
        }
        return handlers[stop](vcpu) if stop in handlers else Ended.SHUTDOWN

    def _hypercall(self, vcpu: VcpuState, answer: Answer) -> None:
        cpu = self.cpu
        if not self._fix_instruction():
            return
        long = cpu.state.executes_64_bit
        a0, a1, a2, a3, a4, a5 = (cpu.general[n] for n in (_ARGUMENTS_64 if long else _ARGUMENTS_32))
        registers = HypercallRegisters(cpu.general[RAX], (a0, a1, a2, a3, a4, a5), long, cpu.state.cpl)
        pointers = self._pointers = Pointers(cpu)
        where = cpu.linear_rip
        outcome = self.machine.hypercall(vcpu, registers, pointers.read, linear_rip=where)
        handled = isinstance(outcome, int)
        result = outcome if isinstance(outcome, int) else answer(vcpu.index, outcome)
        if handled or self.machine.complete_hypercall(vcpu, linear_rip=cpu.linear_rip):
            cpu.general[RAX] = result & (U64_MAX if long else U32_MAX)
            cpu.skip(_TRAP_SIZE)
        seen = registers.seen_by_kernel()
        self.events.append(
            Hypercall(
                ts=self.machine.state.now,
                vcpu=vcpu.index,
                longmode=long,
                cpl=seen.cpl,
                nr=seen.nr,
                args=seen.args,
                handled="kernel" if handled else "userspace",
                exit=None if isinstance(outcome, int) else HypercallExit(**asdict(outcome)),
                rax=cpu.general[RAX],
                behind=pointers.behind(seen.args),
                compat=cpu.state.long_mode_active and not long,
            )
        )
        self._clock.react()

    def _fix_instruction(self) -> bool:
        """The other vendor's instruction is put right (`em_hypercall`); False: it faults instead."""
        native, found = INSTRUCTIONS[self.machine.state.cpu_vendor], self.cpu.code(_TRAP_SIZE)
        if found == native:
            return True
        if found == INSTRUCTIONS["intel"] and self.cpu.state.cpl:
            self.cpu.fault(Stop.GENERAL_PROTECTION)
            return False
        if found == INSTRUCTIONS["amd"] and not self.cpu.state.cr0 & paging.CR0_PE:
            self.cpu.fault(Stop.INVALID_OPCODE)
            return False
        gpa = self.cpu.translate(self.cpu.linear_rip, write=True)
        if gpa is None or not self.cpu.memory.write(gpa, native):
            self.cpu.fault(Stop.INVALID_OPCODE)
            return False
        self.cpu.engine.unicorn.flush_code()
        return True

    def _halt(self, vcpu: VcpuState) -> Ended | None:
        if self.image.holds(self.cpu.linear_rip):
            return Ended.UNHANDLED
        self.cpu.skip(1)
        if not self.cpu.takes_interrupts:
            return Ended.HALTED
        while self.machine.next_vector(vcpu) is None:
            deadlines = (timer.next_deadline(self.machine.state), self._clock.next_timer())
            deadline = min((due for due in deadlines if due is not None), default=None)
            if deadline is None:
                return Ended.HALTED
            self._clock.pass_time(until=deadline)
            self.machine.enter(vcpu)
        return None

    def _access_msr(self, vcpu: VcpuState) -> None:
        reads = self.cpu.code(_TWO_BYTES) == _RDMSR
        if self._read_msr() if reads else self._write_msr(vcpu):
            self.cpu.skip(_TWO_BYTES)
        else:
            self.cpu.fault(Stop.GENERAL_PROTECTION)

    def _read_msr(self) -> bool:
        value = guest_msrs.read(self.cpu, self.msrs, self.cpu.general[RCX] & U32_MAX)
        if value is not None:
            self._set_edx_eax(value)
        return value is not None

    def _write_msr(self, vcpu: VcpuState) -> bool:
        general = self.cpu.general
        number, value = general[RCX] & U32_MAX, (general[RDX] & U32_MAX) << 32 | general[RAX] & U32_MAX
        if guest_msrs.write(self.cpu, self.msrs, number, value):
            return True
        long = self.cpu.state.long_mode_active
        ok = self._write_xen_msr(vcpu, number, value)
        compat = long and not self.cpu.state.executes_64_bit
        self.events.append(
            Wrmsr(
                ts=self.machine.state.now,
                vcpu=vcpu.index,
                longmode=long,
                msr=number,
                value=value,
                ok=ok,
                compat=compat,
            )
        )
        return ok

    def _write_xen_msr(self, vcpu: VcpuState, number: int, value: int) -> bool:
        lma = self.cpu.state.long_mode_active
        try:
            done = self.machine.wrmsr(vcpu, number, value, long_mode_active=lma) is MsrWrite.OK
        except KvmError:
            done = False
        self.cpu.engine.unicorn.flush_code()
        return done

    def _cpuid(self, vcpu: VcpuState) -> None:
        general = self.cpu.general
        leaf = guest_cpuid.leaf(self.machine.state, vcpu, general[RAX] & U32_MAX)
        general[RAX], general[RBX], general[RCX], general[RDX] = leaf
        self.cpu.skip(_TWO_BYTES)

    def _rdtsc(self, _vcpu: VcpuState) -> None:
        self._set_edx_eax(self.machine.state.now)
        self.cpu.skip(_TWO_BYTES)

    def _set_edx_eax(self, value: int) -> None:
        self.cpu.general[RAX], self.cpu.general[RDX] = value & U32_MAX, value >> 32
