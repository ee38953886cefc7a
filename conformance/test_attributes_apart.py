"""Attributes are apart: each SET and GET is of its own attribute and of no other."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import RUNSTATE, SHARED_INFO, TIME_INFO, VCPU_INFO
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source(
    "kvm_xen_hvm_set_attr, kvm_xen_hvm_get_attr, kvm_xen_vcpu_set_attr, kvm_xen_vcpu_get_attr"
)

OF_VM: dict[int, Any] = {
    HvmAttr.LONG_MODE: 1,
    HvmAttr.SHARED_INFO: SHARED_INFO // PAGE_SIZE,
    HvmAttr.UPCALL_VECTOR: 0x31,
    HvmAttr.XEN_VERSION: 0x4_0011,
    HvmAttr.RUNSTATE_UPDATE_FLAG: 1,
}
OF_VCPU: dict[int, Any] = {
    VcpuAttr.VCPU_INFO: VCPU_INFO,
    VcpuAttr.VCPU_TIME_INFO: TIME_INFO,
    VcpuAttr.RUNSTATE_ADDR: RUNSTATE,
    VcpuAttr.VCPU_ID: 7,
    VcpuAttr.UPCALL_VECTOR: 0x61,
}


def vm_values(vm: ProbeVm) -> dict[int, Any]:
    """What each attribute of the VM reads."""
    return {type_: vm.get(type_) for type_ in OF_VM}


@pytest.mark.parametrize("type_", OF_VM, ids=lambda type_: HvmAttr(type_).name)
def test_vm_attribute(new_vm: Builder, type_: int) -> None:
    """Setting an attribute of the VM changes what it reads, and what no other one reads."""
    vm = new_vm()
    before = vm_values(vm)
    vm.set(type_, OF_VM[type_])
    after = vm_values(vm)
    changed = {other for other in OF_VM if before[other] != after[other]}
    if changed != {type_}:
        vm.fail(f"only {HvmAttr(type_).name} changes", f"{[HvmAttr(one).name for one in changed]} do")


def test_all_attributes_of_a_vcpu(new_vm: Builder) -> None:
    """With all attributes of a vCPU set, each reads what was set by it."""
    vm = new_vm()
    for vcpu_attribute, value in OF_VCPU.items():
        vm.vcpus[0].set(vcpu_attribute, value)
    vm.vcpus[0].set_timer(9, 1 << 62)
    for vcpu_attribute, value in OF_VCPU.items():
        vm.vcpus[0].get(vcpu_attribute, value)
    vm.vcpus[0].timer_is(9, 1 << 62)


def test_all_attributes_of_a_vm(new_vm: Builder) -> None:
    """With all attributes of a VM set, each reads what was set by it, a host address in all its bytes."""
    vm = new_vm()
    for type_, value in OF_VM.items():
        vm.set(type_, value)
    for type_, value in OF_VM.items():
        vm.get(type_, value)
    vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    vm.get(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
