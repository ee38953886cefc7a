"""The guest's stores that deliveries imply: single bits, where an answer needs them, and no others."""

from __future__ import annotations

from errno import ENOTCONN

import pytest
from ftrace_text import call, delivery, excerpt, imported, kept, line, lives, set_attr

from pytest_xenkvm.trace.events import Hypercall, Ioctl, Mem
from pytest_xenkvm.trace.importers import Imported
from pytest_xenkvm.trace.importers.timeline import Timeline

SHARED, VCPU_INFO = 0x10000, 0x20000
PENDING, MASK = SHARED + 0x800, SHARED + 0xA00
SETUP = [*set_attr("hvm", 0, 1), *set_attr("hvm", 1, SHARED >> 12)]
VCPU = [*set_attr("vcpu", 0, VCPU_INFO), *set_attr("vcpu", 8, 0xF3)]
SENT = "kvm_xen_hvm_evtchn_send"


def send(port: int, ret: int, upcall: int | None = None) -> list[str]:
    """A KVM_XEN_HVM_EVTCHN_SEND with its delivery."""
    return [
        f"hvm_evtchn_send: (f) port={port} vcpu=0 prio=0xffffffff",
        *delivery(port, ret, by=SENT, upcall=upcall),
        "hvm_evtchn_send_ret: (f <- f) ret=0",
    ]


def shape(trace: Imported) -> list[tuple[int, str] | str]:
    """Stores as (gpa, data), sends as their port."""
    found: list[tuple[int, str] | str] = []
    for event in trace.events:
        if isinstance(event, Mem):
            assert event.inferred
            assert event.op == "write"
            found.append((event.gpa, event.data.hex()))
        elif isinstance(event, Ioctl) and event.name == "KVM_XEN_HVM_EVTCHN_SEND":
            found.append(f"send {event.arg['port']}")
    return found


@pytest.mark.parametrize(
    ("sends", "expected"),
    [
        ([(3, 1)], ["send 3"]),
        ([(3, 1), (3, 1)], ["send 3", (PENDING, "00"), "send 3"]),
        ([(3, 1), (3, 0)], ["send 3", "send 3"]),
        ([(3, 0)], [(PENDING, "08"), "send 3"]),
        ([(3, -ENOTCONN)], [(MASK, "08"), "send 3"]),
        ([(3, -ENOTCONN), (3, 1)], [(MASK, "08"), "send 3", (PENDING, "00"), (MASK, "00"), "send 3"]),
        ([(3, 1), (4, 1), (3, 1)], ["send 3", "send 4", (PENDING, "10"), "send 3"]),
        ([(9, 1), (9, 1)], ["send 9", (PENDING + 1, "00"), "send 9"]),
        ([(3, -11), (3, 1)], ["send 3", "send 3"]),
        ([(9999, 1), (9999, 1)], ["send 9999", "send 9999"]),
    ],
    ids=str,
)
def test_stores_before_sends(sends: list[tuple[int, int]], expected: list[object]) -> None:
    """A store appears just where the kernel's answer contradicts what memory held, other bits untouched."""
    trace = lives([*SETUP, *(text for port, ret in sends for text in send(port, ret))])
    assert shape(trace) == expected


def test_selector_bit() -> None:
    """An injected upcall vector implies that the guest had cleared the selector; none implies nothing."""
    repeated = [*send(3, 1, 0xF3), *send(4, 1), *send(70, 1), *send(5, 1, 0xF3)]
    assert shape(lives([*SETUP, *VCPU, *repeated])) == [
        "send 3",
        "send 4",
        "send 70",
        (VCPU_INFO + 8, "02"),
        "send 5",
    ]


def test_other_vectors_are_no_upcall() -> None:
    """A vector that is not the vCPU's upcall vector says nothing about the selector."""
    assert shape(lives([*SETUP, *VCPU, *send(3, 1, 0xF3), *send(4, 1, 0x30)])) == ["send 3", "send 4"]


def test_without_an_address_there_is_no_store() -> None:
    """With shared_info at a host address the implied stores are left out and counted."""
    trace = lives([*set_attr("hvm", 6, 0x7F0000001000), *send(3, 1), *send(3, 1)])
    assert shape(trace) == ["send 3", "send 3"]
    assert trace.report.unknown["guest stores implied by a delivery (shared_info's address unknown)"] == 2


