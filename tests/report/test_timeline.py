"""What a timeline shows of a replay, and what it leaves out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen

from pytest_xenkvm.replay.observation import Divergence, Observation, Place
from pytest_xenkvm.report import marks as marks_module
from pytest_xenkvm.report.marks import BY_VMM, DIVERGED, FAILED, INFERRED, UNJUDGED, Marks, Row
from pytest_xenkvm.report.timeline import TimelineObserver
from pytest_xenkvm.rules.run import ReplayOptions, observe_trace, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Eventfd,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    MemorySlot,
    NowPlus,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
    Wrmsr,
)
from pytest_xenkvm.vmm import Vmm

HEADER: Final = Header(
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=4 << 20),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=4)),
    )
)
MS: Final = 1_000_000
ENOSYS: Final = (1 << 64) - 38


@frozen
class Shown:
    """A mark as the page shows it."""

    time: int
    event: int
    lane: str
    kind: str
    name: str
    outcome: str
    flags: int
    ahead: int | None


def shown(timeline: dict[str, Any]) -> list[Shown]:
    """The marks of a timeline, unpacked."""
    ahead = dict(zip(accumulate(timeline["ahead"]), timeline["ahead_ns"], strict=True))
    columns = zip(accumulate(timeline["t"]), accumulate(timeline["event"]), timeline["row"], strict=True)
    found = []
    for number, (time, event, row) in enumerate(columns):
        lane, kind, name, outcome, flags = timeline["rows"][row]
        label, kind_id = timeline["lanes"][lane]["label"], timeline["kinds"][kind]["id"]
        when = time * timeline["tick_ns"]
        found.append(Shown(when, event, label, kind_id, name, outcome, flags, ahead.get(number)))
    return found


def timeline_of(*events: Event | Observation, header: Header = HEADER) -> list[Shown]:
    """The marks of a replay in which these happened."""
    observer = TimelineObserver(header)
    for index, event in enumerate(events):
        observer(event if isinstance(event, Observation) else Observation(place=Place(index), event=event))
    return shown(observer.as_json())


def kinds(found: Iterable[Shown]) -> list[str]:
    """The kinds of marks."""
    return [mark.kind for mark in found]


def call(nr: int, *args: int | NowPlus, ts: int | None = None, **more: Any) -> Hypercall:
    """A hypercall of vCPU 0 in 64-bit mode, handled in the kernel with success unless told otherwise."""
    given = {"vcpu": 0, "handled": "kernel", "rax": 0, **more}
    return Hypercall(longmode=True, cpl=0, nr=nr, args=(*args, *([0] * (6 - len(args)))), ts=ts, **given)


def arm(ts: int, ahead: int | None, **more: Any) -> Hypercall:
    """VCPUOP_set_singleshot_timer; None: for a time that is not relative to the guest's clock."""
    now_plus = () if ahead is None else ((0, ahead),)
    behind = (Behind(arg=2, data=bytes(8), now_plus_at=now_plus),)
    return call(24, 8, more.get("vcpu", 0), 0x1000, ts=ts, behind=behind, **more)


def send(port: int, **more: Any) -> Hypercall:
    """EVTCHNOP_send."""
    return call(32, 4, 0x1000, behind=(Behind(arg=1, data=port.to_bytes(4, "little")),), **more)


def assign(port: int, *, flags: int = 0, **deliver: Any) -> Ioctl:
    """An outbound port is assigned to a port of a vCPU, or as `deliver` has it."""
    target = deliver or {"port": {"port": port + 100, "vcpu": 4, "priority": 0xFFFF_FFFF}}
    evtchn = {"send_port": port, "type": 5, "flags": flags, "deliver": target}
    return Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 3, "evtchn": evtchn}, ret=0)


def vcpu_attr(type_: int, **value: Any) -> Ioctl:
    """An attribute of vCPU 1 is set."""
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=1, arg={"type": type_, **value}, ret=0)


