"""Guest virtual memory of a vCPU that stopped, by its page tables, which KVM_TRANSLATE walks."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import PAGE_SIZE, U64_MAX
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.devkvm.kernel import Kernel


@frozen
class VirtualMemory:
    """The memory that a vCPU sees where it stopped."""

    kernel: Kernel
    vcpu_fd: int
    memory: GuestMemory

    def read(self, gva: int, size: int) -> bytes | None:
        """`size` bytes at `gva`; None if not all of them are mapped to memory."""
        data = b""
        for address, length in _pages(gva, size):
            gpa = self._walk(address)
            part = None if gpa is None else self.memory.read(gpa, length)
            if part is None:
                return None
            data += part
        return data

    def write(self, gva: int, data: bytes) -> bool:
        """Store at `gva`; False, and nothing stored, if not all of it is mapped to memory."""
        parts = []
        for address, length in _pages(gva, len(data)):
            gpa = self._walk(address)
            if gpa is None or not self.memory.has(gpa, length):
                return False
            parts.append((gpa, data[address - gva :][:length]))
        for gpa, part in parts:
            self.memory.write(gpa, part)
        return True

    def translate(self, gva: int) -> int | None:
        """The guest address behind a virtual one; None where no memory is mapped."""
        gpa = self._walk(gva)
        return gpa if gpa is not None and self.memory.has(gpa, 1) else None

    def _walk(self, gva: int) -> int | None:
        argument = bytearray(kvm.TRANSLATION.pack(gva & U64_MAX, 0, 0, 0, 0))
        result = self.kernel.ioctl(self.vcpu_fd, kvm.KVM_TRANSLATE, argument)
        _linear, physical, valid, _writeable, _usermode = kvm.TRANSLATION.unpack_from(argument)
        return physical if result == 0 and valid else None


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of [address, address + size) that lie in one page each: where, and how many bytes."""
    end = address + size
    while address < end:
        length = min(end - address, PAGE_SIZE - address % PAGE_SIZE)
        yield address, length
        address += length
