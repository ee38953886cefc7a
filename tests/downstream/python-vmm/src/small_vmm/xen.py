"""The Xen part of the VMM: which attributes it sets, and what it answers its guests."""

from __future__ import annotations

from dataclasses import dataclass
from errno import ENOENT, ENOSYS, EPERM
from typing import Final, Protocol

FIRST_TIMER_PORT: Final = 16
XEN_VERSION: Final = (4, 17)

VCPU_OP: Final = 24
STOP_PERIODIC_TIMER: Final = 7


class XenVcpu(Protocol):
    """What is done to a vCPU of KVM's."""

    def set_xen_id(self, xen_id: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID."""

    def set_timer_port(self, port: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_TIMER."""


@dataclass(frozen=True)
class Call:
    """A hypercall that KVM forwarded."""

    number: int
    arguments: tuple[int, ...]
    cpl: int


class XenPlatform:
    """What makes a KVM guest believe that it runs on Xen."""

    def __init__(self, vcpus: list[XenVcpu]) -> None:
        self._count = len(vcpus)
        for number, vcpu in enumerate(vcpus):
            vcpu.set_xen_id(number)
            vcpu.set_timer_port(FIRST_TIMER_PORT + number)

    def answer(self, call: Call) -> int:
        """Return the guest's RAX."""
        if call.cpl:
            return -EPERM
        if call.number != VCPU_OP:
            return -ENOSYS
        operation, vcpu = (argument & 0xFFFF_FFFF for argument in call.arguments[:2])
        if vcpu >= self._count:
            return -ENOENT
        return 0 if operation == STOP_PERIODIC_TIMER else -ENOSYS
