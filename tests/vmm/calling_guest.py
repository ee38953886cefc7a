"""A guest that makes hypercalls on an emulated VM, one after the other, and looks at what came of them."""

from __future__ import annotations

from struct import pack
from typing import Any, Final

from attrs import define, evolve, field
from duties_guest import HEADER, Script

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.numbers import MemoryOp, VcpuAttr
from pytest_xenkvm.abi.xen_numbers import DOMID_SELF
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.decode_values import signed_rax
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl, Mem, Wrmsr
from pytest_xenkvm.vmm import Vm
from pytest_xenkvm.vmm.bundled.qemu import Qemu

SHARED_INFO_GFN: Final = 0x100
NOWHERE: Final = 0x4000_0000
"""An address behind the guest's memory."""
LONG_MODE: Final = Wrmsr(ts=0, vcpu=0, longmode=True, msr=0x4000_0000, value=0x3000, ok=True)

_ARGUMENTS: Final = 0x10_8000
_SPACING: Final = 0x40


@define
class CallingGuest:
    """Hypercalls to make. The structure behind a call's pointer is in memory, at an address of its own."""

    vmm: Qemu = field(factory=Qemu)
    unseen: bool = False
    """The recording shows no memory."""
    script: Script = field(factory=Script)
    addresses: list[int] = field(factory=list)
    """Where the structures are, by call."""
    sent: list[int] = field(factory=list)
    """The ports of the events that the VMM sent."""

    def call(self, nr: int, *args: int, at: bytes | None = None, **more: Any) -> CallingGuest:
        """A hypercall whose last argument points at these bytes."""
        address = _ARGUMENTS + _SPACING * len(self.addresses)
        self.addresses.append(address)
        if at is not None:
            self.add(Mem(op="write", gpa=address, data=at))
            args = (*args, address)
        self.script.call(nr, *args, **more)
        return self

    def add(self, *events: Event) -> CallingGuest:
        """Something else that happens."""
        for event in events:
            self.script.add(evolve(event, ts=self.script.tick()))
        return self

    def maps_shared_info(self) -> CallingGuest:
        """Map the page, in 64-bit mode."""
        where = pack("<HxxIQQ", DOMID_SELF, 0, 0, SHARED_INFO_GFN)
        return self.call(Nr.memory_op, MemoryOp.add_to_physmap, at=where)

    def answers(self) -> list[int]:
        """Make the calls: the answers, signed."""
        header = evolve(HEADER, unseen=("mem",)) if self.unseen else HEADER
        found = []
        self.sent.clear()
        for seen in vmm_replay(
            EmulatedHost(profile=LINUX_7_3), header, lambda: [*self.script.made], self.vmm
        ):
            if isinstance(seen.event, Hypercall) and seen.event.rax is not None:
                found.append(signed_rax(seen.event.rax, longmode=seen.event.longmode))
            elif isinstance(seen.event, Ioctl) and seen.event.name == "KVM_XEN_HVM_EVTCHN_SEND":
                self.sent.append(seen.event.arg["port"])
        return found

    def left(self, call: int, size: int, offset: int = 0) -> int:
        """A number of `size` bytes in the structure of call number `call`, after all calls."""
        data = self.vm.read_memory(self.addresses[call] + offset, size)
        assert data is not None
        return int.from_bytes(data, "little")

    def attribute(self, type_: VcpuAttr, vcpu: int = 0) -> Any:
        """An attribute of a vCPU, as KVM has it."""
        return self.vm.vcpus[vcpu].get_attr(type_)

    @property
    def vm(self) -> Vm:
        """The VM that the calls were made on."""
        return self.vmm.state.vm
