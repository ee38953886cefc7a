"""`minimal`: the least that a conforming VMM must do."""

from __future__ import annotations

from errno import ENOENT, ENOSYS, EPERM
from typing import Final

from pytest_xenkvm.abi.numbers import U32_MAX, Hypercall, VcpuOp
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.handles import Vcpu, Vm

XEN_VERSION: Final = (4, 17)
"""Major and minor number of the Xen that the bundled behaviours say they are."""

FIRST_TIMER_PORT: Final = 16
"""vCPU n's timer is event channel port 16 + n, below the 1024 of a 32-bit guest for up to 1008 vCPUs."""


class Minimal(Vmm):
    """Xen hypercalls on, a Xen ID and a timer of its own for every vCPU, and an answer to everything."""

    def configure(self, vm: Vm) -> None:
        """Have the kernel intercept hypercalls, tell Xen's version, and serve the timers."""
        self.vm = vm
        vm.xen_hvm_config()
        vm.set_xen_version(*XEN_VERSION)
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_id(vcpu.index)
            vcpu.set_timer(FIRST_TIMER_PORT + vcpu.index)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Refuse user mode as Xen does, stop periodic timers, which never run; -ENOSYS to all else."""
        del vcpu
        if xen_exit.cpl:
            return -EPERM
        if xen_exit.input == Hypercall.vcpu_op:
            return self.vcpu_op(xen_exit.params[0] & U32_MAX, xen_exit.params[1] & U32_MAX)
        return -ENOSYS

    def vcpu_op(self, sub_op: int, named: int) -> int:
        """Xen takes sub-op and vCPU number as 32 bits, and looks at the vCPU first."""
        if named >= len(self.vm.vcpus):
            return -ENOENT
        return 0 if sub_op == VcpuOp.stop_periodic_timer else -ENOSYS
