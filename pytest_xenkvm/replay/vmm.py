"""VMM replay: the guest's side of a trace is done again, a VMM behaviour does the rest.

Recorded ioctls, eventfd operations and answers are the recorded VMM's and left out; so are memory reads and
interrupts, which depend on what the VMM did. Guest memory that the trace shows being stored is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.kernel import UNTIMED_EVENT_NS
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.stepper import Stepper
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
from pytest_xenkvm.vmm.handles import IoctlMade, Vm
from pytest_xenkvm.vmm.ioctl_bytes import REQUEST_NAMES, Names, as_event

BEFORE_THE_GUEST: Final = Place(-1)
"""Where `configure` stands: before the first event."""

_MEMORY_IF_UNKNOWN: Final = 64 << 20
"""Bytes of guest memory for a trace that doesn't say."""


def vmm_replay(
    host: Host, header: Header, events: Callable[[], Iterable[Event]], behaviour: VmmBehaviour
) -> Iterator[Observation]:
    """Let `behaviour` configure a VM and answer the trace's guest: observations of both sides, in order.

    `events` is called once, or twice if the header doesn't say how many vCPUs there are. Raises HostError
    if the VM can't be had, ReplayError if the behaviour leaves a hypercall without an answer; what the
    behaviour itself raises passes through.
    """
    shape = header.vm or _shape_of(events())
    host_vm = host.create_vm(shape, cpu_vendor=header.cpu_vendor)
    watcher = _Watcher(Names(host_vm))
    vm = Vm.on(host_vm, shape, watcher.watch)
    behaviour.configure(vm)
    yield from watcher.observed(BEFORE_THE_GUEST)
    replay = _VmmReplay(Stepper(host_vm, header), vm, behaviour)
    for index, event in enumerate(events()):
        observation = replay.step(Place(index), event)
        yield from watcher.observed(Place(index))
        if observation is not None:
            yield observation


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
    vm: Vm
    behaviour: VmmBehaviour
    now: int = 0
    answer: int | None = None
    """What the behaviour answered the hypercall under way, as u64."""

    def step(self, place: Place, event: Event) -> Observation | None:
        """Do one event; None for those that are the VMM's."""
        self.stepper.vm.pass_time(ns=UNTIMED_EVENT_NS if event.ts is None else 0, until=self.now)
        self.now = max(self.now, event.ts or 0)
        if isinstance(event, Hypercall):
            self.answer = None
            happened = self.stepper.hypercall(event, self._answer)
            self._take_interrupts(event.vcpu)
            if happened is None:
                return Observation(place=place, event=event, unjudged=("unseen memory",))
            return Observation(place=place, event=happened, answer=self.answer)
        return self._do_other(place, event)

    def _do_other(self, place: Place, event: Event) -> Observation | None:
        happened: Event
        if isinstance(event, Wrmsr):
            happened = self.stepper.wrmsr(event)
        elif isinstance(event, VcpuRun):
            happened = self.stepper.vcpu_run(event)
        elif isinstance(event, Wait):
            happened = self.stepper.wait(event, len(self.vm.vcpus))
        elif isinstance(event, Mem) and event.op == "write":
            happened = self.stepper.mem(event)
        else:
            return None
        for vcpu in self.vm.vcpus:
            self._take_interrupts(vcpu.index)
        return Observation(place=place, event=happened)

    def _answer(self, event: Hypercall, xen_exit: XenExit) -> int:
        result: object = self.behaviour.on_hypercall(self.vm.vcpus[event.vcpu], xen_exit)
        if not isinstance(result, int) or not -(1 << 63) <= result <= U64_MAX:
            raise ReplayError(
                f"the VMM behaviour's on_hypercall returned {result!r} for hypercall {xen_exit.input}, "
                "expected an int that fits RAX (-ENOSYS is an answer)"
            )
        self.answer = result & U64_MAX
        return self.answer

    def _take_interrupts(self, vcpu: int) -> None:
        self.stepper.vm.take_interrupt(vcpu)


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
        """The VMM made an ioctl; requests that no trace holds are its own business."""
        if made.request in REQUEST_NAMES:
            self.made.append(as_event(made, self.names))
