"""A vCPU of a real KVM that executes one stub of guest code after the other.

Between two of them it is parked: nothing of it is kept but its mode and privilege level. It runs with
interrupts disabled, so that they stay where they are until somebody wants to see them taken, but for a
hypercall that may block.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINTR
from mmap import mmap
from typing import Final

from attrs import define, evolve, field

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN, U32_MAX, U64_MAX
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.cpu.vmcb import CpuState, Segment
from pytest_xenkvm.hosts.devkvm import guest_code
from pytest_xenkvm.hosts.devkvm.kernel import Kernel
from pytest_xenkvm.hosts.guest_image import GuestImage, Mode
from pytest_xenkvm.hosts.protocol import GuestCall, HostError

FLAGS: Final = 0x3002
"""Bit 1, which is always set, and IOPL 3."""
INTERRUPTS_ON: Final = 0x200
_RAX: Final = 0
_RSP: Final = 6
_RIP: Final = 16
_MOV_SIZE: Final = 5
"""Of a hypercall page's first instruction."""
_BUSY: Final = 1 << 1
"""Of the type of a task state segment."""


@define(eq=False)
class Vcpu:
    """A vCPU's file, its shared run structure, and where it is parked."""

    kernel: Kernel
    fd: int
    run: mmap
    image: GuestImage
    index: int
    apic_base: int
    cpu_vendor: str
    parked: tuple[Mode, int] = (Mode.LONG, 0)
    """Mode and privilege level."""
    is_over: Callable[[], bool] = field(default=lambda: False, init=False)
    """Whether a signal that ended KVM_RUN says that it took too long."""
    taken: list[int] = field(factory=list, init=False)
    """Vectors that it took and nobody asked for yet."""
    _loaded: tuple[Mode, int] | None = field(default=None, init=False)
    """The mode that its segments and control registers are those of."""
    _before_call: set[int] = field(factory=set, init=False)
    """Where the guest is before it makes its hypercall."""
    _sregs: dict[tuple[Mode, int], bytes] = field(factory=dict, init=False)

    def settle(self) -> None:
        """Enter the guest once, so that the kernel delivers what it deferred."""
        self._expect_parked(self.start(guest_code.SETTLE))

    def hypercall(self, call: GuestCall, stub: int | None, *, interruptible: bool) -> int:
        """Make a hypercall, by calling `stub` if given: 0, or -errno of KVM_RUN."""
        self.parked = Mode.of(longmode=call.longmode, compat=call.compat), call.cpl
        a0, a1, a2, a3, a4, a5 = call.args
        rax = call.nr if stub is None else stub
        if self.parked[0] is Mode.LONG:
            registers = (rax, 0, 0, a2, a1, a0, 0, 0, a4, a5, a3)
        else:
            registers = (rax, a0, a1, a2, a3, a4, 0, a5, 0, 0, 0)
        entry = guest_code.HYPERCALL if stub is None else guest_code.CALL_PAGE
        self._before_call = {self.image.at(entry), *(() if stub is None else (stub, stub + _MOV_SIZE))}
        return self.start(entry, registers, FLAGS | INTERRUPTS_ON if interruptible else FLAGS)

    def write_msr(self, mode: Mode, msr: int, value: int) -> int:
        """Execute WRMSR at privilege level 0: 0, or -errno of KVM_RUN."""
        self.parked = mode, 0
        return self.start(guest_code.WRMSR, (value & U32_MAX, 0, msr, value >> 32, *(0,) * 7))

    def write_spurious_vector(self, value: int) -> None:
        """Store to the local APIC's spurious-interrupt vector register, in 64-bit code at level 0."""
        self.parked = Mode.LONG, 0
        self._expect_parked(self.start(guest_code.SPURIOUS, (value, *(0,) * 10)))

    def interrupt(self) -> int | None:
        """Enter the guest with interrupts enabled: the vector that it takes; None if there is none."""
        if self.taken:
            return self.taken.pop(0)
        self._check(self.start(guest_code.IDLE, flags=FLAGS | INTERRUPTS_ON))
        vector = self.handler()
        if vector is None:
            self._expect_parked(0)
        return vector

    def start(self, entry: int, registers: tuple[int, ...] = (0,) * 11, flags: int = FLAGS) -> int:
        """Run the stub at that offset, with RAX ... R10 given, until the guest exits: 0, or -errno."""
        if self._loaded != self.parked:
            self._load()
        rax, rbx, rcx, rdx, rsi, rdi, _rsp, rbp, *more = registers
        values = (rax, rbx, rcx, rdx, rsi, rdi, self.image.stack(self.index), rbp, *more)
        kvm.REGS.pack_into(self.run, kvm.RUN_REGS_AT, *values, *(0,) * 5, self.image.at(entry), flags)
        kvm.RUN_SYNC.pack_into(self.run, kvm.RUN_SYNC_AT, kvm.SYNC_REGS, kvm.SYNC_REGS)
        return self.go_on()

    def go_on(self) -> int:
        """Run until the guest exits: 0, or -errno; -EINTR only if `is_over`."""
        while True:
            result = self.kernel.ioctl(self.fd, kvm.KVM_RUN)
            if result != -EINTR or self.is_over():
                return result

    def answer(self, result: int, *, moved: bool) -> None:
        """Hand the VMM's answer to a forwarded hypercall in; the guest goes on, elsewhere if `moved`."""
        self.run[kvm.RUN_XEN_RESULT_AT : kvm.RUN_XEN_RESULT_AT + 8] = (result & U64_MAX).to_bytes(8, "little")
        if moved:
            at = kvm.RUN_REGS_AT + _RIP * 8
            self.run[at : at + 8] = self.image.at(guest_code.IDLE).to_bytes(8, "little")
            kvm.RUN_SYNC.pack_into(self.run, kvm.RUN_SYNC_AT, kvm.SYNC_REGS, kvm.SYNC_REGS)
        self._expect_parked(self.go_on())

    def xen_exit(self) -> XenExit | None:
        """What KVM_EXIT_XEN delivered; None if the guest didn't exit for that."""
        if self.exit_reason != KVM_EXIT_XEN:
            return None
        type_, longmode, cpl, number, _result, *params = kvm.RUN_XEN.unpack_from(self.run)
        a0, a1, a2, a3, a4, a5 = params
        return XenExit(type=type_, longmode=longmode, cpl=cpl, input=number, params=(a0, a1, a2, a3, a4, a5))

    def handler(self) -> int | None:
        """The vector whose handler the guest stopped in; None if in none."""
        if self.exit_reason != kvm.EXIT_IO:
            return None
        vector = guest_code.vector_at(self.rip - self.image.window)
        if vector is not None:
            self._loaded = None  # the handler's code segment, and stack if it came from another level
        return vector

    @property
    def exit_reason(self) -> int:
        """Of the last run."""
        reason: int = kvm.RUN_EXIT_REASON.unpack_from(self.run)[0]
        return reason

    @property
    def rax(self) -> int:
        """As the code that is parked has it."""
        rax = self._register(_RAX)
        return rax if self.parked[0] is Mode.LONG else rax & U32_MAX

    @property
    def rip(self) -> int:
        """Where the guest stopped."""
        return self._register(_RIP)

    def was_interrupted_after_call(self) -> bool:
        """Whether the handler that the guest stopped in came after the hypercall, and not before it."""
        size = 4 if self.parked[0] is Mode.PROTECTED else 8
        back_to = self.image.read_stack(self._register(_RSP), size)
        return back_to not in self._before_call

    def expect_parked(self) -> None:
        """Raise HostError unless the guest came to the end of its stub."""
        self._expect_parked(0)

    def lost(self) -> HostError:
        """What to raise if the guest did what its code doesn't say."""
        reason = kvm.EXIT_NAMES.get(self.exit_reason, str(self.exit_reason))
        vector = self.handler()
        where = f"at {self.rip:#x}" if vector is None else f"in the handler of exception {vector}"
        return HostError(f"the guest code of vCPU {self.index} is lost: KVM_RUN ended with {reason} {where}")

    def _expect_parked(self, result: int) -> None:
        self._check(result)
        if self.exit_reason != kvm.EXIT_IO or guest_code.vector_at(self.rip - self.image.window) is not None:
            raise self.lost()

    def _check(self, result: int) -> None:
        if result < 0:
            raise HostError(
                f"KVM_RUN of vCPU {self.index} failed with errno {-result} in the host's own code"
            )

    def _register(self, number: int) -> int:
        offset = kvm.RUN_REGS_AT + number * 8
        return int.from_bytes(self.run[offset : offset + 8], "little")

    def _load(self) -> None:
        if self.parked not in self._sregs:
            mode, cpl = self.parked
            self._sregs[self.parked] = sregs_bytes(
                self.image.state(mode, cpl), self.apic_base, self.cpu_vendor
            )
        if self.parked[0] is Mode.PROTECTED:
            self.image.clean_pointers()
        result = self.kernel.ioctl(self.fd, kvm.KVM_SET_SREGS, self._sregs[self.parked])
        if result < 0:
            raise HostError(f"KVM_SET_SREGS of vCPU {self.index} failed with errno {-result}")
        self._loaded = self.parked


