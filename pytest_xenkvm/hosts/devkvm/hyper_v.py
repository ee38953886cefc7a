"""A guest of a real KVM that may make Hyper-V's hypercalls beside Xen's."""

from __future__ import annotations

import os
from typing import Final

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.hosts.devkvm.kernel import Kernel
from pytest_xenkvm.hosts.protocol import HostError

_SIGNATURE: Final = b"Microsoft Hv"
"""EBX, ECX and EDX of the first leaf."""
_INTERFACE: Final = int.from_bytes(b"Hv#1", "little")
"""EAX of the second, by which KVM knows (`kvm_hv_set_cpuid`)."""
_FIRST, _SECOND = 0x4000_0000, 0x4000_0001
_GUEST_OS_ID: Final = 0x4000_0000
"""HV_X64_MSR_GUEST_OS_ID."""
_ANY_GUEST: Final = 1


def enable(kernel: Kernel, vcpu_fd: int) -> None:
    """Give the vCPU, which must not have run, Hyper-V's CPUID leaves, and set the guest's identity.

    Raises HostError if KVM refuses, as it does without CONFIG_KVM_HYPERV.
    """
    argument = bytearray(kvm.CPUID_HEADER.size + kvm.MAX_CPUID_ENTRIES * kvm.CPUID_ENTRY.size)
    kvm.CPUID_HEADER.pack_into(argument, 0, kvm.MAX_CPUID_ENTRIES)
    _must("KVM_GET_CPUID2", kernel.ioctl(vcpu_fd, kvm.KVM_GET_CPUID2, argument))
    start, count = kvm.CPUID_HEADER.size, kvm.CPUID_HEADER.unpack_from(argument)[0]
    entries = kvm.CPUID_ENTRY.iter_unpack(argument[start : start + count * kvm.CPUID_ENTRY.size])
    words = (int.from_bytes(_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8))
    leaves = [
        *(entry for entry in entries if entry[0] not in (_FIRST, _SECOND)),
        (_FIRST, 0, 0, _SECOND, *words),
        (_SECOND, 0, 0, _INTERFACE, 0, 0, 0),
    ]
    packed = b"".join(kvm.CPUID_ENTRY.pack(*leaf) for leaf in leaves)
    cpuid = kvm.CPUID_HEADER.pack(len(leaves)) + packed
    _must("Hyper-V's CPUID leaves", kernel.ioctl(vcpu_fd, kvm.KVM_SET_CPUID2, cpuid))
    msrs = kvm.MSRS_HEADER.pack(1) + kvm.MSR_ENTRY.pack(_GUEST_OS_ID, _ANY_GUEST)
    written = kernel.ioctl(vcpu_fd, kvm.KVM_SET_MSRS, msrs)
    if written == 0:
        raise HostError("this KVM doesn't know Hyper-V's MSRs: use a kernel built with CONFIG_KVM_HYPERV")
    _must("HV_X64_MSR_GUEST_OS_ID", written)


def _must(what: str, result: int) -> None:
    if result < 0:
        raise HostError(f"/dev/kvm refused {what} with errno {-result} ({os.strerror(-result)})")
