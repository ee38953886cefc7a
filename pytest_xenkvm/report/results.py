"""Results of many replays as one report, whoever replayed which part of them where.

A report is a JSON document (schema/report-1.json). So are its parts: what one pytest item has to tell is a
report of one replay with at most one verdict, and adding part after part gives the report of a run. The order
in which they are added makes no difference, nor does adding one twice.

Two replays are one if all of `FACTS` are the same. Of what differs otherwise the worst is kept: merging never
hides a violation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import define, field

from pytest_xenkvm.report.tally import summary
from pytest_xenkvm.rules.bundled import BUNDLED

FORMAT: Final = "xenkvm-report"
VERSION: Final = 1

JsonObject = dict[str, Any]
Report = Mapping[str, Any]
"""A document that fits the schema."""

FACTS: Final = (
    "trace",
    "parameters",
    "profile",
    "engine",
    "vmm",
    "version",
    "header",
    "events",
    "hypercalls",
    "unjudged",
    "inferred",
)
"""What tells replays apart, and orders them."""

_BADNESS: Final = {"not-exercised": 0, "held": 1, "violated": 2}
_BUNDLED: Final = {rule.id: number for number, rule in enumerate(BUNDLED)}


@define(eq=False)
class Results:
    """Collects reports, whole ones and parts, into one."""

    _rules: dict[str, JsonObject] = field(factory=dict, init=False)
    _replays: dict[str, _Replay] = field(factory=dict, init=False)

    def add(self, report: Report) -> None:
        """Take in a report, or the `rules` and `replays` of one."""
        for rule in report["rules"]:
            known = self._rules.setdefault(rule["rule"], rule)
            if known != rule:
                self._rules[rule["rule"]] = min(known, rule, key=_canonical)
        for replay in report["replays"]:
            key = _canonical([replay[fact] for fact in FACTS])
            if key not in self._replays:
                self._replays[key] = _Replay(dict(replay))
            self._replays[key].add(replay)

    def report(self) -> JsonObject:
        """The report of all that was added."""
        replays = [replay.entry() for _key, replay in sorted(self._replays.items())]
        rules = sorted(self._rules.values(), key=_rule_order)
        return {
            "format": FORMAT,
            "version": VERSION,
            "summary": summary(replays),
            "rules": rules,
            "replays": replays,
        }


def merge(reports: Iterable[Report]) -> JsonObject:
    """One report of several."""
    results = Results()
    for report in reports:
        results.add(report)
    return results.report()


def report_bytes(report: Report) -> bytes:
    """A report as a file holds it; the same report gives the same bytes."""
    return f"{json.dumps(report, indent=1)}\n".encode()


@define(eq=False)
class _Replay:
    """What is known of one replay."""

    entry_: JsonObject
    verdicts: dict[str, JsonObject] = field(factory=dict, init=False)
    errors: set[str] = field(factory=set, init=False)

    def add(self, other: JsonObject) -> None:
        mine = self.entry_
        mine["path"] = min(mine["path"], other["path"])
        self.errors.update(other["errors"])
        if _divergence(other) > _divergence(mine):
            mine |= {name: other[name] for name in ("divergences_total", "divergences")}
        if "timeline" in other and mine.get("timeline") != other["timeline"]:
            timelines = (entry["timeline"] for entry in (mine, other) if "timeline" in entry)
            mine["timeline"] = max(timelines, key=_canonical)
        for verdict in other["verdicts"]:
            known = self.verdicts.setdefault(verdict["rule"], verdict)
            if known != verdict:
                self.verdicts[verdict["rule"]] = worst(known, verdict)

    def entry(self) -> JsonObject:
        """The replay as it stands in a report."""
        verdicts = sorted(self.verdicts.values(), key=_rule_order)
        return {**self.entry_, "verdicts": verdicts, "errors": sorted(self.errors)}


def _divergence(replay: JsonObject) -> tuple[int, str]:
    total = replay["divergences_total"]
    return (-1, "") if total is None else (total, _canonical(replay["divergences"]))


def worst(*verdicts: JsonObject) -> JsonObject:
    """Of verdicts of one rule the one that is kept: violated before held before not exercised."""
    return max(verdicts, key=_badness)


def _badness(verdict: JsonObject) -> tuple[int, int, int, str]:
    return _BADNESS[verdict["state"]], verdict["violations"], verdict["exercised"], _canonical(verdict)


def _rule_order(named: JsonObject) -> tuple[int, str]:
    """Bundled rules in their order, then others by id."""
    rule: str = named["rule"]
    return _BUNDLED.get(rule, len(_BUNDLED)), rule


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
