"""Rules about singleshot timers that the kernel forwards and the VMM serves."""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, ETIME
from typing import Final

import pytest
from attrs import evolve
from rule_traces import Item, arm, check, set_id
from vmm_events import (
    ARGUMENT,
    MS,
    NO_SHARED_INFO,
    bind_timer,
    forwarded,
    judged,
    send,
    shared_info,
    singleshot,
    stop_timer,
    timer,
)

from pytest_xenkvm.abi.numbers import EvtchnOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import Virq
from pytest_xenkvm.trace.events import Event, Ioctl, VcpuRun, Wait

OTHER: Final = "timers.other-vcpu-is-refused"
ETIME_RULE: Final = "timers.etime-is-for-the-past"
PAST: Final = "timers.past-fires-at-once"
DUE: Final = "timers.fire-when-due"
STOP: Final = "timers.stop-cancels"

FUTURE_FLAG: Final = 1
PORT: Final = 9
READY: Final = (shared_info(), bind_timer(0), bind_timer(1))
GOES_ON: Final = VcpuRun(vcpu=0)
IRQ_LINE: Final = Ioctl(name="KVM_IRQ_LINE", arg={"irq": 1, "level": 1}, ret=0)


# ---- timers.other-vcpu-is-refused


@pytest.mark.parametrize("answer", [-EINVAL, -ENOENT])
def test_another_vcpus_timer_is_refused(answer: int) -> None:
    """By the Xen ID, or by the number that the VMM has served on the vCPU before."""
    for call in (singleshot(MS, named=1, result=answer), stop_timer(named=1, result=answer)):
        check(judged(OTHER, set_id(0, 0), call), "held")
        check(judged(OTHER, singleshot(MS), call), "held")


@pytest.mark.parametrize("answer", [0, -EFAULT, -ETIME])
def test_another_vcpus_timer_is_served(answer: int) -> None:
    """Any other answer is a violation that says what the vCPU's own number is."""
    call = singleshot(MS, named=1, result=answer)
    check(
        judged(OTHER, set_id(0, 0), call),
        "violated",
        "though this is not vCPU 1: its Xen ID is 0; Xen lets a",
    )
    check(
        judged(OTHER, singleshot(MS), call),
        "violated",
        "the VMM has served it as 0; Xen",
        "(vcpu=1, timeout=+1 ms)",
    )


def test_two_numbers_cannot_both_be_a_vcpus() -> None:
    """Whichever the VMM accepts first, the second that it accepts is a violation."""
    check(judged(OTHER, stop_timer(named=5), stop_timer(named=0)), "violated", "the VMM has served it as 5")


@pytest.mark.parametrize(
    "items",
    [
        (singleshot(MS), singleshot(MS)),
        (singleshot(MS, named=1, result=-EINVAL),),
        (set_id(0, 0), singleshot(MS, named=1, result=-ENOSYS)),
        (set_id(0, 0), singleshot(MS, named=1, result=-EPERM, cpl=3)),
        (set_id(0, 0), arm(0, 1, "kernel", -EINVAL)),
        (singleshot(MS), singleshot(MS, vcpu=1)),
    ],
    ids=["own", "unknown", "unserved", "user-mode", "kernel", "each-its-own"],
)
def test_calls_that_say_nothing_about_other_vcpus(items: tuple[Item, ...]) -> None:
    """A call must name another number than one that is known to be the vCPU's own."""
    check(judged(OTHER, *items), "not-exercised")


# ---- timers.etime-is-for-the-past


def test_a_past_timeout_may_be_refused_or_fire() -> None:
    """With the flag -ETIME and 0 are both fine; without it, 0."""
    for answer in (0, -ETIME):
        check(judged(ETIME_RULE, singleshot(-MS, FUTURE_FLAG, result=answer)), "held")
    check(judged(ETIME_RULE, singleshot(-MS)), "held")
    check(judged(ETIME_RULE, singleshot(None)), "held")


def test_etime_without_reason() -> None:
    """Without the flag, or for a timeout ahead, -ETIME is a violation."""
    unasked = singleshot(-MS, result=-ETIME)
    check(
        judged(ETIME_RULE, unasked),
        "violated",
        "vCPU 0: VCPUOP_set_singleshot_timer(vcpu=0, timeout=-1 ms) was answered -ETIME (-62), though the "
        "timeout comes without VCPU_SSHOTTMR_future; only a timeout that has passed and carries this flag",
    )
    ahead = singleshot(5 * MS, FUTURE_FLAG, result=-ETIME)
    check(judged(ETIME_RULE, ahead), "violated", "though the timeout lies ahead")


