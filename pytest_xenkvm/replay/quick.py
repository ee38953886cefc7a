"""Events that need nothing but to be done: they neither look at the VM's clock nor set a timer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from attrs import evolve, frozen

from pytest_xenkvm.hosts.protocol import HostVm, PreparingVm
from pytest_xenkvm.trace.events import Event, Ioctl, Mem
from pytest_xenkvm.vmm.ioctl_bytes import Names, pack

_SELF_CONTAINED: Final = frozenset({"KVM_XEN_HVM_EVTCHN_SEND", "KVM_IRQ_LINE"})
"""Ioctls that only take numbers, the same ones on any host, and have nothing to do with time."""


@frozen
class Quick:
    """How to do such an event, as often as it comes."""

    event: Event
    do: Callable[[], int | None]
    expected: int | None
    """What `do` returns if the event comes out as recorded."""

    def happened(self, ret: int | None) -> Event:
        """The event as it happened, given what `do` returned."""
        if isinstance(self.event, Ioctl) and ret is not None and ret != self.expected:
            return evolve(self.event, ret=ret, out=None)
        return self.event

    def again(self, _ts: int | None) -> Event:
        """Do it, at any time: the event as it happened."""
        return self.happened(self.do())


def quick(event: Event, vm: HostVm, prepared: PreparingVm | None, names: Names) -> Quick | None:
    """How to do `event` on `vm`, if it is so simple: a store, or an ioctl that sends an event.

    `prepared` is the same VM, if it is one that prepares.
    """
    if isinstance(event, Ioctl) and event.name in _SELF_CONTAINED and event.vcpu is None:
        request, argument = pack(event, names)
        if prepared is None:
            make: Callable[[], int] = partial(vm.ioctl, request, argument)
        else:
            make = prepared.prepared_ioctl(request, argument)
        return Quick(event, make, event.ret if event.out is None else None)
    if isinstance(event, Mem) and event.op == "write" and not event.now_plus_at:
        if prepared is not None:
            return Quick(event, prepared.prepared_store(event.gpa, event.data), None)
        return Quick(event, partial(_store, vm, event), None)
    return None


def _store(vm: HostVm, event: Mem) -> None:
    vm.write_memory(event.gpa, event.data)
