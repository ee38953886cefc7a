"""Upcall vectors: the VM-wide one, level-triggered on evtchn_upcall_pending, and a vCPU's own, an edge."""

from __future__ import annotations

from errno import EINVAL

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.hosts import Builder
from .kit.setting import MS, SHARED_INFO, VCPU_INFO

pytestmark = pytest.mark.source(
    "kvm_xen_has_interrupt, kvm_xen_inject_vcpu_vector; UPCALL_VECTOR in kvm_xen_hvm_set_attr and "
    "kvm_xen_vcpu_set_attr"
)

VM_WIDE, OWN, SECOND_OWN = 0x31, 0x61, 0x62
IRQCHIPS = pytest.mark.parametrize("irqchip", ["split", "full"])
REFUSED, ACCEPTED = range(1, 16), (0x10, 0x1F, 0x20, 0x30, 0xFE, 0xFF, 0)


def test_vm_vectors(new_vm: Builder) -> None:
    """The VM's UPCALL_VECTOR is 0 at first; 1 ... 15 are -EINVAL and change nothing, others read back."""
    vm = new_vm()
    vm.get(HvmAttr.UPCALL_VECTOR, 0)
    for vector in ACCEPTED:
        vm.set(HvmAttr.UPCALL_VECTOR, vector)
        vm.get(HvmAttr.UPCALL_VECTOR, vector)
        for refused in REFUSED:
            vm.set(HvmAttr.UPCALL_VECTOR, refused, ret=-EINVAL)
        vm.get(HvmAttr.UPCALL_VECTOR, vector)


def test_vcpu_vectors(new_vm: Builder) -> None:
    """A vCPU's UPCALL_VECTOR is 0 at first; 1 ... 15 are -EINVAL and change nothing, others read back."""
    vm = new_vm(vcpus=2)
    vcpu, other = vm.vcpus
    vcpu.get(VcpuAttr.UPCALL_VECTOR, 0)
    for vector in ACCEPTED:
        vcpu.set(VcpuAttr.UPCALL_VECTOR, vector)
        vcpu.get(VcpuAttr.UPCALL_VECTOR, vector)
        for refused in REFUSED:
            vcpu.set(VcpuAttr.UPCALL_VECTOR, refused, ret=-EINVAL)
        vcpu.get(VcpuAttr.UPCALL_VECTOR, vector)
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    other.get(VcpuAttr.UPCALL_VECTOR, 0)
    vm.get(HvmAttr.UPCALL_VECTOR, 0)


# ---- the VM-wide vector


@IRQCHIPS
def test_vm_wide(new_vm: Builder, irqchip: str) -> None:
    """With a VM-wide vector the vCPU that an event is announced to takes it, and no other."""
    vm = new_vm.ready(ids=(0, 3), irqchip=irqchip)
    for vector in (0x10, 0x20, VM_WIDE, 0xF3):
        vm.set(HvmAttr.UPCALL_VECTOR, vector)
        for vcpu in vm.vcpus:
            vm.send(5, vcpu.id)
            for each in vm.vcpus:
                each.run()
                each.took(*([vector] if each is vcpu else []))
            vcpu.run()
            vcpu.took()
            vm.clear_events()


@IRQCHIPS
def test_follows_the_byte(new_vm: Builder, irqchip: str) -> None:
    """The VM-wide vector is raised as long as evtchn_upcall_pending is not 0, whoever stored what there."""
    vm = new_vm.ready(irqchip=irqchip)
    vcpu = vm.vcpus[0]
    for byte in (1, 2, 0x80, 0xFF):
        vm.set(HvmAttr.UPCALL_VECTOR, 0)
        vm.store(VCPU_INFO, bytes([byte]))
        vcpu.run()
        vcpu.took()
        vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
        for _ in range(2):
            vcpu.run()
            vcpu.took(VM_WIDE)
            vcpu.run()
            vcpu.took()
            vm.store(VCPU_INFO, bytes([byte]))
        vm.store(VCPU_INFO, b"\0")
        vcpu.run()
        vcpu.took()


def test_upcall_mask_doesnt_count(new_vm: Builder) -> None:
    """evtchn_upcall_mask doesn't hold back the VM-wide vector."""
    vm = new_vm.ready()
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vm.store(VCPU_INFO + 1, b"\xff")
    vm.send(5)
    vm.vcpus[0].run()
    vm.vcpus[0].took(VM_WIDE)


