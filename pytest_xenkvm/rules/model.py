"""What a conformance rule is, and what a verdict is.

A rule judges the observations of one replay. It is *held* or *violated* only if something in the replay
exercised it; otherwise its verdict is *not exercised*, which is never a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import ClassVar

from attrs import Factory, define, field, frozen

from pytest_xenkvm.core.profile import LINUX_7_3, Profile
from pytest_xenkvm.replay.migration import Migration
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.rules.tracking import Setup
from pytest_xenkvm.trace.events import Event, Header, brief

MAX_FINDINGS = 100
"""Findings that a verdict keeps; the rest is counted."""


@frozen
class Ioctls:
    """Ioctls with one of these UAPI names.

    `refused`: only those that failed. `under_test`: only in replays with a VMM behaviour.
    """

    names: frozenset[str]
    refused: bool = False
    under_test: bool = False


@frozen
class Hypercalls:
    """Hypercalls with one of these numbers in their lower 32 bits, or with any.

    `forwarded`: only those. `under_test`: only in replays with a VMM behaviour.
    """

    numbers: frozenset[int] | None = None
    forwarded: bool = False
    under_test: bool = False


Seen = type[Event] | type[Migration] | Ioctls | Hypercalls
"""What a rule can ask to be shown: kinds of event, some of those, and the migration that ends the replay."""


class Level(Enum):
    """How binding a rule is."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Judged(Enum):
    """Whom a rule judges: the kernel that hosts the VM, or the VMM."""

    HOST = "host"
    VMM = "vmm"


class State(Enum):
    """How a rule came out."""

    HELD = "held"
    VIOLATED = "violated"
    NOT_EXERCISED = "not-exercised"


@frozen(kw_only=True)
class Context:
    """What a rule may know of the replay besides the observation that it is shown."""

    header: Header
    max_vcpus: int
    """KVM_MAX_VCPUS of the replay's host."""
    vmm_under_test: bool
    """A VMM behaviour took part; otherwise the VMM is the recording's."""
    older_kernel: str = ""
    """The profile that the host emulates, if its ABI is not the one that rules demand."""
    setup: Setup = Factory(Setup)
    """What the VMM has set up before the observation under judgement; `Judge` keeps it up to date."""
    source: Setup | None = None
    """While a VMM under test sets up the VM that it migrates to: what it had set up on the one before."""

    @property
    def abi(self) -> Profile:
        """The ABI that rules demand, whatever the host is like."""
        return LINUX_7_3

    @property
    def vmm_is_a_probe(self) -> bool:
        """The recording's VMM tries out the kernel on purpose; VMM rules don't apply to it."""
        return not self.vmm_under_test and self.header.recorder in PROBES

    def inapplicable(self, rule: Rule) -> str:
        """Why a rule doesn't apply to this replay; empty if it does."""
        if rule.judges is Judged.VMM and self.vmm_is_a_probe:
            return "judges the VMM, and this trace's VMM is a test program"
        if rule.judges is Judged.HOST and self.vmm_under_test and self.older_kernel:
            return f"judges the kernel, and {self.older_kernel} is emulated here as it is known to be"
        return ""


PROBES = frozenset({"kvm-oracle", "lab", "replay"})
"""Recorders whose VMM is a test program."""


@frozen(kw_only=True)
class Finding:
    """An observation that violates a rule. `message`: what was demanded, what happened, what to do."""

    place: Place
    event: Event
    message: str


@define(eq=False)
class Checker:
    """Judges one replay against one rule; derive and implement `observe` or `observe_migration`.

    Call `hold` when an observation exercised the rule and is fine, `violate` when it is not.
    """

    alike: ClassVar[bool] = False
    """Hypercalls with the same vCPU, mode, CPL, number, first two arguments and outcome are judged alike.

    Whatever else of a hypercall and of `Context.setup` the checker remembers, the same hypercall right after
    another one like it changes nothing of that, unless an ioctl or a violation comes between. That need not
    hold while the checker isn't `settled`.
    """

    unlike: ClassVar[frozenset[int]] = frozenset()
    """Numbers of hypercalls that are not judged alike all the same."""

    alike_args: ClassVar[bool] = True
    """Whether arguments count at all: without, hypercalls that differ in arguments alone are alike, too."""

    context: Context
    exercised: int = field(default=0, init=False)
    findings: list[Finding] = field(factory=list, init=False)
    violations: int = field(default=0, init=False)

    def observe(self, observation: Observation) -> None:
        """Look at one observation."""
        raise NotImplementedError

    @property
    def settled(self) -> bool:
        """Whether no hypercall matters just because it comes next."""
        return True

    def observe_migration(self, migration: Migration) -> None:
        """Look at the migration of the replay's VM after the last event."""
        raise NotImplementedError

    def hold(self) -> None:
        """The rule was exercised and held here."""
        self.exercised += 1

    def violate(self, observation: Observation, message: str) -> None:
        """The rule was exercised and violated here."""
        self.exercised += 1
        self.violations += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(
                Finding(place=observation.place, event=brief(observation.event), message=message)
            )


@frozen(kw_only=True)
class Rule:
    """A conformance rule.

    `id`: stable, "family.what-it-demands". `title`: one sentence that states the demand. `citation`: kernel
    function, commit and version, or the section of a specification. `explanation`: why, for people who see
    it fail. `advice`: what to do then. `sees`: what `checker` wants to observe.
    `exercised_by`: what must happen for a verdict, as a noun phrase.
    """

    id: str
    title: str
    level: Level
    judges: Judged
    citation: str
    explanation: str
    advice: str
    checker: Callable[[Context], Checker]
    sees: tuple[Seen, ...]
    exercised_by: str = ""


@frozen(kw_only=True)
class Verdict:
    """How a rule came out for one replay."""

    rule: Rule
    state: State
    exercised: int = 0
    """Observations that the rule was judged by."""
    violations: int = 0
    findings: tuple[Finding, ...] = ()
    """The first violations."""
    reason: str = ""
    """Why it was not exercised."""
