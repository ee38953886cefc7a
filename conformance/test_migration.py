"""Live migration: what is read from one VM and written to a fresh one."""

from __future__ import annotations

from errno import EINVAL

import pytest

from pytest_xenkvm.abi.numbers import PAGE_SIZE, XEN_VCPU_ID_INVALID, HvmAttr, VcpuAttr

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import MS, RUNSTATE, SHARED_INFO, TIME_INFO, VCPU_INFO

pytestmark = pytest.mark.source(
    "kvm_xen_hvm_get_attr, kvm_xen_vcpu_get_attr; kvm_xen_init_vcpu (commit c10bd49bdcc9, Linux 7.3)"
)

SURVIVE = {"rule": "migration.attributes-survive", "family": "migration", "level": "MUST"}
UNSET = {"rule": "migration.unset-id-refused", "family": "migration", "level": "MUST"}


@pytest.mark.xenkvm(**SURVIVE)
@pytest.mark.parametrize("by_hva", [False, True], ids=["by gpa", "by hva"])
def test_everything_set(new_vm: Builder, *, by_hva: bool) -> None:
    """Every attribute that can be read holds the same on a VM that it is written to."""
    vm = new_vm.timers(ids=(0, 3))
    vm.set(HvmAttr.XEN_VERSION, 0x4_0011)
    vm.set(HvmAttr.UPCALL_VECTOR, 0x31)
    vm.set(HvmAttr.RUNSTATE_UPDATE_FLAG, 1)
    if by_hva:
        vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    for vcpu in vm.vcpus:
        if by_hva:
            vcpu.set(VcpuAttr.VCPU_INFO_HVA, {"gpa": VCPU_INFO + PAGE_SIZE * vcpu.index})
        vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO + PAGE_SIZE * vcpu.index)
        vcpu.set(VcpuAttr.RUNSTATE_ADDR, RUNSTATE + 64 * vcpu.index)
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, 2)
        vcpu.set(VcpuAttr.UPCALL_VECTOR, 0x61 + vcpu.index)
        vcpu.set_timer(40 + vcpu.index, 1 << 62)


@pytest.mark.xenkvm(**SURVIVE)
@pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
def test_nearly_nothing_set(new_vm: Builder, *, long_mode: bool) -> None:
    """What was never set is as before on the other VM, too."""
    vm = new_vm(vcpus=2)
    vm.wait(MS)
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    for vcpu in vm.vcpus:
        vcpu.set(VcpuAttr.VCPU_ID, vcpu.index)


@pytest.mark.xenkvm(**UNSET)
@pytest.mark.parametrize("with_id", [None, 1], ids=["none set", "one set"])
def test_unset_ids(new_vm: Builder, with_id: int | None) -> None:
    """A Xen ID that was never set reads as a value that another VM refuses."""
    vm = new_vm.ready(vcpus=3)
    if with_id is not None:
        vm.vcpus[with_id].set(VcpuAttr.VCPU_ID, with_id)


@pytest.mark.xenkvm(rule="vcpu-id.sentinel-is-refused", family="vcpu-id", level="MUST")
@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
def test_unset_id_written_back(new_vm: Builder) -> None:
    """Writing an unset ID to another VM is -EINVAL, and leaves its vCPU forwarding timer calls."""
    source, target = new_vm.ready(vcpus=2), new_vm.ready(vcpus=2)
    read = source.vcpus[1].get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)
    target.vcpus[1].set(VcpuAttr.VCPU_ID, read, ret=-EINVAL)
    target.vcpus[1].set_timer(9)
    target.vcpus[1].stop_singleshot(1, answers=FORWARDED)
