"""The hypercall page, which a guest asks for by writing a page's address to the configured MSR.

Steps (`kvm_xen_write_hypercall_page`; all supported kernels), the first that fails ends it:

1. LONG_MODE is latched from EFER.LMA. If that changed it and shared_info is active, the wall clock is
   written in the new layout; impossible: #GP (but the latch stays, so a second write passes).
2. With INTERCEPT_HCALL: the low 12 bits must be 0, else #GP, and the kernel's own page is written.
   Without: they number a page of the VMM's blob; not below the blob's size: #GP; the blob can't be read:
   KVM_RUN fails with -EFAULT.
3. No guest memory at the address: #GP.
"""

from __future__ import annotations

from enum import Enum
from errno import EFAULT
from typing import Final

from pytest_xenkvm.abi.numbers import PAGE_SIZE, XenHvmFlag
from pytest_xenkvm.core.clockpage import write_wall_clock
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.state import VmState

STUB_SIZE: Final = 32
_INSTRUCTION: Final = {"intel": b"\x0f\x01\xc1", "amd": b"\x0f\x01\xd9"}
"""VMCALL, VMMCALL."""


class MsrWrite(Enum):
    """How the guest's WRMSR ended."""

    OK = "ok"
    GP = "#GP"


def write_msr(vm: VmState, msr: int, value: int, *, long_mode_active: bool) -> MsrWrite:
    """The guest writes `value` (u64) to `msr` with EFER.LMA as given.

    Only the configured MSR is known here; any other is #GP. Raises KvmError -EFAULT when KVM_RUN fails.
    """
    if not vm.config.msr or msr != vm.config.msr:
        return MsrWrite.GP
    try:
        latch_long_mode(vm, long_mode=long_mode_active, only_if_changed=True)
    except KvmError:
        return MsrWrite.GP
    offset = value % PAGE_SIZE
    if not vm.config.flags & XenHvmFlag.INTERCEPT_HCALL:
        page = _blob_page(vm, offset, long_mode_active=long_mode_active)
    else:
        page = None if offset else kernel_page(vm.cpu_vendor)
    if page is None or not vm.memory.write(value - offset, page):
        return MsrWrite.GP
    vm.memory.mark_dirty(value - offset)
    return MsrWrite.OK


def write_msr_for_vmm(vm: VmState, msr: int, value: int) -> bool:
    """KVM_SET_MSRS of one MSR, the vCPU's EFER.LMA being what LONG_MODE says: whether it was set.

    Only the hypercall MSR is known here, and some kernels leave that to the guest.
    """
    if not vm.profile.vmm_requests_hypercall_page:
        return False
    try:
        return write_msr(vm, msr, value, long_mode_active=vm.long_mode) is MsrWrite.OK
    except KvmError:
        return False


def latch_long_mode(vm: VmState, *, long_mode: bool, only_if_changed: bool) -> None:
    """Switch the layout of shared structures and rewrite the wall clock if shared_info is active.

    Raises KvmError -EFAULT if shared_info is refused; the layout has changed nevertheless.
    """
    if only_if_changed and vm.long_mode == long_mode:
        return
    vm.long_mode = long_mode
    if vm.shared_info.active:
        write_wall_clock(vm)


def kernel_page(cpu_vendor: str) -> bytes:
    """128 stubs of 32 bytes: `mov eax, i`; VMCALL or VMMCALL; `ret`; padded with int3."""
    stubs = (
        b"\xb8" + number.to_bytes(4, "little") + _INSTRUCTION[cpu_vendor] + b"\xc3"
        for number in range(PAGE_SIZE // STUB_SIZE)
    )
    return b"".join(stub.ljust(STUB_SIZE, b"\xcc") for stub in stubs)


def _blob_page(vm: VmState, number: int, *, long_mode_active: bool) -> bytes | None:
    config = vm.config
    address, pages = (
        (config.blob_addr_64, config.blob_size_64)
        if long_mode_active
        else (config.blob_addr_32, config.blob_size_32)
    )
    if number >= pages:
        return None
    gpa = vm.memory.hva_to_gpa(address + number * PAGE_SIZE, PAGE_SIZE)
    page = None if gpa is None else vm.memory.read(gpa, PAGE_SIZE)
    if page is None:
        raise KvmError(EFAULT)
    return page
