"""ftrace with kprobes: what the probes showed becomes events, and nothing else does."""

from __future__ import annotations

from collections import Counter

import pytest
from ftrace_text import (
    CONFIG,
    KPROBES,
    POINTER,
    call,
    delivery,
    excerpt,
    hypercalls,
    imported,
    ioctls,
    kept,
    line,
    lives,
    outbound,
    set_attr,
    without_config,
)

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Behind, Eventfd, HypercallExit, Ioctl
from pytest_xenkvm.trace.importers import open_text
from pytest_xenkvm.trace.importers.clock import GuestClock

VCPU_OP, EVENT_CHANNEL_OP = 24, 32
FIRED_AFTER = 1_926_000
"""ns between the arming of the excerpt's last timer and its interrupt."""


def test_counts_of_the_excerpt() -> None:
    """Every tracepoint and every ioctl of the excerpt is one event, and every line is accounted for."""
    text = KPROBES.read_text().splitlines()
    seen = Counter(name for row in text for name in ("kvm_xen_hypercall:", "_set_attr:") if f"{name} " in row)
    trace = excerpt()
    report = trace.report
    assert len(hypercalls(trace)) == seen["kvm_xen_hypercall:"] == 20
    assert (
        len(ioctls(trace, "KVM_XEN_HVM_SET_ATTR")) + len(ioctls(trace, "KVM_XEN_VCPU_SET_ATTR"))
        == seen["_set_attr:"]
    )
    assert report.lines == len(text) == report.used + sum(report.skipped.values())
    assert report.skipped["other events"] == 0


def test_header_of_the_excerpt() -> None:
    """The header holds the vCPUs, the pages that the kernel accepted and what the recorder can't see."""
    header = excerpt().header
    assert header.scope == "full"
    assert header.unseen == ("irq", "mem")
    assert header.vm is not None
    assert [(vcpu.index, vcpu.id) for vcpu in header.vm.vcpus] == [(0, 0), (1, 1)]
    assert header.vm.irqchip == "split"
    assert [slot.gpa for slot in header.vm.memory] == [
        0x10000,
        0x1230000,
        0xB632000,
        0xB634000,
        0xB732000,
        0xB734000,
    ]
    assert {slot.size for slot in header.vm.memory} == {4096}


def test_times_are_exact_and_in_order() -> None:
    """Times count from the first event in ns, without a float's rounding."""
    trace = excerpt()
    times = [event.ts for event in trace.events if event.ts is not None]
    assert times == sorted(times)
    assert len(times) == len(trace.events)
    assert times[0] == 0
    assert ioctls(trace, "KVM_XEN_HVM_CONFIG")[0].ts == 922_000


def test_attributes_of_the_excerpt() -> None:
    """Attributes are decoded by type, with the results of their return probes."""
    trace = excerpt()
    first = ioctls(trace, "KVM_XEN_HVM_SET_ATTR")[0]
    assert (first.arg, first.ret, first.inferred) == ({"type": 4, "xen_version": 0x40011}, 0, False)
    ipi = ioctls(trace, "KVM_XEN_HVM_SET_ATTR")[6].arg["evtchn"]
    assert ipi == {
        "send_port": 3,
        "type": 5,
        "flags": 0,
        "deliver": {"port": {"port": 3, "vcpu": 0, "priority": 0xFFFFFFFF}},
    }
    timers = [
        event.arg["timer"] for event in ioctls(trace, "KVM_XEN_VCPU_SET_ATTR") if event.arg["type"] == 7
    ]
    assert [timer["port"] for timer in timers] == [0, 0, 2, 8]
    assert {event.vcpu for event in ioctls(trace, "KVM_XEN_VCPU_SET_ATTR")} == {0, 1}


def test_configuration_result_is_inferred() -> None:
    """KVM_XEN_HVM_CONFIG has no return probe, so its result is inferred from the hypercalls that follow."""
    trace = excerpt()
    (config,) = ioctls(trace, "KVM_XEN_HVM_CONFIG")
    assert (config.ret, config.inferred, config.arg["flags"]) == (0, True, 0x22)
    assert trace.report.unknown["result of KVM_XEN_HVM_CONFIG (0: hypercalls were intercepted)"] == 1


