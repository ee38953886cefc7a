"""A kernel that answers a VMM's ioctls as KVM would, without one; its guest parks at once."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable
from typing import ClassVar, Final

from attrs import Factory, define

from pytest_xenkvm.abi import ioctls, kvm
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS, KVM_CAP_XEN_HVM

DEVICE_FD: Final = 100
VM_FD: Final = 101
RUN_SIZE: Final = 8192


@define(eq=False)
class FakeKvm:
    """Counts what it is asked, and hands out numbers as files."""

    capabilities: dict[int, int] = Factory(
        lambda: {KVM_CAP_XEN_HVM: 0x1FF, kvm.KVM_CAP_SYNC_REGS: 7, KVM_CAP_MAX_VCPUS: 4096}
    )
    version: int = kvm.API_VERSION
    cannot_open: OSError | None = None
    refused: dict[int, int] = Factory(dict)
    """The errno of requests that are refused."""
    made: list[tuple[int, int]] = Factory(list)
    """File and request of each ioctl."""
    slots: list[tuple[int, int]] = Factory(list)
    """Guest address and size of each memory slot."""
    slot_numbers: list[tuple[int, int]] = Factory(list)
    """Number and flags of each."""
    cpuid: list[tuple[int, ...]] = Factory(list)
    """The leaves of the vCPUs."""
    msrs: dict[int, int] = Factory(dict)
    msrs_written: int = 1
    """What KVM_SET_MSRS returns."""
    dirty_bitmap: bytes = b""
    """What KVM_GET_DIRTY_LOG stores."""
    closed: list[int] = Factory(list)
    runs: dict[int, mmap.mmap] = Factory(dict)
    interruptions: int = 0
    """How many KVM_RUNs a signal ends first."""
    on_run: Callable[[mmap.mmap], int] | None = None
    """Plays the guest: changes the run structure, returns what KVM_RUN does."""
    _next_fd: int = VM_FD

    def open(self, _path: str) -> int:
        """As asked for."""
        if self.cannot_open is not None:
            raise self.cannot_open
        return DEVICE_FD

    def ioctl(self, fd: int, request: int, argument: int | bytearray | bytes = 0) -> int:  # noqa: PLR0911
        """As KVM, as far as creating a VM and running a stub goes."""
        self.made.append((fd, request))
        if request in self.refused:
            return -self.refused[request]
        if request == kvm.KVM_GET_API_VERSION:
            return self.version
        if request == ioctls.KVM_CHECK_EXTENSION:
            assert isinstance(argument, int)
            return self.capabilities.get(argument, 0)
        if request in (kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU):
            self._next_fd += 1
            return self._next_fd
        if request == kvm.KVM_GET_VCPU_MMAP_SIZE:
            return RUN_SIZE
        if request == kvm.KVM_RUN:
            return self._run(fd)
        if request == kvm.KVM_SET_MSRS:
            msr, value = kvm.MSR_ENTRY.unpack_from(self._bytes(argument), kvm.MSRS_HEADER.size)
            self.msrs[msr] = value
            return self.msrs_written
        structure = self._STRUCTURES.get(request)
        if structure is not None:
            structure(self, self._bytes(argument))
        return 0

    def _supported_cpuid(self, argument: bytes | bytearray) -> None:
        assert isinstance(argument, bytearray)
        kvm.CPUID_HEADER.pack_into(argument, 0, 1)

    def _get_cpuid(self, argument: bytes | bytearray) -> None:
        assert isinstance(argument, bytearray)
        leaves = b"".join(kvm.CPUID_ENTRY.pack(*leaf) for leaf in self.cpuid)
        argument[: kvm.CPUID_HEADER.size + len(leaves)] = kvm.CPUID_HEADER.pack(len(self.cpuid)) + leaves

    def _set_cpuid(self, argument: bytes | bytearray) -> None:
        self.cpuid = list(kvm.CPUID_ENTRY.iter_unpack(bytes(argument)[kvm.CPUID_HEADER.size :]))

    def _set_slot(self, argument: bytes | bytearray) -> None:
        slot, flags, gpa, size, _hva = kvm.USER_MEMORY_REGION.unpack(bytes(argument))
        self.slots.append((gpa, size))
        self.slot_numbers.append((slot, flags))

    def _dirty_log(self, argument: bytes | bytearray) -> None:
        _slot, bitmap = kvm.DIRTY_LOG.unpack(bytes(argument))
        ctypes.memmove(bitmap, self.dirty_bitmap, len(self.dirty_bitmap))

    _STRUCTURES: ClassVar[dict[int, Callable[[FakeKvm, bytes | bytearray], None]]] = {
        kvm.KVM_GET_SUPPORTED_CPUID: _supported_cpuid,
        kvm.KVM_GET_CPUID2: _get_cpuid,
        kvm.KVM_SET_CPUID2: _set_cpuid,
        kvm.KVM_SET_USER_MEMORY_REGION: _set_slot,
        kvm.KVM_GET_DIRTY_LOG: _dirty_log,
    }

    def map_file(self, fd: int, size: int) -> mmap.mmap:
        """Memory in place of the shared run structure."""
        self.runs[fd] = mmap.mmap(-1, size)
        return self.runs[fd]

    def close(self, fd: int) -> None:
        """Remember."""
        self.closed.append(fd)

    def requests(self) -> list[int]:
        """What was asked, in order."""
        return [request for _fd, request in self.made]

    def _run(self, fd: int) -> int:
        if self.interruptions:
            self.interruptions -= 1
            return -errno.EINTR
        run = self.runs[fd]
        if self.on_run is not None:
            return self.on_run(run)
        kvm.RUN_EXIT_REASON.pack_into(run, 0, kvm.EXIT_IO)
        return 0

    @staticmethod
    def _bytes(argument: int | bytearray | bytes) -> bytearray | bytes:
        assert not isinstance(argument, int)
        return argument
