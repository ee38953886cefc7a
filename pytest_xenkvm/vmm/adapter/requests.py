"""What an adapter asks of its VM, done through the handles that a behaviour in Python holds.

Results follow the kernel's habit: `ret` is 0 or a positive value, or a negative errno.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EFAULT, ENODATA
from typing import Any, Final

from attrs import define, field, frozen

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm.adapter.messages import SOURCE, as_event
from pytest_xenkvm.vmm.handles import Vcpu, Vm
from pytest_xenkvm.vmm.ioctl_bytes import Names, pack, unpack

Request = Mapping[str, Any]
Result = Mapping[str, Any]


@frozen
class _Addresses:
    """Where a VM's handles say that symbolic addresses and times are."""

    vm: Vm

    def gpa_to_hva(self, gpa: int) -> int | None:
        return self.vm.gpa_to_hva(gpa)

    def hva_to_gpa(self, hva: int) -> int | None:
        return self.vm.hva_to_gpa(hva)

    def guest_clock(self, vcpu: int) -> int:  # noqa: ARG002 - it is the VM's clock
        return self.vm.get_clock()


@define(eq=False)
class Machine:
    """A VM, and what its adapter calls things."""

    vm: Vm
    names: Names = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.names = Names(_Addresses(self.vm))


@define(eq=False)
class Desk:
    """Serves the requests of one adapter. Raises `Unfit` for what its VMs don't have."""

    machines: dict[str, Machine]
    """By what the adapter calls them: "source", and "target" in a migration."""
    has_timer: bool = False
    """Whether it wants to hear of its own timers."""
    saw_unseen: bool = False
    """Whether it asked for guest memory that the recording doesn't show."""

    def serve(self, type_: str, request: Request) -> Result:
        """Do what a request asks for; the members of its result."""
        try:
            return _HANDLERS[type_](self, request)
        except KvmError as error:
            return {"ret": -error.errno}
        except UnseenMemory:
            self.saw_unseen = True
            return {"ret": -ENODATA}

    def _machine(self, request: Request) -> Machine:
        name = request.get("vm", SOURCE)
        if name not in self.machines:
            raise Unfit(f'a request for the VM "{name}", which is there only while migrate is answered')
        return self.machines[name]

    def _vcpu(self, request: Request) -> Vcpu:
        vcpus = self._machine(request).vm.vcpus
        if request["vcpu"] >= len(vcpus):
            raise Unfit(f"a request for vCPU {request['vcpu']} of a VM with {len(vcpus)}")
        return vcpus[request["vcpu"]]

    def ioctl(self, request: Request) -> Result:
        """An ioctl in the trace's form."""
        names = self._machine(request).names
        event = as_event(request)
        number, argument = pack(event, names)
        ret = self._make(request, number, argument)
        reads = event.name.endswith("_GET_ATTR")
        return {"ret": ret, "out": unpack(event.name, argument, names) if reads else None}

    def raw_ioctl(self, request: Request) -> Result:
        """An ioctl as KVM's UAPI has it, which finds a structure at least as long as it expects."""
        argument = bytearray(request["data"])
        if len(argument) < ioctls.argument_size(request["request"]):
            return {"ret": -EFAULT}
        ret = self._make(request, request["request"], argument)
        return {"ret": ret, "data": bytes(argument)}

    def _make(self, request: Request, number: int, argument: int | bytearray) -> int:
        if "vcpu" not in request:
            return self._machine(request).vm.ioctl(number, argument)
        vcpu = self._vcpu(request)
        return -EFAULT if isinstance(argument, int) else vcpu.ioctl(number, argument)

    def get_clock(self, request: Request) -> Result:
        """KVM_GET_CLOCK."""
        return {"ret": self._machine(request).vm.get_clock()}

    def set_clock(self, request: Request) -> Result:
        """KVM_SET_CLOCK."""
        self._machine(request).vm.set_clock(request["ns"])
        return {"ret": 0}

    def read_memory(self, request: Request) -> Result:
        """Guest memory by physical address."""
        return _read(self._machine(request).vm.read_memory(request["gpa"], request["size"]))

    def write_memory(self, request: Request) -> Result:
        """The same, stored."""
        return _written(self._machine(request).vm.write_memory(request["gpa"], request["data"]))

    def gpa_to_hva(self, request: Request) -> Result:
        """The VMM's own address of guest memory."""
        return _address(self._machine(request).vm.gpa_to_hva(request["gpa"]))

    def hva_to_gpa(self, request: Request) -> Result:
        """The opposite."""
        return _address(self._machine(request).vm.hva_to_gpa(request["hva"]))

    def read_virtual(self, request: Request) -> Result:
        """Guest memory by the virtual address of the vCPU's caller."""
        return _read(self._vcpu(request).read_virtual(request["gva"], request["size"]))

    def write_virtual(self, request: Request) -> Result:
        """The same, stored."""
        return _written(self._vcpu(request).write_virtual(request["gva"], request["data"]))

    def translate(self, request: Request) -> Result:
        """KVM_TRANSLATE: the physical address behind a virtual one."""
        return _address(self._vcpu(request).translate(request["gva"]))

    def start_vmm_timer(self, request: Request) -> Result:
        """Start the VMM's timer of a vCPU."""
        if not self.has_timer:
            raise Unfit('start_vmm_timer, but its hello doesn\'t name the capability "timer"')
        self._vcpu(request).start_vmm_timer(request["expires_ns"])
        return {"ret": 0}

    def stop_vmm_timer(self, request: Request) -> Result:
        """Stop it."""
        self._vcpu(request).stop_vmm_timer()
        return {"ret": 0}

    def open_eventfd(self, request: Request) -> Result:
        """Create an eventfd; from now on the adapter may name it."""
        machine = self._machine(request)
        fd = machine.vm.open_eventfd()
        machine.names.fds[fd] = fd
        return {"ret": fd}

    def read_eventfd(self, request: Request) -> Result:
        """Drain an eventfd."""
        machine = self._machine(request)
        return {"ret": machine.vm.read_eventfd(machine.names.fd(request["fd"]))}

    def write_eventfd(self, request: Request) -> Result:
        """Add to an eventfd."""
        machine = self._machine(request)
        machine.vm.write_eventfd(machine.names.fd(request["fd"]), request["value"])
        return {"ret": 0}


def _read(data: bytes | None) -> Result:
    return {"ret": -EFAULT} if data is None else {"ret": 0, "data": data}


def _written(stored: bool) -> Result:  # noqa: FBT001 - what a store says
    return {"ret": 0 if stored else -EFAULT}


def _address(address: int | None) -> Result:
    return {"ret": -EFAULT if address is None else address}


_HANDLERS: Final[Mapping[str, Callable[[Desk, Request], Result]]] = {
    handler.__name__: handler
    for handler in (
        Desk.ioctl,
        Desk.raw_ioctl,
        Desk.get_clock,
        Desk.set_clock,
        Desk.read_memory,
        Desk.write_memory,
        Desk.gpa_to_hva,
        Desk.hva_to_gpa,
        Desk.read_virtual,
        Desk.write_virtual,
        Desk.translate,
        Desk.start_vmm_timer,
        Desk.stop_vmm_timer,
        Desk.open_eventfd,
        Desk.read_eventfd,
        Desk.write_eventfd,
    )
}
