"""A failing trace is shrunk to what it takes to fail in the same way."""

from __future__ import annotations

import pytest
from attrs import evolve
from parts import diverging, judging, kernel_replay_of, labels, load, tampered

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.trace.events import Event, Header, Hypercall, Mem
from pytest_xenkvm.trace.labels import event_label
from pytest_xenkvm.traceops.failure import (
    DIVERGENCE,
    ERROR,
    Judgement,
    NotFailing,
    Part,
    Setting,
    find_failure,
)
from pytest_xenkvm.traceops.roles import sets_up
from pytest_xenkvm.traceops.shrink import Shrunk, shrink
from pytest_xenkvm.vmm.bundled.minimal import Minimal
from pytest_xenkvm.vmm.handles import Vcpu

EINVAL = U64_MAX - 21


@pytest.fixture(scope="module")
def boot() -> Part:
    """A guest's boot: 35,143 events."""
    return load("@linux-boot")


def shrunk(trace: Part, setting: Setting, failing: str) -> Shrunk:
    """Shrink, and check that the result still fails in the same way and that each event is needed."""
    failure = find_failure(trace, setting, failing)
    result = shrink(trace, setting, failure)
    assert result.minimal
    events = dict(enumerate(trace.kept))
    assert [events[index] for index in result.indices] == list(result.events)
    judgement = Judgement(trace.header, setting, failure)
    assert judgement.part_fails(events, result.indices)
    for index in result.indices:
        assert not judgement.part_fails(events, [other for other in result.indices if other != index])
    return result


def test_a_divergence_late_in_a_boot(boot: Part) -> None:
    """A timer call that came out otherwise after 10,000 events is left with what configured its timer."""
    trace, index = tampered(
        boot, "VCPUOP_set_singleshot_timer", 10_000, lambda event: evolve(event, rax=EINVAL)
    )
    result = shrunk(trace, kernel_replay_of(), DIVERGENCE)
    assert labels(result.events) == [
        "KVM_XEN_HVM_CONFIG",
        "KVM_XEN_VCPU_SET_ATTR(VCPU_ID)",
        "KVM_XEN_VCPU_SET_ATTR(TIMER)",
        "VCPUOP_set_singleshot_timer",
    ]
    assert result.indices[-1] == index
    assert diverging(Part("small", trace.header, result.events)) == [(3, "rax")]


def test_a_cause_that_no_set_up_shows() -> None:
    """What gave memory the content that a read found stays, however long before, and the rest goes."""
    golden = load("linux-7.3/random/seed-16")

    def change(event: Mem) -> Event:
        return evolve(event, data=bytes([event.data[0] ^ 1]) + event.data[1:], mask=None)

    last = max(i for i, event in enumerate(golden.kept) if isinstance(event, Mem) and event.mask is None)
    trace, index = tampered(golden, event_label(golden.kept[last]), last, change)
    result = shrunk(trace, kernel_replay_of(), DIVERGENCE)
    assert index - result.indices[0] > 100
    assert 1 < len(result.events) < 20


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        ("vcpu-id.set-before-timers", 3),
        ("vcpu-id.unique", 1),
        ("hypercalls.version-is-told", 1),
        ("ports.are-2level", 1),
        ("shared-info.before-events", 6),
    ],
)
def test_a_vmm_that_breaks_a_rule(boot: Part, rule: str, most: int) -> None:
    """Of a boot on a broken VMM a handful of hypercalls is left that make it break the rule."""
    result = shrunk(boot, judging(rule, f"broken-{rule}"), rule)
    assert 1 <= len(result.events) <= most


def test_a_vmm_that_fails_before_the_guest_runs(boot: Part) -> None:
    """If the VMM's own set-up breaks the rule, no event is needed."""
    rule = "ports.are-not-shared"
    assert shrunk(boot, judging(rule, f"broken-{rule}"), rule).events == ()


def test_a_rule_about_the_kernel() -> None:
    """A kernel's answer that the new ABI doesn't allow is left with what makes the kernel answer so."""
    golden = load("linux-6.12/directed/singleshot-id")
    result = shrunk(golden, judging("vcpu-id.unset-forwards"), "vcpu-id.unset-forwards")
    assert len(result.events) < 10
    assert diverging(Part("small", golden.header, result.events)) == []


