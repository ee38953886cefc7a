"""What a VM has become by some event of a trace, as events that make another VM the same.

Two replays on the emulated core are compared: of all that came before the event, and of what is kept of that.
Where they differ in what later outcomes hang on, an inferred event says what the first one has: interrupts
that are taken, guest memory, counts of eventfds, timers. Left out are runstate times, interrupts that were
requested but not taken, and selector bits that wait for a vcpu_info.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, VcpuAttr
from pytest_xenkvm.hosts.emulated import FIRST_FD
from pytest_xenkvm.hosts.protocol import Host, HostVm
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import Repeats
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.rules.hosts import emulated_host
from pytest_xenkvm.rules.profiles import AUTO, choose_profile
from pytest_xenkvm.trace.events import (
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    TimedEvent,
    VcpuRun,
    VmShape,
)

MAX_PAGES: Final = 1 << 16
"""Pages of guest memory whose content is remembered: 256 MiB."""

_LINE: Final = 64
"""Bytes of a page that are compared at once; stores are parted by as many that are alike."""

_VM: Final = "KVM_XEN_HVM_GET_ATTR"
_VCPU: Final = "KVM_XEN_VCPU_GET_ATTR"


class TooMuchState(Exception):
    """The VM's state doesn't fit in a trace; `str()` is one sentence for the user."""


@define
class _OneVm:
    """A host that remembers the VM that it made."""

    host: Host
    vm: HostVm | None = None

    @property
    def name(self) -> str:
        return self.host.name

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> HostVm:
        self.vm = self.host.create_vm(shape, cpu_vendor=cpu_vendor)
        return self.vm


class _Nobody:
    """An audience that looks at nothing."""

    def __init__(self) -> None:
        self._repeats = Repeats()

    def wants(self, event: Event) -> bool:  # noqa: ARG002 - whatever it is
        return False

    def wants_call(self, event: Hypercall) -> bool:  # noqa: ARG002
        return False

    def recall(self, event: Hypercall) -> None:  # noqa: ARG002 - nothing was counted
        return

    def repeats(self, event: Hypercall) -> Repeats:  # noqa: ARG002 - all are alike
        return self._repeats


def vm_after(header: Header, events: Iterable[TimedEvent]) -> VmSoFar:
    """The VM to which these events, the first of a trace of scope "full", have happened.

    Raises ReplayError if the trace can't be replayed, TooMuchState, and what reading `events` raises.
    """
    host = _OneVm(emulated_host(header, choose_profile(AUTO, header)))
    noted = _Noted()
    for _observation in kernel_replay(host, header, noted.of(events), _Nobody()):
        pass
    if host.vm is None or header.vm is None:
        raise ReplayError("the trace doesn't describe its VM")
    host.vm.pass_time(until=noted.now)  # the last event is complete
    return VmSoFar(
        stepper=Stepper(host.vm, header), vcpus=len(header.vm.vcpus), pages=noted.pages, fds=noted.fds
    )


@define
class _Noted:
    """What can't be asked of a VM."""

    now: int = 0
    """When the last event was complete (ns)."""
    pages: set[int] = Factory(set)
    """Numbers of the pages that were stored to."""
    fds: dict[int, int] = Factory(dict)
    """The emulated host's numbers of the trace's eventfds."""

    def of(self, events: Iterable[TimedEvent]) -> Iterator[TimedEvent]:
        """Hand `events` on and take notes; raises TooMuchState."""
        opened = 0
        for ts, event, told in events:
            self.now = max(self.now, ts or 0)
            if isinstance(event, Mem) and event.op == "write" and event.data:
                last = (event.gpa + len(event.data) - 1) // PAGE_SIZE
                self.pages.update(range(event.gpa // PAGE_SIZE, last + 1))
                if len(self.pages) > MAX_PAGES:
                    raise TooMuchState(f"more than {MAX_PAGES:,} pages of guest memory were stored to")
            elif isinstance(event, Eventfd):
                self.fds[event.fd] = FIRST_FD + opened
                opened += 1
            yield ts, event, told


@define
class VmSoFar:
    """A VM to which events of a trace have happened."""

    stepper: Stepper
    vcpus: int
    pages: set[int]
    """Numbers of the pages that were stored to."""
    fds: dict[int, int]
    """The host's numbers of the trace's eventfds."""

    @property
    def clock(self) -> int:
        """The VM's clock (ns)."""
        return self.stepper.vm.guest_clock(0)

    def interrupts(self, vcpu: int) -> list[int]:
        """Let a vCPU take what its local APIC has requested: the vectors in order.

        None while evtchn_upcall_pending asks for the VM-wide vector, which would come again and again.
        """
        taken: list[int] = []
        while (vector := self.stepper.vm.take_interrupt(vcpu)) is not None:
            if vector in taken:
                return []
            taken.append(vector)
        return taken

    def timers(self) -> dict[int, dict[str, int]]:
        """The timer attribute of each vCPU that has a port; a timer that has fired is delivered by this."""
        found = {vcpu: self._get(_VCPU, VcpuAttr.TIMER, vcpu).get("timer") for vcpu in range(self.vcpus)}
        return {vcpu: timer for vcpu, timer in found.items() if timer and timer["port"]}

    def watched_pages(self) -> set[int]:
        """Pages that were stored to, and those where the kernel notes events."""
        areas = [self._get(_VM, HvmAttr.SHARED_INFO).get("shared_info", {}).get("gfn", 0) * PAGE_SIZE]
        areas += (self._get(_VCPU, VcpuAttr.VCPU_INFO, vcpu).get("gpa", 0) for vcpu in range(self.vcpus))
        by_address = [self._get(_VM, HvmAttr.SHARED_INFO_HVA).get("shared_info", {}).get("hva")]
        by_address += (
            self._get(_VCPU, VcpuAttr.VCPU_INFO_HVA, vcpu).get("hva") for vcpu in range(self.vcpus)
        )
        areas += (address["gpa"] for address in by_address if isinstance(address, dict))
        return {*self.pages, *(area // PAGE_SIZE for area in areas)}

    def page(self, number: int) -> bytes:
        """The content of a page; none if there is no memory."""
        return self.stepper.vm.read_memory(number * PAGE_SIZE, PAGE_SIZE) or b""

    def drained_eventfds(self) -> dict[int, int]:
        """The counts of the trace's eventfds, which are 0 from then on."""
        return {symbol: self.stepper.vm.read_eventfd(fd) for symbol, fd in self.fds.items()}

    def _get(self, name: str, attribute: int, vcpu: int | None = None) -> dict[str, Any]:
        event = self.stepper.ioctl(Ioctl(name=name, vcpu=vcpu, arg={"type": int(attribute)}, ret=0))
        return dict(event.out or {})


def state_events(whole: VmSoFar, kept: VmSoFar) -> Iterator[Event]:
    """The events that give the VM `kept` the state of `whole`; both are of no use afterwards."""
    ts = whole.clock
    running, to_replace = whole.timers(), kept.timers()
    yield from _stores(whole, kept, ts)
    for vcpu in range(kept.vcpus):
        vectors = kept.interrupts(vcpu)
        if vectors:
            yield VcpuRun(vcpu=vcpu, ts=ts, inferred=True)
        yield from (Irq(vcpu=vcpu, vector=vector, ts=ts, inferred=True) for vector in vectors)
    yield from _counts(whole, kept, ts)
    for vcpu, timer in running.items():
        if timer != to_replace.get(vcpu):
            arg = {"type": int(VcpuAttr.TIMER), "timer": timer}
            yield Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg=arg, ret=0, ts=ts, inferred=True)


def _stores(whole: VmSoFar, kept: VmSoFar, ts: int) -> Iterator[Mem]:
    """What is in the memory of `whole`; it is then in that of `kept`, too."""
    for number in sorted(whole.watched_pages() | kept.watched_pages()):
        for offset, data in _differing(whole.page(number), kept.page(number)):
            store = Mem(op="write", gpa=number * PAGE_SIZE + offset, data=data, ts=ts, inferred=True)
            yield kept.stepper.mem(store)


def _counts(whole: VmSoFar, kept: VmSoFar, ts: int) -> Iterator[Event]:
    counts = whole.drained_eventfds()
    for symbol, count in kept.drained_eventfds().items():
        if count:
            yield EventfdRead(fd=symbol, value=count, ts=ts, inferred=True)
        if counts[symbol]:
            yield EventfdWrite(fd=symbol, value=counts[symbol], ts=ts, inferred=True)


def _differing(wanted: bytes, found: bytes) -> Iterator[tuple[int, bytes]]:
    """Runs of `wanted` that differ from `found`, with their offsets."""
    start = end = 0
    for offset in range(0, len(wanted), _LINE):
        here = slice(offset, offset + _LINE)
        if wanted[here] == found[here]:
            continue
        if end != offset:
            yield from _narrowed(start, wanted[start:end], found[start:end])
            start = offset
        end = offset + _LINE
    yield from _narrowed(start, wanted[start:end], found[start:end])


def _narrowed(offset: int, wanted: bytes, found: bytes) -> Iterator[tuple[int, bytes]]:
    differ = [index for index, (one, other) in enumerate(zip(wanted, found, strict=True)) if one != other]
    if differ:
        yield offset + differ[0], wanted[differ[0] : differ[-1] + 1]
