"""Mapping what a recording shows behind a pointer, so that the kernel finds it there.

A real guest's page tables are not in its trace, but the bytes behind some arguments are. For the time of such
a call the guest's page tables lead from those addresses to pages of the image that hold the bytes. Nothing
but KVM's own walk of the page tables goes there: no TLB has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, U64_MAX
from pytest_xenkvm.cpu import paging
from pytest_xenkvm.hosts.guest_image import SPARE, SPARE_PAGES, GuestImage
from pytest_xenkvm.hosts.protocol import GuestCall, HostError

_ENTRY: Final = paging.PRESENT | paging.WRITABLE | paging.USER
_LONG_SHIFTS: Final = (39, 30, 21, 12)
_PAE_SHIFTS: Final = (30, 21, 12)
_LARGE_PAGE_SHIFT: Final = 21
_INDEX: Final = 0x1FF


@contextmanager
def shown(image: GuestImage, call: GuestCall) -> Iterator[None]:
    """Let the kernel find what the recording shows behind the call's arguments; raises HostError."""
    tables = _Tables(image, image.top_table(long=call.longmode or call.compat))
    shifts = _LONG_SHIFTS if call.longmode or call.compat else _PAE_SHIFTS
    mask = U64_MAX if call.longmode else U32_MAX
    try:
        for argument, data in call.behind:
            tables.store(shifts, call.args[argument] & mask, data)
        yield
    finally:
        tables.undo()


@define(eq=False)
class _Tables:
    image: GuestImage
    top: int
    """Offset of the top table in the image."""
    _used: int = field(default=0, init=False)
    _before: list[tuple[int, bytes]] = field(factory=list, init=False)
    """What the changed entries held, by their offsets in the image."""

    def store(self, shifts: tuple[int, ...], address: int, data: bytes) -> None:
        """Map the pages at that guest virtual address and store the bytes there."""
        done = 0
        while done < len(data):
            at = (address + done) % PAGE_SIZE
            part = data[done : done + PAGE_SIZE - at]
            page = self._page(shifts, address + done)
            self.image.memory[page + at : page + at + len(part)] = part
            done += len(part)

    def undo(self) -> None:
        """Let the tables be as they were."""
        for offset, entry in reversed(self._before):
            self.image.memory[offset : offset + 8] = entry

    def _page(self, shifts: tuple[int, ...], address: int) -> int:
        """The offset in the image of the page that the address leads to, which is made to be one."""
        table = self.top
        for shift in shifts[:-1]:
            at = table + (address >> shift & _INDEX) * 8
            table = self._down(at, shift)
        return self._down(table + (address >> shifts[-1] & _INDEX) * 8, shifts[-1])

    def _down(self, at: int, shift: int) -> int:
        entry = int.from_bytes(self.image.memory[at : at + 8], "little")
        below = (entry & paging.ADDRESS) - self.image.physical
        is_large = entry & paging.LARGE and shift == _LARGE_PAGE_SHIFT
        if entry & paging.PRESENT and not is_large and 0 <= below < len(self.image.memory):
            return below
        fresh = self._take()
        if is_large:
            pages = (entry & ~paging.LARGE | index * PAGE_SIZE for index in range(_INDEX + 1))
            self.image.memory[fresh : fresh + PAGE_SIZE] = b"".join(
                page.to_bytes(8, "little") for page in pages
            )
        self._before.append((at, self.image.memory[at : at + 8]))
        self.image.memory[at : at + 8] = (self.image.physical + fresh | _ENTRY).to_bytes(8, "little")
        return fresh

    def _take(self) -> int:
        """An empty page of the image."""
        if self._used == SPARE_PAGES:
            raise HostError("a hypercall has more memory behind its arguments than the host kvm has room for")
        offset = SPARE + self._used * PAGE_SIZE
        self._used += 1
        self.image.memory[offset : offset + PAGE_SIZE] = bytes(PAGE_SIZE)
        return offset
