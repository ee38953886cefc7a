"""Which write of which MSR is the guest's request for a hypercall page."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, Hypercall

from .kit.demands import FORWARDED
from .kit.hosts import SWITCHED_OFF_AFTER, Builder
from .kit.setting import PAGE

pytestmark = pytest.mark.source("kvm_set_msr_common, kvm_xen_is_hypercall_page_msr")

MSR = 0x4000_0200
"""A hypercall MSR that is nothing else, while 0x40000000 is one of Hyper-V's, too."""


@pytest.mark.parametrize("bit", range(0, 28, 3))
def test_every_bit_counts(new_vm: Builder, bit: int) -> None:
    """An MSR whose number differs from the configured one in a bit is #GP, and no page is written."""
    vm = new_vm()
    vm.config(msr=MSR)
    vm.vcpus[0].wrmsr(PAGE, msr=MSR ^ 1 << bit, ok=False)
    vm.get(HvmAttr.LONG_MODE, 0)
    vm.holds(PAGE, bytes(32), "the page")


def test_old_msr(new_vm: Builder) -> None:
    """An MSR that was configured before is #GP once there is another."""
    vm = new_vm()
    vm.config(msr=MSR)
    vm.config(msr=MSR + 1)
    vm.vcpus[0].wrmsr(PAGE, msr=MSR, ok=False)
    vm.holds(PAGE, bytes(32), "the page")


def test_configured_again(new_vm: Builder) -> None:
    """A VM that is configured twice with an MSR goes on being served, also seconds later."""
    vm = new_vm()
    for _ in range(2):
        vm.config(msr=MSR)
    vm.wait(SWITCHED_OFF_AFTER)
    vm.vcpus[0].call(Hypercall.hvm_op, answers=FORWARDED)


def test_written_by_the_vmm(new_vm: Builder) -> None:
    """KVM_SET_MSRS of the hypercall MSR writes no page and sets nothing; on Linux 6.12 it writes one."""
    vm = new_vm()
    vm.config(msr=MSR)
    vm.vcpus[0].wrmsr(PAGE, msr=MSR)
    page = vm.read(PAGE, PAGE_SIZE)
    vm.store(PAGE, bytes(PAGE_SIZE))
    argument = bytearray(kvm.MSRS_HEADER.pack(1) + kvm.MSR_ENTRY.pack(MSR, PAGE))
    done = vm.untold_ioctl(kvm.KVM_SET_MSRS, argument, vcpu=0)
    expected = int(vm.profile.vmm_requests_hypercall_page)
    if done != expected:
        vm.fail(f"KVM_SET_MSRS to set {expected} MSRs", f"it returned {done}", 0)
    vm.holds(PAGE, page if expected else bytes(PAGE_SIZE), "the page")


def test_no_msr(new_vm: Builder) -> None:
    """In a VM without a hypercall MSR the guest's write of MSR 0 is #GP, whatever other VMs have."""
    new_vm().config()
    vm = new_vm()
    vm.vcpus[0].wrmsr(PAGE, msr=0, ok=False)
    vm.get(HvmAttr.LONG_MODE, 0)
    vm.holds(PAGE, bytes(32), "the page")
