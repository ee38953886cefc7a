"""VMs on the emulated host whose ioctls can be watched, answered otherwise, or both."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from pytest_xenkvm.core.profile import LINUX_7_3, HostLimits, Profile
from pytest_xenkvm.hosts.emulated import EmulatedHost, EmulatedVm
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm import Vm

MEMORY: Final = 0x10_0000
HIGH_MEMORY: Final = 1 << 32
SHAPE: Final = VmShape(
    irqchip="full",
    memory=(MemorySlot(gpa=0, size=MEMORY), MemorySlot(gpa=HIGH_MEMORY, size=MEMORY)),
    vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=4)),
)


def make_vm(
    profile: Profile = LINUX_7_3, *, limits: HostLimits | None = None, shape: VmShape = SHAPE
) -> tuple[Vm, EmulatedVm]:
    """A fresh VM's handles, and what is behind them."""
    host_vm = EmulatedHost(profile=profile, limits=limits or HostLimits()).create_vm(shape)
    return Vm.on(host_vm, shape), host_vm


@define(eq=False)
class RefusingVm(EmulatedVm):
    """Refuses every ioctl with `ret` and changes nothing."""

    ret: int = 0
    made: list[int] = field(factory=list, init=False)
    """The requests."""

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        """Refuse."""
        del argument, vcpu
        self.made.append(request)
        return self.ret
