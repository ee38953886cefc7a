"""VMM replay: the guest's side of a trace is done again, a VMM behaviour does the rest.

Recorded ioctls, eventfd operations and answers are the recorded VMM's and left out; so are memory reads and
interrupts, which depend on what the VMM did. Guest memory that the trace shows being stored is stored.

A behaviour that needs guest memory which the recording doesn't show may let UnseenMemory pass: that hypercall
is not judged, and its guest goes on with what it got when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from struct import error as StructError  # noqa: N812 (it is a class)
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.kernel import UNTIMED_EVENT_NS
from pytest_xenkvm.replay.observation import Observation, Place, Tally
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.replay.vmm_side import VmmSide
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Ioctl,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
    Wrmsr,
)
from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.calling import Calls
from pytest_xenkvm.vmm.files import IoctlMade
from pytest_xenkvm.vmm.handles import Vm
from pytest_xenkvm.vmm.ioctl_bytes import REQUEST_NAMES, Names, as_event

BEFORE_THE_GUEST: Final = Place(-1)
"""Where `configure` stands: before the first event."""

_MEMORY_IF_UNKNOWN: Final = 64 << 20
"""Bytes of guest memory for a trace that doesn't say."""


def vmm_replay(
    host: Host,
    header: Header,
    events: Callable[[], Iterable[Event]],
    behaviour: VmmBehaviour,
    tally: Tally | None = None,
) -> Iterator[Observation]:
    """Let `behaviour` configure a VM and answer the trace's guest: observations of both sides, in order.

    `tally` counts the guest's events. When all is over, the behaviour migrates the VM to a fresh one, if it
    has an `on_migrate`. `events` is called once, or twice if the header doesn't say how many vCPUs there
    are. Raises HostError if the VM can't be had, ReplayError for an answer that is none and for timers that
    expire without end; what the behaviour itself raises passes through.
    """
    calls = Calls(behaviour)
    try:
        yield from _replay(host, header, events, calls, tally or Tally())
    finally:
        calls.close()


def _replay(
    host: Host, header: Header, events: Callable[[], Iterable[Event]], calls: Calls, tally: Tally
) -> Iterator[Observation]:
    shape = header.vm or _shape_of(events())
    host_vm = host.create_vm(shape, cpu_vendor=header.cpu_vendor)
    watcher = _Watcher(Names(host_vm))
    side = VmmSide(Vm.on(host_vm, shape, watcher.watch), host_vm, calls)
    side.configure()
    place = BEFORE_THE_GUEST
    yield from watcher.observed(place)
    replay = _VmmReplay(Stepper(host_vm, header), side)
    for index, event in enumerate(events()):
        place = Place(index)
        observation = replay.step(place, event)
        yield from watcher.observed(place)
        if observation is not None:
            tally.events += 1
            tally.hypercalls += isinstance(event, Hypercall)
            tally.inferred += event.inferred
            yield observation
            replay.react()
            yield from watcher.observed(place)
    if calls.find("on_migrate") is not None:
        target_vm = host.create_vm(shape, cpu_vendor=header.cpu_vendor)
        watcher = _Watcher(Names(target_vm))
        side.migrate(Vm.on(target_vm, shape, watcher.watch))
        yield from watcher.observed(Place(place.index, after=True))


def is_done_again(event: Event) -> bool:
    """Whether a VMM replay does an event of the trace again, rather than leave it out."""
    if isinstance(event, Mem):
        return event.op == "write"
    return isinstance(event, (Hypercall, Wrmsr, VcpuRun, Wait))


def _shape_of(events: Iterable[Event]) -> VmShape:
    highest = max((getattr(event, "vcpu", None) or 0 for event in events), default=0)
    return VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=_MEMORY_IF_UNKNOWN),),
        vcpus=tuple(VcpuShape(index=index, id=index) for index in range(highest + 1)),
    )


@define
class _VmmReplay:
    stepper: Stepper
    side: VmmSide
    now: int = 0
    """When the previous event was complete (ns since the first event)."""
    answer: int | None = None
    """What the behaviour answered the hypercall under way, as u64."""
    unanswered: bool = False
    unseen: bool = False
    """The behaviour would have had to see memory that the recording doesn't show."""

    def step(self, place: Place, event: Event) -> Observation | None:
        """Do one event; None for those that are the VMM's."""
        self.side.pass_time(ns=UNTIMED_EVENT_NS if event.ts is None else 0, until=self.now)
        self.now = max(self.now, event.ts or 0)
        self._take_interrupts_of_timers()
        if isinstance(event, Hypercall):
            observation: Observation | None = self._hypercall(place, event)
        else:
            observation = self._do_other(place, event)
        self._take_interrupts_of_timers()
        return observation

    def react(self) -> None:
        """Let the VMM see what the guest has done."""
        self.side.react()
        self._take_interrupts_of_timers()

    def _hypercall(self, place: Place, event: Hypercall) -> Observation:
        self.answer, self.unanswered, self.unseen = None, False, False
        happened = self.stepper.hypercall(event, event.ts, self._answer)
        self.stepper.vm.take_interrupt(event.vcpu)
        if happened is None:
            return Observation(place=place, event=event, unjudged=("unseen memory",))
        if self.unseen:  # that it was forwarded is known, and counts; only the answer is a stand-in
            return Observation(place=place, event=happened, answer=self.answer, unjudged=("rax",))
        return Observation(place=place, event=happened, answer=self.answer, unanswered=self.unanswered)

    def _do_other(self, place: Place, event: Event) -> Observation | None:
        happened: Event
        if isinstance(event, Wrmsr):
            happened = self.stepper.wrmsr(event)
        elif isinstance(event, VcpuRun):
            happened = self.stepper.vcpu_run(event)
        elif isinstance(event, Wait):
            happened = self._wait(event)
        elif isinstance(event, Mem) and is_done_again(event):
            happened = self.stepper.mem(event)
        else:
            return None
        self._take_interrupts()
        return Observation(place=place, event=happened)

    def _wait(self, event: Wait) -> Wait:
        """Let time pass, then let each vCPU enter the guest."""
        self.side.pass_time(ns=event.ns, until=event.ts or 0)
        for vcpu in self.side.vm.vcpus:
            self.stepper.vm.run(vcpu.index)
        return event

    def _answer(self, event: Hypercall, xen_exit: XenExit) -> int:
        try:
            self.answer = self.side.answer(event.vcpu, xen_exit)
        except UnseenMemory:
            self.unseen = True
            self.answer = event.rax or 0
            return self.answer
        self.unanswered = self.answer is None
        return self.answer or 0

    def _take_interrupts_of_timers(self) -> None:
        """Let the guest take what VMM timers that have expired injected."""
        if self.side.fired:
            self._take_interrupts()
            self.side.guest_acts()

    def _take_interrupts(self) -> None:
        for vcpu in self.side.vm.vcpus:
            self.stepper.vm.take_interrupt(vcpu.index)


@define
class _Watcher:
    """Remembers the ioctls of the VMM as events."""

    names: Names
    made: list[Ioctl] = Factory(list)

    def observed(self, place: Place) -> Iterator[Observation]:
        """What the VMM did since the last call."""
        made, self.made = self.made, []
        for event in made:
            yield Observation(place=place, event=event, by_vmm=True)

    def watch(self, made: IoctlMade) -> None:
        """The VMM made an ioctl; requests and arguments that no trace can hold are its own business."""
        if made.request in REQUEST_NAMES:
            with suppress(KeyError, StructError):
                self.made.append(as_event(made, self.names))
