"""The rest of KVM's interface that a VMM needs: creating VMs and vCPUs, registers, the shared run structure.

Source: the Linux UAPI headers `linux/kvm.h` and `asm/kvm.h` (x86).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _request(number: int, size: int = 0, direction: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


API_VERSION: Final = 12

KVM_CAP_SYNC_REGS: Final = 74
KVM_CAP_SPLIT_IRQCHIP: Final = 121

USER_MEMORY_REGION: Final = Struct("<IIQQQ")
"""slot, flags, guest_phys_addr, memory_size (bytes), userspace_addr."""
MEM_LOG_DIRTY_PAGES: Final = 1 << 0
"""KVM_MEM_LOG_DIRTY_PAGES, a slot's flag."""
DIRTY_LOG: Final = Struct("<I4xQ")
"""slot, dirty_bitmap: the host address of a bit for each page."""
ENABLE_CAP: Final = Struct("<IIQ88x")
"""cap, flags, args[0]."""
CPUID_HEADER: Final = Struct("<I4x")
"""nent; the entries follow."""
CPUID_ENTRY: Final = Struct("<IIIIIII12x")
"""function, index, flags, eax, ebx, ecx, edx."""
MAX_CPUID_ENTRIES: Final = 256
MP_STATE: Final = Struct("<I")
MP_STATE_RUNNABLE: Final = 0
LAPIC_SIZE: Final = 1024
MSRS_HEADER: Final = Struct("<I4x")
"""nmsrs; the entries follow."""
MSR_ENTRY: Final = Struct("<I4xQ")
"""index, data."""
SIGNAL_MASK: Final = Struct("<IQ")
"""len (8), sigset."""

REGS: Final = Struct("<18Q")
"""rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 ... r15, rip, rflags."""
SEGMENT: Final = Struct("<QIHBBBBBBBBBx")
"""base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable."""
DTABLE: Final = Struct("<QH6x")
"""base, limit."""
SREGS_TAIL: Final = Struct("<7Q32x")
"""cr0, cr2, cr3, cr4, cr8, efer, apic_base, then no pending interrupt."""
SREGS_SIZE: Final = 8 * SEGMENT.size + 2 * DTABLE.size + SREGS_TAIL.size
APIC_BASE_AT: Final = SREGS_SIZE - 32 - 8

KVM_GET_API_VERSION: Final = _request(0x00)
KVM_CREATE_VM: Final = _request(0x01)
KVM_GET_VCPU_MMAP_SIZE: Final = _request(0x04)
KVM_GET_SUPPORTED_CPUID: Final = _request(0x05, CPUID_HEADER.size, _READ | _WRITE)
KVM_CREATE_VCPU: Final = _request(0x41)
KVM_GET_DIRTY_LOG: Final = _request(0x42, DIRTY_LOG.size, _WRITE)
KVM_SET_USER_MEMORY_REGION: Final = _request(0x46, USER_MEMORY_REGION.size, _WRITE)
KVM_CREATE_IRQCHIP: Final = _request(0x60)
KVM_RUN: Final = _request(0x80)
KVM_GET_SREGS: Final = _request(0x83, SREGS_SIZE, _READ)
KVM_SET_SREGS: Final = _request(0x84, SREGS_SIZE, _WRITE)
KVM_SET_MSRS: Final = _request(0x89, MSRS_HEADER.size, _WRITE)
KVM_SET_SIGNAL_MASK: Final = _request(0x8B, 4, _WRITE)
KVM_GET_LAPIC: Final = _request(0x8E, LAPIC_SIZE, _READ)
KVM_SET_LAPIC: Final = _request(0x8F, LAPIC_SIZE, _WRITE)
KVM_SET_CPUID2: Final = _request(0x90, CPUID_HEADER.size, _WRITE)
KVM_GET_CPUID2: Final = _request(0x91, CPUID_HEADER.size, _READ | _WRITE)
KVM_SET_MP_STATE: Final = _request(0x99, MP_STATE.size, _WRITE)
KVM_ENABLE_CAP: Final = _request(0xA3, ENABLE_CAP.size, _WRITE)

EXIT_IO: Final = 2
EXIT_NAMES: Final = {
    0: "unknown",
    1: "exception",
    2: "I/O",
    5: "HLT",
    6: "MMIO",
    8: "shutdown (triple fault)",
    9: "failed entry",
    17: "internal error",
    34: "Xen",
}
"""Exit reasons that a VMM may meet, in words."""

# The shared run structure (`struct kvm_run`), by offset in bytes.
RUN_EXIT_REASON: Final = Struct("<8xI")
RUN_XEN: Final = Struct("<32xI4xIIQQ6Q")
"""type, longmode, cpl, input, result, params of KVM_EXIT_XEN."""
RUN_XEN_RESULT_AT: Final = 56
RUN_SYNC_AT: Final = 288
RUN_SYNC: Final = Struct("<QQ")
"""kvm_valid_regs, kvm_dirty_regs; the registers follow."""
RUN_REGS_AT: Final = RUN_SYNC_AT + RUN_SYNC.size
SYNC_REGS: Final = 1
