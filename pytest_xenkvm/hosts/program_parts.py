"""What a guest program stands on: its memory, its pointers, serial ports, and where real mode starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from attrs import define, field, frozen

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.cpu.vcpu import RFLAGS_RESET, Vcpu
from pytest_xenkvm.cpu.vmcb import CpuState, Segment
from pytest_xenkvm.hosts.guest_image import GuestImage
from pytest_xenkvm.trace.events import Behind

SERIAL_PORTS: Final = (0xE9, 0x3F8)
"""Bytes written there are serial output."""
SERIAL_STATUS_PORT: Final = 0x3FD
_TRANSMITTER_EMPTY: Final = 0x60
_REAL_LIMIT: Final = 0xFFFF
_REAL_IVT: Final = Segment(limit=0x3FF)
_ET: Final = 0x10


@define(eq=False)
class ProgramMemory:
    """The VM's memory, and that of the loader's tables above it."""

    vm: GuestMemory
    image: GuestImage

    def read(self, gpa: int, size: int) -> bytes | None:
        """Either memory."""
        return self.image.read_physical(gpa, size) or self.vm.read(gpa, size)

    def write(self, gpa: int, data: bytes) -> bool:
        """Either memory."""
        return self.image.write_physical(gpa, data) or self.vm.write(gpa, data)


class VmmClock(Protocol):
    """What moves the VM's clock while a program runs, and lets the VMM see what the program did."""

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        """Let at least `ns` pass, and the VM's clock reach `until` (ns)."""

    def next_timer(self) -> int | None:
        """When the VMM's next own timer expires (the VM's clock, ns); None if none runs."""

    def react(self) -> None:
        """The program has made a hypercall."""


@frozen
class KernelClock:
    """The clock of a VM whose VMM has no timers and doesn't look at eventfds."""

    machine: XenVm

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        """Fires the kernel's timers."""
        self.machine.advance(max(self.machine.state.now + ns, until))

    def next_timer(self) -> int | None:
        """There is none."""
        return None

    def react(self) -> None:
        """Do nothing."""


@define
class Pointers:
    """Reads what a hypercall points at, and remembers it."""

    cpu: Vcpu
    seen: dict[int, bytes] = field(factory=dict)

    def read(self, address: int, size: int, _needed: int) -> bytes | None:
        """`size` bytes at a linear address; None if not all of them are mapped."""
        parts = []
        for linear, length in _pages(address, size):
            gpa = self.cpu.translate(linear)
            part = None if gpa is None else self.cpu.memory.read(gpa, length)
            if part is None:
                return None
            parts.append(part)
        data = b"".join(parts)
        if len(data) > len(self.seen.get(address, b"")):
            self.seen[address] = data
        return data

    def write(self, address: int, data: bytes) -> bool:
        """Store at a linear address; False, and nothing stored, if not all of it is mapped."""
        if self.read(address, len(data), 0) is None:
            return False
        for linear, length in _pages(address, len(data)):
            gpa = self.cpu.translate(linear)
            assert gpa is not None  # it was read  # noqa: S101 - for mypy
            self.cpu.memory.write(gpa, data[linear - address :][:length])
        return True

    def behind(self, args: tuple[int, ...]) -> tuple[Behind, ...] | None:
        """What was read behind pointers among the arguments."""
        found = [Behind(arg=index, data=self.seen[arg]) for index, arg in enumerate(args) if arg in self.seen]
        return tuple(found) or None


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """Address and size of each part that lies in one page."""
    end = address + size
    while address < end:
        length = min(end, (address // PAGE_SIZE + 1) * PAGE_SIZE) - address
        yield address, length
        address += length


@frozen
class SerialOutput:
    """Holds the output alone, not the VM: what Unicorn calls must not keep the VM alive."""

    sink: bytearray

    def write(self, port: int, _size: int, value: int) -> None:
        """OUT."""
        if port in SERIAL_PORTS:
            self.sink.append(value & 0xFF)


def read_port(port: int, size: int) -> int:
    """IN: the serial line is always ready; nothing else is there."""
    return _TRANSMITTER_EMPTY if port == SERIAL_STATUS_PORT else (1 << 8 * size) - 1


def _real_mode() -> CpuState:
    data = Segment(attributes=0x93, limit=_REAL_LIMIT)
    code = Segment(attributes=0x9B, limit=_REAL_LIMIT)
    return CpuState(
        cr0=_ET,
        efer=0,
        rflags=RFLAGS_RESET,
        cs=code,
        ss=data,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        idtr=_REAL_IVT,
    )


REAL_MODE: Final = _real_mode()