def test_an_eventfd_is_created_before_its_use() -> None:
    """An outbound port that the kernel let deliver to an eventfd implies that the VMM had created it."""
    trace = excerpt()
    (created,) = [event for event in trace.events if isinstance(event, Eventfd)]
    user = trace.events[trace.events.index(created) + 1]
    assert created.inferred
    assert isinstance(user, Ioctl)
    assert user.arg["evtchn"]["deliver"] == {"eventfd": {"port": 0, "fd": created.fd}}


def test_forwarded_hypercall() -> None:
    """A forwarded call repeats its registers in the exit; the answer is unknown."""
    first = hypercalls(excerpt())[0]
    args = (6, 0xFFFFFFFF9EA03E08, 0xFFFFFFFF9E2668A3, 0xFFFFFFFF9EA03BF0, 0, 3)
    assert (first.nr, first.args, first.handled, first.rax) == (17, args, "userspace", None)
    assert first.exit == HypercallExit(type=1, longmode=1, cpl=0, input=17, params=args)
    assert first.extra == {}


def test_singleshot_timeout_of_the_excerpt() -> None:
    """A timer's timeout lies behind the pointer, relative to the clock that the timers' expiry shows."""
    timers = [event for event in hypercalls(excerpt()) if event.nr == VCPU_OP and event.args[0] == 8]
    (behind,) = timers[-1].behind or ()
    ((offset, delta),) = behind.now_plus_at
    assert (behind.arg, behind.data, offset, behind.extra) == (2, bytes(8), 0, {"abs_ns": 15603953062})
    assert abs(delta - FIRED_AFTER) < 50_000


def test_port_of_a_send() -> None:
    """The port behind a send's pointer is there where its delivery leaves one possibility."""
    sends = [event for event in hypercalls(excerpt()) if event.nr == EVENT_CHANNEL_OP and event.args[0] == 4]
    ports = [event.behind[0].data for event in sends if event.behind]
    assert [int.from_bytes(port, "little") for port in ports] == [6, 3, 7]
    assert all(len(port) == 4 for port in ports)


@pytest.mark.parametrize(
    ("senders", "expected"),
    [([(5, 3)], 5), ([(5, 3), (6, 3)], None), ([(5, 4)], None)],
    ids=["one sender", "two senders", "another port"],
)
def test_interdomain_port_is_inverted(senders: list[tuple[int, int]], expected: int | None) -> None:
    """A delivery names the sending port only if exactly one outbound port delivers there."""
    setup = [
        text
        for send, port in senders
        for text in set_attr("hvm", 3, 2 << 32 | send, port << 32, 0xFFFFFFFF << 32)
    ]
    sent = [call(EVENT_CHANNEL_OP, 4, POINTER), *delivery(3, 1, by="kvm_xen_hypercall"), kept()]
    (made,) = hypercalls(lives([*setup, *sent]))
    assert made.behind == (
        None if expected is None else (Behind(arg=1, data=expected.to_bytes(4, "little")),)
    )


def test_timeout_without_any_expiry_stays_absolute() -> None:
    """If no timer fired in the recording, the bytes behind the pointer are the guest's own."""
    made = [call(VCPU_OP, 8, 0, POINTER), "start_timer: (f) abs_ns=5000 delta_ns=0", kept()]
    (timer,) = hypercalls(lives(made))
    assert timer.behind == (Behind(arg=2, data=(5000).to_bytes(8, "little")),)


