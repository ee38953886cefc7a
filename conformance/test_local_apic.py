"""A vCPU's own upcall vector and its local APIC, which the guest's software enables and disables."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE, HvmAttr, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import SHARED_INFO, VCPU_INFO

pytestmark = pytest.mark.source("kvm_xen_sw_enable_lapic, called by apic_set_spiv; __apic_accept_irq")

OWN, VM_WIDE = 0x61, 0x31
IRQCHIPS = pytest.mark.parametrize("irqchip", ["split", "full"])


@IRQCHIPS
def test_raised_when_enabled(new_vm: Builder, irqchip: str) -> None:
    """An event's vector is lost while its vCPU's local APIC is disabled, and raised when that is enabled."""
    vm = new_vm.ready(vcpus=2, irqchip=irqchip)
    first, second = vm.vcpus
    for vcpu in vm.vcpus:
        vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN + vcpu.index)
        vcpu.enable_local_apic(enabled=False)
    vm.send(5, second.id)
    second.run()
    second.took()
    second.upcall(0)
    first.enable_local_apic()
    first.took()
    second.enable_local_apic()
    second.took(OWN + 1)
    second.run()
    second.took()


def test_raised_at_each_write(new_vm: Builder) -> None:
    """Each write that enables it raises the vector as long as evtchn_upcall_pending is set, by whomever."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    for byte in (1, 0, 0x80, 0):
        vm.store(VCPU_INFO, bytes([byte]))
        for enabled in (True, True, False, True):
            vcpu.enable_local_apic(enabled=enabled)
            vcpu.took(*([OWN] if byte and enabled else []))


def test_not_without_a_vector(new_vm: Builder) -> None:
    """Without a vector of its own nothing is raised when it is enabled; a vector set later waits for that."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.send(5)
    vcpu.enable_local_apic()
    vcpu.took()
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vcpu.run()
    vcpu.took()
    vcpu.enable_local_apic()
    vcpu.took(OWN)


def test_not_without_vcpu_info(new_vm: Builder) -> None:
    """Without vcpu_info nothing is raised when it is enabled, but when the event is announced."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.send(5)
    vcpu.run()
    vcpu.took(OWN)
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(64)
    vcpu.enable_local_apic()
    vcpu.took()
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.took(OWN)


def test_not_without_the_msr(new_vm: Builder) -> None:
    """Where no VM has a hypercall MSR nothing is raised when it is enabled."""
    vm = new_vm.alone()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vcpu.place_vcpu_info()
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vcpu.enable_local_apic(enabled=False)
    vm.send(5)
    vcpu.enable_local_apic()
    vcpu.took()
    vm.config(flags=0)
    vcpu.enable_local_apic()
    vcpu.took(OWN)


def test_vm_wide_vector_needs_no_enabling(new_vm: Builder) -> None:
    """The VM-wide vector is taken while the local APIC is disabled, too."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vcpu.enable_local_apic(enabled=False)
    vm.send(5)
    vcpu.run()
    vcpu.took(VM_WIDE)
