"""Where two courses of events part, and in what they differ how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from parts import load

from pytest_xenkvm.rules.run import ReplayOptions, observe_trace
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl, Irq, Mem, VcpuRun, Wait, Wrmsr
from pytest_xenkvm.trace.labels import event_label
from pytest_xenkvm.traceops.diff import (
    CONTEXT,
    MAX_LABELS,
    OTHERS,
    Comparison,
    Difference,
    How,
    Step,
    recorded_steps,
    replayed_steps,
)


def compared(a: Sequence[Event], b: Sequence[Event]) -> tuple[Comparison, list[Difference]]:
    """Two traces' events side by side."""
    comparison = Comparison(recorded_steps(a), recorded_steps(b))
    return comparison, list(comparison.differences())


def places(differences: Sequence[Difference]) -> list[tuple[How, int | None, int | None]]:
    """How and where they differ."""
    return [
        (each.how, None if each.a is None else each.a.index, None if each.b is None else each.b.index)
        for each in differences
    ]


def call(nr: int, rax: int = 0, arg: int = 0) -> Hypercall:
    """A hypercall without sub-operations."""
    return Hypercall(
        vcpu=0, longmode=True, cpl=0, nr=nr, args=(arg, 0, 0, 0, 0, 0), handled="kernel", rax=rax
    )


def different(count: int) -> list[Event]:
    """Events that all have names of their own."""
    return [call(1000 + number) for number in range(count)]


def test_what_happened_counts_and_when_does_not() -> None:
    """Times, inferred marks and unknown keys are no difference."""
    events: list[Event] = [Wait(ns=1, ts=1), Irq(vcpu=0, vector=32)]
    other = [evolve(event, ts=7, inferred=True, extra={"note": 1}) for event in events]
    comparison, found = compared(events, other)
    assert (found, comparison.same) == ([], 2)


def test_the_same_call_with_another_outcome() -> None:
    """Another result is a difference in the outcome; another argument is one in the arguments."""
    _, found = compared([call(15), call(15)], [call(15, rax=1), call(15, arg=1)])
    assert places(found) == [(How.OUTCOME, 0, 0), (How.ARGUMENTS, 1, 1)]


def test_every_kind_has_its_outcomes() -> None:
    """What an ioctl returned, a read found, a WRMSR came to and a vector are outcomes; a store isn't."""
    ask = Ioctl(name="KVM_CHECK_EXTENSION", arg={"cap": 38}, ret=1)
    read = Mem(op="read", gpa=0, data=b"a")
    write = Mem(op="write", gpa=0, data=b"a")
    wrmsr = Wrmsr(vcpu=0, longmode=True, msr=1, value=1, ok=True)
    irq = Irq(vcpu=0, vector=32)
    a: list[Event] = [ask, read, write, wrmsr, irq]
    b: list[Event] = [
        evolve(ask, ret=0),
        evolve(read, data=b"b"),
        evolve(write, data=b"b"),
        evolve(wrmsr, ok=False),
        evolve(irq, vector=33),
    ]
    assert [each.how for each in compared(a, b)[1]] == [
        How.OUTCOME,
        How.OUTCOME,
        How.ARGUMENTS,
        How.OUTCOME,
        How.OUTCOME,
    ]


def test_what_one_lacks_and_what_was_before() -> None:
    """Events that only one has are told, the rest is found alike again; the last common ones are kept."""
    events = different(40)
    comparison, found = compared([*events[:10], *events[13:]], [*events[:20], VcpuRun(vcpu=0), *events[20:]])
    assert places(found) == [
        (How.ONLY_B, None, 10),
        (How.ONLY_B, None, 11),
        (How.ONLY_B, None, 12),
        (How.ONLY_B, None, 20),
    ]
    assert comparison.same == 37
    assert [step.event for step in comparison.before] == events[10 - CONTEXT : 10]
    assert comparison.counts["vcpu_run"] == {How.ONLY_B: 1}


def test_nothing_in_common() -> None:
    """Traces that share nothing differ in each event, however long they are."""
    comparison, found = compared(different(3000), [Wait(ns=1)] * 2500)
    assert comparison.same == 0
    assert len(found) == 5500
    assert len(comparison.counts) <= MAX_LABELS + 1
    assert comparison.counts[OTHERS][How.ONLY_A] > 0


@given(st.lists(st.integers(0, 4)), st.lists(st.integers(0, 4)))
def test_every_event_is_accounted_for(a: list[int], b: list[int]) -> None:
    """In order, each event of either side is the same or in one difference; equal traces have none."""
    comparison, found = compared([call(number) for number in a], [call(number) for number in b])
    only_a = sum(each.b is None for each in found)
    only_b = sum(each.a is None for each in found)
    both = len(found) - only_a - only_b
    assert comparison.same + both + only_a == len(a)
    assert comparison.same + both + only_b == len(b)
    for side in ("a", "b"):
        steps = [step.index for each in found if (step := getattr(each, side)) is not None]
        assert steps == sorted(steps)
    assert (not found) == (a == b)


def test_two_kernels() -> None:
    """A trace replayed on two kernels parts where their ABI does: who serves timers of an unset Xen ID."""
    trace = load("linux-6.12/directed/singleshot-id")

    def replayed(profile: str) -> Iterator[Step]:
        return replayed_steps(observe_trace(trace, ReplayOptions(profile=profile)))

    def comparison(a: str, b: str) -> Comparison:
        return Comparison(replayed(a), replayed(b))

    assert list(comparison("linux-6.12", "linux-6.12").differences()) == []
    parted = comparison("linux-7.2", "linux-7.3")
    found = list(parted.differences())
    assert {each.how for each in found} == {How.OUTCOME}
    assert any(each.a is not None and event_label(each.a.event).startswith("VCPUOP_") for each in found)
    assert parted.same + parted.found == len(trace.kept)


def test_an_interrupt_that_is_missing_on_one_kernel() -> None:
    """An interrupt that wasn't taken is an outcome, though no event says so."""
    trace = load("linux-7.3/directed/deferred")
    assert any(isinstance(event, Irq) for event in trace.kept)
    without = evolve(trace, kept=[event for event in trace.kept if not isinstance(event, Irq)])
    observations = observe_trace(without, ReplayOptions())
    assert any(step.also for step in replayed_steps(observations))
