"""What a guest program stands on: its memory, its pointers, serial ports, and where real mode starts."""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.cpu.vcpu import RFLAGS_RESET, Vcpu
from pytest_xenkvm.cpu.vmcb import CpuState, Segment
from pytest_xenkvm.hosts.replay_guest import GuestImage
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


@define
class Pointers:
    """Reads what a hypercall points at, and remembers it."""

    cpu: Vcpu
    seen: dict[int, bytes] = field(factory=dict)

    def read(self, address: int, size: int, _needed: int) -> bytes | None:
        """`size` bytes at a linear address; None if not all of them are mapped."""
        parts = []
        while size:
            length = min(size, PAGE_SIZE - address % PAGE_SIZE)
            gpa = self.cpu.translate(address)
            part = None if gpa is None else self.cpu.memory.read(gpa, length)
            if part is None:
                return None
            parts.append(part)
            address, size = address + length, size - length
        data = b"".join(parts)
        self.seen[address - len(data)] = data
        return data

    def behind(self, args: tuple[int, ...]) -> tuple[Behind, ...] | None:
        """What was read behind pointers among the arguments."""
        found = [Behind(arg=index, data=self.seen[arg]) for index, arg in enumerate(args) if arg in self.seen]
        return tuple(found) or None


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
