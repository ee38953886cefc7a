"""A replay's result as JSON and back: whole, and trusted no more than any other file.

What is written is known to come back equal. What is read is checked value by value, as a trace is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_xenkvm.replay.observation import Divergence, Place
from pytest_xenkvm.report.text import divergences_lines, verdict_lines
from pytest_xenkvm.rules.model import MAX_FINDINGS, Finding, Rule, State, Verdict
from pytest_xenkvm.rules.run import MAX_DIVERGENCES, ReplayResult
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.fields import decode_event, encode_event
from pytest_xenkvm.trace.values import Unfit

_COUNTS: Final = ("events", "hypercalls", "unjudged", "inferred", "divergence_count")
_TAGS: Final[Mapping[type, str]] = {tuple: "tuple", list: "list", bytes: "bytes", dict: "dict"}


class Unstorable(ValueError):
    """A result that JSON can't hold, or JSON that holds no result."""


def result_text(result: ReplayResult) -> str:
    """The result as JSON, without the trace's name; raises Unstorable for one that would not come back."""
    rules = tuple(verdict.rule for verdict in result.verdicts)
    try:
        content = {
            "profile": result.profile,
            **{name: getattr(result, name) for name in _COUNTS},
            "divergences": [_divergence(divergence) for divergence in result.divergences],
            "verdicts": [_verdict(verdict) for verdict in result.verdicts],
        }
        text = json.dumps(content, separators=(",", ":"))
    except (Unfit, TypeError, ValueError, KeyError) as error:
        raise Unstorable(str(error)) from error
    if result_of_text(text, result.trace, result.profile, rules) != result:
        raise Unstorable("it would come back as another")
    return text


def result_of_text(text: str, trace: str, profile: str, rules: Sequence[Rule]) -> ReplayResult:
    """The result of `trace` by its name, on that profile and by those rules; raises Unstorable."""
    try:
        result = _result(json.loads(text), trace, rules)
        _check_words(result)
    except (Unfit, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unstorable(f"is no result: {error}") from error
    if result.profile != profile:
        raise Unstorable("is that of another profile")
    return result


def _result(content: Mapping[str, Any], trace: str, rules: Sequence[Rule]) -> ReplayResult:
    counts = {name: _count(content[name]) for name in _COUNTS}
    divergences = tuple(_as_divergence(each) for each in content["divergences"])
    _expect(len(divergences) == min(counts["divergence_count"], MAX_DIVERGENCES))
    verdicts = tuple(_as_verdict(*pair) for pair in zip(content["verdicts"], rules, strict=True))
    return ReplayResult(
        trace=trace,
        profile=_text(content["profile"]),
        vmm=None,
        divergences=divergences,
        verdicts=verdicts,
        **counts,
    )


def _check_words(result: ReplayResult) -> None:
    """All that people are told can be told."""
    divergences_lines(result, limit=MAX_DIVERGENCES)
    for verdict in result.verdicts:
        verdict_lines(verdict, limit=MAX_FINDINGS)


# ---- the parts


def _divergence(divergence: Divergence) -> dict[str, Any]:
    return {
        "place": _place(divergence.place),
        "kind": divergence.kind,
        "expected": _value(divergence.expected),
        "observed": _value(divergence.observed),
        "recorded": _event(divergence.recorded),
        "happened": _event(divergence.happened),
        "preceding": [[_place(place), _event(event)] for place, event in divergence.preceding],
    }


def _as_divergence(content: Mapping[str, Any]) -> Divergence:
    return Divergence(
        place=_as_place(content["place"]),
        kind=_text(content["kind"]),
        expected=_as_value(content["expected"]),
        observed=_as_value(content["observed"]),
        recorded=_as_event(content["recorded"]),
        happened=_as_event(content["happened"]),
        preceding=tuple((_as_place(place), _as_event(event)) for place, event in content["preceding"]),
    )


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "rule": verdict.rule.id,
        "state": verdict.state.value,
        "exercised": verdict.exercised,
        "violations": verdict.violations,
        "findings": [
            [_place(finding.place), _event(finding.event), finding.message] for finding in verdict.findings
        ],
        "reason": verdict.reason,
    }


def _as_verdict(content: Mapping[str, Any], rule: Rule) -> Verdict:
    _expect(content["rule"] == rule.id)
    verdict = Verdict(
        rule=rule,
        state=State(content["state"]),
        exercised=_count(content["exercised"]),
        violations=_count(content["violations"]),
        findings=tuple(
            Finding(place=_as_place(place), event=_as_event(event), message=_text(message))
            for place, event, message in content["findings"]
        ),
        reason=_text(content["reason"]),
    )
    exercised = verdict.state is not State.NOT_EXERCISED
    _expect(bool(verdict.exercised) is exercised and bool(verdict.reason) is not exercised)
    _expect(bool(verdict.violations) is (verdict.state is State.VIOLATED))
    _expect(verdict.violations <= verdict.exercised)
    _expect(len(verdict.findings) == min(verdict.violations, MAX_FINDINGS))
    return verdict


def _place(place: Place) -> list[Any]:
    return [place.index, place.after]


def _as_place(content: Any) -> Place:
    index, after = content
    _expect(type(index) is int and type(after) is bool)
    return Place(index, after=after)


def _event(event: Event) -> list[Any]:
    return [event.kind, _value(encode_event(event, text=False))]


def _as_event(content: Any) -> Event:
    kind, members = content
    return decode_event(kind, _as_value(members))


def _value(value: Any) -> Any:
    """A value of a trace; what JSON has no name for is a list whose first entry names it."""
    tag = _TAGS.get(type(value))
    if tag is None:
        _expect(value is None or type(value) in {bool, int, str})
        return value
    if tag == "bytes":
        return [tag, value.hex()]
    if tag == "dict":
        return [tag, *([_text(key), _value(entry)] for key, entry in value.items())]
    return [tag, *map(_value, value)]


def _as_value(content: Any) -> Any:
    if not isinstance(content, list):
        _expect(content is None or type(content) in {bool, int, str})
        return content
    tag, *entries = content
    if tag == "bytes":
        (digits,) = entries
        return bytes.fromhex(digits)
    if tag == "dict":
        return {_text(key): _as_value(entry) for key, entry in entries}
    _expect(tag in {"tuple", "list"})
    values = map(_as_value, entries)
    return tuple(values) if tag == "tuple" else list(values)


def _count(value: Any) -> int:
    _expect(type(value) is int and value >= 0)
    counted: int = value
    return counted


def _text(value: Any) -> str:
    _expect(type(value) is str)
    text: str = value
    return text


def _expect(fits: bool) -> None:  # noqa: FBT001 - the whole sentence is the argument
    if not fits:
        raise Unfit("is not what was written")
