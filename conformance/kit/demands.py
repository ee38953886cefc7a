"""How a probe says what it demands, and what it tells when a host does something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NoReturn

import pytest
from attrs import define, field, frozen

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import result

_CONTEXT: Final = 8
"""Earlier events that a failing probe tells."""


class _Forwarded:
    """The type of FORWARDED."""


FORWARDED: Final = _Forwarded()
"""What a probe expects of a hypercall that the VMM must answer (KVM_EXIT_XEN)."""

Answer = int | _Forwarded
"""0 or a positive value, -errno, or FORWARDED."""


def answer_words(answer: Answer) -> str:
    """An expected answer of a hypercall in words."""
    return (
        "forwarded to the VMM"
        if isinstance(answer, _Forwarded)
        else f"handled in the kernel: {result(answer)}"
    )


@frozen(kw_only=True)
class Unmet:
    """A demand that the host didn't meet. `event`: index of the event that shows it in its VM's history."""

    demanded: str
    observed: str
    vcpu: int | None
    event: int


@define(eq=False)
class Probe:
    """One run of a probe: what it demands by its docstring and `source`, and what came of it."""

    title: str
    source: str
    rules: tuple[str, ...] = ()
    unmet: list[Unmet] = field(factory=list, init=False)

    def fail(
        self, demanded: str, observed: str, history: Sequence[Observation], vcpu: int | None
    ) -> NoReturn:
        """The host doesn't do what is demanded."""
        __tracebackhide__ = True
        self.unmet.append(
            Unmet(demanded=demanded, observed=observed, vcpu=vcpu, event=max(len(history) - 1, 0))
        )
        pytest.fail(self.words(demanded, observed, history), pytrace=True)

    def words(self, demanded: str, observed: str, history: Sequence[Observation]) -> str:
        """What a failing probe says."""
        before = [told(item) for item in history[-_CONTEXT - 1 : -1]]
        more = len(history) - 1 - len(before)
        return "\n".join(
            (
                f"demanded: {self.title}",
                f"expected: {demanded}",
                f"the host: {observed}",
                f"source:   {self.source}",
                *(f"rule:     {rule}" for rule in self.rules),
                *(["before:"] if before else []),
                *([f"  ({more} earlier events)"] if more > 0 else []),
                *(f"  {line}" for line in before),
            )
        )


def told(observation: Observation) -> str:
    """An event of a probe's history on one line."""
    event = observation.event
    vcpu = getattr(event, "vcpu", None)
    return f"{'VM    ' if vcpu is None else f'vCPU {vcpu}'}  {event_words(event)}"