def test_32_bit_layout() -> None:
    """Without LONG_MODE the bits lie as in the 32-bit layout."""
    setup = [*set_attr("hvm", 1, SHARED >> 12), *VCPU]
    trace = lives([*setup, *send(40, -ENOTCONN), *send(41, 1, 0xF3), *send(42, 1, 0xF3)])
    assert shape(trace) == [
        (SHARED + 0x880 + 5, "01"),
        "send 40",
        "send 41",
        (VCPU_INFO + 4, "00"),
        "send 42",
    ]


def timer(us: int) -> list[str]:
    """The guest arms its timer, which fires in an interrupt on another thread 100 us later."""
    arming = [call(24, 8, 0, 0), "start_timer: (f) abs_ns=5000 delta_ns=0", kept()]
    fired = [
        line(text, us + 100, task="<idle>-0", flags="d.h1.")
        for text in delivery(2, 1, by="xen_timer_callback")
    ]
    return [*(line(text, us) for text in arming), *fired]


def test_a_timers_store_follows_its_arming() -> None:
    """What a timer's delivery implies is stored right after the timer was armed, so before it can fire."""
    setup = [line(text) for text in [*lives_setup(), *set_attr("vcpu", 7, 2)]]
    trace = imported([*setup, *timer(1000), *timer(2000)])
    last = trace.events[-3:]
    assert [type(event) for event in last] == [Hypercall, Hypercall, Mem]
    assert [event.ts for event in last] == [1_000_000, 2_000_000, 2_000_000]


def lives_setup() -> list[str]:
    """The configuration and the shared page."""
    return ["hvm_config: (f) flags=0x22 msr=0x40000000 blob32=0x0 blob64=0x0 sizes=0x0", *SETUP]


def test_a_timer_that_is_due_needs_its_store_before() -> None:
    """A timer that fired in the course of its own hypercall found the bit clear before that."""
    setup = [line(text) for text in lives_setup()]
    due = [call(24, 8, 0, 0), "start_timer: (f) abs_ns=5000 delta_ns=0"]
    fired = [*due, *delivery(2, 1, by="xen_timer_callback"), kept()]
    trace = imported([*setup, *timer(1000), *(line(text, 3000) for text in fired)])
    assert [type(event) for event in trace.events[-2:]] == [Mem, Hypercall]
    made = trace.events[-1]
    assert isinstance(made, Hypercall)
    assert made.behind is not None
    assert made.behind[0].now_plus_at[0][1] <= 0


def test_an_interrupt_inside_a_delivery() -> None:
    """A timer interrupt in the middle of a send's delivery is kept apart from it."""
    start, end = delivery(3, 1, by=SENT)
    inner = [line(text, 5, flags="d.h1.") for text in delivery(2, -ENOTCONN, by="xen_timer_callback")]
    around = ["hvm_evtchn_send: (f) port=3 vcpu=0 prio=0xffffffff", start]
    after = [end, "hvm_evtchn_send_ret: (f <- f) ret=0"]
    trace = imported(
        [
            *(line(text) for text in [*lives_setup(), *around]),
            *inner,
            *(line(text, 6) for text in after),
            *(line(text, 7) for text in send(2, 1)),
        ]
    )
    assert shape(trace) == ["send 3", (MASK, "04"), (PENDING, "08"), (MASK, "00"), "send 2"]


def test_stores_of_the_excerpt() -> None:
    """In real life the stores touch pending, mask and selector bytes only."""
    trace = excerpt()
    bases = {event.gpa for event in trace.events if isinstance(event, Mem)}
    assert bases == {0x10800, 0x10801, 0x10A00, 0xB634F08, 0xB734F08}


def test_timeline_keeps_the_order_of_one_bit() -> None:
    """A bit asked for in a slot before its last change gets a slot of its own after that change."""
    timeline = Timeline()
    bit = (0x1000, 0)
    early = timeline.open(1)
    late = timeline.open(2)
    timeline.set_by_kernel(bit, late)
    timeline.imply(bit, early, 3, value=False)
    assert timeline.slots[timeline.end - 1].asked == [(bit, False)]
    (store,) = timeline.flatten()
    assert store == Mem(op="write", gpa=0x1000, data=b"\0", inferred=True, ts=0)