@pytest.mark.parametrize(
    ("handled", "kind"), [("kernel", "kernel"), ("userspace", "forwarded"), (None, "unknown")]
)
def test_a_hypercall_is_shown_by_who_answered(handled: str | None, kind: str) -> None:
    """A hypercall is named with its sub-operation and its result, in the lane of its vCPU."""
    (mark,) = timeline_of(call(24, 3, vcpu=1, handled=handled, rax=ENOSYS, ts=7))
    assert mark == Shown(7, 0, "vCPU 1", kind, "VCPUOP_is_up", "-ENOSYS (-38)", FAILED, None)


def test_a_timer_expires_when_the_time_has_come() -> None:
    """A timer that was armed expires so much later, between the events around that time."""
    found = timeline_of(arm(MS, 2 * MS), Irq(vcpu=1, vector=0x60, ts=2 * MS), VcpuRun(vcpu=1, ts=4 * MS))
    assert [(mark.kind, mark.time, mark.event) for mark in found] == [
        ("armed", MS, 0),
        ("upcall", 2 * MS, 1),
        ("expired", 3 * MS, 0),
        ("entry", 4 * MS, 2),
    ]
    assert [mark.ahead for mark in found] == [2 * MS, None, None, None]


@pytest.mark.parametrize(
    "before",
    [
        arm(2 * MS, 9 * MS),
        arm(2 * MS, None),
        call(24, 9, ts=2 * MS),
        call(15, 0, ts=2 * MS),
    ],
    ids=["armed anew", "armed for an absolute time", "stopped", "stopped by set_timer_op"],
)
def test_a_timer_that_was_set_again_does_not_expire(before: Hypercall) -> None:
    """What was armed anew or stopped before its time doesn't expire, nor what is due after the end."""
    assert "expired" not in kinds(timeline_of(arm(MS, 5 * MS), before, VcpuRun(vcpu=0, ts=8 * MS)))


@pytest.mark.parametrize(
    "event",
    [arm(MS, MS, rax=ENOSYS), arm(MS, MS, handled="userspace"), arm(MS, MS, rax=None)],
    ids=["refused", "forwarded", "unknown"],
)
def test_only_the_kernel_arms_its_timer(event: Hypercall) -> None:
    """A timer call that was refused or forwarded, or of which nobody knows, arms nothing."""
    assert {"armed", "expired"}.isdisjoint(kinds(timeline_of(event, VcpuRun(vcpu=0, ts=8 * MS))))


def test_set_timer_op_arms() -> None:
    """set_timer_op arms a timer, too, and a time that is past is 0 ahead."""
    first, second = timeline_of(call(15, NowPlus(-5), ts=MS), VcpuRun(vcpu=0, ts=MS))[:2]
    assert (first.kind, first.ahead) == ("armed", 0)
    assert (second.kind, second.time) == ("expired", MS)


def test_the_vmm_arms_a_timer() -> None:
    """The TIMER attribute with an expiry is an ioctl of the VMM and arms the vCPU's timer."""
    timer = {"port": 2, "priority": 0, "expires_ns": {"now_plus": MS}}
    found = timeline_of(vcpu_attr(7, timer=timer), Wait(ns=2 * MS))
    assert kinds(found) == ["ioctl", "vmm-armed", "expired", "wait"]
    assert [mark.lane for mark in found] == ["VMM", "vCPU 1", "vCPU 1", "VMM"]


def test_an_event_from_the_vmm_is_shown_where_it_goes() -> None:
    """EVTCHN_SEND is shown on the vCPU whose KVM id it names, and as an ioctl of the VMM if it failed."""
    arg = {"port": 18, "vcpu": 4, "priority": 0xFFFF_FFFF}
    sent, refused = (Ioctl(name="KVM_XEN_HVM_EVTCHN_SEND", arg=arg, ret=ret) for ret in (0, -22))
    good, bad = timeline_of(sent, refused)
    assert (good.lane, good.kind, good.name) == ("vCPU 1", "vmm-event", "port 18 (KVM_XEN_HVM_EVTCHN_SEND)")
    assert (bad.lane, bad.kind, bad.outcome, bad.flags) == ("VMM", "ioctl", "-EINVAL (-22)", FAILED)


