"""VMs for guest programs, set up as a VMM does it."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.abi.numbers import VcpuAttr
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.guest_program import ProgramVm
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm.handles import Vm

START: Final = 0x1000
SHARED_INFO: Final = 0x10_0000
VCPU_INFO: Final = 0x11_0000
VECTOR: Final = 0x55
PORT: Final = 9

SHAPE: Final = VmShape(
    irqchip="split",
    memory=(MemorySlot(gpa=0, size=4 << 20),),
    vcpus=(VcpuShape(index=0, id=0),),
)


def create(cpu_vendor: str = "amd") -> ProgramVm:
    """A VM with events, a timer port and a per-vCPU upcall vector, as a VMM sets it up."""
    vm = ProgramVm.create(SHAPE, cpu_vendor=cpu_vendor)
    handle = Vm.on(vm, SHAPE)
    handle.xen_hvm_config()
    handle.set_xen_version(4, 17)
    handle.set_long_mode(on=True)
    handle.set_shared_info(SHARED_INFO >> 12)
    vcpu = handle.vcpus[0]
    vcpu.set_vcpu_info(VCPU_INFO)
    vcpu.set_vcpu_id(0)
    vcpu.set_timer(PORT)
    vcpu.set_attr(VcpuAttr.UPCALL_VECTOR, VECTOR)
    return vm


def answer(_vcpu: int, xen_exit: XenExit) -> int:
    """The VMM's answer: the number and the first argument, added."""
    return xen_exit.input + xen_exit.params[0]
