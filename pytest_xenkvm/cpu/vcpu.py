"""A vCPU that runs any guest code: state between runs, faults and interrupts through the guest's IDT.

`run` stops where the guest concerns its host (`Stop`). Exceptions never stop it: they go to the guest's own
handlers, and an exception that can't be delivered is a shutdown. Unicorn delivers no exception by itself, so
the vCPU is entered anew with the vector as AMD-V's event injection delivers it: through the gate, with the
stack switch and the frame that the CPU's mode has; error codes are pushed behind it.

Between runs the whole state is here, hidden parts of segments included. x87 and SSE registers are not: each
`run`, `interrupt` and `fault` enters the guest anew and finds them as at reset. So they last neither over a
stop nor from one slice of instructions to the next.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from attrs import define, evolve, field

from pytest_xenkvm.cpu import paging
from pytest_xenkvm.cpu import unicorn_api as api
from pytest_xenkvm.cpu.descriptors import PRESENT
from pytest_xenkvm.cpu.engine import STUB_INSTRUCTIONS, ControlBlock, Engine, EngineError, Start, Stop
from pytest_xenkvm.cpu.vmcb import EFER_SVME, CpuState, Segment

RFLAGS_RESET: Final = 0x2
RFLAGS_IF: Final = 1 << 9
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

_VECTORS_WITH_ERROR: Final = {8, 10, 11, 12, 13, 14, 17, 21}
_FAULTS_SHUT_DOWN: Final = 8
"""A double fault is not delivered: the guest shuts down."""
_EXCEPTIONS: Final = 0x100
_STI: Final = b"\xfb"
_INT3: Final = b"\xcc"
_IDT_ERROR: Final = 2
"""In an error code: the selector names a gate."""
_VMCALL: Final = b"\x0f\x01\xc1"
_GATE_DPL_SHIFT: Final = 5
_GATE_64_SIZE: Final = 16
_GATE_32_SIZE: Final = 8
_GATE_TYPE_AT: Final = 5
_GATE_IST_AT: Final = 4
_TSS_MASK: Final = PRESENT | 7
_TSS_VALID: Final = PRESENT | 1
_RING_3: Final = 3

# Unicorn 2.1's own structure: where it has what no function of its API shows.
_SEGMENTS_AT: Final = 224
_SEGMENT: Final = struct.Struct("<IIQII")
_SEGMENT_NAMES: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")
_CONTROLS: Final = struct.Struct("<5Q")
_CONTROLS_AT: Final = 464
_EFER: Final = struct.Struct("<7Q")
_EFER_AT: Final = 632
_RAISED: Final = struct.Struct("<ii")
_RAISED_AT: Final = 5424
"""The error code of an exception, and whether INT n raised it."""


class PhysicalMemory(Protocol):
    """Guest memory by physical address."""

    def read(self, gpa: int, size: int) -> bytes | None:
        """The bytes at [gpa, gpa + size); None where there is no memory."""

    def write(self, gpa: int, data: bytes) -> bool:
        """Store `data` at `gpa`; False where there is no memory."""


@define(eq=False)
class Vcpu:
    """A vCPU on an engine of its own. `general`: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ... R15."""

    engine: Engine
    memory: PhysicalMemory
    state: CpuState
    rip: int
    general: list[int] = field(factory=lambda: [0] * 16)
    in_shadow: bool = field(default=False, init=False)
    """The instruction before was an STI that enabled interrupts: none is taken before the next one."""
    _context: api.Context = field(init=False)
    _general: api.Registers = field(init=False)
    _place: api.Registers = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Set up what reads the CPU."""
        unicorn = self.engine.unicorn
        unicorn.use_up()  # the guest may set breakpoints: debug registers are its own
        self._context = unicorn.save()
        self._general = unicorn.registers(*api.GENERAL)
        self._place = unicorn.registers(api.RIP, api.RFLAGS)

    @property
    def linear_rip(self) -> int:
        """CS base + RIP."""
        mask = (1 << 64) - 1 if self.state.executes_64_bit else (1 << 32) - 1
        return self.state.cs.base + self.rip & mask

    @property
    def takes_interrupts(self) -> bool:
        """RFLAGS.IF is 1 and no STI shadow holds interrupts back."""
        return bool(self.state.rflags & RFLAGS_IF) and not self.in_shadow

    def translate(self, linear: int, *, write: bool = False) -> int | None:
        """The physical address behind a linear one; None: page fault."""
        return paging.translate(self.state, linear, self.memory.read, write=write)

    def code(self, size: int, *, back: int = 0) -> bytes:
        """Instruction bytes at RIP - `back`; fewer where nothing is mapped."""
        gpa = self.translate(self.linear_rip - back)
        return b"" if gpa is None else self.memory.read(gpa, size) or b""

    def run(self, count: int) -> int:
        """Run up to `count` instructions: why it stopped; never a vector. VMCALL stops as VMMCALL does."""
        enabling = not self.state.rflags & RFLAGS_IF and count == 1 and self.code(1) == _STI
        stop = self._enter(None, count)
        self.in_shadow = enabling and stop == Stop.LIMIT
        if stop == Stop.INVALID_OPCODE and self.code(len(_VMCALL)) == _VMCALL:
            return Stop.VMMCALL
        if 0 <= stop < _EXCEPTIONS:
            return self._except(stop)
        return stop

    def interrupt(self, vector: int) -> int:
        """Deliver an external interrupt: `Stop.LIMIT`, or `Stop.SHUTDOWN` if that is impossible."""
        return self._deliver(vector, None)

    def fault(self, vector: int, error: int = 0) -> int:
        """Raise an exception at RIP: `Stop.LIMIT`, or `Stop.SHUTDOWN` if it can't be delivered."""
        has_error = vector in _VECTORS_WITH_ERROR and self.state.cr0 & paging.CR0_PE
        return self._deliver(vector, error if has_error else None)

    def skip(self, size: int) -> None:
        """Step over the instruction of that size that stopped the run."""
        self.rip = self.rip + size & ((1 << 64) - 1 if self.state.executes_64_bit else (1 << 32) - 1)

    def _except(self, vector: int) -> int:
        """What the guest raised goes to its handler; INT n is checked against its gate's privilege level."""
        error, is_software = _RAISED.unpack(self._context.bytes_at(_RAISED_AT, _RAISED.size))
        if not is_software:
            return self.fault(vector, error)
        if self._gate_dpl(vector) < self.state.cpl:
            self.rip -= 1 if self.code(1, back=1) == _INT3 else 2
            return self.fault(Stop.GENERAL_PROTECTION, vector << 3 | _IDT_ERROR)
        return self._deliver(vector, None)

    def _gate_dpl(self, vector: int) -> int:
        if not self.state.cr0 & paging.CR0_PE:
            return _RING_3
        return self._gate(vector)[_GATE_TYPE_AT] >> _GATE_DPL_SHIFT & _RING_3

    def _gate(self, vector: int) -> bytes:
        """The first 8 bytes of an IDT entry; zeros where none can be read."""
        size = _GATE_64_SIZE if self.state.long_mode_active else _GATE_32_SIZE
        gpa = self.translate(self.state.idtr.base + vector * size)
        found = None if gpa is None else self.memory.read(gpa, _GATE_32_SIZE)
        return found or bytes(_GATE_32_SIZE)

    def _deliver(self, vector: int, error: int | None) -> int:
        """Enter the guest up to the first instruction of the handler.

        Unicorn may show the delivered vector once more as if the handler had raised it.
        """
        if vector == _FAULTS_SHUT_DOWN or not self._can_switch_stacks(vector):
            return Stop.SHUTDOWN
        before = self.linear_rip, self.general[RSP]
        stop = self._enter(vector, 0)
        self.in_shadow = False
        if stop not in (Stop.LIMIT, vector) or (self.linear_rip, self.general[RSP]) == before:
            return Stop.SHUTDOWN
        if error is not None:
            size = 8 if self.state.long_mode_active else 4
            self.general[RSP] -= size
            gpa = self.translate(self.general[RSP] + self._stack_base(), write=True)
            if gpa is None:
                return Stop.SHUTDOWN
            self.memory.write(gpa, (error & 0xFFFF_FFFF).to_bytes(size, "little"))
        return Stop.LIMIT

    def _stack_base(self) -> int:
        return 0 if self.state.long_mode_active else self.state.ss.base

    def _can_switch_stacks(self, vector: int) -> bool:
        """Unicorn ends the whole process over a task state segment that isn't one, so it must not look."""
        looks = self.state.cpl or (self.state.long_mode_active and self._gate(vector)[_GATE_IST_AT])
        return not looks or self.state.tr.attributes & _TSS_MASK == _TSS_VALID

    def _enter(self, vector: int | None, count: int) -> int:
        general = self.general
        start = Start(self.rip, general[RSP], general[RAX], (self._general, general), vector)
        stop = self.engine.enter(ControlBlock.of(self.state), start, count=count + STUB_INSTRUCTIONS)
        self._read_back()
        return stop

    def _read_back(self) -> None:
        self.general = self._general.read()
        self.rip, rflags = self._place.read()
        self._context.save()
        read = self._context.bytes_at
        segments = {
            name: Segment(
                selector=selector & 0xFFFF,
                attributes=flags >> 8 & 0xFF | flags >> 12 & 0xF00,
                limit=limit,
                base=base,
            )
            for name, (selector, _, base, limit, flags) in zip(
                _SEGMENT_NAMES,
                _SEGMENT.iter_unpack(read(_SEGMENTS_AT, _SEGMENT.size * len(_SEGMENT_NAMES))),
                strict=True,
            )
        }
        cr0, _cr1, cr2, cr3, cr4 = _CONTROLS.unpack(read(_CONTROLS_AT, _CONTROLS.size))
        efer, star, _hsave, lstar, cstar, fmask, kernel_gs = _EFER.unpack(read(_EFER_AT, _EFER.size))
        cpl = segments["ss"].attributes >> 5 & 3 if cr0 & paging.CR0_PE else 0
        if not efer & EFER_SVME:
            raise EngineError("this version of Unicorn lays out its CPU state in another way than 2.1")
        self.state = evolve(
            self.state,
            **segments,
            cr0=cr0,
            cr2=cr2,
            cr3=cr3,
            cr4=cr4,
            efer=efer & ~EFER_SVME,
            star=star,
            lstar=lstar,
            cstar=cstar,
            fmask=fmask,
            kernel_gs_base=kernel_gs,
            cpl=cpl,
            rflags=rflags,
        )