def test_an_event_from_the_guest_is_shown_where_it_goes() -> None:
    """EVTCHNOP_send is a hypercall of the sender, and an event on the vCPU that its port is assigned to."""
    found = timeline_of(assign(3), send(3))
    assert [(mark.lane, mark.kind) for mark in found[1:]] == [("vCPU 0", "kernel"), ("vCPU 1", "guest-event")]
    assert found[2].name == "port 103 from vCPU 0 (EVTCHNOP_send(3))"


@pytest.mark.parametrize(
    ("setup", "sent"),
    [
        ([], send(3)),
        ([assign(3)], send(4)),
        ([assign(3)], send(3, handled="userspace")),
        ([assign(3)], send(3, rax=ENOSYS)),
        ([assign(3)], call(32, 4, 0x1000)),
        ([assign(3), assign(3, flags=1)], send(3)),
        ([assign(3), assign(9, flags=4)], send(3)),
        ([assign(3, eventfd={"port": 0, "fd": 1})], send(3)),
    ],
    ids=["unassigned", "other port", "forwarded", "refused", "unseen", "deassigned", "reset", "eventfd"],
)
def test_where_an_event_goes_is_never_guessed(setup: list[Event], sent: Hypercall) -> None:
    """A send that doesn't lead to a vCPU, or nobody knows where, is a hypercall and nothing more."""
    assert "guest-event" not in kinds(timeline_of(*setup, sent))


def test_an_upcall_is_acknowledged_in_vcpu_info() -> None:
    """Clearing a vCPU's selector bits shows that it had an upcall; other stores are guest memory's."""
    clear = Mem(op="write", gpa=0x1008, data=bytes(8), inferred=True)
    found = timeline_of(
        vcpu_attr(0, gpa=0x1000),
        clear,
        Mem(op="write", gpa=0x1008, data=b"\1"),
        Mem(op="write", gpa=0x1010, data=b"\0"),
        Mem(op="write", gpa=0x5000, data=bytes(100)),
        Mem(op="read", gpa=0x1008, data=b"\0"),
        vcpu_attr(9, hva=0),
        clear,
    )
    assert [(mark.lane, mark.kind) for mark in found[1:6]] == [
        ("vCPU 1", "acknowledged"),
        ("Memory", "store"),
        ("Memory", "store"),
        ("Memory", "store"),
        ("Memory", "read"),
    ]
    assert found[1].flags == INFERRED
    assert found[4].name == "0x5000: 100 bytes"
    assert found[7].kind == "store"


def test_events_of_other_kinds_are_shown() -> None:
    """Eventfds and waits are the VMM's, MSR writes and entries the vCPU's."""
    wrmsr = Wrmsr(vcpu=0, longmode=True, msr=0x4000_0000, value=0x1000, ok=False)
    found = timeline_of(Eventfd(fd=3), Wait(ns=5000), wrmsr, VcpuRun(vcpu=1))
    assert [(mark.lane, mark.kind) for mark in found] == [
        ("VMM", "eventfd"),
        ("VMM", "wait"),
        ("vCPU 0", "entry"),
        ("vCPU 1", "entry"),
    ]


def test_a_trace_without_times_has_its_events_apart() -> None:
    """Events without times lie 1 µs apart, and waits last as long as they do; the timeline says so."""
    observer = TimelineObserver(HEADER)
    for index, event in enumerate((VcpuRun(vcpu=0), Wait(ns=5000), VcpuRun(vcpu=0))):
        observer(Observation(place=Place(index), event=event))
    timeline = observer.as_json()
    assert [mark.time for mark in shown(timeline)] == [1000, 7000, 8000]
    assert timeline["timed"] is False


