"""The system calls that reach KVM. Results are as the host protocol has them: 0, a positive value, -errno."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import Final, Protocol

_MAP_NORESERVE: Final = 0x4000
_GUEST_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
"""Guest memory takes host memory only where it is written."""


class Kernel(Protocol):
    """What a VM is driven through; tests put another one in its place."""

    def open(self, path: str) -> int:
        """Open a device; raises OSError."""

    def ioctl(self, fd: int, request: int, argument: int | bytearray | bytes = 0) -> int:
        """The result, or -errno; an outgoing structure is stored into a bytearray."""

    def map_file(self, fd: int, size: int) -> mmap.mmap:
        """Share `size` bytes of a file; raises OSError."""

    def close(self, fd: int) -> None:
        """Close a file."""


class LinuxKernel:
    """The running one."""

    def open(self, path: str) -> int:
        """Open a device; raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: int | bytearray | bytes = 0) -> int:
        """The result, or -errno; an outgoing structure is stored into a bytearray."""
        try:
            if isinstance(argument, bytes):
                argument = bytearray(argument)  # of any size
            if isinstance(argument, int):
                argument = ctypes.c_int(argument).value  # what Python can pass; KVM's numbers are smaller
            return fcntl.ioctl(fd, request, argument)
        except OSError as error:
            return -(error.errno or 0)

    def map_file(self, fd: int, size: int) -> mmap.mmap:
        """Share `size` bytes of a file; raises OSError."""
        return mmap.mmap(fd, size, mmap.MAP_SHARED)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)


def guest_memory(size: int) -> mmap.mmap:
    """Zeroed memory of `size` bytes for a guest; raises OSError, ValueError, OverflowError."""
    return mmap.mmap(-1, size, flags=_GUEST_FLAGS)


def address_of(memory: mmap.mmap) -> int:
    """The host address of a mapping."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