def test_a_timeout_before_the_clocks_start_is_negative() -> None:
    """A guest's time is signed: -1 lies a little before now, not 584 years ahead."""
    armed = [call(VCPU_OP, 8, 0, POINTER), "start_timer: (f) abs_ns=2000 delta_ns=0", kept()]
    fired = [line(text, 50, flags="d.h1.") for text in delivery(2, 1, by="xen_timer_callback")]
    due = [call(VCPU_OP, 8, 0, POINTER), f"start_timer: (f) abs_ns={(1 << 64) - 1} delta_ns=0"]
    again = [line(text, 90) for text in [*due, *delivery(2, 1, by="xen_timer_callback"), kept()]]
    made = hypercalls(imported([*(line(text) for text in [CONFIG, *armed]), *fired, *again]))[-1]
    assert made.behind is not None
    assert made.behind[0].now_plus_at == ((0, -42_001),)


def test_a_real_delta_is_taken_as_it_is() -> None:
    """Where the probe's third argument is the delta and no flag, it is the timeout."""
    made = [call(VCPU_OP, 8, 0, POINTER), "start_timer: (f) abs_ns=5000 delta_ns=-77", kept()]
    (timer,) = hypercalls(lives(made))
    assert timer.behind is not None
    assert timer.behind[0].now_plus_at == ((0, -77),)


def test_set_timer_op_keeps_its_argument() -> None:
    """The timeout of set_timer_op is its literal argument; the delta stands beside it."""
    made = [call(15, 5000), "start_timer: (f) abs_ns=5000 delta_ns=1", kept()]
    (timer,) = hypercalls(lives(made))
    assert (timer.args[0], timer.behind, timer.extra) == (5000, None, {"abs_ns": 5000})


def test_old_kernels_registers_are_marked() -> None:
    """Of a kernel that mixed up a4 and a5, or of an unknown one, both are marked as untrusted."""
    for kernel in ("6.12.1", "6.1.90", "nonsense"):
        (made,) = hypercalls(lives([call(29, 0), kept()], kernel=kernel))
        assert made.extra == {"untrusted": ["a4", "a5"]}
    for kernel in ("7.3.0-rc7", "8.0"):
        assert hypercalls(lives([call(29, 0), kept()], kernel=kernel))[0].extra == {}


def test_unknown_results_are_counted() -> None:
    """A call without result is left out where the scope asks for one, an ioctl's is assumed, all counted."""
    texts = [call(29, 0), call(29, 3), kept(), "hvm_evtchn_send: (f) port=1 vcpu=0 prio=0x0", call(29, 0)]
    late = imported(line(text) for text in texts)
    trace = lives(texts)
    assert [(made.handled, made.rax) for made in hypercalls(late)] == [
        (None, None),
        ("kernel", 0),
        (None, None),
    ]
    assert late.report.unknown["result of a hypercall"] == 2
    assert [made.args[0] for made in hypercalls(trace)] == [3]
    (send,) = ioctls(trace, "KVM_XEN_HVM_EVTCHN_SEND")
    assert (send.ret, send.inferred) == (0, True)
    assert trace.report.unknown["result of a hypercall (left out)"] == 2
    assert trace.report.unknown["result of KVM_XEN_HVM_EVTCHN_SEND (0 assumed)"] == 1


def test_results_without_their_call_are_skipped() -> None:
    """A result whose call was lost gives no event."""
    trace = lives(["hvm_evtchn_send_ret: (f <- f) ret=0", kept(), *delivery(3, 1, by="f")[1:]])
    assert without_config(trace) == 0
    assert trace.report.skipped["results without their call"] == 3


def test_mode_of_32_bit_callers() -> None:
    """Before any register proved the 64-bit ABI, the VM's LONG_MODE decides; results are EAX then."""
    small = "kvm_xen_hypercall: cpl 0 nr 0x1d a0 0x0 a1 0x0 a2 0x0 a3 0x0 a4 0x0 a5 0"
    trace = lives(
        [*set_attr("hvm", 0, 0), small, kept(0xFFFFFFFF_FFFFFFEA), call(29, 0), kept(), small, kept()]
    )
    assert [(made.longmode, made.rax) for made in hypercalls(trace)] == [
        (False, 0xFFFFFFEA),
        (True, 0),
        (True, 0),
    ]
    assert trace.report.unknown["longmode (as the VM's LONG_MODE)"] == 1