def test_times_never_go_back() -> None:
    """A mark is no earlier than those before it, whatever its event's time, and no time is too late."""
    times = [mark.time for mark in timeline_of(*(VcpuRun(vcpu=0, ts=ts) for ts in (9, 4, (1 << 64) - 1, 5)))]
    assert times == sorted(times)
    assert times[:2] == [9, 9]


def test_flags_say_what_is_special() -> None:
    """A mark says that its event diverged, was not all seen, or was the VMM's under test."""
    event = VcpuRun(vcpu=0)
    divergence = Divergence(
        place=Place(0), kind="irq", expected=None, observed=1, recorded=event, happened=event
    )
    ioctl = assign(3)
    found = timeline_of(
        Observation(place=Place(-1), event=ioctl, by_vmm=True),
        Observation(place=Place(0), event=event, divergences=(divergence,), unjudged=("irq",)),
    )
    assert [mark.flags for mark in found] == [BY_VMM, DIVERGED + UNJUDGED]
    assert [mark.event for mark in found] == [-1, 0]


def test_what_is_too_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit a timeline keeps what is around the events asked for, and says what is missing."""
    monkeypatch.setattr(marks_module, "_CHUNK", 64)
    monkeypatch.setattr(marks_module, "AROUND", 2)
    observer = TimelineObserver(HEADER, Marks(limit=10, limit_around=6))
    for index in range(1000):
        observer(Observation(place=Place(index), event=VcpuRun(vcpu=0, ts=index * 1000)))
    timeline = observer.as_json([500, 998, 5])
    kept = [mark.event for mark in shown(timeline)]
    assert kept == [*range(10), *range(498, 503), 996]
    assert [mark.time for mark in shown(timeline)] == [event * 1000 for event in kept]
    assert timeline["gaps"] == [[10, 488], [15, 493], [16, 3]]
    assert (timeline["marks"], timeline["events"]) == (1000, 1000)


def test_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of different things marks say less, but still where and of which kind."""
    monkeypatch.setattr(marks_module, "MAX_ROWS", 2)
    collected = Marks()
    numbers = [collected.row(Row(0, "store", f"0x{number:x}: 00")) for number in range(5)]
    assert numbers == [0, 1, 2, 2, 2]
    assert list(collected.rows)[2] == Row(0, "store", "(too many to be named)")


def test_a_boot_is_small_and_in_order() -> None:
    """@linux-boot's 35,143 events take less than 700 kB, have all kinds that a boot has, and are in order."""
    trace = open_trace("@linux-boot")
    observer = TimelineObserver(trace.header)
    result = run_trace(trace, (), ReplayOptions(), observer)
    timeline = observer.as_json()
    found = shown(timeline)
    assert timeline["events"] == result.events == 35_143
    assert len(json.dumps(timeline, separators=(",", ":"))) < 700_000
    assert [mark.time for mark in found] == sorted(mark.time for mark in found)
    assert {mark.kind for mark in found} == {
        *("kernel", "forwarded", "armed", "expired", "vmm-event", "guest-event", "acknowledged"),
        *("ioctl", "eventfd", "store"),
    }
    calls = {"kernel", "forwarded", "armed"}
    assert sum(mark.kind in calls for mark in found) == result.hypercalls


def test_a_vmm_replay_has_a_timeline() -> None:
    """In a VMM replay the ioctls of the VMM under test are shown, those that configure first."""

    class Configures(Vmm):
        def configure(self, vm: Any) -> None:
            vm.xen_hvm_config()

    trace = open_trace("@linux-boot-1vcpu")
    observer = TimelineObserver(trace.header)
    for observation in observe_trace(trace, ReplayOptions(behaviour=Configures(), until=200)):
        observer(observation)
    first = shown(observer.as_json())[0]
    assert (first.kind, first.event, first.flags) == ("ioctl", -1, BY_VMM)


def test_the_page_describes_all_members() -> None:
    """The table of members is that of the code, in order."""
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "timeline.md").read_text(encoding="utf-8")
    section = page.partition("## In the JSON report")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(TimelineObserver(HEADER).as_json())
