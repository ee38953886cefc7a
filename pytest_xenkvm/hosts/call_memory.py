"""Guest virtual memory as the VMM finds it while it answers a hypercall: what KVM_TRANSLATE would lead to."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, U64_MAX
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.hosts.guest_pointers import GuestPointers


@define(eq=False)
class CallMemory:
    """The memory behind one forwarded hypercall."""

    pointers: GuestPointers
    _behind: list[tuple[int, bytearray]] | None = field(default=None, init=False)
    """What the recording shows, with its address, and what the VMM has stored there since."""

    def read(self, address: int, size: int) -> bytes | None:
        """`size` bytes at guest virtual `address`; None if not all of them are mapped.

        Raises UnseenMemory if the recording doesn't show them.
        """
        for start, data in self._shown():
            if start <= address and address + size <= start + len(data):
                return bytes(data[address - start :][:size])
        if self.pointers.call.unseen_memory:
            raise UnseenMemory(f"the recording doesn't show {size} bytes at guest virtual {address:#x}")
        return self.pointers.read_mapped(address, size)

    def write(self, address: int, data: bytes) -> bool:
        """Store at guest virtual `address`; False, and nothing stored, if not all of it is mapped.

        Where the recording doesn't show memory, it counts as mapped and keeps nothing.
        """
        seen = False
        for start, shown in self._shown():
            first, end = max(start, address), min(start + len(shown), address + len(data))
            if first < end:
                shown[first - start : end - start] = data[first - address : end - address]
                seen = True
        if seen or self.pointers.call.unseen_memory:
            return True
        parts = [(self.pointers.physical(linear), part) for linear, part in _pages(address, data)]
        memory = self.pointers.memory
        if any(gpa is None or memory.read(gpa, len(part)) is None for gpa, part in parts):
            return False
        for gpa, part in parts:
            memory.write(gpa or 0, part)
        return True

    def translate(self, address: int) -> int | None:
        """The guest address behind a virtual one; None where no memory is mapped.

        Raises UnseenMemory if the recording doesn't show the guest's page tables.
        """
        if self.pointers.call.unseen_memory:
            raise UnseenMemory(f"the recording doesn't show what guest virtual {address:#x} is mapped to")
        gpa = self.pointers.physical(address)
        return None if gpa is None or self.pointers.memory.read(gpa, 1) is None else gpa

    def _shown(self) -> list[tuple[int, bytearray]]:
        if self._behind is None:
            call = self.pointers.call
            mask = U64_MAX if call.longmode else U32_MAX
            self._behind = [(call.args[arg] & mask, bytearray(data)) for arg, data in call.behind]
        return self._behind


def _pages(address: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of `data` that lie in one page each."""
    done = 0
    while done < len(data):
        part = data[done : done + PAGE_SIZE - (address + done) % PAGE_SIZE]
        yield address + done, part
        done += len(part)
