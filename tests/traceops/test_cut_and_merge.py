"""Pieces of traces mean what they meant in the whole, and can be put together again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from parts import diverging, labels, load

sys.path.append(str(Path(__file__).parents[1] / "trace"))

from strategies import Trace, traces

from pytest_xenkvm.trace.events import (
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    Ioctl,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
)
from pytest_xenkvm.traceops.cut import Cutting, Piece, Point, new_divergences
from pytest_xenkvm.traceops.failure import Part
from pytest_xenkvm.traceops.merge import MAX_AT_ONCE, Input, NotMergeable, merge
from pytest_xenkvm.traceops.roles import sets_up

VM = VmShape(irqchip="split", memory=(MemorySlot(gpa=0, size=1 << 21),), vcpus=(VcpuShape(index=0, id=0),))
HEADER = Header(kernel="6.12", max_vcpus=4096, vm=VM)


@pytest.fixture(scope="module")
def boot() -> Part:
    """A guest's boot."""
    return load("@linux-boot")


def cut(trace: Part, **piece: Any) -> Part:
    """A piece as a trace of its own."""
    return evolve(trace, kept=list(Cutting(trace, Piece(**piece)).events()))


def put_together(*parts: Part) -> list[Event]:
    """The events of the merged trace."""
    return list(merge([Input(name=part.name, header=part.header, events=part.kept) for part in parts]).events)


def timed_by_index(events: Iterable[Event]) -> list[Event]:
    """The events, each at a time of its own."""
    return [evolve(event, ts=1000 * index) for index, event in enumerate(events)]


# ---- cut


@pytest.mark.parametrize("start", [0, 40, 379, 9_998, 20_001])
def test_a_piece_of_a_boot_replays_as_it_did(boot: Part, start: int) -> None:
    """Wherever a boot is cut, the piece's outcomes are those that were recorded."""
    piece = cut(boot, start=Point(index=start), end=Point(index=start + 999))
    assert piece.kept[-1000:] == boot.kept[start : start + 1000]
    assert new_divergences(piece, boot) == []


def test_without_its_state_a_piece_diverges(boot: Part) -> None:
    """The same piece without what came before it has other outcomes, and they are told."""
    piece = cut(boot, start=Point(index=9_998), end=Point(index=10_998), bare=True)
    assert len(piece.kept) == 1001
    assert new_divergences(piece, boot)


def test_what_is_kept_of_the_past(boot: Part) -> None:
    """Before the piece stands what set the VM up, in order, then inferred events with the VM's state."""
    cutting = Cutting(boot, Piece(start=Point(index=1000), end=Point(index=1009)))
    events = list(cutting.events())
    assert (cutting.set_up + cutting.state, cutting.cut) == (len(events) - 10, 10)
    set_up = events[: cutting.set_up]
    assert set_up == [event for event in boot.kept[:1000] if sets_up(event)]
    state = events[cutting.set_up : -10]
    assert state
    assert all(event.inferred and event.ts == boot.kept[999].ts for event in state)


def test_memory_and_eventfds_are_as_they_were() -> None:
    """What was stored, and what an eventfd had been signalled, before the cut can be read in the piece."""
    events = [
        Eventfd(fd=7),
        Mem(op="write", gpa=0x3000, data=b"kept"),
        EventfdWrite(fd=7, value=5),
        VcpuRun(vcpu=0),
        EventfdRead(fd=7, value=5),
        Mem(op="read", gpa=0x3000, data=b"kept"),
    ]
    piece = cut(Part("small", HEADER, events), start=Point(index=4))
    assert labels(piece.kept) == ["eventfd", "mem write", "eventfd_write", "eventfd_read", "mem read"]
    assert new_divergences(piece, Part("small", HEADER, events)) == []


