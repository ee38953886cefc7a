"""`xenkvm diff`: where two traces, or two replays of one, part, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click
from attrs import fields

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import watched
from pytest_xenkvm.cli.selection import Selection, parse_hypercalls, parse_kinds
from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.profiles import AUTO, choose_profile
from pytest_xenkvm.rules.run import ReplayOptions, observe_trace
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.files import Trace, open_trace
from pytest_xenkvm.traceops.diff import Comparison, Difference, How, Step, recorded_steps, replayed_steps
from pytest_xenkvm.vmm.load import BehaviourError, load_behaviour

DIFFERENT_EXIT: Final = 1
_SHOWN: Final = 5
_TWO: Final = 2
_COLUMNS: Final = (("same", None), *((how.value, how) for how in How))

_EPILOG: Final = """\b
Examples:
  xenkvm diff before.xkt after.xkt                                    two recordings of the same scenario
  xenkvm diff boot.xkt --profile linux-7.2 --profile linux-7.3        one trace on two kernels
  xenkvm diff boot.xkt --vmm qemu --vmm my_vmm:MyVmm                  one guest on two VMMs
  xenkvm diff a.xkt b.xkt --kind hypercall --vcpu 1                   one vCPU's hypercalls only
  xenkvm diff a.xkt b.xkt --json | jq .summary                        for programs

Times, inferred marks, unknown keys and the header aren't compared; the header's differences are told. Events
that go together were done by the same vCPU under the same name; in the summary, "arguments" counts pairs that
differ in what was passed, "outcome" those that differ only in what came of it.

Exit codes, as diff's: 0 the same, 1 different, 2 trouble (the reason is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help=f"Replay on this kernel ({', '.join(PROFILES)}, ...); twice for one trace on two.",
)
@click.option(
    "--vmm",
    "vmms",
    multiple=True,
    metavar="VMM",
    help="Replay with this VMM behaviour, as for xenkvm replay; twice for one trace with two.",
)
@click.option("--vcpu", type=click.IntRange(0), metavar="N", help="Only events of the vCPU with index N.")
@click.option("--kind", callback=parse_kinds, metavar="KIND,...", help="Only events of these kinds.")
@click.option("--hypercall", callback=parse_hypercalls, metavar="NAME,...", help="Only these hypercalls.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=_SHOWN,
    show_default=True,
    metavar="N",
    help="Differences to print, from the first on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def diff(  # noqa: PLR0913 - an argument an option
    ctx: click.Context,
    /,
    *,
    a: str,
    b: str | None,
    profiles: tuple[str, ...],
    vmms: tuple[str, ...],
    limit: int,
    as_json: bool,
    vcpu: int | None,
    kind: frozenset[str],
    hypercall: frozenset[Any],
) -> None:
    """Compare A with B (files, or @NAME), or two replays of A."""
    selection = Selection(vcpu=vcpu, kinds=kind, hypercalls=hypercall)
    try:
        sides = _sides(a, b, profiles, vmms)
        a_steps, b_steps = (_selected(side, selection) for side in sides)
        comparison = Comparison(watched(a_steps, "events compared"), b_steps)
        shown = [item for number, item in enumerate(comparison.differences()) if number < limit]
    except (ReplayError, HostError, BehaviourError) as error:
        raise UserError(f"{a}: {error}") from error
    except (TraceError, OSError, UserError):
        raise
    except Exception as error:
        if not vmms:
            raise
        raise UserError(f"{a}: a VMM behaviour raised {type(error).__name__}: {error}") from error
    headers = [] if b is None else list(_header_differences(*(side.trace.header for side in sides)))
    if as_json:
        click.echo(json.dumps(_as_json(sides, headers, comparison, shown)))
    else:
        for line in _lines(sides, headers, comparison, shown):
            click.echo(line)
    if comparison.found:
        ctx.exit(DIFFERENT_EXIT)


class _Side:
    """A trace, or a replay of it if there is a profile or a VMM."""

    def __init__(self, trace: str, profile: str | None, vmm: str | None) -> None:
        self.trace: Trace = open_trace(trace)
        self.profile = profile
        self.vmm = vmm
        how = []
        if profile is not None or vmm is not None:
            how.append(f"on {choose_profile(profile or AUTO, self.trace.header).name}")
        if vmm is not None:
            how.append(f"with VMM {vmm}")
        self.name = " ".join([text(trace, 1000), *how])

    def steps(self) -> Iterator[Step]:
        if self.profile is None and self.vmm is None:
            return recorded_steps(self.trace.events())
        behaviour = None if self.vmm is None else load_behaviour(self.vmm)
        options = ReplayOptions(profile=self.profile or AUTO, behaviour=behaviour)
        return replayed_steps(observe_trace(self.trace, options))


