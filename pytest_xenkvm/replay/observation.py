"""What a replay yields: one observation an event, with the differences from what was recorded."""

from __future__ import annotations

from typing import Any, Final, Protocol, final

from attrs import define, frozen

from pytest_xenkvm.trace.events import Event, Hypercall

HEADER_LINES = 1


@frozen(slots=False)
class Place:
    """An event of the trace. `index` counts from 0; `line` is its line in the JSON Lines form."""

    index: int
    after: bool = False
    """Not the event itself but what came after it: the migration that ends a replay."""

    @property
    def line(self) -> int:
        """Line 1 is the header, so event N is on line N + 2."""
        return self.index + HEADER_LINES + 1


@frozen(kw_only=True)
class Divergence:
    """A recorded outcome that this host doesn't show.

    `kind` names the outcome (ret, out, handled, exit, rax, mem, ok, irq, eventfd_read, run_ret, sum_ok);
    `expected` is what was recorded and `observed` what happened, as the trace would write them.
    """

    place: Place
    kind: str
    expected: Any
    observed: Any
    recorded: Event
    """The event as recorded."""
    happened: Event
    """The event as it happened."""
    preceding: tuple[tuple[Place, Event], ...] = ()
    """The nearest earlier events of the same vCPU, oldest first."""


@frozen(kw_only=True, slots=False)
class Observation:
    """One event and what the host and the VMM did about it.

    `event` holds the outcomes of this replay; where the recording differs, `divergences` say so. In a VMM
    replay the ioctls of the VMM under test are observations too (`by_vmm`), at the place of the event that
    they were made for. `unjudged` names outcomes that the recording could not see. `answer` is what the VMM
    answered a forwarded hypercall, as u64 (0 where the recording could not see it); None for all else.
    `unanswered`: the VMM under test left a forwarded hypercall without an answer; its guest found 0.
    """

    place: Place
    event: Event
    divergences: tuple[Divergence, ...] = ()
    unjudged: tuple[str, ...] = ()
    by_vmm: bool = False
    answer: int | None = None
    unanswered: bool = False


@define
class Tally:
    """What a replay has done so far."""

    events: int = 0
    hypercalls: int = 0
    inferred: int = 0
    """Events that nobody saw but a recorded outcome implies."""


@define(eq=False)
class Repeats:
    """Counts hypercalls that need no look, because they are like one that was looked at."""

    times: int = 0
    valid: bool = True
    """Whether that still holds."""


class Audience(Protocol):
    """Who looks at a replay, and at what: nobody needs all of the observations of a long trace."""

    def wants(self, event: Event) -> bool:
        """Whether to be shown an event, no hypercall; asked once for all that differ in time only."""

    def wants_call(self, event: Hypercall) -> bool:
        """Whether to be shown this hypercall, which came out as recorded; asked each time.

        It may be an object that stands for several: an address in argument 1 is then that of any of them.
        """

    def recall(self, event: Hypercall) -> None:
        """The hypercall that wasn't wanted is shown all the same: something else is to be told of it."""

    def repeats(self, event: Hypercall) -> Repeats | None:
        """What counts calls like this one that come out as recorded; None: ask `wants_call` of each.

        Calls that differ in arguments 2 ... 5 or in an address in argument 1 (`LEAST_POINTER`) are like it.
        """


@final
class _Everyone:
    def wants(self, event: Event) -> bool:  # noqa: ARG002 - whatever it is
        return True

    def wants_call(self, event: Hypercall) -> bool:  # noqa: ARG002
        return True

    def recall(self, event: Hypercall) -> None:
        raise NotImplementedError

    def repeats(self, event: Hypercall) -> None:
        """Nothing is like anything else."""


EVERYONE: Final[Audience] = _Everyone()
"""Looks at everything."""
