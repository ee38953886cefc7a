"""The timeline of a replay: what happened on each vCPU and when, as compact columns for the HTML report.

    observer = TimelineObserver(trace.header)
    result = run_trace(trace, rules, options, observer)
    timeline = observer.as_json(around=[event indexes of findings])

It shows what observations hold and what follows from them, and nothing that nobody knows:

- An event sent by the VMM (KVM_XEN_HVM_EVTCHN_SEND) is shown on the vCPU that it names. One sent by the guest
  (EVTCHNOP_send, handled in the kernel) is shown on the vCPU that its port was assigned to.
- *Armed* is a hypercall that armed the vCPU's timer in the kernel, *expired* the time for which it was armed,
  unless it was armed anew or stopped before that. There the kernel fires it; no recorder sees the firing. A
  timeout that was not recorded relative to the guest's clock has no *expired*.
- *Taken* is an interrupt vector (`irq`). Where a recorder saw none, *acknowledged* shows that the guest
  cleared evtchn_upcall_pending or evtchn_pending_sel in its vcpu_info: it had an upcall since the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import Factory, define, field

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.report.marks import (
    BY_VMM,
    DIVERGED,
    FAILED,
    INFERRED,
    KIND_NUMBERS,
    KINDS,
    MEMORY_LANE,
    UNJUDGED,
    VMM_LANE,
    Marks,
    Row,
)
from pytest_xenkvm.report.timeline_state import FAR_AHEAD, Arming, VmState, send_port
from pytest_xenkvm.trace.decode import action_words, has_failed, hypercall_name, outcome_words
from pytest_xenkvm.trace.decode_values import register_result, result
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
    Wait,
)

VERSION: Final = 1
"""Of the shape of `TimelineObserver.as_json`."""

UNTIMED_STEP_NS: Final = 1000
"""What lies between two events if the trace has no times."""

_LATEST: Final = FAR_AHEAD
"""Times are kept in 63 bits with room to add a timeout: what is later counts as this (ns), 146 years."""

_MAX_STORE_SHOWN: Final = 8
"""Bytes of a store that are shown."""

_MAX_ALIKE: Final = 4096
"""Hypercalls whose row is remembered."""

_HANDLERS: Final = {"kernel": "kernel", "userspace": "forwarded"}
_VMM_KINDS: Final[dict[type[Event], str]] = {
    Wait: "wait",
    Eventfd: "eventfd",
    EventfdRead: "eventfd",
    EventfdWrite: "eventfd",
}


@define(eq=False)
class TimelineObserver:
    """Collects the timeline of one replay: call it with each observation, then ask for `as_json`."""

    header: Header
    marks: Marks = Factory(Marks)
    _vm: VmState = field(init=False)
    _now: int = field(default=0, init=False)
    """When the last event happened (ns)."""
    _timed: bool = field(default=False, init=False)
    _events: int = field(default=0, init=False)
    _alike: dict[tuple[Any, ...], int] = field(factory=dict, init=False)
    """Rows of hypercalls that are alike."""

    def __attrs_post_init__(self) -> None:
        self._vm = VmState.of(self.header)

    def __call__(self, observation: Observation) -> None:
        """Note one observation; they come in the order of the replay."""
        event, index = observation.event, observation.place.index
        self._events += not observation.by_vmm
        self._pass_time(event, by_vmm=observation.by_vmm)
        flags = _flags(observation)
        if isinstance(event, Hypercall):
            self._hypercall(event, index, flags)
        elif isinstance(event, Ioctl):
            self._ioctl(event, index, flags)
        elif isinstance(event, Mem):
            self._mem(event, index, flags)
        else:
            self._other(event, index, flags)

    def as_json(self, around: Iterable[int] = ()) -> dict[str, Any]:
        """The timeline, for `json.dumps`. `around`: indexes of events to keep if not all can be kept.

        `rows` are [lane, kind, name, outcome, flags], with the numbers of a lane of `lanes` and a kind of
        `kinds`; `flags` as in `marks`. A mark is an entry of each of the columns `t` (in units of
        `tick_ns`), `event` and `row`; in `t` and `event` entries say how much more they are than the one
        before. `gaps` are [number of the mark before which some were left out, how many]. `ahead` are the
        numbers of marks that armed a timer, as differences again, `ahead_ns` for how long.
        """
        lanes = sorted({row.lane for row in self.marks.rows}, key=lambda lane: (lane < 0, abs(lane)))
        numbers = {lane: number for number, lane in enumerate(lanes)}
        return {
            "version": VERSION,
            "timed": self._timed,
            "events": self._events,
            "end_ns": self._now,
            "unseen": list(self.header.unseen),
            "lanes": [self._lane(lane) for lane in lanes],
            "kinds": [{"id": k.id, "label": k.label, "tracks": list(k.tracks)} for k in KINDS],
            "rows": [
                [numbers[row.lane], KIND_NUMBERS[row.kind], row.name, row.outcome, row.flags]
                for row in self.marks.rows
            ],
            **self.marks.as_json(around),
        }

    def _lane(self, lane: int) -> dict[str, Any]:
        if lane == VMM_LANE:
            return {"kind": "vmm", "label": "VMM"}
        if lane == MEMORY_LANE:
            return {"kind": "memory", "label": "Memory"}
        return {"kind": "vcpu", "label": f"vCPU {lane}", "index": lane, "id": self._vm.id_of(lane)}

    def _pass_time(self, event: Event, *, by_vmm: bool) -> None:
        if event.ts is not None:
            self._timed = True
            now = max(min(event.ts, _LATEST), self._now)
        elif by_vmm or self._timed:
            now = self._now
        else:
            waited = event.ns if isinstance(event, Wait) else 0
            now = min(self._now + UNTIMED_STEP_NS + waited, _LATEST)
        for expiry in self._vm.expired(now):
            row = self.marks.row(Row(expiry.vcpu, "expired", "Timer expired"))
            self.marks.add(expiry.time, expiry.event, row)
        self._now = now

    def _mark(self, row: Row, index: int, ahead: int = -1) -> None:
        self.marks.add(self._now, index, self.marks.row(row), ahead)

    def _hypercall(self, event: Hypercall, index: int, flags: int) -> None:
        arming = self._vm.hypercall(event, index, self._now)
        self.marks.add(self._now, index, self._hypercall_row(event, arming, flags), _ahead(arming))
        port = send_port(event)
        target = None if port is None else self._vm.assigned.get(port)
        if target is not None:
            name = f"port {target.port} from vCPU {event.vcpu} (EVTCHNOP_send({port}))"
            self._mark(Row(target.vcpu, "guest-event", name, "", flags), index)

    def _hypercall_row(self, event: Hypercall, arming: Arming | None, flags: int) -> int:
        op, is_arming = event.args[0] if event.args else None, arming is not None
        # What the first argument says is a sub-operation only where a name comes of it.
        name = hypercall_name(event.nr, op)
        key = (event.vcpu, name, event.handled, event.rax, event.longmode, event.run_ret, is_arming, flags)
        row = self._alike.get(key)
        if row is None:
            if len(self._alike) >= _MAX_ALIKE:
                self._alike.clear()
            kind = "armed" if is_arming else _HANDLERS.get(event.handled or "", "unknown")
            if event.run_ret is not None:
                outcome = f"KVM_RUN failed: {result(event.run_ret)}"
            else:
                outcome = register_result(event.rax, longmode=event.longmode)
            row = self._alike[key] = self.marks.row(Row(event.vcpu, kind, name, outcome, flags))
        return row

    def _ioctl(self, event: Ioctl, index: int, flags: int) -> None:
        target = self._vm.sent_to(event)
        if target is not None:
            name = f"port {target.port} (KVM_XEN_HVM_EVTCHN_SEND)"
            self._mark(Row(target.vcpu, "vmm-event", name, outcome_words(event), flags), index)
            return
        name = action_words(event) if event.vcpu is None else f"vCPU {event.vcpu}: {action_words(event)}"
        self._mark(Row(VMM_LANE, "ioctl", name, outcome_words(event), flags), index)
        arming = self._vm.ioctl(event, index, self._now)
        if arming is not None and event.vcpu is not None:
            self._mark(Row(event.vcpu, "vmm-armed", "TIMER attribute", "", flags), index, _ahead(arming))

    def _mem(self, event: Mem, index: int, flags: int) -> None:
        if event.op != "write":
            name = f"{event.gpa:#x}: {len(event.data)} bytes"
            self._mark(Row(MEMORY_LANE, "read", name, "", flags), index)
            return
        vcpu = self._vm.acknowledged_by(event)
        if vcpu is not None:
            self._mark(Row(vcpu, "acknowledged", f"{event.gpa:#x} cleared", "", flags), index)
            return
        shown = event.data.hex() if len(event.data) <= _MAX_STORE_SHOWN else f"{len(event.data)} bytes"
        self._mark(Row(MEMORY_LANE, "store", f"{event.gpa:#x}: {shown}", "", flags), index)

    def _other(self, event: Event, index: int, flags: int) -> None:
        kind = _VMM_KINDS.get(type(event))
        if kind is not None:
            self._mark(Row(VMM_LANE, kind, action_words(event), outcome_words(event), flags), index)
            return
        vcpu: int = getattr(event, "vcpu", VMM_LANE)
        kind = "upcall" if isinstance(event, Irq) else "entry"
        self._mark(Row(vcpu, kind, action_words(event), outcome_words(event), flags), index)


def _ahead(arming: Arming | None) -> int:
    """What a mark says of it: ns, -1 for nothing. A time that is past already is 0 ahead."""
    return -1 if arming is None or arming.ahead is None else max(arming.ahead, 0)


def _flags(observation: Observation) -> int:
    event = observation.event
    return (
        has_failed(event) * FAILED
        + event.inferred * INFERRED
        + observation.by_vmm * BY_VMM
        + bool(observation.divergences) * DIVERGED
        + bool(observation.unjudged) * UNJUDGED
    )
