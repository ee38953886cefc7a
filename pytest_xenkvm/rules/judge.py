"""Shows the observations of one replay to the rules that want them, and collects the verdicts.

Real guests make the same hypercall over and over. Checkers that say so (`Checker.alike`) judge a hypercall
like an earlier one in the same way, as long as the VMM sets nothing up and no rule is violated in between:
from the third time on, what the second one came to is counted once more, and no observation is made.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import Factory, define, evolve, field, frozen

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN_HCALL, U32_MAX
from pytest_xenkvm.replay.migration import Migration
from pytest_xenkvm.replay.observation import Observation, Repeats
from pytest_xenkvm.rules.model import (
    Checker,
    Context,
    Hypercalls,
    Ioctls,
    Judged,
    Rule,
    Seen,
    State,
    Verdict,
)
from pytest_xenkvm.rules.tracking import Setup
from pytest_xenkvm.trace.events import LEAST_POINTER, Event, Hypercall, Ioctl

_MAX_ALIKE: Final = 4096
"""Hypercalls that are remembered: a guest may make any number of different ones."""


@define(eq=False)
class _Effect(Repeats):
    """What a hypercall came to: which checkers it exercised, and how often it came again."""

    exercised: tuple[Checker, ...] = ()


@frozen
class _Watchers:
    """Who is shown hypercalls of a kind."""

    checkers: tuple[Checker, ...]
    alike: bool
    """Whether all of them judge like ones alike."""
    args: bool
    """Whether the first two arguments make hypercalls unlike."""

    @classmethod
    def of(cls, checkers: tuple[Checker, ...], number: int) -> _Watchers:
        alike = all(checker.alike and number not in checker.unlike for checker in checkers)
        return cls(checkers, alike, any(checker.alike_args for checker in checkers))

    def judge_alike(self, event: Hypercall) -> bool:
        """Whether this one may be judged like others; not by a pointer, as one object stands for any."""
        second = event.args[1]
        by_pointer = self.args and isinstance(second, int) and second >= LEAST_POINTER
        return self.alike and not by_pointer


@define
class Judge:
    """Feeds observations to rules and collects the verdicts; an `Audience` of a replay."""

    rules: tuple[Rule, ...]
    context: Context
    _checkers: dict[str, Checker] = field(init=False)
    _watchers: dict[Seen, tuple[Checker, ...]] = Factory(dict)
    """By kind of event, and by those of `Ioctls` and `Hypercalls` that rules name."""
    _of_vmm: frozenset[int] = field(init=False)
    """Identities of the checkers of rules about the VMM."""
    _calls: dict[tuple[int, bool], _Watchers] = Factory(dict)
    """Who is shown a hypercall, by number and by whether it was forwarded."""
    _alike: dict[Hashable, _Effect | None] = Factory(dict)
    """What hypercalls came to the second time; None: seen once."""
    _unwatched: Repeats = Factory(Repeats)
    """Counts hypercalls that no rule looks at."""

    def __attrs_post_init__(self) -> None:
        applicable = [rule for rule in self.rules if not self.context.inapplicable(rule)]
        self._checkers = {rule.id: rule.checker(self.context) for rule in applicable}
        vmm_rules = (rule for rule in applicable if rule.judges is Judged.VMM)
        self._of_vmm = frozenset(id(self._checkers[rule.id]) for rule in vmm_rules)
        for rule in applicable:
            for seen in rule.sees:
                if (
                    isinstance(seen, (Ioctls, Hypercalls))
                    and seen.under_test
                    and not self.context.vmm_under_test
                ):
                    continue
                self._watchers[seen] = (*self._watchers.get(seen, ()), self._checkers[rule.id])

    @property
    def sees_migrations(self) -> bool:
        """Whether any rule wants the VM to be migrated."""
        return Migration in self._watchers

    def wants(self, event: Event) -> bool:
        """Whether a rule looks at such an event, or it sets something up."""
        if isinstance(event, Ioctl) and event.name in Setup.LEARNS_FROM:
            return True
        return not event.inferred and bool(self._find(event))

    def wants_call(self, event: Hypercall) -> bool:
        """Whether a rule must look at this hypercall, which came out as recorded."""
        if event.inferred:
            return False
        effect = self.repeats(event)
        if effect is None:
            return bool(self._who_sees(event).checkers)
        effect.times += 1
        return False

    def recall(self, event: Hypercall) -> None:
        """It will be observed: don't count it besides."""
        effect = self.repeats(event)
        if effect is not None:
            effect.times -= 1

    def repeats(self, event: Hypercall) -> Repeats | None:
        """What such a hypercall comes to, if that is known."""
        if event.inferred or not _is_plain(event):
            return None
        watchers = self._who_sees(event)
        if not watchers.judge_alike(event):
            return None
        return self._alike.get(_key(event, args=watchers.args)) if watchers.checkers else self._unwatched

    def observe(self, observation: Observation) -> None:
        """Show an observation to the rules that want its event.

        Inferred events are shown to none: nothing is judged by what nobody saw. What they set up counts.
        What a VMM behaviour does to the VM that it migrates the replay's to is shown to rules about the VMM;
        `Context.setup` then is that VM's, and `Context.source` that of the replay's VM.
        """
        event = observation.event
        if observation.place.after and self.context.source is None:
            self._change_context(evolve(self.context, setup=Setup(), source=self.context.setup))
        if isinstance(event, Hypercall):
            if not event.inferred:
                self._observe_call(observation, event, self._who_sees(event))
        elif not event.inferred:
            for checker in self._find(event):
                if not observation.place.after or id(checker) in self._of_vmm:
                    checker.observe(observation)
        if isinstance(event, Ioctl) and event.name in Setup.LEARNS_FROM:
            self._forget()
            self.context.setup.learn(event)

    def _observe_call(self, observation: Observation, event: Hypercall, watchers: _Watchers) -> None:
        checkers = watchers.checkers
        violations = self._violations(checkers)
        exercised = [checker.exercised for checker in checkers]
        for checker in checkers:
            checker.observe(observation)
        if self._violations(checkers) != violations or not all(checker.settled for checker in checkers):
            self._forget()
        elif (
            watchers.judge_alike(event)
            and _is_plain(event)
            and not (observation.unjudged or observation.divergences)
        ):
            counted = zip(checkers, exercised, strict=True)
            came_to = [(checker, checker.exercised - before) for checker, before in counted]
            self._remember(_key(event, args=watchers.args), came_to)

    def _remember(self, key: Hashable, exercised: list[tuple[Checker, int]]) -> None:
        """Remember what a hypercall came to, if the same one came to something before."""
        if key not in self._alike:
            if len(self._alike) >= _MAX_ALIKE:
                self._forget()
            self._alike[key] = None
        elif self._alike[key] is None:
            repeated = (checker for checker, times in exercised for _ in range(times))
            self._alike[key] = _Effect(exercised=tuple(repeated))

    def _forget(self) -> None:
        """Count what came again, and judge everything anew from here on."""
        for effect in self._alike.values():
            if effect is not None:
                effect.valid = False
                for checker in effect.exercised:
                    checker.exercised += effect.times
        self._alike.clear()

    def _violations(self, watchers: tuple[Checker, ...]) -> int:
        return sum(checker.violations for checker in watchers)

    def _who_sees(self, event: Hypercall) -> _Watchers:
        key = number, _forwarded = event.nr & U32_MAX, event.handled == "userspace"
        found = self._calls.get(key)
        if found is None:
            found = _Watchers.of(self._find(event), number)
            if len(self._calls) < _MAX_ALIKE:
                self._calls[key] = found
        return found

    def _find(self, event: Event) -> tuple[Checker, ...]:
        """The checkers that are shown such an event, each once; they may have no hash."""
        shown = (checkers for seen, checkers in self._watchers.items() if _is_shown(seen, event))
        return tuple({id(checker): checker for checkers in shown for checker in checkers}.values())

    def observe_migration(self, migration: Migration) -> None:
        """Show the migration that ends the replay to the rules that want it."""
        if self.context.source is not None:
            self._change_context(evolve(self.context, setup=self.context.source, source=None))
        for checker in self._watchers.get(Migration, ()):
            checker.observe_migration(migration)

    def _change_context(self, context: Context) -> None:
        """From now on another VM is observed."""
        self._forget()
        self.context = context
        for checker in self._checkers.values():
            checker.context = context

    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts, in the order of the rules."""
        self._forget()
        return tuple(self._verdict(rule) for rule in self.rules)

    def _verdict(self, rule: Rule) -> Verdict:
        checker = self._checkers.get(rule.id)
        if checker is None:
            reason = self.context.inapplicable(rule)
            return Verdict(rule=rule, state=State.NOT_EXERCISED, reason=reason)
        if not checker.exercised:
            reason = "nothing in the trace exercises it"
            if rule.exercised_by:
                reason += f"; that takes {rule.exercised_by}"
            return Verdict(rule=rule, state=State.NOT_EXERCISED, reason=reason)
        return Verdict(
            rule=rule,
            state=State.VIOLATED if checker.violations else State.HELD,
            exercised=checker.exercised,
            violations=checker.violations,
            findings=tuple(checker.findings),
        )


def _is_shown(seen: Seen, event: Event) -> bool:
    match seen:
        case Ioctls(names, refused):
            return isinstance(event, Ioctl) and event.name in names and (event.ret < 0 or not refused)
        case Hypercalls(numbers, forwarded, _under_test):
            return (
                isinstance(event, Hypercall)
                and (numbers is None or event.nr & U32_MAX in numbers)
                and (event.handled == "userspace" or not forwarded)
            )
    return type(event) is seen


def _is_plain(event: Hypercall) -> bool:
    """Whether a hypercall shows nothing but its registers: its KVM_EXIT_XEN, if any, held just these."""
    if event.extra:
        return False
    left = event.exit
    return left is None or (
        left.params == event.args
        and (left.type, left.longmode, left.cpl, left.input)
        == (KVM_EXIT_XEN_HCALL, event.longmode, event.cpl, event.nr)
    )


def _key(event: Hypercall, *, args: bool) -> Hashable:
    """What checkers that say `alike` may look at in a hypercall."""
    first = event.args[:2] if args else ()
    return (event.vcpu, event.nr, first, event.rax, event.handled, event.longmode, event.cpl)