def test_timers_run_on() -> None:
    """A timer that a hypercall had armed before the cut runs in the piece, and expires when it would have."""
    expires = 10_000_000_000
    timer = {"port": 3, "priority": 0xFFFF_FFFF}
    armed = Hypercall(
        vcpu=0, longmode=True, cpl=0, nr=15, args=(expires, 0, 0, 0, 0, 0), handled="kernel", rax=0, ts=2000
    )
    blob = dict.fromkeys(("blob_addr_32", "blob_addr_64", "blob_size_32", "blob_size_64"), 0)
    config = {"flags": 0x22, "msr": 0x4000_0000, **blob}
    events: list[Event] = [
        Ioctl(name="KVM_XEN_HVM_CONFIG", arg=config, ret=0, ts=0),
        Ioctl(
            name="KVM_XEN_VCPU_SET_ATTR",
            vcpu=0,
            arg={"type": 7, "timer": {**timer, "expires_ns": 0}},
            ret=0,
            ts=1000,
        ),
        armed,
        Ioctl(
            name="KVM_XEN_VCPU_GET_ATTR",
            vcpu=0,
            arg={"type": 7},
            ret=0,
            out={"type": 7, "timer": {**timer, "expires_ns": expires}},
            ts=3000,
        ),
    ]
    whole = Part("small", HEADER, events)
    assert diverging(whole) == []
    piece = cut(whole, start=Point(index=3))
    assert armed not in piece.kept
    assert diverging(piece) == []


def test_a_piece_by_time(boot: Part) -> None:
    """Times select the events between them, both included."""
    first, last = boot.kept[500].ts or 0, boot.kept[700].ts or 0
    piece = cut(boot, start=Point(ns=first), end=Point(ns=last), bare=True)
    assert piece.kept == [event for event in boot.kept if first <= (event.ts or 0) <= last]


def test_events_without_a_time_belong_to_the_one_before() -> None:
    """An event without a time is where the event before it is."""
    events = [Wait(ns=1, ts=10), Wait(ns=2), Wait(ns=3, ts=20), Wait(ns=4), Wait(ns=5, ts=30)]
    piece = cut(Part("small", HEADER, events), start=Point(ns=20), end=Point(ns=20), bare=True)
    assert piece.kept == events[2:4]


def test_one_vcpus_view(boot: Part) -> None:
    """Of other vCPUs only the set-up remains; what belongs to no vCPU stays."""
    piece = cut(boot, vcpus=frozenset({1}))
    others = [event for event in piece.kept if getattr(event, "vcpu", None) == 0]
    assert others
    assert all(sets_up(event) for event in others)
    assert [event for event in piece.kept if isinstance(event, Mem)] == [
        event for event in boot.kept if isinstance(event, Mem)
    ]
    assert new_divergences(piece, boot) == []


def test_hypercalls_alone_keep_their_set_up(boot: Part) -> None:
    """A trace of hypercalls only gets no state, but keeps the calls by which the guest set things up."""
    calls = [event for event in boot.kept if isinstance(event, Hypercall)]
    trace = Part("calls", evolve(boot.header, scope="hypercalls"), calls)
    piece = cut(trace, start=Point(index=2000))
    kept = len(piece.kept) - (len(calls) - 2000)
    assert kept == sum(sets_up(event) for event in calls[:2000])
    assert "EVTCHNOP_bind_virq" in labels(piece.kept[:kept])
    assert "VCPUOP_set_singleshot_timer" not in labels(piece.kept[:kept])


# ---- merge


@given(traces(), st.integers(0, 12))
def test_two_parts_make_the_whole(trace: Trace, where: int) -> None:
    """What is cut in two, bare, and merged is as it was."""
    header, events = trace
    whole = Part("whole", header, timed_by_index(events))
    point = min(where, len(events))
    head = cut(whole, end=Point(index=point - 1), bare=True) if point else evolve(whole, kept=[])
    tail = cut(whole, start=Point(index=point), bare=True)
    creators = {event.fd for event in head.kept if isinstance(event, Eventfd)}
    if not any(isinstance(event, Eventfd) and event.fd in creators for event in tail.kept):
        assert put_together(head, tail) == whole.kept


@given(traces())
def test_views_of_all_vcpus_make_the_whole(trace: Trace) -> None:
    """What every vCPU's view shows, bare, is the whole; what all show is there once."""
    header, events = trace
    vcpus = 4096 if header.vm is None else len(header.vm.vcpus)
    seen = {vcpu for event in events if (vcpu := getattr(event, "vcpu", None)) is not None} | {0}
    whole = Part("whole", header, timed_by_index(events))
    views = [cut(whole, vcpus=frozenset({vcpu}), bare=True) for vcpu in sorted(seen) if vcpu < vcpus]
    assert put_together(*views) == whole.kept


def test_views_of_a_boot_make_the_boot(boot: Part) -> None:
    """Two vCPUs' views of a boot, in which many events have the same time, make the boot again."""
    assert put_together(*(cut(boot, vcpus=frozenset({vcpu}), bare=True) for vcpu in (0, 1))) == boot.kept


