"""A VMM behaviour: the code under test, which configures a VM and answers what KVM forwards."""

from __future__ import annotations

from errno import ENOSYS
from typing import Protocol

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.handles import Vcpu, Vm


class VmmBehaviour(Protocol):
    """What a VMM does about Xen. Derive from `Vmm`, or bring any object with these two methods."""

    def configure(self, vm: Vm) -> None:
        """Set up the VM before its guest runs."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Answer a forwarded hypercall: the guest's RAX; a negative errno is fine, -ENOSYS is an answer."""


class Vmm:
    """A VMM that configures nothing and implements no hypercall: a base to derive from."""

    def configure(self, vm: Vm) -> None:
        """Do nothing."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:  # noqa: ARG002 - for those who derive
        """Answer -ENOSYS."""
        return -ENOSYS
