"""Divergences and verdicts as lines of text: for pytest's failures and for the command line.

Functions return lines without line ends. What they say about a trace is safe for a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from textwrap import wrap
from typing import Any, Final, Literal

from pytest_xenkvm.replay.observation import Divergence, Place
from pytest_xenkvm.rules.model import Finding, State, Verdict
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import anything, hexadecimal, register_result, result, text
from pytest_xenkvm.trace.events import Event, Hypercall

MAX_SHOWN: Final = 10
"""Divergences of a replay, or findings of a verdict, that are shown unless the caller says otherwise."""

Role = Literal["good", "bad", "note", "dim"]
Style = Callable[[str, Role], str]
"""Dresses up a piece of a line by the role that it plays."""

_MAX_VALUE: Final = 200
_MAX_MESSAGE: Final = 1000
_WIDTH: Final = 100
"""Columns of explaining text."""

_STATE_ROLES: Final[Mapping[State, Role]] = {
    State.HELD: "good",
    State.VIOLATED: "bad",
    State.NOT_EXERCISED: "note",
}


def plain(piece: str, role: Role) -> str:
    """Leave it as it is: the style without colours."""
    del role
    return piece


def place_words(place: Place, event: Event) -> str:
    """Where an event stands: `event 12 (line 14), vCPU 1`."""
    vcpu = getattr(event, "vcpu", None)
    where = f"event {place.index} (line {place.line})" if place.index >= 0 else "before the first event"
    if place.after:
        where = f"after {where}"
    return where if vcpu is None else f"{where}, vCPU {vcpu}"


def divergence_lines(divergence: Divergence, style: Style = plain) -> list[str]:
    """Both sides of a divergence in words, the outcome that differs, what the vCPU did just before."""
    expected, observed = (_value(divergence, value) for value in (divergence.expected, divergence.observed))
    headline = f"{place_words(divergence.place, divergence.recorded)}: {divergence.kind} differs"
    lines = [style(headline, "bad"), f"  recorded: {event_words(divergence.recorded)}"]
    if divergence.happened != divergence.recorded:
        lines.append(f"  observed: {event_words(divergence.happened)}")
    lines.append(f"  {divergence.kind}: expected {expected}, observed {observed}")
    if divergence.preceding:
        lines.append(style("  just before it:", "dim"))
        lines += (
            style(f"    event {place.index}: {event_words(event)}", "dim")
            for place, event in divergence.preceding
        )
    return lines


def divergences_lines(result: ReplayResult, style: Style = plain, limit: int = MAX_SHOWN) -> list[str]:
    """How many divergences a replay has, and the first `limit` of them."""
    count = result.divergence_count
    if result.vmm is not None:
        return [
            f"{result.trace}: replayed on {result.profile} with VMM {result.vmm}, whose answers are its own"
        ]
    if not count:
        return [f"{result.trace}: {style('no divergence', 'good')} on {result.profile}"]
    headline = f"{count} divergence{_s(count)} from the recording on {result.profile}"
    shown = (divergence_lines(divergence, style) for divergence in result.divergences)
    return [f"{result.trace}: {style(headline, 'bad')}", *_some(shown, count, limit)]


def finding_lines(finding: Finding, style: Style = plain) -> list[str]:
    """Where a rule was violated, by what, and what was demanded."""
    place = place_words(finding.place, finding.event)
    headline = style(f"{place}: {event_words(finding.event)}", "bad")
    return [headline, *_wrapped(text(finding.message, _MAX_MESSAGE))]


def verdict_line(verdict: Verdict, style: Style = plain) -> str:
    """A verdict in one line: `vcpu-id.set-on-every-vcpu (MUST): violated 1 of 2 times`."""
    words = {
        State.HELD: f"held {verdict.exercised} time{_s(verdict.exercised)}",
        State.VIOLATED: f"violated {verdict.violations} of {verdict.exercised} time{_s(verdict.exercised)}",
        State.NOT_EXERCISED: f"not exercised: {verdict.reason}",
    }[verdict.state]
    return f"{verdict.rule.id} ({verdict.rule.level.value}): {style(words, _STATE_ROLES[verdict.state])}"


def verdict_lines(verdict: Verdict, style: Style = plain, limit: int = MAX_SHOWN) -> list[str]:
    """A verdict with what the rule demands and says, and the first `limit` of its findings."""
    rule = verdict.rule
    lines = [verdict_line(verdict, style), f"  {rule.title}", style(f"  source: {rule.citation}", "dim")]
    if verdict.state is not State.VIOLATED:
        return lines
    shown = (finding_lines(finding, style) for finding in verdict.findings)
    return [
        *lines,
        *(f"  {line}" for line in _some(shown, verdict.violations, limit)),
        *_wrapped(f"why: {rule.explanation}"),
        *_wrapped(f"advice: {rule.advice}"),
    ]


def _wrapped(paragraph: str) -> list[str]:
    return wrap(paragraph, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)


def _some(groups: Iterable[Sequence[str]], count: int, limit: int) -> Iterator[str]:
    """The lines of the first `limit` groups of `count`, and how many there are besides."""
    rest = count
    for lines in islice(groups, limit):
        yield from lines
        rest -= 1
    if rest:
        yield f"... and {rest} more"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _value(divergence: Divergence, value: Any) -> str:
    """An outcome in the words of its kind."""
    if divergence.kind in {"ret", "run_ret"}:
        return result(value)
    if divergence.kind == "rax" and isinstance(divergence.recorded, Hypercall):
        return register_result(value, longmode=divergence.recorded.longmode)
    if divergence.kind == "irq":
        return _irq(value)
    return text(value, _MAX_VALUE) or "nothing" if isinstance(value, str) else anything(value, hexadecimal)


def _irq(value: Any) -> str:
    match value:
        case None:
            return "no interrupt"
        case {"vcpu": vcpu, "vector": vector}:
            return f"vector {vector:#x} on vCPU {vcpu}"
    return f"vector {value:#x}"