def _selected(side: _Side, selection: Selection) -> Iterator[Step]:
    return (step for step in side.steps() if selection.admits(step.event))


def _sides(a: str, b: str | None, profiles: Sequence[str], vmms: Sequence[str]) -> tuple[_Side, _Side]:
    for option, given in (("--profile", profiles), ("--vmm", vmms)):
        if len(given) > _TWO:
            raise UserError(f"{option} was given {len(given)} times, expected two at most")
    if b is None and _TWO not in {len(profiles), len(vmms)}:
        raise UserError("expected two traces, or one with two --profile or two --vmm to compare its replays")
    one, other = (
        [(list(given) * _TWO)[index] if given else None for given in (profiles, vmms)]
        for index in range(_TWO)
    )
    return _Side(a, *one), _Side(a if b is None else b, *other)


def _header_differences(a: Header, b: Header) -> Iterator[tuple[str, Any, Any]]:
    for attribute in fields(Header):
        one, other = getattr(a, attribute.name), getattr(b, attribute.name)
        if one != other:
            yield attribute.name, one, other


def _lines(
    sides: Sequence[_Side],
    headers: Sequence[tuple[str, Any, Any]],
    comparison: Comparison,
    shown: Sequence[Difference],
) -> Iterator[str]:
    yield click.style(f"--- A: {sides[0].name}", fg="red")
    yield click.style(f"+++ B: {sides[1].name}", fg="green")
    yield from (f"header: {name} is {text(str(a), 200)} | {text(str(b), 200)}" for name, a, b in headers)
    if not comparison.found:
        yield f"the same: {comparison.same:,} events"
        return
    if comparison.before:
        yield click.style("the last that both have:", dim=True)
    for step in comparison.before:
        yield click.style(f"  {_words(step)}", dim=True)
    for difference in shown:
        if difference.a is not None:
            yield click.style(f"- {_words(difference.a)}", fg="red")
        if difference.b is not None:
            yield click.style(f"+ {_words(difference.b)}", fg="green")
    if comparison.found > len(shown):
        yield f"... and {comparison.found - len(shown):,} more differences"
    yield ""
    yield from _table(comparison)
    yield f"{comparison.found:,} differences, {comparison.same:,} events the same"


def _words(step: Step) -> str:
    place = f"event {step.index} (line {step.index + 2})" if step.index >= 0 else "before the first event"
    vcpu = getattr(step.event, "vcpu", None)
    whose = "" if vcpu is None else f", vCPU {vcpu}"
    also = f" [{text('; '.join(step.also), 200)}]" if step.also else ""
    return f"{place}{whose}: {event_words(step.event)}{also}{' (by the VMM)' if step.by_vmm else ''}"


def _table(comparison: Comparison) -> Iterator[str]:
    """A row for each label that differs, the most different first."""
    rows = [
        (label, [counts[column] for _, column in _COLUMNS])
        for label, counts in comparison.counts.items()
        if any(counts[how] for how in How)
    ]
    rows.sort(key=lambda row: (-sum(row[1][1:]), row[0]))
    width = max(len("event"), *(len(label) for label, _ in rows))
    yield "  ".join([f"{'event':{width}}", *(f"{name:>9}" for name, _ in _COLUMNS)])
    for label, numbers in rows:
        yield "  ".join([f"{label:{width}}", *(f"{number:>9}" for number in numbers)])


def _as_json(
    sides: Sequence[_Side],
    headers: Sequence[tuple[str, Any, Any]],
    comparison: Comparison,
    shown: Sequence[Difference],
) -> dict[str, Any]:
    return {
        "a": sides[0].name,
        "b": sides[1].name,
        "header": {name: [str(a), str(b)] for name, a, b in headers},
        "same": comparison.same,
        "differences_total": comparison.found,
        "differences": [
            {"how": each.how.value, "a": _step_json(each.a), "b": _step_json(each.b)} for each in shown
        ],
        "summary": [
            {"event": label, **{name: counts[column] for name, column in _COLUMNS}}
            for label, counts in comparison.counts.items()
        ],
    }


def _step_json(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    vcpu = getattr(step.event, "vcpu", None)
    words = event_words(step.event)
    return {
        "event": step.index,
        "line": step.index + 2,
        "vcpu": vcpu,
        "words": words,
        "also": list(step.also),
        "by_vmm": step.by_vmm,
    }
