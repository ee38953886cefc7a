"""The attributes VCPU_INFO and VCPU_INFO_HVA."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENXIO

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import LAST_PAGE, MEMORY, NOWHERE, SHARED_INFO, VCPU_INFO

pytestmark = pytest.mark.source(
    "kvm_xen_vcpu_set_attr, kvm_xen_vcpu_get_attr; Xen's public/xen.h: struct vcpu_info"
)

SIZE = 64
UNMAPPED_HVA = 0x1_0000
BY = pytest.mark.parametrize("by", [VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_INFO_HVA], ids=["gpa", "hva"])
OFF = {VcpuAttr.VCPU_INFO: INVALID_GPA, VcpuAttr.VCPU_INFO_HVA: 0}
LAST_PLACE = PAGE_SIZE - SIZE


def place(by: int, gpa: int) -> int | dict[str, int]:
    """The address as the attribute takes it."""
    return gpa if by == VcpuAttr.VCPU_INFO else {"gpa": gpa}


def test_off_at_first(new_vm: Builder) -> None:
    """A new vCPU has no vcpu_info: INVALID_GPA, and host address 0."""
    vcpu = new_vm().vcpus[0]
    vcpu.get(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vcpu.get(VcpuAttr.VCPU_INFO_HVA, 0)


@BY
def test_reads_back(new_vm: Builder, by: int) -> None:
    """What was set reads back by the attribute that set it; the other one reads as off."""
    vcpu = new_vm().vcpus[0]
    other = VcpuAttr.VCPU_INFO if by == VcpuAttr.VCPU_INFO_HVA else VcpuAttr.VCPU_INFO_HVA
    for gpa in (VCPU_INFO, SHARED_INFO, LAST_PAGE + LAST_PLACE, 0):
        vcpu.set(by, place(by, gpa))
        vcpu.get(by, place(by, gpa))
        vcpu.get(other, OFF[other])


@BY
def test_events_go_there(new_vm: Builder, by: int) -> None:
    """Events are announced in it, wherever it lies, a page's last 64 bytes and shared_info included."""
    vm = new_vm.ready(vcpus=2)
    vcpu = vm.vcpus[1]
    for gpa in (VCPU_INFO + LAST_PLACE, SHARED_INFO + 64, LAST_PAGE + LAST_PLACE, VCPU_INFO + 0x104):
        vcpu.set(by, place(by, gpa))
        vm.send(70, 1)
        vcpu.upcall(1)
        vm.clear_events()
        vm.vcpus[0].quiet()


@BY
@pytest.mark.parametrize("offset", [LAST_PLACE + 4, LAST_PLACE + 8, PAGE_SIZE - 4])
def test_must_fit_in_a_page(new_vm: Builder, by: int, offset: int) -> None:
    """Where its 64 bytes would cross a page it is -EINVAL, and the old one stays."""
    vcpu = new_vm().vcpus[0]
    vcpu.set(by, place(by, VCPU_INFO))
    vcpu.set(by, place(by, VCPU_INFO + offset), ret=-EINVAL)
    vcpu.set(
        by, place(by, NOWHERE + offset) if by == VcpuAttr.VCPU_INFO else UNMAPPED_HVA + offset, ret=-EINVAL
    )
    vcpu.get(by, place(by, VCPU_INFO))


@BY
@pytest.mark.parametrize("offset", [1, 2, 3, 6, 0x21, LAST_PLACE - 1])
def test_alignment(new_vm: Builder, by: int, offset: int) -> None:
    """An address that is not 4-byte aligned is -ENXIO on late 6.12 releases, and fine on later kernels."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(by, place(by, VCPU_INFO))
    refused = offset % vm.profile.vcpu_info_alignment
    vcpu.set(by, place(by, VCPU_INFO + offset), ret=-ENXIO if refused else 0)
    vcpu.get(by, place(by, VCPU_INFO if refused else VCPU_INFO + offset))


@BY
def test_unaligned_and_crossing(new_vm: Builder, by: int) -> None:
    """An unaligned address that would cross a page is refused by all kernels."""
    vm = new_vm()
    ret = -EINVAL if vm.profile.vcpu_info_alignment == 1 else -ENXIO
    vm.vcpus[0].set(by, place(by, VCPU_INFO + LAST_PLACE + 1), ret=ret)
    vm.vcpus[0].set(by, place(by, VCPU_INFO + PAGE_SIZE - 1), ret=ret)


@pytest.mark.parametrize("gpa", [MEMORY, NOWHERE, 1 << 40, INVALID_GPA - 63], ids=hex)
def test_without_memory(new_vm: Builder, gpa: int) -> None:
    """A guest address without memory is -EFAULT, yet it counts as set and reads back; events are kept."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, gpa, ret=-EFAULT)
    vcpu.get(VcpuAttr.VCPU_INFO, gpa)
    vcpu.get(VcpuAttr.VCPU_INFO_HVA, 0)
    vm.send(5)
    vcpu.run()
    vcpu.quiet()
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.upcall(0)


def test_hva_without_memory(new_vm: Builder) -> None:
    """A host address without memory is -EFAULT, yet it counts as set; one of no process is -EINVAL."""
    vcpu = new_vm().vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO_HVA, UNMAPPED_HVA, ret=-EFAULT)
    vcpu.get(VcpuAttr.VCPU_INFO_HVA, UNMAPPED_HVA)
    vcpu.get(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vcpu.set(VcpuAttr.VCPU_INFO_HVA, 0x7FFF_FFFF_F000, ret=-EINVAL)
    vcpu.set(VcpuAttr.VCPU_INFO_HVA, 0xFFFF_8000_0000_0000, ret=-EINVAL)
    vcpu.get(VcpuAttr.VCPU_INFO_HVA, UNMAPPED_HVA)


@BY
@pytest.mark.parametrize("off_by", OFF, ids=["INVALID_GPA", "hva 0"])
def test_switched_off(new_vm: Builder, by: int, off_by: VcpuAttr) -> None:
    """INVALID_GPA, or host address 0, switches it off, however it was set, and also if it is off."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(by, place(by, VCPU_INFO))
    for _ in range(2):
        vcpu.set(off_by, OFF[off_by])
        vcpu.get(VcpuAttr.VCPU_INFO, INVALID_GPA)
        vcpu.get(VcpuAttr.VCPU_INFO_HVA, 0)
    vm.send(5)
    vcpu.run()
    vm.holds(VCPU_INFO, bytes(16), "the old vcpu_info")


def test_nothing_is_written_at_once(new_vm: Builder) -> None:
    """Setting it writes nothing: the clock in it follows at the vCPU's next entry, and nothing else."""
    vm = new_vm.ready()
    vm.store(VCPU_INFO + 0x200, b"\x5a" * 128)
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, VCPU_INFO + 0x220)
    vm.holds(VCPU_INFO + 0x200, b"\x5a" * 128, "memory round vcpu_info")
    vm.store(VCPU_INFO + 0x220, bytes(1))
    vcpu.run()
    vm.holds(VCPU_INFO + 0x200, b"\x5a" * 32, "memory before vcpu_info")
    vm.holds(VCPU_INFO + 0x220, b"\0" + b"\x5a" * 31, "vcpu_info before its clock")
    vm.holds(VCPU_INFO + 0x260, b"\x5a" * 32, "memory behind vcpu_info")