def test_masked_and_coalesced_raise_nothing(new_vm: Builder) -> None:
    """An event that is masked or pending already raises neither vector."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.mask(5)
    vm.send(5)
    vcpu.run()
    vcpu.took()
    vm.mask()
    vm.send(5)
    vcpu.run()
    vcpu.took()


def test_needs_vcpu_info(new_vm: Builder) -> None:
    """Without vcpu_info the VM-wide vector waits until there is one."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(5)
    vcpu.run()
    vcpu.took()
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.took(VM_WIDE)


def test_needs_the_msr(new_vm: Builder) -> None:
    """The VM-wide vector takes a hypercall MSR, but not INTERCEPT_HCALL; a vCPU's own takes neither."""
    vm = new_vm.alone()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vcpu.place_vcpu_info()
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vm.send(5)
    vcpu.run()
    vcpu.took()
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.send(70)
    vcpu.run()
    vcpu.took(OWN)
    vm.config(flags=0)
    vcpu.run()
    vcpu.took(VM_WIDE)


def test_switched_off(new_vm: Builder) -> None:
    """Vector 0 switches the VM-wide vector off, though an event is pending."""
    vm = new_vm.ready()
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vm.send(5)
    vm.set(HvmAttr.UPCALL_VECTOR, 0)
    vm.vcpus[0].run()
    vm.vcpus[0].took()


# ---- a vCPU's own vector


@IRQCHIPS
def test_own(new_vm: Builder, irqchip: str) -> None:
    """A vCPU's own vector is taken once for each announcement, by that vCPU."""
    vm = new_vm.ready(ids=(0, 3), irqchip=irqchip)
    first, second = vm.vcpus
    first.set(VcpuAttr.UPCALL_VECTOR, OWN)
    second.set(VcpuAttr.UPCALL_VECTOR, SECOND_OWN)
    vm.send(5, 3)
    second.run()
    second.took(SECOND_OWN)
    second.run()
    second.took()
    first.run()
    first.took()
    second.upcall(0)
    vm.send(6, 3)
    second.run()
    second.took()
    vm.clear_events()
    vm.send(5, 3)
    second.run()
    second.took(SECOND_OWN)


def test_guests_store_doesnt_raise_own(new_vm: Builder) -> None:
    """A guest's own store to evtchn_upcall_pending doesn't raise its vCPU's vector."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.store(VCPU_INFO, b"\1")
    vcpu.run()
    vcpu.took()


def test_own_set_too_late(new_vm: Builder) -> None:
    """An event that was announced before the vCPU's vector was set doesn't raise it."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.send(5)
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vcpu.run()
    vcpu.took()
    vcpu.upcall(0)


def test_both(new_vm: Builder) -> None:
    """With both set the guest takes the VM-wide vector first, then its own."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.send(5)
    vcpu.run()
    vcpu.took(VM_WIDE, OWN)
    vcpu.run()
    vcpu.took()


def test_deferred(new_vm: Builder) -> None:
    """An event that waited for vcpu_info raises the vCPU's own vector when it is announced."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(5)
    vcpu.run()
    vcpu.took()
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.took(OWN)
    vcpu.upcall(0)


def test_timer(new_vm: Builder) -> None:
    """A timer's event raises the vectors like any other."""
    vm = new_vm.timers(vcpus=2)
    for vcpu in vm.vcpus:
        vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN + vcpu.index)
    vm.vcpus[1].set_singleshot(11, NowPlus(2 * MS))
    vm.until_pending(21)
    vm.vcpus[1].run()
    vm.vcpus[1].took(SECOND_OWN)
    vm.vcpus[0].took()


def test_own_event_by_hypercall(new_vm: Builder) -> None:
    """A guest that sends itself an event takes the interrupt right behind the hypercall."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.outbound(9, port=5)
    vcpu.evtchn_send(9)
    vcpu.took(OWN)


def test_without_local_apic(new_vm: Builder) -> None:
    """Without an in-kernel local APIC events are announced in memory alone: no vector is raised."""
    vm = new_vm.ready(irqchip="none")
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VM_WIDE)
    vcpu.set(VcpuAttr.UPCALL_VECTOR, OWN)
    vm.send(5)
    vcpu.run()
    vcpu.took()
    vcpu.upcall(0)
