"""Shows the observations of one replay to the rules that want them, and collects the verdicts.

Real guests make the same hypercall over and over. Checkers that say so (`Checker.alike`) judge a hypercall
like an earlier one in the same way, as long as the VMM sets nothing up and no rule is violated in between:
from the third time on, what the second one came to is counted once more, and no observation is made.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import Factory, define, evolve, field

from pytest_xenkvm.abi.numbers import U32_MAX
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
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl

_MAX_ALIKE: Final = 4096
"""Hypercalls that are remembered: a guest may make any number of different ones."""


@define(eq=False)
class _Effect(Repeats):
    """What a hypercall came to: which checkers it exercised, and how often it came again."""

    exercised: tuple[Checker, ...] = ()


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
    _calls: dict[tuple[int, bool], tuple[Checker, ...]] = Factory(dict)
    """Who is shown a hypercall, by number and by whether it was forwarded."""
    _alike: dict[Hashable, _Effect | None] = Factory(dict)
    """What hypercalls came to the second time; None: seen once."""

    def __attrs_post_init__(self) -> None:
        applicable = [rule for rule in self.rules if not self.context.inapplicable(rule)]
        self._checkers = {rule.id: rule.checker(self.context) for rule in applicable}
        vmm_rules = (rule for rule in applicable if rule.judges is Judged.VMM)
        self._of_vmm = frozenset(id(self._checkers[rule.id]) for rule in vmm_rules)
        for rule in applicable:
            for seen in rule.sees:
                if isinstance(seen, Ioctls) and seen.under_test and not self.context.vmm_under_test:
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
        return not event.inferred and bool(self._who_sees(event))

    def wants_call(self, event: Hypercall) -> bool:
        """Whether a rule must look at this hypercall, which came out as recorded."""
        if event.inferred:
            return False
        effect = self.repeats(event)
        if effect is None:
            return bool(self._who_sees(event))
        effect.times += 1
        return False

    def recall(self, event: Hypercall) -> None:
        """It will be observed: don't count it besides."""
        effect = self.repeats(event)
        if effect is not None:
            effect.times -= 1

    def repeats(self, event: Hypercall) -> Repeats | None:
        """What such a hypercall comes to, if that is known."""
        unlike = event.inferred or event.extra or event.exit is not None
        return None if unlike else self._alike.get(_key(event))

    def observe(self, observation: Observation) -> None:
        """Show an observation to the rules that want its event.

        Inferred events are shown to none: nothing is judged by what nobody saw. What they set up counts.
        What a VMM behaviour does to the VM that it migrates the replay's to is shown to rules about the VMM;
        `Context.setup` then is that VM's, and `Context.source` that of the replay's VM.
        """
        event = observation.event
        if observation.place.after and self.context.source is None:
            self._change_context(evolve(self.context, setup=Setup(), source=self.context.setup))
        if not event.inferred:
            watchers = self._who_sees(event)
            if observation.place.after:
                watchers = tuple(checker for checker in watchers if id(checker) in self._of_vmm)
            if isinstance(event, Hypercall):
                self._observe_call(observation, event, watchers)
            else:
                for checker in watchers:
                    checker.observe(observation)
        if isinstance(event, Ioctl) and event.name in Setup.LEARNS_FROM:
            self._forget()
            self.context.setup.learn(event)

    def _observe_call(
        self, observation: Observation, event: Hypercall, watchers: tuple[Checker, ...]
    ) -> None:
        violations = self._violations(watchers)
        exercised = [checker.exercised for checker in watchers]
        for checker in watchers:
            checker.observe(observation)
        if self._violations(watchers) != violations:
            self._forget()
        elif not (event.extra or event.exit or observation.unjudged or observation.divergences):
            counted = zip(watchers, exercised, strict=True)
            self._remember(event, [(checker, checker.exercised - before) for checker, before in counted])

    def _remember(self, event: Hypercall, exercised: list[tuple[Checker, int]]) -> None:
        """Remember what a hypercall came to, if the same one came to something before."""
        if not all(checker.alike for checker, _times in exercised):
            return
        key = _key(event)
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

    def _who_sees(self, event: Event) -> tuple[Checker, ...]:
        if isinstance(event, Hypercall):
            key = event.nr & U32_MAX, event.handled == "userspace"
            found = self._calls.get(key)
            if found is None:
                found = self._find(event)
                if len(self._calls) < _MAX_ALIKE:
                    self._calls[key] = found
            return found
        return self._find(event)

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
        case Hypercalls(numbers, forwarded):
            return (
                isinstance(event, Hypercall)
                and (numbers is None or event.nr & U32_MAX in numbers)
                and (event.handled == "userspace" or not forwarded)
            )
    return type(event) is seen


def _key(event: Hypercall) -> Hashable:
    """What checkers that say `alike` may look at in a hypercall without an exit."""
    args = event.args
    return (event.vcpu, event.nr, args[0], args[1], event.rax, event.handled, event.longmode, event.cpl)
