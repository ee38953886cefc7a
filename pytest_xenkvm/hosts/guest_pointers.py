"""What lies behind the pointers of a hypercall.

For a real guest, the trace tells what lay behind an argument; the rest was not seen. A recorder that drives
its own guest maps virtual = physical for 0 ... 4 GiB; the page walk ignores bits 48-63 in long mode, so
non-canonical addresses alias. Where a CPU has page tables, they are walked instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.protocol import GuestCall

_WALKED_BITS: Final = (1 << 48) - 1
_MAPPED: Final = 1 << 32


@define
class GuestPointers:
    """Reads behind the pointers of one hypercall."""

    memory: GuestMemory
    call: GuestCall
    translate: Callable[[int], int | None] | None = None
    """Walks the guest's page tables: linear to physical address, None where nothing is mapped."""

    def read(self, address: int, size: int, needed: int) -> bytes | None:
        """`size` bytes at guest virtual `address`, of which the first `needed` matter; None: -EFAULT.

        Bytes that don't matter are missing where the recording didn't show them. Raises UnseenMemory if it
        didn't show what matters.
        """
        call = self.call
        for arg, data in call.behind:
            if call.args[arg] == address:
                if len(data) < needed:
                    raise UnseenMemory
                return data if len(data) <= size else data[:size]
        if call.unseen_memory:
            raise UnseenMemory
        return self.read_mapped(address, size)

    def read_mapped(self, address: int, size: int) -> bytes | None:
        """What the VM's memory holds there; None if not all of it is mapped."""
        data = b""
        while len(data) < size:
            linear = address + len(data)
            length = min(size - len(data), PAGE_SIZE - linear % PAGE_SIZE)
            start = self.physical(linear)
            part = None if start is None else self.memory.read(start, length)
            if part is None:
                return None
            data += part
        return data

    def physical(self, linear: int) -> int | None:
        """The physical address behind a linear one; None where nothing is mapped."""
        return (self.translate or self._translate_identically)(linear)

    def _translate_identically(self, linear: int) -> int | None:
        physical = linear & (_WALKED_BITS if self.call.longmode else U32_MAX)
        return physical if physical < _MAPPED else None
