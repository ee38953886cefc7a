"""KVM_XEN_HVM_CONFIG, and the capabilities that it comes with."""

from __future__ import annotations

from errno import EINVAL, ENOENT

import pytest

from pytest_xenkvm.abi.numbers import (
    KVM_CAP_XEN_HVM,
    SETTABLE_HVM_FLAGS,
    U32_MAX,
    HvmAttr,
    Hypercall,
    VcpuAttr,
    XenHvmFlag,
)

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import MSR

pytestmark = pytest.mark.source("kvm_xen_hvm_config, KVM_CAP_XEN_HVM in linux/kvm.h")

INTERCEPT = int(XenHvmFlag.INTERCEPT_HCALL)


def test_capability(new_vm: Builder) -> None:
    """KVM_CAP_XEN_HVM offers all that this suite is about."""
    vm = new_vm()
    offered = vm.ioctl("KVM_CHECK_EXTENSION", {"cap": KVM_CAP_XEN_HVM}, ret=None).ret
    if offered != sum(XenHvmFlag):
        vm.fail(f"{sum(XenHvmFlag):#x}", f"KVM_CAP_XEN_HVM is {offered:#x}")


def test_flags(new_vm: Builder) -> None:
    """Only INTERCEPT_HCALL, EVTCHN_SEND and PVCLOCK_TSC_UNSTABLE can be set; other flags are -EINVAL."""
    vm = new_vm()
    for flags in (*(1 << bit for bit in range(32)), 0, SETTABLE_HVM_FLAGS, U32_MAX):
        vm.config(flags=flags, ret=-EINVAL if flags & ~SETTABLE_HVM_FLAGS else 0)


@pytest.mark.parametrize("member", ["blob_addr_32", "blob_addr_64", "blob_size_32", "blob_size_64"])
@pytest.mark.parametrize("msr", [0, MSR], ids=hex)
def test_intercept_without_blob(new_vm: Builder, member: str, msr: int) -> None:
    """INTERCEPT_HCALL together with any of the blob's fields is -EINVAL; without it they are fine."""
    vm = new_vm()
    for flags in (INTERCEPT, SETTABLE_HVM_FLAGS):
        vm.config(flags=flags, msr=msr, ret=-EINVAL, **{member: 1})
    vm.config(flags=SETTABLE_HVM_FLAGS & ~INTERCEPT, msr=msr, **{member: 1})


@pytest.mark.parametrize(
    "msr", [1, 0x10, 0x174, 0x3FFF_FFFF, 0x5000_0000, 0x8000_0000, 0xC000_0080, U32_MAX], ids=hex
)
def test_msrs_of_the_cpu(new_vm: Builder, msr: int) -> None:
    """An MSR outside 0x40000000 ... 0x4fffffff is -EINVAL from Linux 7.2 on, and taken before."""
    vm = new_vm()
    vm.config(msr=msr, ret=0 if vm.profile.hypercall_msr_range is None else -EINVAL)
    vm.config(flags=0, msr=msr, ret=0 if vm.profile.hypercall_msr_range is None else -EINVAL)


@pytest.mark.parametrize("msr", [0, 0x4000_0000, 0x4000_0001, 0x4FFF_FFFF], ids=hex)
def test_msrs_of_hypervisors(new_vm: Builder, msr: int) -> None:
    """MSRs 0x40000000 ... 0x4fffffff, and 0 for none, are taken by all kernels."""
    new_vm().config(msr=msr)


def test_refused_changes_nothing(new_vm: Builder) -> None:
    """A configuration that is refused leaves the old one in force."""
    vm = new_vm()
    vm.config()
    vm.config(flags=1, ret=-EINVAL)
    vm.config(flags=INTERCEPT, blob_size_64=1, ret=-EINVAL)
    vm.vcpus[0].call(Hypercall.hvm_op, answers=FORWARDED)


def test_can_be_changed(new_vm: Builder) -> None:
    """A configuration replaces the one before."""
    vm = new_vm()
    for _ in range(2):
        vm.config()
        vm.vcpus[0].call(Hypercall.hvm_op, answers=FORWARDED)
        vm.config(flags=0)
        vm.vcpus[0].call(Hypercall.hvm_op, answers=-1000)


def test_unknown_vm_attributes(new_vm: Builder) -> None:
    """Types of attribute that a VM doesn't have are -ENOENT."""
    vm = new_vm()
    for type_ in (7, 8, 9, 0x10, 0x7FFF, 0xFFFF):
        vm.set(type_, ret=-ENOENT)
        vm.get(type_, ret=-ENOENT)


def test_unknown_vcpu_attributes(new_vm: Builder) -> None:
    """Types of attribute that a vCPU doesn't have are -ENOENT."""
    vcpu = new_vm().vcpus[0]
    for type_ in (10, 11, 0x10, 0x7FFF, 0xFFFF):
        vcpu.set(type_, ret=-ENOENT)
        vcpu.get(type_, ret=-ENOENT)


def test_attributes_need_no_config(new_vm: Builder) -> None:
    """Attributes can be set and read before KVM_XEN_HVM_CONFIG, which leaves them alone."""
    vm = new_vm()
    vm.set(HvmAttr.XEN_VERSION, 7)
    vm.vcpus[0].set(VcpuAttr.VCPU_ID, 7)
    vm.vcpus[0].set_timer(7)
    vm.config()
    vm.get(HvmAttr.XEN_VERSION, 7)
    vm.vcpus[0].get(VcpuAttr.VCPU_ID, 7)
    vm.vcpus[0].timer_is(7)
