"""What the rules about the VCPU_ID attribute share: seeing it read and written."""

from __future__ import annotations

from typing import Final

from attrs import define

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Ioctls
from pytest_xenkvm.rules.tracking import VcpuSetup, id_read, id_written
from pytest_xenkvm.trace.decode_values import result, vcpu_id
from pytest_xenkvm.trace.events import Ioctl

UNSET: Final = vcpu_id(XEN_VCPU_ID_INVALID)
"""The ID of a vCPU that has none, in words."""

SET_THE_ID: Final = "set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID on every vCPU before the guest runs"

SINCE: Final = "commit c10bd49bdcc9, Linux 7.3"
"""What gave an unset ID a value of its own."""


ID_IOCTLS: Final = Ioctls(frozenset({"KVM_XEN_VCPU_SET_ATTR", "KVM_XEN_VCPU_GET_ATTR"}))
"""The ioctls that a rule judged by an `IdChecker` wants to see."""


@define(eq=False)
class IdChecker(Checker):
    """Is shown ioctls and judges those on VCPU_ID; derive and implement `read` or `written`."""

    def observe(self, observation: Observation) -> None:
        """Dismiss ioctls on anything else, and GETs that failed."""
        event = observation.event
        if not isinstance(event, Ioctl):
            return
        written, read = id_written(event), id_read(event)
        if written is not None:
            self.written(observation, event, written)
        elif read is not None:
            self.read(observation, event, read)

    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        """Judge a SET with `xen_id`, accepted or refused."""

    def read(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        """Judge a GET that returned `xen_id`."""

    def vcpu(self, event: Ioctl) -> VcpuSetup:
        """The vCPU as it was before the ioctl."""
        return self.context.setup.vcpu(event.vcpu)


def set_words(event: Ioctl, xen_id: int) -> str:
    """Subject of a finding about a SET: the vCPU, what was written, what came of it."""
    answered = result(event.ret)
    return f"vCPU {event.vcpu}: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id={vcpu_id(xen_id)}) answered {answered}"


def get_words(event: Ioctl, xen_id: int) -> str:
    """Subject of a finding about a GET: the vCPU and what was read."""
    return f"vCPU {event.vcpu}: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read {vcpu_id(xen_id)}"
