"""Replay a trace and judge it: the one call behind the pytest plugin and the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Protocol, TypeVar

from attrs import frozen

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.migration import Migrator
from pytest_xenkvm.replay.observation import (
    EVERYONE,
    Audience,
    Divergence,
    Observation,
    Place,
    Tally,
)
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.rules.hosts import KVM, HostChoice
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Context, Rule, State, Verdict
from pytest_xenkvm.trace.events import Event, Header, timed
from pytest_xenkvm.trace.xkt import XktTrace
from pytest_xenkvm.vmm.behaviour import VmmBehaviour, behaviour_name

MAX_DIVERGENCES: Final = 1000
"""Divergences that a result keeps; the rest is counted."""

PROGRESS_STEP: Final = 20_000
"""Events between two signs of progress."""

_T = TypeVar("_T")


class TraceSource(Protocol):
    """A trace that can be read more than once."""

    @property
    def name(self) -> str:
        """For reports and node ids."""

    @property
    def header(self) -> Header:
        """Its first line."""

    def events(self) -> Iterator[Event]:
        """Its events, from the start."""


@frozen(kw_only=True)
class ReplayResult:
    """What came of replaying one trace."""

    trace: str
    profile: str
    """The kernel that was emulated; on the host kvm "kvm" and the running kernel's release."""
    vmm: str | None
    """The VMM behaviour that took part; None for a kernel replay."""
    events: int
    hypercalls: int
    unjudged: int
    """Outcomes that the recording could not see."""
    inferred: int
    """Events that nobody saw but a recorded outcome implies."""
    divergence_count: int
    divergences: tuple[Divergence, ...]
    """The first of them."""
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """No divergence and no rule violated."""
        return not self.divergence_count and not any(v.state is State.VIOLATED for v in self.verdicts)


@frozen(kw_only=True)
class ReplayOptions(HostChoice):
    """How to replay, and on what. With a `behaviour` it is a VMM replay, else a kernel replay."""

    behaviour: VmmBehaviour | None = None
    until: int | None = None
    """Stop before the event with this index."""


def observe_trace(trace: TraceSource, options: ReplayOptions) -> Iterator[Observation]:
    """Replay `trace`; raises ReplayError, HostError, TraceError, what the VMM raises."""
    host = options.host_for(trace.header)
    return _observe(host, trace, options, EVERYONE, Tally())


def _observe(  # noqa: PLR0913, PLR0917 - what both kinds of replay need between them
    host: Host,
    trace: TraceSource,
    options: ReplayOptions,
    audience: Audience,
    tally: Tally,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Observation]:
    def some(events: Iterator[_T]) -> Iterator[_T]:
        events = islice(events, options.until)
        return events if progress is None else _telling(progress, events)

    if options.behaviour is None:
        events = trace.timed_events() if isinstance(trace, XktTrace) else timed(trace.events())
        return kernel_replay(host, trace.header, some(events), audience, tally)
    return vmm_replay(host, trace.header, lambda: some(trace.events()), options.behaviour, tally)


def _telling(progress: Callable[[int], None], events: Iterator[_T]) -> Iterator[_T]:
    for number, event in enumerate(events):
        if number % PROGRESS_STEP == 0:
            progress(number)
        yield event


def run_trace(
    trace: TraceSource,
    rules: Iterable[Rule],
    options: ReplayOptions,
    observer: Callable[[Observation], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReplayResult:
    """Replay `trace`, compare what was recorded, judge `rules`.

    `observer` is told of each observation, which takes longer than if only those that rules want are made;
    `progress` of the number of events, now and then. When all is over, the VM is migrated to a fresh one if
    a rule asks for it. Raises as `observe_trace` does.
    """
    profile = options.expected_profile(trace.header)
    host, behaviour = options.host_for(trace.header), options.behaviour
    migrator, tally = Migrator(host), Tally()
    context = Context(
        header=trace.header,
        max_vcpus=host.limits.max_vcpus,
        vmm_under_test=behaviour is not None,
        older_kernel="" if profile is LINUX_7_3 else profile.name,
    )
    judge = Judge(tuple(rules), context)
    divergences: list[Divergence] = []
    divergence_count = unjudged = 0
    seen_by = judge if observer is None else EVERYONE
    for observation in _observe(migrator, trace, options, seen_by, tally, progress):
        judge.observe(observation)
        unjudged += len(observation.unjudged)
        divergence_count += len(observation.divergences)
        divergences.extend(observation.divergences[: MAX_DIVERGENCES - len(divergences)])
        if observer is not None:
            observer(observation)
    if judge.sees_migrations:
        judge.observe_migration(migrator.migrate(Place(tally.events - 1, after=True)))
    return ReplayResult(
        trace=trace.name,
        profile=host.name if options.host == KVM else profile.name,
        vmm=None if behaviour is None else behaviour_name(behaviour),
        events=tally.events,
        hypercalls=tally.hypercalls,
        unjudged=unjudged,
        inferred=tally.inferred,
        divergence_count=divergence_count,
        divergences=tuple(divergences),
        verdicts=judge.verdicts(),
    )
