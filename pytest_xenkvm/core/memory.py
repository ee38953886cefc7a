"""Guest memory as the core sees it: byte buffers at guest physical addresses, shared with cpu and VMM.

Buffers are handed in (a bytearray, an mmap), so that whoever runs the guest maps the very same bytes.
Each slot also has a host virtual address range, as a VMM's mapping of guest memory does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

from attrs import field, frozen

from pytest_xenkvm.abi.numbers import PAGE_SIZE

HVA_BASE: Final = 0x7E00_0000_0000
"""Host virtual address of the first slot; the others follow it without gaps."""

HVA_LIMIT: Final = 0x7FFF_FFFF_F000
"""End of a process's address space on x86-64 with 4-level paging (TASK_SIZE_MAX)."""


class Buffer(Protocol):
    """A writable run of bytes, such as a bytearray or an anonymous mmap."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...
    def __setitem__(self, key: slice, value: bytes, /) -> None: ...


@frozen
class Slot:
    """A memory slot: `buffer` holds guest memory from `gpa` on and is mapped at `hva` in the host."""

    gpa: int
    buffer: Buffer
    hva: int
    dirty: set[int] | None = None
    """KVM_MEM_LOG_DIRTY_PAGES: guest addresses of the pages that were marked dirty; None: no log is kept."""
    end: int = field(init=False)
    """The first guest physical address behind the slot."""

    @end.default
    def _end(self) -> int:
        return self.gpa + len(self.buffer)


class GuestMemory:
    """The memory slots of a VM. Addresses and sizes in bytes."""

    def __init__(self, slots: Sequence[tuple[int, Buffer]], hvas: Sequence[int] | None = None) -> None:
        """Take `(gpa, buffer)` pairs that don't overlap, and where the host maps each, if it really does."""
        hva = HVA_BASE
        self.slots: list[Slot] = []
        for index, (gpa, buffer) in enumerate(slots):
            self.slots.append(Slot(gpa, buffer, hva if hvas is None else hvas[index]))
            hva += len(buffer)

    def add(self, gpa: int, buffer: Buffer, hva: int | None = None, *, log_dirty: bool = False) -> None:
        """One more slot, which overlaps none; `hva` None: mapped behind all others."""
        ends = (slot.hva + len(slot.buffer) for slot in self.slots)
        place = max(ends, default=HVA_BASE) if hva is None else hva
        self.slots.append(Slot(gpa, buffer, place, set() if log_dirty else None))

    def remove(self, gpa: int) -> bool:
        """Take the slot away that begins at `gpa`; False if there is none."""
        for index, slot in enumerate(self.slots):
            if slot.gpa == gpa:
                del self.slots[index]
                return True
        return False

    def dirty_log(self, gpa: int) -> set[int] | None:
        """The log of the slot that has guest address `gpa`; None if it keeps none, or if there is no slot."""
        return next((slot.dirty for slot in self.slots if slot.gpa <= gpa < slot.end), None)

    def mark_dirty(self, gpa: int) -> None:
        """The kernel has written to the page at `gpa`, and says so (`mark_page_dirty_in_slot`)."""
        log = self.dirty_log(gpa)
        if log is not None:
            log.add(gpa - gpa % PAGE_SIZE)

    def overlaps(self, gpa: int, size: int) -> bool:
        """Whether some of [gpa, gpa + size) lies in a slot."""
        return any(slot.gpa < gpa + size and gpa < slot.end for slot in self.slots)

    def has(self, gpa: int, size: int) -> bool:
        """Whether all of [gpa, gpa + size) lies in one slot."""
        return any(slot.gpa <= gpa and gpa + size <= slot.end for slot in self.slots)

    def read(self, gpa: int, size: int) -> bytes | None:
        """The bytes at [gpa, gpa + size); None if they are not in one slot."""
        for slot in self.slots:
            if slot.gpa <= gpa and gpa + size <= slot.end:
                offset = gpa - slot.gpa
                return bytes(slot.buffer[offset : offset + size])
        return None

    def view(self, gpa: int, size: int) -> memoryview | None:
        """The same bytes to look at and to change; None if they are not in one slot."""
        for slot in self.slots:
            if slot.gpa <= gpa and gpa + size <= slot.end:
                offset = gpa - slot.gpa
                return memoryview(cast("Any", slot.buffer))[offset : offset + size]
        return None

    def write(self, gpa: int, data: bytes) -> bool:
        """Store `data` at `gpa`; False, with nothing stored, if that is not in one slot."""
        end = gpa + len(data)
        for slot in self.slots:
            start = slot.gpa
            if start <= gpa and end <= slot.end:
                slot.buffer[gpa - start : end - start] = data
                return True
        return False

    def storing(self, gpa: int, data: bytes) -> Callable[[], None]:
        """What stores `data` at `gpa` each time it is called, like `write`; nothing if there is none."""
        for slot in self.slots:
            if slot.gpa <= gpa and gpa + len(data) <= slot.end:
                offset = gpa - slot.gpa
                return partial(slot.buffer.__setitem__, slice(offset, offset + len(data)), data)
        return _do_nothing

    def hva_to_gpa(self, hva: int, size: int) -> int | None:
        """The guest address that the host maps at [hva, hva + size); None if that is not one slot's."""
        for slot in self.slots:
            if slot.hva <= hva and hva + size <= slot.hva + len(slot.buffer):
                return slot.gpa + hva - slot.hva
        return None

    def gpa_to_hva(self, gpa: int) -> int | None:
        """Where the host maps guest address `gpa`; None if it has no slot."""
        for slot in self.slots:
            if slot.gpa <= gpa < slot.end:
                return slot.hva + gpa - slot.gpa
        return None


def _do_nothing() -> None:
    pass


def is_user_range(hva: int, size: int) -> bool:
    """Whether [hva, hva + size) can be an address range of a process at all (`access_ok`)."""
    return hva + size <= HVA_LIMIT
