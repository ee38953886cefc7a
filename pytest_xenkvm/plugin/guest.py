"""Guest programs in users' tests: the fixture `xenkvm_guest` and what it hands out.

Importing this module loads Unicorn; only the fixture does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import pytest
from attrs import define, field, frozen

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import HostLimits
from pytest_xenkvm.cpu.vcpu import RSP
from pytest_xenkvm.hosts.assembler import AssemblyError, assemble, is_installed
from pytest_xenkvm.hosts.elf import ElfError
from pytest_xenkvm.hosts.guest_image import Mode
from pytest_xenkvm.hosts.guest_program import Ended, ProgramVm
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.plugin.replays import check_behaviour
from pytest_xenkvm.plugin.session import hooked_profiles, settings
from pytest_xenkvm.plugin.shapes import check_vendor, plain_shape
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.vmm_side import VmmSide
from pytest_xenkvm.rules.hosts import EMULATED
from pytest_xenkvm.rules.profiles import choose_profile
from pytest_xenkvm.trace import write_trace
from pytest_xenkvm.trace.events import Event, Header, Hypercall
from pytest_xenkvm.vmm.behaviour import Vmm, VmmBehaviour
from pytest_xenkvm.vmm.calling import Calls
from pytest_xenkvm.vmm.handles import Vm

START: Final = 0x1000
"""Where a program is loaded unless the test says otherwise (guest address)."""
_PRIVILEGE_LEVELS: Final = 4
_VECTOR_SIZE: Final = 4
"""What the handlers of a program without its own push last, whatever the width of a word."""
_REAL_BITS: Final = 16
_MODES: Final = {
    (64, False): Mode.LONG,
    (32, False): Mode.PROTECTED,
    (32, True): Mode.COMPAT,
    (_REAL_BITS, False): None,
}
"""By the bits of the code, and whether it is 32-bit code of a 64-bit guest."""


class Registers(NamedTuple):
    """The registers of a vCPU, u64 each."""

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


@frozen
class Guests:
    """Creates guests for a test. Relative paths are looked up in the folder of its file."""

    request: pytest.FixtureRequest
    vmm: VmmBehaviour | None
    """The behaviour that guests get unless the test says otherwise."""

    def __call__(  # noqa: PLR0913 - all of them optional
        self,
        *,
        vmm: VmmBehaviour | None = None,
        profile: str | None = None,
        vcpus: int = 1,
        memory: int = 4 << 20,
        irqchip: str = "split",
        cpu_vendor: str = "amd",
    ) -> Guest:
        """A VM with `memory` bytes at guest address 0, configured by the VMM behaviour.

        `vmm` is by default the fixture `xenkvm_vmm`; if that is None, nothing is configured and every
        forwarded hypercall is answered with -ENOSYS. `profile` is by default what the options say; "auto"
        is the newest kernel. Guest code runs on the first of the `vcpus`; the rest is as for `create_vm` of
        `xenkvm_host`. Raises ValueError for what can be no VM, ReplayError for another profile, HostError if
        the memory can't be had or --xenkvm-host isn't the emulated one, and what the behaviour raises.
        """
        behaviour = vmm or self.vmm
        check_behaviour(behaviour)
        limit = HostLimits().max_vcpus
        shape = plain_shape(vcpus=vcpus, memory=memory, irqchip=irqchip, max_vcpus=limit)
        check_vendor(cpu_vendor)
        config = self.request.config
        if settings(config).host != EMULATED:
            raise HostError(
                "xenkvm_guest runs guest code on the emulated host only: leave --xenkvm-host=kvm out"
            )
        known = hooked_profiles(config, self.request.node.ihook)
        kernel = choose_profile(profile or settings(config).profile, Header(), known)
        program = ProgramVm.create(shape, profile=kernel, cpu_vendor=cpu_vendor)
        vm, calls = Vm.on(program, shape), Calls(behaviour or Vmm())
        self.request.addfinalizer(calls.close)
        guest = Guest(program, VmmSide(vm, program, calls), self.request.path.parent)
        guest.side.configure()
        return guest


@define(eq=False)
class Guest:
    """A VM that runs guest code on its first vCPU.

    A program starts with interrupts disabled, all registers 0 but RSP (0x8000), virtual = physical below
    4 GiB, and descriptor tables whose handlers end the run, until it brings its own.
    """

    program: ProgramVm
    side: VmmSide
    _folder: Path
    ended: Ended | None = field(default=None, init=False)
    """How the last run ended."""

    @property
    def vmm(self) -> VmmBehaviour:
        """The VMM behaviour."""
        return self.side.calls.behaviour

    @property
    def vm(self) -> Vm:
        """The VMM's handles on the VM, as the behaviour has them."""
        return self.side.vm

    def load(
        self, code: bytes, *, at: int = START, bits: int = 64, compat: bool = False, cpl: int = 0
    ) -> None:
        """Put machine code at a guest address and start there.

        `bits`: 64, 32 (with `compat`, 32-bit code of a 64-bit guest) or 16 (real mode). `cpl`: the privilege
        level, 0 ... 3; in real mode there is none but 0. Raises ValueError where there is no memory.
        """
        mode = _mode(bits, compat=compat, cpl=cpl)
        self._check_memory(at, len(code))
        self.program.load(code, at, mode=mode, cpl=cpl)

    def load_assembly(
        self, text: str, *, at: int = START, bits: int = 64, compat: bool = False, cpl: int = 0
    ) -> None:
        """Assemble text (GNU as, Intel syntax without prefixes) and load it as `load` does.

        Skips the test where GNU binutils aren't installed. Raises AssemblyError with what the assembler says.
        """
        __tracebackhide__ = True
        _mode(bits, compat=compat, cpl=cpl)
        if not is_installed():
            pytest.skip("no assembler: needs as and ld of GNU binutils (Debian: binutils)")
        try:
            code = assemble(text, at=at, bits=bits)
        except AssemblyError as error:
            raise error.with_traceback(None) from None
        self.load(code, at=at, bits=bits, compat=compat, cpl=cpl)

    def load_elf(self, file: str | Path, *, cpl: int = 0) -> None:
        """Load an ELF executable (i386 or x86-64) by its physical addresses and start at its entry.

        A relative path is looked up beside the test file. Raises OSError and ElfError.
        """
        path = self._folder / file
        _check_cpl(cpl)
        try:
            self.program.load_elf(path.read_bytes(), cpl=cpl)
        except ElfError as error:
            raise ElfError(f"{path}: {error}") from error

    def run(self, *, limit: int = 1_000_000) -> Ended:
        """Run up to about `limit` instructions, from where the last run ended: how it ended.

        Forwarded hypercalls, timers that the behaviour started and eventfds that the guest signals go to the
        behaviour; what it raises is raised here. Raises ReplayError for an answer that is none.
        """
        __tracebackhide__ = True
        self.side.guest_acts()
        self.ended = self.program.run_program(self._answer, limit=limit, clock=self.side)
        return self.ended

    def _answer(self, vcpu: int, xen_exit: XenExit) -> int:
        self.side.guest_acts()
        answer = self.side.answer(vcpu, xen_exit)
        if answer is None:
            raise ReplayError(
                f"the VMM behaviour's on_hypercall left hypercall {xen_exit.input} without an answer"
            )
        return answer

    @property
    def stuck_because(self) -> str:
        """Why the guest can't go on, if a run ended as `Ended.STUCK`."""
        return self.program.stuck_because

    @property
    def unhandled(self) -> int | None:
        """The vector of the exception or interrupt that ended a run as `Ended.UNHANDLED`; else None."""
        if self.ended is not Ended.UNHANDLED:
            return None
        cpu = self.program.cpu
        gpa = cpu.translate(cpu.general[RSP])
        pushed = None if gpa is None else cpu.memory.read(gpa, _VECTOR_SIZE)
        return None if pushed is None else int.from_bytes(pushed, "little")

    @property
    def registers(self) -> Registers:
        """The registers now."""
        cpu = self.program.cpu
        return Registers._make([*cpu.general, cpu.rip, cpu.state.rflags])

    @property
    def cpl(self) -> int:
        """The privilege level now."""
        return self.program.cpu.state.cpl

    @property
    def serial(self) -> bytes:
        """What the guest wrote to the ports 0xe9 and 0x3f8."""
        return bytes(self.program.serial)

    @property
    def calls(self) -> list[Hypercall]:
        """The hypercalls that the guest made, with who handled them and what came back."""
        return self.program.calls

    @property
    def interrupts(self) -> list[int]:
        """The vectors of the interrupts that the guest took."""
        return self.program.interrupts

    @property
    def events(self) -> list[Event]:
        """Hypercalls, interrupts and writes of Xen's MSRs in their order."""
        return list(self.program.events)

    def read_memory(self, gpa: int, size: int) -> bytes:
        """Guest memory at [gpa, gpa + size); raises ValueError where there is none."""
        self._check_memory(gpa, size)
        return self.program.read_memory(gpa, size) or b""

    def write_memory(self, gpa: int, data: bytes) -> None:
        """Store to guest memory, code included; raises ValueError where there is none."""
        self._check_memory(gpa, len(data))
        self.program.write_memory(gpa, data)
        self.program.cpu.engine.unicorn.flush_code()

    def _check_memory(self, gpa: int, size: int) -> None:
        if self.program.read_memory(gpa, size) is None:
            raise ValueError(f"the guest has no memory at {gpa:#x} ... {gpa + size - 1:#x}")

    def save(self, path: str | Path, *, notes: str = "") -> Path:
        """Write what the guest did as a trace (`.xkt`, `.jsonl` or `.jsonl.gz`); the path.

        It holds the guest's side, for replays with a VMM behaviour. Raises TraceError.
        """
        write_trace(path, self.program.trace_header(notes=notes), self.program.events)
        return Path(path)


def _mode(bits: int, *, compat: bool, cpl: int) -> Mode | None:
    _check_cpl(cpl)
    if (bits, compat) not in _MODES:
        kind = f"bits={bits} with compat" if compat else f"bits={bits}"
        raise ValueError(f"there is no {kind}, expected 64, 32 (also with compat) or 16")
    if bits == _REAL_BITS and cpl:
        raise ValueError(f"cpl is {cpl}, expected 0 in real mode")
    return _MODES[bits, compat]


def _check_cpl(cpl: int) -> None:
    if not 0 <= cpl < _PRIVILEGE_LEVELS:
        raise ValueError(f"cpl is {cpl}, expected 0 to 3")
