"""Rules about the event channel ports that a VMM gives to KVM, and about the page that their bits are in."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from rule_traces import Item, check, header, set_id
from vmm_events import NO_SHARED_INFO, judged, outbound, route, send, shared_info, timer, vm_attr

from pytest_xenkvm.abi.numbers import EvtchnFlag, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import Ioctl, Wrmsr

TWO_LEVEL: Final = "ports.are-2level"
RANGE: Final = "ports.are-in-range"
SHARED: Final = "ports.are-not-shared"
TARGET: Final = "ports.target-is-a-vcpu"
FIRST: Final = "shared-info.before-events"
EINVAL: Final = -22

EVENTFD: Final = vm_attr(
    HvmAttr.EVTCHN,
    evtchn={"send_port": 5, "type": 2, "flags": 0, "deliver": {"eventfd": {"port": 0, "fd": 7}}},
)
NOTHING: Final = (
    timer(0, priority=0),
    outbound(0, 99, flags=EvtchnFlag.RESET, priority=0),
    outbound(5, 99, flags=EvtchnFlag.DEASSIGN, priority=0),
    route(0, 99, priority=0, kind=1),
    set_id(0, 0),
    Ioctl(name="KVM_XEN_VCPU_GET_ATTR", vcpu=0, arg={"type": int(VcpuAttr.TIMER)}, ret=0),
)
"""What uses no port: off, dropped, another kind of route, other attributes, a GET."""


# ---- ports.are-2level


@pytest.mark.parametrize("use", [timer, outbound, send, route])
def test_priorities(use: type) -> None:
    """2LEVEL holds wherever a port is used; anything else is a violation, also if KVM refused it."""
    check(judged(TWO_LEVEL, use(9)), "held")
    check(
        judged(TWO_LEVEL, use(9, priority=0)),
        "violated",
        ": priority 0 is none that KVM knows, which refuses it with -EINVAL; the only one is "
        "KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL (0xffffffff)",
    )


def test_the_vcpu_of_a_timer_is_named() -> None:
    """A finding about a vCPU's attribute begins with the vCPU."""
    check(
        judged(TWO_LEVEL, timer(9, 1, EINVAL, priority=3)), "violated", "vCPU 1: KVM_XEN_VCPU_SET_ATTR(TIMER"
    )


@pytest.mark.parametrize("rule", [TWO_LEVEL, RANGE, SHARED, TARGET])
@pytest.mark.parametrize("item", NOTHING, ids=range(len(NOTHING)))
def test_what_uses_no_port(rule: str, item: Item) -> None:
    """What is switched off or dropped, and what isn't about ports, is not judged."""
    check(judged(rule, item), "not-exercised")


def test_an_eventfd_has_no_priority() -> None:
    """An outbound port that signals an eventfd is delivered to nobody."""
    check(judged(TWO_LEVEL, EVENTFD), "not-exercised")
    check(judged(TARGET, EVENTFD), "not-exercised")
    check(judged(RANGE, EVENTFD), "held")


@pytest.mark.parametrize(("rule", "lost"), [(TWO_LEVEL, {"priority": 0}), (RANGE, {}), (TARGET, {"vcpu": 9})])
def test_events_of_recorded_vmms(rule: str, lost: dict[str, int]) -> None:
    """Of those, which are many, only the ones that the kernel refused are looked at."""
    sent = send(0 if rule == RANGE else 9, **lost)
    check(judged(rule, sent, send(9), under_test=False), "not-exercised")
    assert judged(rule, evolve(sent, ret=EINVAL), under_test=False).violations == 1
    assert judged(FIRST, evolve(sent, ret=EINVAL), under_test=False).violations == 1


def test_the_same_use_is_judged_once() -> None:
    """However often an event is sent, it says the same."""
    for rule in (TWO_LEVEL, TARGET):
        assert judged(rule, send(9), send(9), send(10)).exercised == 2
    assert judged(RANGE, send(0), send(0)).violations == 1


# ---- ports.are-in-range


@pytest.mark.parametrize("use", [timer, outbound, send, route])
def test_ports_of_a_guest_in_32_bit_mode(use: type) -> None:
    """1 ... 1023 hold, 4096 is beyond every guest; between them it depends on a mode that may yet come."""
    check(judged(RANGE, use(1)), "held")
    check(judged(RANGE, use(1023)), "held")
    check(judged(RANGE, use(1024)), "not-exercised")
    check(
        judged(RANGE, use(4096)),
        "violated",
        "port 4096 can't be delivered: 2-level event channels go from 1 to 1023, in a 64-bit guest to 4095",
    )


