"""A probe's history judged by the rules that it names, and the part of a report that it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Context, Rule, State, Verdict

from .vm import ProbeVm

_RULES: Final = {rule.id: rule for rule in BUNDLED}


def named_rules(ids: Iterable[str]) -> tuple[Rule, ...]:
    """The rules with these ids; raises KeyError for one that there isn't."""
    return tuple(_RULES[name] for name in ids)


def verdicts(rules: Sequence[Rule], vms: Iterable[ProbeVm]) -> tuple[Verdict, ...]:
    """What the rules say of what was done to some VMs: of several verdicts the worst."""
    found: dict[str, list[Verdict]] = {rule.id: [] for rule in rules}
    for vm in vms:
        for verdict in _judged(rules, vm):
            found[verdict.rule.id].append(verdict)
    return tuple(_worst(rule, found[rule.id]) for rule in rules)


def _judged(rules: Sequence[Rule], vm: ProbeVm) -> tuple[Verdict, ...]:
    context = Context(header=vm.header, max_vcpus=vm.max_vcpus, vmm_under_test=False)
    judge = Judge(tuple(rules), context)
    for observation in vm.told:
        judge.observe(observation)
    if judge.sees_migrations:
        judge.observe_migration(vm.migrator.migrate(Place(len(vm.told) - 1, after=True)))
    return judge.verdicts()


_BADNESS: Final = {State.NOT_EXERCISED: 0, State.HELD: 1, State.VIOLATED: 2}


def _worst(rule: Rule, found: Sequence[Verdict]) -> Verdict:
    if not found:
        return Verdict(rule=rule, state=State.NOT_EXERCISED, reason="the probe came to no VM")
    return max(found, key=lambda verdict: _BADNESS[verdict.state])


def disagreement(found: Iterable[Verdict]) -> str:
    """Why a probe that is content must not be: a rule that it names isn't, or had nothing to judge."""
    lines: list[str] = []
    for verdict in found:
        if verdict.state is State.NOT_EXERCISED:
            lines.append(f"rule {verdict.rule.id} was not exercised by its probe: {verdict.reason}")
        elif verdict.state is State.VIOLATED:
            lines.append(f"rule {verdict.rule.id} is violated: {verdict.rule.title}")
            lines += [f"  {finding.message}" for finding in verdict.findings]
    return "\n".join(lines)