def test_another_kernel_is_needed_for_the_divergence() -> None:
    """What diverges on another kernel's profile alone does so in the small trace: not for lack of set-up."""
    golden = load("linux-6.12/directed/singleshot-id")
    golden = evolve(
        golden, kept=[event for event in golden.kept if isinstance(event, Hypercall) or sets_up(event)]
    )
    result = shrunk(golden, kernel_replay_of(profile="linux-7.3"), DIVERGENCE)
    small = Part("small", golden.header, result.events)
    assert [kind for _, kind in diverging(small, "linux-7.3")] == ["handled"]
    assert diverging(small) == []
    assert 1 < len(result.events) < 10


def test_what_begins_to_diverge_is_not_the_same_failure() -> None:
    """A part in which an event lacks its set-up, so that it diverges, isn't taken for the failure."""
    golden = load("linux-6.12/directed/singleshot-id")
    setting = judging("vcpu-id.unset-forwards")
    failure = find_failure(golden, setting, "vcpu-id.unset-forwards")
    kept = shrink(golden, setting, failure).indices
    judgement = Judgement(golden.header, setting, failure)
    events = dict(enumerate(golden.kept))
    more = [sorted({*kept, index}) for index in range(failure.index or 0)]
    worse = [part for part in more if diverging(Part("part", golden.header, [events[i] for i in part]))]
    assert worse
    assert not any(judgement.part_fails(events, part) for part in worse)


class _Surprised(Minimal):
    """A VMM that some port takes by surprise."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        if xen_exit.input == 33 and vcpu.index == 0:  # PHYSDEVOP_*
            raise LookupError(f"no GSI for call {xen_exit.params}")
        return super().on_hypercall(vcpu, xen_exit)


def test_an_exception_of_the_vmm(boot: Part) -> None:
    """A boot on which the VMM raises is left with the one call that makes it raise."""
    setting = Setting(options=kernel_replay_of().options, vmm=_Surprised)
    result = shrunk(boot, setting, ERROR)
    (event,) = result.events
    assert isinstance(event, Hypercall)
    assert event.nr == 33


def test_interrupts_go_with_what_caused_them() -> None:
    """An entry into the guest and the interrupts after it are left out together."""
    golden = load("linux-7.3/random/seed-16")
    trace, _ = tampered(golden, "KVM_XEN_VCPU_SET_ATTR(VCPU_ID)", 100, lambda event: evolve(event, ret=-14))
    result = shrunk(trace, kernel_replay_of(), DIVERGENCE)
    assert "irq" in labels(golden.kept)
    assert "irq" not in labels(result.events)


def test_what_does_not_fail(boot: Part) -> None:
    """A trace that doesn't fail as was said is refused, and why."""
    with pytest.raises(NotFailing, match=r"no divergence on linux-6\.12"):
        find_failure(boot, kernel_replay_of(), DIVERGENCE)
    with pytest.raises(NotFailing, match=r"vcpu-id\.unique is held"):
        find_failure(boot, judging("vcpu-id.unique"), "vcpu-id.unique")
    with pytest.raises(NotFailing, match="without an error"):
        find_failure(boot, kernel_replay_of(), ERROR)


def test_time_runs_out(boot: Part) -> None:
    """Without time the result is larger, still fails and is said not to be minimal."""
    rule = "shared-info.before-events"
    setting = judging(rule, f"broken-{rule}")
    failure = find_failure(boot, setting, rule)
    result = shrink(boot, setting, failure, budget=0)
    assert not result.minimal
    assert len(result.events) > 6
    assert Judgement(boot.header, setting, failure).part_fails(dict(enumerate(boot.kept)), result.indices)


def test_progress_is_told(boot: Part) -> None:
    """Each time events could be left out, how many remain is told, and they get fewer."""
    rule = "shared-info.before-events"
    setting = judging(rule, f"broken-{rule}")
    told: list[tuple[int, int]] = []
    shrink(boot, setting, find_failure(boot, setting, rule), progress=lambda *now: told.append(now))
    remaining = [events for events, _ in told]
    assert remaining == sorted(remaining, reverse=True)
    assert remaining[-1] == 6


def test_an_empty_trace_does_not_fail() -> None:
    """A trace without events has nothing to shrink."""
    empty = Part("empty", Header(vm=load("@linux-boot-1vcpu").header.vm), [])
    with pytest.raises(NotFailing):
        find_failure(empty, kernel_replay_of(), DIVERGENCE)
