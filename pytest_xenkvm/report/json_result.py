"""The result of a replay as one JSON object (`xenkvm replay --json`)."""

from __future__ import annotations

from typing import Any

from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.rules.model import Verdict
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.decode import event_words


def result_json(result: ReplayResult) -> dict[str, Any]:
    """A JSON-serialisable object. Event numbers count from 0, lines from 1 (the header is line 1)."""
    return {
        "trace": result.trace,
        "profile": result.profile,
        "vmm": result.vmm,
        "events": result.events,
        "hypercalls": result.hypercalls,
        "unjudged": result.unjudged,
        "inferred": result.inferred,
        "divergences_total": result.divergence_count,
        "divergences": [_divergence(divergence) for divergence in result.divergences],
        "verdicts": [_verdict(verdict) for verdict in result.verdicts],
    }


def _divergence(divergence: Divergence) -> dict[str, Any]:
    return {
        "event": divergence.place.index,
        "line": divergence.place.line,
        "kind": divergence.kind,
        "expected": divergence.expected,
        "observed": divergence.observed,
        "recorded": event_words(divergence.recorded),
        "happened": event_words(divergence.happened),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "rule": verdict.rule.id,
        "state": verdict.state.value,
        "level": verdict.rule.level.value,
        "judges": verdict.rule.judges.value,
        "exercised": verdict.exercised,
        "violations": verdict.violations,
        "events": [finding.place.index for finding in verdict.findings],
        "findings": [
            {"event": finding.place.index, "line": finding.place.line, "message": finding.message}
            for finding in verdict.findings
        ],
        "reason": verdict.reason,
    }
