"""What the ABI shows of interrupt delivery: which vector the guest takes next.

Two sources, both only with in-kernel local APICs, in this order:

1. the VM-wide upcall vector: level-triggered on the byte `evtchn_upcall_pending` of the vCPU's vcpu_info,
   whatever non-zero value it has and whoever stored it; taken like a PIC interrupt, so it stays until the
   guest clears the byte. Needs a configured hypercall MSR (`kvm_xen_has_interrupt`).
2. the local APIC's requested vectors, highest first, each taken once: a vCPU's own upcall vector arrives as a
   fixed-mode interrupt (`kvm_xen_inject_vcpu_vector`). A local APIC that software disabled loses it, and gets
   it when it is enabled, if `evtchn_upcall_pending` is set then (`kvm_xen_sw_enable_lapic`).
"""

from __future__ import annotations

from pytest_xenkvm.abi.layout import VCPU_INFO_UPCALL_PENDING
from pytest_xenkvm.core.state import VcpuState, VmState


def request_upcall_vector(vm: VmState, vcpu: VcpuState) -> None:
    """Raise the vCPU's own upcall vector in its local APIC."""
    if vm.has_local_apic and vcpu.apic_enabled:
        vcpu.irr |= 1 << vcpu.upcall_vector


def enable_by_software(vm: VmState, vcpu: VcpuState, *, enabled: bool) -> None:
    """The guest writes the spurious-interrupt vector register of its local APIC."""
    vcpu.apic_enabled = enabled
    if enabled and vm.xen_enabled and vcpu.upcall_vector and _announced(vm, vcpu):
        request_upcall_vector(vm, vcpu)


def upcall_is_pending(vm: VmState, vcpu: VcpuState) -> bool:
    """Whether the VM-wide upcall vector is raised on this vCPU."""
    if not vm.upcall_vector or not (vm.xen_enabled and vm.has_local_apic):
        return False
    return _announced(vm, vcpu)


def _announced(vm: VmState, vcpu: VcpuState) -> bool:
    info = vcpu.vcpu_info.refresh(vm.memory)
    return info is not None and info[VCPU_INFO_UPCALL_PENDING] != 0


def keeps_awake(vm: VmState, vcpu: VcpuState) -> bool:
    """Whether a vCPU can't block, since nobody knows if the VM-wide vector is raised: vcpu_info is refused.

    A vCPU about to block may not sleep to map it (`__kvm_xen_has_interrupt`).
    """
    info = vcpu.vcpu_info
    return vm.upcall_vector != 0 and vm.xen_enabled and info.active and info.mapped is None


def next_vector(vm: VmState, vcpu: VcpuState) -> int | None:
    """The vector that the guest takes next with interrupts enabled; None if nothing is pending."""
    if upcall_is_pending(vm, vcpu):
        return vm.upcall_vector
    return vcpu.irr.bit_length() - 1 if vcpu.irr else None


def take_vector(vm: VmState, vcpu: VcpuState) -> int | None:
    """Like `next_vector`, and the local APIC's request is gone: the guest took it."""
    if vm.upcall_vector and upcall_is_pending(vm, vcpu):
        return vm.upcall_vector
    if not vcpu.irr:
        return None
    vector = vcpu.irr.bit_length() - 1
    vcpu.irr &= ~(1 << vector)
    return vector
