"""CPUID as a guest program sees it: a plain x86-64 CPU and the Xen leaves that belong to the VM's settings.

Xen's leaves (public/arch-x86/cpuid.h): 0x40000000 signature, +1 version, +2 hypercall pages and their MSR,
+4 features and the vCPU's ID.
"""

from __future__ import annotations

import struct
from typing import Final

from pytest_xenkvm.core.state import VcpuState, VmState

XEN_BASE: Final = 0x4000_0000
_SIGNATURE: Final = struct.unpack("<3I", b"XenVMMXenVMM")
_VENDORS: Final = {
    vendor: struct.unpack("<3I", name)
    for vendor, name in (("amd", b"AuthcAMDenti"), ("intel", b"GenuntelineI"))
}
"""EBX, ECX, EDX of leaf 0."""
_HYPERVISOR: Final = 1 << 31
_LONG_MODE: Final = 1 << 29
_VCPU_ID_PRESENT: Final = 1 << 3

Leaf = tuple[int, int, int, int]


def leaf(vm: VmState, vcpu: VcpuState, number: int) -> Leaf:
    """EAX, EBX, ECX and EDX of a leaf; zeros where there is none."""
    leaves: dict[int, Leaf] = {
        0: (1, *_VENDORS[vm.cpu_vendor]),
        1: (0x0080_0F12, vcpu.id << 24, _HYPERVISOR, 0),
        0x8000_0000: (0x8000_0001, 0, 0, 0),
        0x8000_0001: (0, 0, 0, _LONG_MODE),
    }
    if vm.xen_enabled:
        leaves |= {
            XEN_BASE: (XEN_BASE + 4, *_SIGNATURE),
            XEN_BASE + 1: (vm.xen_version, 0, 0, 0),
            XEN_BASE + 2: (1, vm.config.msr, 0, 0),
            XEN_BASE + 4: (_VCPU_ID_PRESENT, vcpu.id, 0, 0),
        }
    return leaves.get(number, (0, 0, 0, 0))
