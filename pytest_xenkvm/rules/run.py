"""Replay a trace and judge it: the one call behind the pytest plugin and the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from attrs import frozen

from pytest_xenkvm.core.profile import LINUX_7_3, HostLimits, Profile
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.migration import Migrator
from pytest_xenkvm.replay.observation import Divergence, Observation, Place
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.rules.model import Context, Judge, Rule, State, Verdict
from pytest_xenkvm.rules.profiles import AUTO, choose_profile
from pytest_xenkvm.trace.events import Event, Header, Hypercall
from pytest_xenkvm.vmm.behaviour import VmmBehaviour, behaviour_name

if TYPE_CHECKING:
    from pytest_xenkvm.hosts.unicorn_host import UnicornHost

MAX_DIVERGENCES: Final = 1000
"""Divergences that a result keeps; the rest is counted."""

MODEL: Final = "model"
UNICORN: Final = "unicorn"
ENGINES: Final = (MODEL, UNICORN)
"""What makes the guest's side happen: registers handed to the core, or guest code on Unicorn."""


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


def emulated_host(header: Header, profile: Profile, engine: str = MODEL) -> EmulatedHost | UnicornHost:
    """The emulated host for a trace: KVM_MAX_VCPUS as the header has it.

    `engine`: "model" hands the core registers; "unicorn" lets guest code make the hypercalls. Raises
    ReplayError for another one.
    """
    limits = HostLimits() if header.max_vcpus is None else HostLimits(max_vcpus=header.max_vcpus)
    if engine == MODEL:
        return EmulatedHost(profile=profile, limits=limits)
    if engine != UNICORN:
        raise ReplayError(f"there is no engine {engine!r}; there are {', '.join(ENGINES)}")
    from pytest_xenkvm.hosts.unicorn_host import UnicornHost  # noqa: PLC0415 - loads Unicorn when used

    return UnicornHost(profile=profile, limits=limits)


@frozen(kw_only=True)
class ReplayOptions:
    """How to replay. With a `behaviour` it is a VMM replay, else a kernel replay."""

    profile: str = AUTO
    behaviour: VmmBehaviour | None = None
    engine: str = MODEL
    profiles: tuple[Profile, ...] = ()
    """Those that `profile` may name besides the bundled ones and those of installed packages."""
    until: int | None = None
    """Stop before the event with this index."""


def observe_trace(trace: TraceSource, options: ReplayOptions) -> Iterator[Observation]:
    """Replay `trace` on the emulated host; raises ReplayError, HostError, TraceError, what the VMM raises."""
    profile = choose_profile(options.profile, trace.header, options.profiles)
    host = emulated_host(trace.header, profile, options.engine)
    return _observe(host, trace, options)


def _observe(host: Host, trace: TraceSource, options: ReplayOptions) -> Iterator[Observation]:
    def events() -> Iterator[Event]:
        return islice(trace.events(), options.until)

    if options.behaviour is None:
        return kernel_replay(host, trace.header, events())
    return vmm_replay(host, trace.header, events, options.behaviour)


def run_trace(
    trace: TraceSource,
    rules: Iterable[Rule],
    options: ReplayOptions,
    observer: Callable[[Observation], None] | None = None,
) -> ReplayResult:
    """Replay `trace`, compare what was recorded, judge `rules`; `observer` is told of each observation.

    When all is over, the VM is migrated to a fresh one if a rule asks for it. Raises as `observe_trace`
    does.
    """
    profile = choose_profile(options.profile, trace.header, options.profiles)
    host, behaviour = emulated_host(trace.header, profile, options.engine), options.behaviour
    migrator = Migrator(host)
    context = Context(
        header=trace.header,
        max_vcpus=host.limits.max_vcpus,
        vmm_under_test=behaviour is not None,
        older_kernel="" if profile is LINUX_7_3 else profile.name,
    )
    judge = Judge(tuple(rules), context)
    counts: Counter[str] = Counter()
    divergences: list[Divergence] = []
    place = Place(-1)
    for observation in _observe(migrator, trace, options):
        judge.observe(observation)
        _count(counts, observation)
        divergences.extend(observation.divergences[: MAX_DIVERGENCES - len(divergences)])
        if observer is not None:
            observer(observation)
        place = observation.place
    if judge.sees_migrations:
        judge.observe_migration(migrator.migrate(Place(place.index, after=True)))
    return ReplayResult(
        trace=trace.name,
        profile=profile.name,
        vmm=None if behaviour is None else behaviour_name(behaviour),
        events=counts["events"],
        hypercalls=counts["hypercalls"],
        unjudged=counts["unjudged"],
        inferred=counts["inferred"],
        divergence_count=counts["divergences"],
        divergences=tuple(divergences),
        verdicts=judge.verdicts(),
    )


def _count(counts: Counter[str], observation: Observation) -> None:
    if not observation.by_vmm:
        counts["events"] += 1
        counts["hypercalls"] += isinstance(observation.event, Hypercall)
        counts["inferred"] += observation.event.inferred
    counts["unjudged"] += len(observation.unjudged)
    counts["divergences"] += len(observation.divergences)
