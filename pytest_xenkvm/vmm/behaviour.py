"""A VMM behaviour: the code under test, which configures a VM and answers what KVM forwards."""

from __future__ import annotations

from collections.abc import Awaitable
from errno import ENOSYS
from typing import Protocol

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.handles import Vcpu, Vm
from pytest_xenkvm.vmm.snapshot import restore_snapshot, take_snapshot


class VmmBehaviour(Protocol):
    """What a VMM does about Xen. Derive from `Vmm`, or bring any object with these two methods.

    It may have the other methods of `Vmm`, too. Any of them may be `async def`: what it returns is run to
    its end before anything else happens. A `name` is what reports call it, else it is the class's.
    """

    def configure(self, vm: Vm) -> Awaitable[None] | None:
        """Set up the VM before its guest runs."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int | Awaitable[int]:
        """Answer a forwarded hypercall: the guest's RAX; a negative errno is fine, -ENOSYS is an answer."""


class Vmm:
    """A VMM that configures nothing and implements no hypercall: a base to derive from."""

    def configure(self, vm: Vm) -> None:
        """The guest is about to run: do nothing. Called once for each replay, before all else."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:  # noqa: ARG002 - for those who derive
        """Answer -ENOSYS to a forwarded hypercall of `vcpu`."""
        return -ENOSYS

    def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """The timer that `vcpu.start_vmm_timer(expires_ns)` started has expired; it runs no longer."""

    def on_event_channel(self, vm: Vm, fd: int, count: int) -> None:
        """The guest signalled the eventfd of an outbound port `count` times; the eventfd is drained."""

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """Move the VM to `target`, a fresh one of the same shape: every Xen attribute that can be read.

        Called when a replay is over. The guest runs on neither, and no memory is copied.
        """
        restore_snapshot(take_snapshot(source), target)

    def close(self) -> None:
        """The replay is over, or has failed: do nothing. The next one begins with `configure`."""


def behaviour_name(behaviour: VmmBehaviour) -> str:
    """What reports call it: its name, without what would move a terminal's cursor."""
    name = str(getattr(behaviour, "name", type(behaviour).__name__))
    return "".join(char if char.isprintable() else " " for char in name)
