"""The VMM as pytest-xenkvm sees it: its Xen part on the handles of an emulated KVM."""

from __future__ import annotations

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm
from small_vmm.xen import XEN_VERSION, Call, XenPlatform


class _EmulatedVcpu:
    def __init__(self, handle: Vcpu) -> None:
        self.set_xen_id = handle.set_vcpu_id
        self.set_timer_port = handle.set_timer


class SmallVmmBehaviour(Vmm):
    """Configures a VM as the VMM does, and answers what it answers."""

    name = "small-vmm 0.3"

    def configure(self, vm: Vm) -> None:
        """Before the guest runs."""
        vm.set_xen_version(*XEN_VERSION)
        vm.xen_hvm_config()
        self.platform = XenPlatform([_EmulatedVcpu(vcpu) for vcpu in vm.vcpus])

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:  # noqa: ARG002 - the answers depend on no vCPU
        """Answer a forwarded hypercall."""
        return self.platform.answer(Call(xen_exit.input, xen_exit.params, xen_exit.cpl))
