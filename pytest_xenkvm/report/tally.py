"""What all replays of a report come to: which rules held, and the verdict that gives a badge its colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

ERROR: Final = "error"
FAILED: Final = "failed"
ADVISED: Final = "advised"
HELD: Final = "held"
NOTHING: Final = "nothing"
"""Verdicts, worst first; `_verdict` says which is when."""

_COUNTS: Final = ("events", "hypercalls", "unjudged")


@frozen(kw_only=True)
class RuleTally:
    """How one rule came out over all replays."""

    level: str
    """MUST if it is that in any replay."""
    held: int
    """Replays that it held in."""
    violated: int
    not_exercised: int

    @property
    def state(self) -> str:
        """Violated if violated in any replay, held if held in any and violated in none."""
        if self.violated:
            return "violated"
        return "held" if self.held else "not-exercised"


def rule_tallies(replays: Iterable[Mapping[str, Any]]) -> dict[str, RuleTally]:
    """The rules that any replay has a verdict of, by id; in the order in which they come."""
    verdicts: dict[str, list[Mapping[str, Any]]] = {}
    for replay in replays:
        for verdict in replay["verdicts"]:
            verdicts.setdefault(verdict["rule"], []).append(verdict)
    return {rule: _tally(found) for rule, found in verdicts.items()}


def _tally(verdicts: Sequence[Mapping[str, Any]]) -> RuleTally:
    states = [verdict["state"] for verdict in verdicts]
    return RuleTally(
        level="MUST" if any(verdict["level"] == "MUST" for verdict in verdicts) else "SHOULD",
        held=states.count("held"),
        violated=states.count("violated"),
        not_exercised=states.count("not-exercised"),
    )


def summary(replays: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `summary` of a report with these replays."""
    rules = rule_tallies(replays)
    states = [rule.state for rule in rules.values()]
    ended = [replay for replay in replays if replay["events"] is not None]
    counted = {
        "replays": len(ended),
        **{name: sum(replay[name] for replay in ended) for name in _COUNTS},
        "divergences": sum(replay["divergences_total"] or 0 for replay in replays),
        "errors": sum(len(replay["errors"]) for replay in replays),
    }
    return {
        "verdict": _verdict(rules.values(), counted),
        "rules": {state: states.count(state) for state in ("held", "violated", "not-exercised")},
        **counted,
    }


def _verdict(rules: Iterable[RuleTally], counted: Mapping[str, int]) -> str:
    levels = {rule.level for rule in rules if rule.violated}
    if counted["errors"]:
        return ERROR
    if counted["divergences"] or "MUST" in levels:
        return FAILED
    if levels:
        return ADVISED
    return HELD if any(rule.held for rule in rules) else NOTHING


def headline(report: Mapping[str, Any]) -> str:
    """A report in a few words: `23/24 rules · linux-7.3`: rules held, of those that were exercised.

    What makes it fail besides rules stands before them: errors, and traces that diverge.
    """
    total, replays = report["summary"], report["replays"]
    rules, parts = total["rules"], []
    if total["errors"]:
        parts.append(many(total["errors"], "error"))
    diverged = len({replay["trace"] for replay in replays if replay["divergences_total"]})
    if diverged:
        parts.append(f"{many(diverged, 'trace')} diverged")
    exercised = rules["held"] + rules["violated"]
    parts.append(f"{rules['held']}/{exercised} rules" if exercised else "no rule exercised")
    kernels = sorted({replay["profile"] for replay in replays if replay["profile"]})
    if kernels:
        parts.append(", ".join(kernels) if len(kernels) < 3 else f"{len(kernels)} kernels")  # noqa: PLR2004 - fits
    return " · ".join(parts)


def many(count: int, what: str) -> str:
    """`1 error`, `2,000 errors`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def label(replay: Mapping[str, Any]) -> str:
    """What a replay is called: the trace, as node ids have it, with the parameters of its fixtures."""
    return f"{replay['trace']}{replay['parameters']}"


def where(found: Mapping[str, Any]) -> str:
    """Where a finding or divergence stands: `event 12 (line 14), vCPU 1`."""
    event = found["event"]
    place = f"event {event} (line {found['line']})" if event >= 0 else "before the first event"
    if found.get("after"):
        place = f"after {place}"
    return place if found["vcpu"] is None else f"{place}, vCPU {found['vcpu']}"


def outcome(verdict: Mapping[str, Any]) -> str:
    """A verdict in words: `violated 1 of 2 times`."""
    match verdict["state"]:
        case "held":
            return f"held {many(verdict['exercised'], 'time')}"
        case "violated":
            return f"violated {verdict['violations']:,} of {many(verdict['exercised'], 'time')}"
    return f"not exercised: {verdict['reason']}"
