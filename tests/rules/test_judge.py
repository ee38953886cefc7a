"""The judge makes short work of hypercalls that come again and again, and comes to the same verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import pytest
from attrs import define, evolve
from rule_traces import EINVAL, RULES, arm, config, golden, header, set_id, set_port
from vmm_events import forwarded, vcpu_attr, vcpu_op

from pytest_xenkvm.abi.numbers import VcpuAttr, VcpuOp
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Checker, Context, Hypercalls, Rule, State, Verdict
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, TraceSource, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import LEAST_POINTER, Event, Hypercall
from pytest_xenkvm.trace.xkt import XktWriter

BOOTS: Final = ("@linux-boot", "@linux-boot-1vcpu", "@linux-boot-7.2", "@linux-boot-7.3")
GOLDENS: Final = (
    "linux-7.3/directed/singleshot-id",
    "linux-7.3/directed/set-timer-op",
    "linux-7.2/directed/vcpu-id-default",
    "linux-6.12/directed/singleshot-id",
)
PROFILES: Final = ("linux-6.12", "linux-7.3")


def both_ways(trace: TraceSource, profile: str) -> tuple[ReplayResult, ReplayResult, int]:
    """The result with every observation made, that with as few as possible, and how many all are."""
    seen: list[Observation] = []
    options = ReplayOptions(profile=profile)
    watched = run_trace(trace, BUNDLED, options, observer=seen.append)
    return watched, run_trace(trace, BUNDLED, options), len(seen)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [*BOOTS, *GOLDENS])
def test_nobody_looking_changes_nothing(name: str, profile: str) -> None:
    """Counts, divergences, verdicts and findings are the same whether or not all observations are made."""
    trace = open_trace(name) if name.startswith("@") else golden(name)
    watched, unwatched, seen = both_ways(trace, profile)
    assert watched == unwatched
    assert watched.events == seen


@define
class _HoldsUntilViolated(Checker):
    """Holds for calls that name vCPU 0, until one names another: what only a violation changes."""

    alike: ClassVar[bool] = True

    def observe(self, observation: Observation) -> None:
        """Look at whom the call names."""
        event = observation.event
        assert isinstance(event, Hypercall)
        if event.args[1]:
            self.violate(observation, "named another")
        elif not self.violations:
            self.hold()


UNTIL_VIOLATED: Final = evolve(RULES["vcpu-id.unique"], checker=_HoldsUntilViolated)
CLASH: Final = (set_id(0, 0), set_id(1, 1), set_port(0, 7), *[arm(0, 0)] * 3, set_id(1, 0), arm(0, 0))


def judged(rule: Rule, events: Sequence[Event], *, all_observed: bool) -> Verdict:
    """The verdict when every event is observed, or only those that are wanted."""
    judge = Judge((rule,), Context(header=header(), max_vcpus=4096, vmm_under_test=False))
    for index, event in enumerate(events):
        wants = judge.wants_call if isinstance(event, Hypercall) else judge.wants
        if all_observed or wants(event):  # type: ignore[arg-type]
            judge.observe(Observation(place=Place(index), event=event))
    (verdict,) = judge.verdicts()
    return verdict


@pytest.mark.parametrize(
    ("rule", "events", "exercised", "violations"),
    [
        (RULES["vcpu-id.unique"], (config(), *CLASH), 4, 1),
        (UNTIL_VIOLATED, [*[arm(0, 0)] * 4, arm(0, 1), *[arm(0, 0)] * 4], 5, 1),
        (UNTIL_VIOLATED, [arm(0, 0)] * 9, 9, 0),
    ],
    ids=["an ioctl", "a violation", "nothing"],
)
def test_what_comes_between_counts(
    rule: Rule, events: Sequence[Event], exercised: int, violations: int
) -> None:
    """Calls that come again are judged anew when the VMM set something up, or a rule was violated."""
    for all_observed in (True, False):
        verdict = judged(rule, events, all_observed=all_observed)
        assert (verdict.exercised, verdict.violations) == (exercised, violations)


def test_a_call_that_is_shown_after_all_counts_once() -> None:
    """Where something else is to be told of a hypercall that was counted, it is observed and not counted."""
    judge = Judge((UNTIL_VIOLATED,), Context(header=header(), max_vcpus=4096, vmm_under_test=False))
    for index in range(4):
        if not judge.wants_call(arm(0, 0)):
            judge.recall(arm(0, 0))
        judge.observe(Observation(place=Place(index), event=arm(0, 0)))
    assert [verdict.exercised for verdict in judge.verdicts()] == [4]


def test_inferred_calls_are_never_counted() -> None:
    """Nothing is judged by a hypercall that nobody saw, however often it came before."""
    calls = [*[arm(0, 0)] * 3, *[arm(0, 0, inferred=True)] * 3]
    for all_observed in (True, False):
        assert judged(UNTIL_VIOLATED, calls, all_observed=all_observed).exercised == 3


def test_a_call_that_came_twice_needs_no_observation() -> None:
    """The third one like it is counted without being looked at; another outcome is looked at."""
    judge = Judge(BUNDLED, Context(header=header(), max_vcpus=4096, vmm_under_test=False))
    for index, event in enumerate((config(), set_id(0, 0), set_port(0, 7))):
        judge.observe(Observation(place=Place(index), event=event))
    call = arm(0, 0)
    wanted = []
    for index in range(4):
        wanted.append(judge.wants_call(call))
        if wanted[-1]:
            judge.observe(Observation(place=Place(3 + index), event=call))
    assert wanted == [True, True, False, False]
    assert judge.wants_call(arm(0, 0, result=EINVAL))
    own_id = next(v for v in judge.verdicts() if v.rule.id == "forwarded-timers.own-id-in-kernel")
    assert own_id.exercised == len(wanted)


AREAS: Final = RULES["vcpu-op.areas-reach-kvm"]
EOI: Final = forwarded(33, 12, 1, 2, 3, 4, 5)
PROMISE: Final = vcpu_op(VcpuOp.register_vcpu_info, 0, bytes([1] * 8))
KEPT: Final = vcpu_attr(VcpuAttr.VCPU_INFO, gpa=4096)


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([*[EOI] * 4, PROMISE, *[EOI] * 4], State.VIOLATED),
        ([*[EOI] * 4, PROMISE, KEPT, *[EOI] * 4], State.HELD),
        ([*[EOI] * 4, PROMISE, KEPT, *[EOI] * 4, PROMISE, *[EOI] * 4], State.VIOLATED),
    ],
)
def test_an_open_promise_lets_every_call_count(events: Sequence[Event], state: State) -> None:
    """Forwarded calls that came before are not looked at, but for those behind a promise of the VMM."""
    observed = []
    for audience_looks in (True, False):
        judge = Judge((AREAS,), Context(header=header(), max_vcpus=4096, vmm_under_test=False))
        judge.observe(Observation(place=Place(0), event=config()))
        observed.append(0)
        for index, event in enumerate(events, 1):
            wants = judge.wants_call if isinstance(event, Hypercall) else judge.wants
            if audience_looks or wants(event):  # type: ignore[arg-type]
                answer = event.rax if isinstance(event, Hypercall) else None
                judge.observe(Observation(place=Place(index), event=event, answer=answer))
                observed[-1] += 1
        (verdict,) = judge.verdicts()
        assert verdict.state is state
    assert observed[0] == len(events) > observed[1]


def test_a_call_whose_exit_differs_is_looked_at() -> None:
    """Only forwarded calls of which KVM_EXIT_XEN held just the registers are alike."""
    judge = Judge(BUNDLED, Context(header=header(), max_vcpus=4096, vmm_under_test=False))
    judge.observe(Observation(place=Place(0), event=config()))
    assert EOI.exit is not None
    wrong = evolve(EOI, exit=evolve(EOI.exit, params=(0,) * 6))
    for index in range(1, 5):
        judge.observe(Observation(place=Place(index), event=EOI, answer=EOI.rax))
    assert judge.repeats(EOI) is not None
    assert judge.repeats(wrong) is None


@define
class _CountsOddPointers(Checker):
    """Exercised by calls whose second argument is odd."""

    alike: ClassVar[bool] = True

    def observe(self, observation: Observation) -> None:
        """Look at the argument."""
        event = observation.event
        assert isinstance(event, Hypercall)
        if int(event.args[1]) % 2:  # type: ignore[arg-type]
            self.hold()


@pytest.mark.parametrize("least", [0, LEAST_POINTER - 3, LEAST_POINTER, 1 << 63])
def test_pointers_that_matter_to_a_rule_are_all_looked_at(tmp_path: Path, least: int) -> None:
    """Calls that are one object but for their second argument are told apart where a rule goes by it."""
    rule = evolve(RULES["vcpu-id.unique"], checker=_CountsOddPointers, sees=(Hypercalls(),))
    calls = [forwarded(33, 12, least + number % 7, 0, 0, 0, 0) for number in range(70)]
    with XktWriter(tmp_path / "t.xkt", header()) as writer:
        for event in (config(), *calls):
            writer.write(event)
    trace = open_trace(tmp_path / "t.xkt")
    result = run_trace(trace, [rule], ReplayOptions())
    odd = sum((least + number % 7) % 2 for number in range(70))
    assert (result.divergence_count, [verdict.exercised for verdict in result.verdicts]) == (0, [odd])