def sregs_bytes(state: CpuState, apic_base: int, cpu_vendor: str) -> bytes:
    """A CPU state as KVM_SET_SREGS takes it.

    VMX wants the task state segment to be busy, as a running CPU's is; AMD-V doesn't care, but QEMU's TCG,
    when it plays that, takes a busy one for an invalid one and ends.
    """
    task = state.tr if cpu_vendor == "amd" else evolve(state.tr, attributes=state.tr.attributes | _BUSY)
    segments = (state.cs, state.ds, state.es, state.fs, state.gs, state.ss, task, None)
    return b"".join(
        (
            *map(_segment_bytes, segments),
            *(kvm.DTABLE.pack(table.base, table.limit) for table in (state.gdtr, state.idtr)),
            kvm.SREGS_TAIL.pack(state.cr0, 0, state.cr3, state.cr4, 0, state.efer, apic_base),
        )
    )


def _segment_bytes(segment: Segment | None) -> bytes:
    """`None` is an unusable one."""
    if segment is None:
        return kvm.SEGMENT.pack(*(0,) * 11, 1)
    bits = segment.attributes
    return kvm.SEGMENT.pack(
        segment.base,
        segment.limit,
        segment.selector,
        bits & 0xF,
        bits >> 7 & 1,
        bits >> 5 & 3,
        bits >> 10 & 1,
        bits >> 4 & 1,
        bits >> 9 & 1,
        bits >> 11 & 1,
        bits >> 8 & 1,
        0,
    )