@pytest.mark.parametrize(
    "call",
    [
        singleshot(5 * MS),
        singleshot(MS // 2, FUTURE_FLAG, result=-ETIME),
        singleshot(-MS, result=-EINVAL),
        singleshot(-MS, result=-ETIME, cpl=3),
        stop_timer(result=-ETIME),
        forwarded(Nr.vcpu_op, 8, 0, ARGUMENT, result=-ETIME),
    ],
    ids=["ahead", "near", "refused", "user-mode", "stop", "unseen"],
)
def test_calls_that_say_nothing_about_etime(call: Item) -> None:
    """What lies ahead and is set, and what can't be told, is not judged."""
    check(judged(ETIME_RULE, call), "not-exercised")


def test_flags_that_nobody_saw_may_have_asked_for_it() -> None:
    """Where only the timeout was recorded, -ETIME for a past one is fine."""
    check(judged(ETIME_RULE, singleshot(-MS, None, result=-ETIME)), "held")


# ---- timers.past-fires-at-once


@pytest.mark.parametrize("past", [singleshot(-MS), singleshot(None), singleshot(-MS, longmode=False)])
def test_a_past_timer_fires(past: Item) -> None:
    """A behaviour sends the event before the call is over or right behind it."""
    check(judged(PAST, *READY, (9, send(PORT)), (9, past), (10, GOES_ON)), "held")
    check(judged(PAST, *READY, (9, past), (9, send(PORT)), (10, GOES_ON)), "held")


def test_a_past_timer_that_does_not_fire() -> None:
    """If the vCPU goes on first, it is a violation of the call."""
    for goes_on in (GOES_ON, Wait(ns=5), stop_timer()):
        found = judged(PAST, *READY, (9, singleshot(-MS)), (10, goes_on), (11, send(PORT)))
        check(
            found,
            "violated",
            "vCPU 0: VCPUOP_set_singleshot_timer(vcpu=0, timeout=-1 ms) was answered 0, and no event was "
            "sent to the vCPU before it went on, though the timeout had passed; a timer in the past fires "
            "at once",
        )
        assert found.findings[0].place.index == 9
    to_another = judged(PAST, *READY, (9, send(PORT, 1)), (9, singleshot(-MS)), GOES_ON)
    check(to_another, "violated", "no event was sent to the vCPU")


@pytest.mark.parametrize(
    "items",
    [
        (bind_timer(0), singleshot(-MS)),
        (shared_info(), singleshot(-MS)),
        (shared_info(), bind_timer(1), singleshot(-MS)),
        (shared_info(), bind_timer(0, Virq.DEBUG), singleshot(-MS)),
        (shared_info(), bind_timer(0, result=-EINVAL), singleshot(-MS)),
        (*READY, NO_SHARED_INFO, singleshot(-MS)),
        (*READY, forwarded(Nr.event_channel_op, EvtchnOp.close, ARGUMENT), singleshot(-MS)),
        (*READY, IRQ_LINE, singleshot(-MS)),
        (*READY, singleshot(MS)),
        (*READY, singleshot(-MS, FUTURE_FLAG, result=-ETIME)),
        (*READY, singleshot(-MS, cpl=3, result=-EPERM)),
        (*READY, singleshot(-MS, named=1)),
        (*READY, forwarded(Nr.vcpu_op, 8, 0, ARGUMENT)),
        (*READY, singleshot(-MS), timer(PORT)),
        (*READY, singleshot(-MS), VcpuRun(vcpu=1)),
    ],
    ids=[
        "no-shared-info",
        "not-bound",
        "other-vcpu-bound",
        "other-virq",
        "bind-refused",
        "unmapped",
        "closed",
        "irq-line",
        "ahead",
        "refused",
        "user-mode",
        "other-vcpu",
        "unseen",
        "kernel-timer",
        "waiting",
    ],
)
def test_timers_whose_firing_would_not_show(items: tuple[Item, ...]) -> None:
    """Without a bound VIRQ, a shared page or a timeout that is seen to be past there is no verdict."""
    goes_on = () if items[-1] == VcpuRun(vcpu=1) else (GOES_ON,)
    check(judged(PAST, *items, *goes_on), "not-exercised")


# ---- timers.fire-when-due


def at(ms: int, event: Event) -> Event:
    """The event at that time of the trace."""
    return evolve(event, ts=ms * MS)


SET_5_MS: Final = at(10, singleshot(5 * MS))


def test_a_timer_fires_when_it_is_due() -> None:
    """An event to the vCPU between the call and 100 ms after the timeout holds."""
    check(judged(DUE, *READY, SET_5_MS, send(PORT), at(300, GOES_ON)), "held")


def test_a_timer_that_never_fires() -> None:
    """More than 100 ms after the timeout it is a violation of the call, whichever vCPU shows the time."""
    for later in (at(300, GOES_ON), at(300, VcpuRun(vcpu=1)), at(300, Wait(ns=1))):
        found = judged(DUE, *READY, SET_5_MS, send(PORT, 1), later, at(301, GOES_ON))
        check(
            found,
            "violated",
            "VCPUOP_set_singleshot_timer(vcpu=0, timeout=+5 ms) was answered 0, and 285 ms after the timeout "
            "the vCPU has got no event; the call was forwarded, so the VMM must run the timer",
        )
        assert (found.violations, found.findings[0].place.index) == (1, 4)


@pytest.mark.parametrize(
    "items",
    [
        (*READY, SET_5_MS, at(115, GOES_ON)),
        (*READY, SET_5_MS, at(12, stop_timer())),
        (*READY, SET_5_MS, at(12, forwarded(Nr.set_timer_op, 0))),
        (*READY, SET_5_MS, at(12, singleshot(1000 * MS))),
        (*READY, SET_5_MS, timer(PORT)),
        (*READY, singleshot(5 * MS)),
        (*READY, at(10, singleshot(-MS))),
        (shared_info(), SET_5_MS),
    ],
    ids=["not-yet", "stopped", "set-timer-op", "set-anew", "kernel-timer", "untimed", "past", "not-bound"],
)
def test_timers_that_owe_no_event(items: tuple[Item, ...]) -> None:
    """Stopped, replaced and handed over timers, and those whose time can't be told, are not judged."""
    last = at(300, GOES_ON) if items[-1] != at(115, GOES_ON) else GOES_ON
    check(judged(DUE, *items, last), "not-exercised")


# ---- timers.stop-cancels

LEARNED: Final = (*READY, (9, send(PORT)), (9, at(5, singleshot(-MS))))
RUNNING_THEN_STOPPED: Final = ((20, SET_5_MS), (21, at(12, stop_timer())))


def test_a_stopped_timer_stays_silent() -> None:
    """If nothing comes by the time that it would have been due, it was cancelled."""
    check(judged(STOP, *LEARNED, *RUNNING_THEN_STOPPED, (30, at(20, GOES_ON))), "held")
    behind = (*READY, (9, at(5, singleshot(-MS))), (9, send(PORT)))
    check(judged(STOP, *behind, *RUNNING_THEN_STOPPED, (30, at(20, GOES_ON))), "held")


def test_a_stopped_timer_that_fires() -> None:
    """The event of the timer's port is the violation; it says where the timer was stopped."""
    found = judged(STOP, *LEARNED, *RUNNING_THEN_STOPPED, (30, send(PORT)), (30, at(20, GOES_ON)))
    check(
        found,
        "violated",
        "vCPU 0: the VMM sends port 9, the one of this vCPU's timer, though the guest has stopped the timer "
        "(line 23: VCPUOP_stop_singleshot_timer(vcpu=0) was answered 0) and not set it again",
    )
    assert (found.violations, found.exercised) == (1, 1)


@pytest.mark.parametrize(
    "items",
    [
        (*READY, *RUNNING_THEN_STOPPED, (30, send(PORT)), (30, at(20, GOES_ON))),
        (*LEARNED, *RUNNING_THEN_STOPPED, (30, at(14, GOES_ON))),
        (*LEARNED, *RUNNING_THEN_STOPPED, (22, at(13, singleshot(50 * MS))), (30, send(PORT))),
        (*LEARNED, (21, at(12, stop_timer())), (30, send(PORT)), (30, at(20, GOES_ON))),
        (*LEARNED, (20, SET_5_MS), (21, at(12, stop_timer(result=-ENOSYS))), (30, send(PORT))),
        (*LEARNED, *RUNNING_THEN_STOPPED, (22, timer(PORT)), (30, at(20, GOES_ON))),
    ],
    ids=["unknown-port", "not-due", "set-anew", "nothing-ran", "not-stopped", "kernel-timer"],
)
def test_stops_that_show_nothing(items: tuple[Item, ...]) -> None:
    """Without a known port, a running timer and an accepted stop there is nothing to see."""
    check(judged(STOP, *items), "not-exercised")


def test_events_of_other_ports_are_no_timers() -> None:
    """A device's event to the vCPU is not held against the timer."""
    check(judged(STOP, *LEARNED, *RUNNING_THEN_STOPPED, (30, send(PORT + 1)), (30, at(20, GOES_ON))), "held")


def test_recorded_vmms_are_not_judged_by_events() -> None:
    """They have devices, whose events can't be told from a timer's."""
    items = (*LEARNED, *RUNNING_THEN_STOPPED, (30, send(PORT)), (30, at(20, GOES_ON)))
    check(judged(STOP, *items, under_test=False), "not-exercised")
    check(judged(PAST, *READY, singleshot(-MS), GOES_ON, under_test=False), "not-exercised")
    check(judged(DUE, *READY, SET_5_MS, at(300, GOES_ON), under_test=False), "not-exercised")


def test_two_ports_at_once_teach_nothing() -> None:
    """If several events were sent when a past timer was set, none is known to be the timer's."""
    learned = (*READY, (9, send(PORT)), (9, send(PORT + 1)), (9, at(5, singleshot(-MS))))
    check(
        judged(STOP, *learned, *RUNNING_THEN_STOPPED, (30, send(PORT)), (31, at(20, GOES_ON))),
        "not-exercised",
    )


def test_vcpus_by_their_xen_ids() -> None:
    """VIRQ_TIMER is bound by Xen's number, which the VMM may have given to any vCPU."""
    call = singleshot(-MS, named=7)
    check(judged(PAST, shared_info(), set_id(0, 7), bind_timer(7), call, GOES_ON), "violated", "no event was")
    check(judged(PAST, shared_info(), set_id(0, 7), bind_timer(1), call, GOES_ON), "not-exercised")
