"""What the rules about timer hypercalls share: seeing such a call, and putting it into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from attrs import define, frozen

from pytest_xenkvm.abi.numbers import U32_MAX
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Context, Hypercalls
from pytest_xenkvm.rules.tracking import TIMER_NUMBERS, TimerCall
from pytest_xenkvm.trace.decode import hypercall_outcome, hypercall_words
from pytest_xenkvm.trace.decode_values import vcpu_id
from pytest_xenkvm.trace.events import Hypercall

TIMER_CALLS: Final = Hypercalls(TIMER_NUMBERS)
"""The hypercalls that a rule judged by a `TimerChecker` wants to see."""


@define(eq=False)
class TimerChecker(Checker):
    """Is shown hypercalls and judges timer calls; derive and implement `judge`."""

    alike: ClassVar[bool] = True

    def observe(self, observation: Observation) -> None:
        """Dismiss what is no timer call that reached KVM's Xen code with an outcome that is known."""
        event = observation.event
        if isinstance(event, Hypercall) and event.nr & U32_MAX in TIMER_NUMBERS:
            call = self.context.setup.timer_call(observation)
            if call is not None:
                self.judge(observation, call)

    def judge(self, observation: Observation, call: TimerCall) -> None:
        """Judge a timer call."""
        raise NotImplementedError


@frozen(kw_only=True)
class Demand:
    """What must become of timer calls of some kind.

    `concerns`: whether a call is of that kind. `wrong`: what should have happened instead, None if it did.
    `advice`: what people do about it.
    """

    concerns: Callable[[TimerCall], bool]
    wrong: Callable[[TimerCall], str | None]
    advice: str

    def checker(self, context: Context) -> Checker:
        """A checker of this demand."""
        return _DemandChecker(context, self)


@define(eq=False)
class _DemandChecker(TimerChecker):
    demand: Demand

    def judge(self, observation: Observation, call: TimerCall) -> None:
        if not self.demand.concerns(call):
            return
        expected = self.demand.wrong(call)
        if expected is None:
            self.hold()
            return
        self.violate(
            observation,
            f"vCPU {call.event.vcpu} ({_circumstances(call)}): {call_words(call)} was {outcome_words(call)}; "
            f"{expected}. {self.demand.advice}",
        )


def call_words(call: TimerCall) -> str:
    """The call as the guest meant it."""
    words = hypercall_words(call.event)
    return words if call.event.longmode else f"{words} [32-bit]"


def outcome_words(call: TimerCall) -> str:
    """Who answered and what."""
    return hypercall_outcome(call.event.handled, call.event.rax, longmode=call.event.longmode)


def _circumstances(call: TimerCall) -> str:
    vcpu = call.vcpu
    xen_id = "no Xen ID" if vcpu.xen_id is None else f"Xen ID {vcpu_id(vcpu.xen_id)}"
    port = f"timer port {vcpu.timer_port}" if vcpu.timer_port else "no timer port"
    return f"{xen_id}, {port}, CPL {call.event.cpl}"
