"""A VMM that leaves timers to the kernel."""

from __future__ import annotations

from pytest_xenkvm.vmm import Vm, Vmm


class SampleVmm(Vmm):
    """Gives every vCPU its Xen ID and a timer port."""

    name = "sample VMM 1.0"

    def configure(self, vm: Vm) -> None:
        """Before the guest runs."""
        vm.xen_hvm_config()
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_id(vcpu.index)
            vcpu.set_timer(16 + vcpu.index)
