"""Event channel ports as a VMM keeps them: which are in use, for what, and for which vCPU."""

from __future__ import annotations

from collections.abc import Iterator
from errno import ENOSPC

from attrs import Factory, define

from pytest_xenkvm.abi.xen_numbers import PortStatus, Virq
from pytest_xenkvm.vmm.bundled.calls import Refusal


@define(kw_only=True)
class Port:
    """A port in use. `value`: the VIRQ, the PIRQ, or the other end's port."""

    status: PortStatus
    vcpu: int = 0
    """The vCPU (its Xen number) that gets the events."""
    value: int = 0
    to_vmm: bool = False
    """The other end is the VMM's."""

    @property
    def is_movable(self) -> bool:
        """Whether the guest may give it to another vCPU."""
        if self.status is PortStatus.VIRQ:
            return self.value not in {*Virq}
        return self.status is not PortStatus.IPI


@define
class Ports:
    """The ports in use, by number, in the order in which they were bound."""

    used: dict[int, Port] = Factory(dict)

    def get(self, port: int) -> Port:
        """A port; one that is not in use is closed."""
        return self.used.get(port, _CLOSED)

    def bind(self, port: Port, limit: int) -> int:
        """Take the lowest free number below `limit`; raises Refusal(ENOSPC)."""
        number = next((number for number in range(1, limit) if number not in self.used), None)
        if number is None:
            raise Refusal(ENOSPC)
        self.used[number] = port
        return number

    def close(self, port: int) -> None:
        """Free a number."""
        self.used.pop(port, None)

    def of(self, status: PortStatus) -> Iterator[tuple[int, Port]]:
        """The ports with this status, those bound last first."""
        return ((number, port) for number, port in reversed(self.used.items()) if port.status is status)

    def virq(self, virq: int, vcpu: int) -> int:
        """The port to which a vCPU's VIRQ is bound; 0 if to none."""
        found = ((n, p) for n, p in self.of(PortStatus.VIRQ) if (p.value, p.vcpu) == (virq, vcpu))
        return next((number for number, _port in found), 0)


_CLOSED = Port(status=PortStatus.CLOSED)