@pytest.mark.parametrize(
    "mode",
    [
        vm_attr(HvmAttr.LONG_MODE, long_mode=1),
        Wrmsr(vcpu=0, longmode=True, msr=0x4000_0000, value=0x1000, ok=True),
    ],
    ids=["attribute", "guest"],
)
def test_ports_of_a_64_bit_guest(mode: Item) -> None:
    """With LONG_MODE latched, by the VMM or by the guest, they go up to 4095."""
    check(judged(RANGE, timer(2000), mode, timer(2000), timer(4095)), "held")
    check(judged(RANGE, mode, timer(4096)), "violated", "port 4096 can't be delivered")


@pytest.mark.parametrize("use", [outbound, send, route])
def test_port_0_is_none(use: type) -> None:
    """Nothing can be sent to or from it; a timer port of 0 is off."""
    check(judged(RANGE, use(0)), "violated", "port 0 can't be delivered")


def test_a_32_bit_guest_latches_nothing() -> None:
    """Only long mode makes more ports."""
    for mode in (
        vm_attr(HvmAttr.LONG_MODE, long_mode=0),
        Wrmsr(vcpu=0, longmode=False, msr=0x4000_0000, value=0x1000, ok=True),
    ):
        check(judged(RANGE, mode, timer(2000)), "not-exercised")


# ---- ports.are-not-shared


def test_ports_of_their_own() -> None:
    """Different ports of timers and outbound ports hold; the first one shows nothing yet."""
    check(judged(SHARED, timer(9, 0), timer(10, 1)), "held")
    check(judged(SHARED, timer(9, 0), outbound(10)), "held")
    check(judged(SHARED, timer(9, 0)), "not-exercised")


def test_a_port_of_two() -> None:
    """A port that another vCPU's timer or an outbound port has is a violation that names it."""
    check(
        judged(SHARED, timer(9, 0), timer(9, 1)),
        "violated",
        "vCPU 1: KVM_XEN_VCPU_SET_ATTR(TIMER, port=9",
        "port 9 already is the timer of vCPU 0; a port has one use and belongs to one vCPU",
    )
    check(
        judged(SHARED, outbound(9), timer(9, 1)),
        "violated",
        "port 9 already is an outbound port of the guest",
    )
    check(judged(SHARED, timer(9, 1), outbound(9)), "violated", "port 9 already is the timer of vCPU 1")


def test_a_port_that_was_given_up() -> None:
    """Ports that were switched off, moved, dropped or refused are free again."""
    check(judged(SHARED, timer(9, 0), timer(0, 0), timer(9, 1)), "not-exercised")
    check(judged(SHARED, timer(9, 0), timer(9, 0)), "not-exercised")
    check(judged(SHARED, timer(9, 0, EINVAL), timer(9, 1)), "not-exercised")
    for drop in (outbound(9, flags=EvtchnFlag.DEASSIGN), outbound(0, flags=EvtchnFlag.RESET)):
        check(judged(SHARED, outbound(9), drop, timer(9, 1)), "not-exercised")
    check(judged(SHARED, outbound(9), outbound(9, 1, flags=EvtchnFlag.UPDATE)), "not-exercised")


# ---- ports.target-is-a-vcpu


@pytest.mark.parametrize("use", [outbound, send, route])
def test_targets(use: type) -> None:
    """KVM's ids of the VM's vCPUs hold, any other number is a violation."""
    check(judged(TARGET, use(9, 1)), "held")
    check(
        judged(TARGET, use(9, 2)),
        "violated",
        "the VM has no vCPU with KVM's id 2, so the event goes nowhere; there are 0, 1. It is the id of "
        "KVM_CREATE_VCPU (the APIC id), not the Xen ID",
    )
    check(judged(TARGET, use(9, 2), of=header(vm=None)), "not-exercised")


# ---- shared-info.before-events


def test_events_with_a_page() -> None:
    """With SHARED_INFO, by frame number or host address, events can be delivered."""
    check(judged(FIRST, shared_info(), send(9), send(9)), "held")
    by_address = vm_attr(HvmAttr.SHARED_INFO_HVA, shared_info={"hva": {"gpa": 0x1000}})
    check(judged(FIRST, by_address, send(9)), "held")


@pytest.mark.parametrize(
    "before",
    [
        (),
        (NO_SHARED_INFO,),
        (shared_info(ret=EINVAL),),
        (shared_info(), NO_SHARED_INFO),
        (shared_info(), vm_attr(HvmAttr.SHARED_INFO_HVA, shared_info={"hva": 0})),
    ],
    ids=["never", "off", "refused", "off-again", "hva-off"],
)
def test_events_without_a_page(before: tuple[Item, ...]) -> None:
    """Without it, each event sent is lost, and a violation."""
    found = judged(FIRST, *before, send(9, ret=EINVAL), send(9, ret=EINVAL))
    check(
        found,
        "violated",
        "KVM_XEN_HVM_EVTCHN_SEND(port 9 to vCPU 0)",
        "has no shared_info page, so the event is lost",
    )
    assert found.violations == 2


def test_no_event_no_verdict() -> None:
    """Setting up the page alone shows nothing."""
    check(judged(FIRST, shared_info()), "not-exercised")