def test_events_at_the_same_time_keep_the_order_of_each_input() -> None:
    """What two inputs have at the same time comes once, after all that either has before it."""
    before, both, after = (Wait(ns=number, ts=5) for number in range(3))
    parts = [Part("a", HEADER, [both, after]), Part("b", HEADER, [before, both])]
    assert put_together(*parts) == [before, both, after]


def test_repeated_set_up_is_written_once(boot: Part) -> None:
    """Parts that each keep their set-up come together with it once."""
    head, tail = cut(boot, end=Point(index=999)), cut(boot, start=Point(index=1000), end=Point(index=1500))
    merged = put_together(head, tail)
    state = [event for event in tail.kept if event not in boot.kept]
    assert [event for event in merged if event not in state] == boot.kept[:1501]


def test_offsets_shift_times() -> None:
    """An input that began later is put where its events happened, and its times say so."""
    early, late = [Wait(ns=1, ts=0), Wait(ns=2, ts=2000)], [Wait(ns=3, ts=0), Wait(ns=4)]
    inputs = [
        Input(name="a", header=HEADER, events=early),
        Input(name="b", header=HEADER, events=late, offset=1000),
    ]
    assert [(event.ts, getattr(event, "ns", 0)) for event in merge(inputs).events] == [
        (0, 1),
        (1000, 3),
        (None, 4),
        (2000, 2),
    ]


def refusal(*headers: Header, events: Iterable[Event] = ()) -> str:
    """Why traces with these headers can't be merged."""
    inputs = [
        Input(name=f"{letter}.xkt", header=header, events=list(events))
        for letter, header in zip("abc", headers, strict=False)
    ]
    with pytest.raises(NotMergeable) as refused:
        list(merge(inputs).events)
    return str(refused.value)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (evolve(HEADER, kernel="7.3"), "kernel is 7.3, that of a.xkt is 6.12"),
        (evolve(HEADER, max_vcpus=1024), "max_vcpus is 1024"),
        (evolve(HEADER, cpu_vendor="intel"), "cpu_vendor is intel"),
        (evolve(HEADER, scope="hypercalls"), "scope is hypercalls"),
        (evolve(HEADER, vm=evolve(VM, irqchip="full")), "irqchip is full"),
        (evolve(HEADER, vm=evolve(VM, memory=())), "memory is none"),
        (evolve(HEADER, vm=evolve(VM, vcpus=(VcpuShape(index=0, id=2),))), "vCPU 0's KVM id is 2"),
    ],
)
def test_traces_of_different_vms_are_refused(other: Header, what: str) -> None:
    """What doesn't agree is named, with both traces."""
    assert refusal(HEADER, other).startswith(f"b.xkt: its {what}")


def test_what_one_does_not_know_the_other_may() -> None:
    """Unknown facts are taken from the trace that knows them, and of the vCPUs all that either has."""
    more = evolve(VM, vcpus=(*VM.vcpus, VcpuShape(index=1, id=4)))
    inputs = [
        Input(
            name="a", header=evolve(HEADER, kernel=None, unseen=("irq",), extra={"x": 1, "y": 1}), events=()
        ),
        Input(name="b", header=evolve(HEADER, max_vcpus=None, vm=more, extra={"x": 2, "y": 1}), events=()),
    ]
    merged = merge(inputs, "Merged")
    assert (merged.header.kernel, merged.header.max_vcpus, merged.header.vm) == ("6.12", 4096, more)
    assert (merged.header.unseen, merged.header.extra, merged.dropped_keys) == (("irq",), {"y": 1}, ("x",))


def test_traces_without_times_are_refused() -> None:
    """Without times nobody knows the order, and so it is said."""
    assert "event 0 has no time" in refusal(HEADER, HEADER, events=[Wait(ns=1)])
    crowd = [Wait(ns=1, ts=5), *[Wait(ns=2)] * (MAX_AT_ONCE + 1)]
    assert "have no time of their own" in refusal(HEADER, HEADER, events=crowd)


def test_one_number_for_two_eventfds_is_refused() -> None:
    """An eventfd that two traces create at different times would change what later events mean."""
    inputs = [
        Input(name="a.xkt", header=HEADER, events=[Eventfd(fd=7, ts=0)]),
        Input(name="b.xkt", header=HEADER, events=[Eventfd(fd=7, ts=1)]),
    ]
    with pytest.raises(NotMergeable, match=r"b\.xkt: creates eventfd 7, as a\.xkt does at another time"):
        list(merge(inputs).events)
