"""Results as JSON: what `xenkvm replay --json` prints, and what a report's replays and rules are made of.

docs/reference/report-format.md describes the objects. Event numbers count from 0, lines from 1 (the header is
line 1).
"""

from __future__ import annotations

from typing import Any

from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.rules.model import Finding, Rule, Verdict
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.events import Event, Header

JsonObject = dict[str, Any]


def result_json(result: ReplayResult) -> JsonObject:
    """All of a result; a JSON-serialisable object."""
    return {
        "trace": result.trace,
        "profile": result.profile,
        "vmm": result.vmm,
        **counts_json(result),
        **divergences_json(result),
        "verdicts": [
            {**verdict_json(verdict), "events": [finding.place.index for finding in verdict.findings]}
            for verdict in result.verdicts
        ],
    }


def counts_json(result: ReplayResult) -> JsonObject:
    """How much was replayed."""
    return {
        "events": result.events,
        "hypercalls": result.hypercalls,
        "unjudged": result.unjudged,
        "inferred": result.inferred,
    }


def header_json(header: Header) -> JsonObject:
    """What a trace says of its recording; None where it doesn't."""
    return {
        "kernel": header.kernel,
        "recorder": header.recorder,
        "cpu_vendor": header.cpu_vendor,
        "scope": header.scope,
        "max_vcpus": header.max_vcpus,
        "vcpus": None if header.vm is None else len(header.vm.vcpus),
    }


def divergences_json(result: ReplayResult) -> JsonObject:
    """How many outcomes differ from the recording, and the first of them."""
    return {
        "divergences_total": result.divergence_count,
        "divergences": [_divergence(divergence) for divergence in result.divergences],
    }


def _divergence(divergence: Divergence) -> JsonObject:
    return {
        "event": divergence.place.index,
        "line": divergence.place.line,
        "vcpu": _vcpu(divergence.recorded),
        "kind": divergence.kind,
        "expected": divergence.expected,
        "observed": divergence.observed,
        "recorded": event_words(divergence.recorded),
        "happened": event_words(divergence.happened),
    }


def rule_json(rule: Rule) -> JsonObject:
    """What a rule demands, and why."""
    return {
        "rule": rule.id,
        "title": rule.title,
        "level": rule.level.value,
        "judges": rule.judges.value,
        "citation": rule.citation,
        "explanation": rule.explanation,
        "advice": rule.advice,
    }


def verdict_json(verdict: Verdict) -> JsonObject:
    """How a rule came out; `rule_json` has the rest about the rule."""
    return {
        "rule": verdict.rule.id,
        "state": verdict.state.value,
        "level": verdict.rule.level.value,
        "judges": verdict.rule.judges.value,
        "exercised": verdict.exercised,
        "violations": verdict.violations,
        "findings": [_finding(finding) for finding in verdict.findings],
        "reason": verdict.reason,
    }


def _finding(finding: Finding) -> JsonObject:
    return {
        "event": finding.place.index,
        "line": finding.place.line,
        "after": finding.place.after,
        "vcpu": _vcpu(finding.event),
        "words": event_words(finding.event),
        "message": finding.message,
    }


def _vcpu(event: Event) -> int | None:
    vcpu: int | None = getattr(event, "vcpu", None)
    return vcpu