def test_lost_events_are_reported() -> None:
    """What the recorder dropped is counted."""
    trace = imported([line(CONFIG), "CPU:0 [LOST 12 EVENTS]", "CPU:1 [LOST 30 EVENTS]"])
    assert trace.report.lost == 42
    assert "42  events lost by the recorder" in str(trace.report)


@pytest.mark.parametrize(
    "text",
    [
        "kvm_xen_hypercall: cpl 0 nr 0x1d a0 0x0",
        "kvm_xen_hypercall: cpl 4 nr 0x1d a0 0x0 a1 0x0 a2 0x0 a3 0x0 a4 0x0 a5 0",
        "hvm_set_attr: (f) d0=0x1",
        "hvm_evtchn_send: (f) port=99999999999 vcpu=0 prio=0x0",
        "hvm_config: (f) flags=0x22",
        "sys_ioctl(fd: zz)",
        "kvm_msr: msr_write",
        "kvm_apic_accept_irq: nothing",
    ],
)
def test_malformed_lines_are_named(text: str) -> None:
    """A line whose fields are not what its event prints is an error with path and line."""
    with pytest.raises(Malformed) as caught:
        imported([line(CONFIG), line(text)])
    assert (caught.value.path, caught.value.line) == ("recording", 2)


def test_any_single_missing_line_is_survived() -> None:
    """A recording that lost any one line still imports, with the order of time kept."""
    lines = list(open_text(KPROBES))
    for missing in range(11, len(lines)):
        events = imported(lines[:missing] + lines[missing + 1 :]).events
        times = [event.ts or 0 for event in events]
        assert times == sorted(times)


@pytest.mark.parametrize(
    "change",
    [outbound(5, 0, flags=1), outbound(0, 0, flags=4), outbound(5, 3, flags=2, vcpu=1)],
    ids=["deassigned", "reset", "moved to another vCPU"],
)
def test_ports_that_are_gone_send_nothing(change: list[str]) -> None:
    """A delivery names only a port that is still registered for that vCPU."""
    sent = [call(EVENT_CHANNEL_OP, 4, POINTER), *delivery(3, 1, by="kvm_xen_hypercall"), kept()]
    before, after = hypercalls(lives([*outbound(5, 3), *sent, *change, *sent]))
    assert before.behind == (Behind(arg=1, data=(5).to_bytes(4, "little")),)
    assert after.behind is None


def test_an_interrupts_delivery_is_not_the_sends() -> None:
    """What an interrupt delivers in the course of a send says nothing about the send's port."""
    inner = [line(text, 5, flags="d.h..") for text in delivery(3, 1, by="kvm_arch_set_irq_inatomic")]
    setup = [line(text) for text in [CONFIG, *outbound(5, 3), call(EVENT_CHANNEL_OP, 4, POINTER)]]
    (made,) = hypercalls(imported([*setup, *inner, line(kept(), 9)]))
    assert made.behind is None


def test_a_timer_that_did_not_fire_at_once_was_ahead() -> None:
    """The estimate of a timeout never contradicts whether the timer fired at once."""
    armed = [call(VCPU_OP, 8, 0, POINTER), "start_timer: (f) abs_ns=2000 delta_ns=0", kept()]
    fired = [line(text, 50, flags="d.h1.") for text in delivery(2, 1, by="xen_timer_callback")]
    late = [line(text, 90) for text in armed]
    (_first, second) = hypercalls(imported([*(line(text) for text in [CONFIG, *armed]), *fired, *late]))
    assert second.behind is not None
    assert second.behind[0].now_plus_at == ((0, 1),)


def test_the_clock_follows_a_pause() -> None:
    """The guest's clock is measured near the moment in question, since a pause moves it."""
    clock = GuestClock()
    for second in range(60):
        clock.arm(0, second * 10**9)
        clock.fired(0, second * 10**9 + (100 if second < 30 else 5000))
    assert clock.delta(10 * 10**9, 10 * 10**9) == 100
    assert clock.delta(50 * 10**9, 50 * 10**9) == 5000
