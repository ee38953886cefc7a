"""What a trace is made of, and its picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_xenkvm.report.rates import BINS, Rates, sparkline
from pytest_xenkvm.report.statistics import MAX_NAMES, OTHERS, Statistics, Timers
from pytest_xenkvm.trace.events import Behind, Event, Header, Hypercall, Irq, Wait
from pytest_xenkvm.trace.files import open_trace


def test_a_boot() -> None:
    """Hypercalls by who answered, vCPUs, ioctls by attribute, timers and time of a recorded boot."""
    trace = open_trace("@linux-boot-1vcpu")
    statistics = Statistics(trace.header)
    for event in trace.events():
        statistics.see(event)
    counted = statistics.as_json()
    assert (counted["events"], counted["kinds"]["hypercall"]) == (14_671, 2_346)
    first = counted["hypercalls"][0]
    assert first == {
        "name": "VCPUOP_set_singleshot_timer",
        "count": 1458,
        "kernel": 1458,
        "forwarded": 0,
        "unknown": 0,
        "failed": 0,
    }
    assert {"name": "KVM_XEN_VCPU_SET_ATTR(VCPU_ID)", "count": 1, "failed": 0} in counted["ioctls"]
    (vcpu,) = counted["vcpus"]
    assert vcpu["hypercalls"] == 2_346
    timers = vcpu["timers"]
    assert 0 < timers["fired"] <= timers["armed"] == 1458
    assert timers["stopped"] == 1
    assert sum(counted["rates"]["hypercalls"]) == 2_346
    assert counted["seconds"] == pytest.approx(statistics.rates.last / 1e9)


def timer_call(op: int, ts: int, delta: int | None = None, handled: str = "kernel") -> Hypercall:
    """VCPUOP_set_singleshot_timer (8) for so many ns ahead, or VCPUOP_stop_singleshot_timer (9)."""
    behind = None if delta is None else (Behind(arg=2, data=bytes(16), now_plus_at=((0, delta),)),)
    return Hypercall(
        vcpu=0,
        longmode=True,
        cpl=0,
        nr=24,
        args=(op, 0, 4096, 0, 0, 0),
        handled=handled,
        rax=0,
        behind=behind,
        ts=ts,
    )


def seen(*events: Event) -> Statistics:
    """Statistics of a few events."""
    statistics = Statistics(Header(scope="hypercalls"))
    for event in events:
        statistics.see(event)
    return statistics


def test_what_becomes_of_timers() -> None:
    """A timer fires when its time comes, unless it is stopped or armed anew; the VMM's are counted apart."""
    statistics = seen(
        timer_call(8, 0, 100),
        timer_call(8, 200, 1000),  # the first has fired
        timer_call(8, 300, 1000),  # replaces the second
        timer_call(9, 400),  # stops the third
        timer_call(8, 500, 50, handled="userspace"),
        timer_call(8, 600, 50),
        Wait(ns=1, ts=10_000),  # the last has fired
    )
    assert statistics.timers == {0: Timers(armed=4, fired=2, stopped=1, forwarded=1)}


def test_unknown_hypercalls_without_end() -> None:
    """A trace full of different hypercall numbers takes bounded memory, and none goes uncounted."""
    calls = [
        Hypercall(vcpu=0, longmode=True, cpl=0, nr=1000 + number, args=(0,) * 6, ts=number)
        for number in range(MAX_NAMES + 50)
    ]
    statistics = seen(*calls)
    assert len(statistics.hypercalls) == MAX_NAMES + 1
    assert statistics.hypercalls[OTHERS]["count"] == 50
    assert len(statistics.rates.counts) <= MAX_NAMES + 4


def test_a_trace_without_times() -> None:
    """Without times there are counts, and no rates."""
    statistics = seen(Irq(vcpu=0, vector=32), Wait(ns=1))
    assert (statistics.events, statistics.seconds, statistics.rates.counts) == (2, 0.0, {})
    assert statistics.vcpus[0]["irqs"] == 1


@given(st.lists(st.integers(0, 1 << 64), min_size=1))
def test_intervals_grow_and_lose_nothing(times: list[int]) -> None:
    """Whenever things happen, there are never more intervals than allowed and all counts are in them."""
    rates = Rates()
    for ns in times:
        rates.count("it", ns)
    bins = rates.bins("it")
    assert len(bins) <= BINS
    assert sum(bins) == len(times)
    assert bins[min(times) // rates.width] > 0
    assert bins[-1] > 0


def test_a_sparkline() -> None:
    """The highest count is a full block, the lowest nothing, and little is still something."""
    assert sparkline([0, 1, 50, 100], 4) == " ▁▄█"
    assert sparkline([0, 1, 50, 100], 4, plain=True) == " .=@"
    assert sparkline([1, 0, 0, 3], 2) == "▃█"
    assert sparkline([0, 0], 8) == "  "
    assert not sparkline([], 8)
    assert not sparkline([1], 0)
