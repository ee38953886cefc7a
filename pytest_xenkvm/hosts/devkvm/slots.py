"""Memory slots that are added to a VM of a real KVM after it was created, and taken away again."""

from __future__ import annotations

import ctypes
import os
from mmap import mmap
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.devkvm.kernel import Kernel, address_of, guest_memory
from pytest_xenkvm.hosts.protocol import HostError

_BITMAP_UNIT: Final = 64
"""KVM_GET_DIRTY_LOG stores as many bits as pages, rounded up to that."""


@define(eq=False)
class AddedSlots:
    """The slots that a VM was given since. Addresses and sizes in bytes."""

    kernel: Kernel
    fd: int
    memory: GuestMemory
    """The VM's, which follows."""
    _next: int = field(init=False)
    """A free slot number: behind the slots at creation there is one with the host's own guest code."""
    _added: dict[int, tuple[int, mmap]] = field(factory=dict, init=False)
    """Number and memory of each, by its guest address."""
    _deleted: list[tuple[int, mmap]] = field(factory=list, init=False)
    """Those that are gone: the kernel may still write to their memory by its host address."""

    def __attrs_post_init__(self) -> None:
        self._next = len(self.memory.slots) + 1

    def add(self, gpa: int, size: int, *, log_dirty: bool) -> None:
        """KVM_SET_USER_MEMORY_REGION with zeroed memory; raises HostError."""
        try:
            buffer = guest_memory(size)
        except (OSError, ValueError, OverflowError) as error:
            raise HostError(f"can't map {size} bytes of guest memory: {error}") from error
        hva = address_of(buffer)
        flags = kvm.MEM_LOG_DIRTY_PAGES if log_dirty else 0
        result = self._set(self._next, flags, gpa, size, hva)
        if result < 0:
            raise HostError(
                f"/dev/kvm refused a memory slot of {size} bytes at {gpa:#x} with errno {-result} "
                f"({os.strerror(-result)})"
            )
        self._added[gpa] = self._next, buffer
        self._next += 1
        self.memory.add(gpa, buffer, hva)

    def remove(self, gpa: int) -> None:
        """Delete the slot that was added there; its memory stays where it is. Raises HostError."""
        number, _buffer = self._slot(gpa)
        result = self._set(number, 0, gpa, 0, 0)
        if result < 0:
            raise HostError(
                f"/dev/kvm doesn't delete the slot at {gpa:#x}: errno {-result}, {os.strerror(-result)}"
            )
        self._deleted.append(self._added.pop(gpa))
        self.memory.remove(gpa)

    def dirty_log(self, gpa: int) -> frozenset[int]:
        """KVM_GET_DIRTY_LOG, which starts the log anew; raises HostError."""
        number, buffer = self._slot(gpa)
        pages = len(buffer) // PAGE_SIZE
        bitmap = (ctypes.c_char * (-(-pages // _BITMAP_UNIT) * _BITMAP_UNIT // 8))()
        argument = kvm.DIRTY_LOG.pack(number, ctypes.addressof(bitmap))
        result = self.kernel.ioctl(self.fd, kvm.KVM_GET_DIRTY_LOG, argument)
        if result < 0:
            raise HostError(
                f"the memory slot at {gpa:#x} keeps no log of dirty pages: errno {-result}, "
                f"{os.strerror(-result)}"
            )
        bits = int.from_bytes(bitmap.raw, "little")
        return frozenset(gpa + page * PAGE_SIZE for page in range(pages) if bits >> page & 1)

    def _slot(self, gpa: int) -> tuple[int, mmap]:
        if gpa not in self._added:
            raise HostError(f"no memory slot was added at {gpa:#x}")
        return self._added[gpa]

    def _set(self, number: int, flags: int, gpa: int, size: int, hva: int) -> int:
        argument = kvm.USER_MEMORY_REGION.pack(number, flags, gpa, size, hva)
        return self.kernel.ioctl(self.fd, kvm.KVM_SET_USER_MEMORY_REGION, argument)
