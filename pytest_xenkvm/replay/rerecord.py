"""Recording by doing a scenario again: a trace's ioctls and guest side, with the outcomes of another host.

What the scenario's VM and VMM did is done again in its order, and not before its time. Interrupts are those
that the guest takes on this host. Where the scenario's guest took one, this one takes what is pending, if
anything; when the scenario's took no more, it takes the rest, and after one with the VM-wide vector clears
`evtchn_upcall_pending` (the trace format, "Order of things at a guest entry").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import define, evolve, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import INVALID_GPA, HvmAttr, VcpuAttr
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts import attribute_codec as codec
from pytest_xenkvm.hosts.protocol import HostError, HostVm, LimitedHost
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.kernel import UNTIMED_EVENT_NS, goes_on_with_interrupts
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    VcpuRun,
    Wait,
    Wrmsr,
    at_time,
)

_MOST_INTERRUPTS: Final = 256
"""Interrupts that a vCPU takes at one entry; there are no more vectors."""


def rerecord(
    host: LimitedHost, header: Header, events: Iterable[Event], *, kernel: str, recorder: str
) -> tuple[Header, Iterator[Event]]:
    """Do the scenario again on `host`, which runs that release of the kernel: what a trace of it holds.

    The events come as they happen, with the time of the VM's clock (ns since the first event). Raises
    ReplayError for a scenario of scope "hypercalls", HostError if the VM can't be had.
    """
    if header.scope != "full" or header.vm is None:
        raise ReplayError(
            "the scenario holds hypercalls only, not what the VMM configured: record one of scope full"
        )
    recorded = evolve(
        header,
        kernel=kernel,
        max_vcpus=host.limits.max_vcpus,
        cpu_vendor=host.cpu_vendor,
        recorder=recorder,
        unseen=(),
    )
    vm = host.create_vm(header.vm, cpu_vendor=host.cpu_vendor)
    return recorded, _Recording(Stepper(vm, header), vm, len(header.vm.vcpus)).events(events)


@define(eq=False)
class _Recording:
    stepper: Stepper
    vm: HostVm
    vcpus: int
    _first: int | None = field(default=None, init=False)
    """The VM's clock when the first event was complete (ns)."""

    def events(self, scenario: Iterable[Event]) -> Iterator[Event]:
        """The events as they happen."""
        upcoming = iter(scenario)
        event = next(upcoming, None)
        now = 0
        window: tuple[int, ...] = ()  # vCPUs that are taking interrupts
        missed: int | None = None  # the vCPU that didn't take the interrupt before this event
        while event is not None:
            following = next(upcoming, None)
            self.vm.pass_time(ns=UNTIMED_EVENT_NS if event.ts is None else 0, until=now)
            now = max(now, event.ts or 0)
            if missed is not None and _is_store_of_zero(event, self._upcall_pending(missed)):
                missed = None
            else:
                missed = event.vcpu if isinstance(event, Irq) else None
                happened = self._do(event)
                if happened is not None:
                    missed = None
                    yield self._timed(happened)
            window = self._entered(event) or window
            if window and not goes_on_with_interrupts(event, following or Event()):
                for vcpu in window:
                    yield from self._rest_of_interrupts(vcpu)
                window = ()
            event = following

    def _do(self, event: Event) -> Event | None:
        """The event as it happens; None for an interrupt that doesn't."""
        if isinstance(event, Hypercall):
            happened = self.stepper.hypercall(event, event.ts, _scenarios_answer)
            return happened or evolve(event, handled=None, exit=None, rax=None)
        done = self.stepper.again(event, self.vcpus)(event.ts)
        if isinstance(event, Ioctl) and isinstance(done, Ioctl):
            return _without_undetermined(event, done)
        return done

    def _entered(self, event: Event) -> tuple[int, ...]:
        """The vCPUs that the event let enter the guest."""
        if isinstance(event, Wait):
            return tuple(range(self.vcpus))
        if isinstance(event, Wrmsr) and event.run_ret is not None:
            return ()
        return (event.vcpu,) if isinstance(event, (Hypercall, Wrmsr, VcpuRun)) else ()

    def _rest_of_interrupts(self, vcpu: int) -> Iterator[Event]:
        vector = None
        for _ in range(_MOST_INTERRUPTS):
            vector = self.vm.take_interrupt(vcpu)
            if vector is None:
                return
            yield self._timed(Irq(vcpu=vcpu, vector=vector))
            pending = self._upcall_pending(vcpu) if vector == self._vm_vector() else None
            if pending is not None and self.vm.read_memory(pending, 1) != b"\0":
                self.vm.write_memory(pending, b"\0")
                yield self._timed(Mem(op="write", gpa=pending, data=b"\0"))
        raise HostError(f"vCPU {vcpu} takes interrupts without end: the last had vector {vector}")

    def _vm_vector(self) -> int:
        vector: int = self._attribute(None, HvmAttr.UPCALL_VECTOR) or 0
        return vector

    def _upcall_pending(self, vcpu: int) -> int | None:
        """The guest address of the first byte of vcpu_info; None if the vCPU has none."""
        gpa: int | None = self._attribute(vcpu, VcpuAttr.VCPU_INFO)
        if gpa is None or gpa == INVALID_GPA:
            gpa = self.vm.hva_to_gpa(self._attribute(vcpu, VcpuAttr.VCPU_INFO_HVA) or 0)
        return gpa

    def _attribute(self, vcpu: int | None, type_: HvmAttr | VcpuAttr) -> Any:
        argument = bytearray(ioctls.ATTR_SIZE)
        ioctls.ATTR_HEADER.pack_into(argument, 0, type_)
        request = ioctls.KVM_XEN_HVM_GET_ATTR if vcpu is None else ioctls.KVM_XEN_VCPU_GET_ATTR
        if self.vm.ioctl(request, argument, vcpu=vcpu) < 0:
            return None
        load = codec.load_vm_value if vcpu is None else codec.load_vcpu_value
        return load(argument, type_)

    def _timed(self, event: Event) -> Event:
        clock = self.vm.guest_clock(0)
        if self._first is None:
            self._first = clock
        return at_time(event, max(0, clock - self._first))


def _is_store_of_zero(event: Event, gpa: int | None) -> bool:
    return isinstance(event, Mem) and event.op == "write" and event.data == b"\0" and event.gpa == gpa


def _scenarios_answer(event: Hypercall, _exit: XenExit) -> int:
    """The scenario's VMM answers as it did; where it wasn't asked, with what its guest got."""
    return event.rax or 0


def _without_undetermined(recorded: Ioctl, happened: Ioctl) -> Ioctl:
    """Of what a GET stored, leave out what the scenario left out, and keep apart what nobody can foretell."""
    if recorded.out is None or happened.out is None:
        return evolve(happened, undetermined=None, sum_ok=None)
    undetermined = recorded.undetermined and _members(happened.out, recorded.undetermined)
    return evolve(happened, out=_members(happened.out, recorded.out), undetermined=undetermined)


def _members(of: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an object that another one has, in depth."""
    return {
        key: _members(value, like[key])
        if isinstance(value, Mapping) and isinstance(like[key], Mapping)
        else value
        for key, value in of.items()
        if key in like
    }
