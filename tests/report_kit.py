"""Reports to try things on."""

from __future__ import annotations

from typing import Any, Final

from pytest_xenkvm.report.results import JsonObject, merge

RULES: Final = {"vcpu-id.unique": "MUST", "vcpu-id.unset-forwards": "MUST", "demo.advised": "SHOULD"}
"""Rules that the reports know, with their levels; the first of them is the later one of the bundled."""

FINDING: Final = {
    "event": 3,
    "line": 5,
    "after": False,
    "vcpu": 1,
    "words": "stop(vcpu=1) -> -ENOSYS",
    "message": "was refused",
}
DIVERGENCE: Final = {
    "event": 2,
    "line": 4,
    "vcpu": None,
    "kind": "ret",
    "expected": -22,
    "observed": 0,
    "recorded": "set = -EINVAL",
    "happened": "set = 0",
}


def rule(name: str) -> JsonObject:
    """A rule as a report lists it."""
    return {
        "rule": name,
        "title": f"{name} | demands.",
        "level": RULES[name],
        "judges": "vmm",
        "citation": "Paper, section 1",
        "explanation": "Because.",
        "advice": "Do.",
    }


def verdict(name: str, state: str, times: int = 4, violations: int = 1) -> JsonObject:
    """How a rule came out."""
    return {
        "rule": name,
        "state": state,
        "level": RULES[name],
        "judges": "vmm",
        "exercised": 0 if state == "not-exercised" else times,
        "violations": violations if state == "violated" else 0,
        "findings": [FINDING] if state == "violated" else [],
        "reason": "nothing exercises it" if state == "not-exercised" else "",
    }


def replay(trace: str = "a.xkt", verdicts: dict[str, str] | None = None, **other: Any) -> JsonObject:
    """A replay in which rules came out like this."""
    return {
        "trace": trace,
        "parameters": "",
        "path": f"traces/{trace}",
        "version": "0.1.0",
        "engine": "model",
        "profile": "linux-7.3",
        "vmm": None,
        "header": None,
        "events": 5,
        "hypercalls": 2,
        "unjudged": 0,
        "inferred": 0,
        "divergences_total": 0,
        "divergences": [],
        "verdicts": [verdict(name, state) for name, state in (verdicts or {}).items()],
        "errors": [],
        **other,
    }


def diverged(count: int = 1) -> dict[str, Any]:
    """What a replay has that diverged."""
    return {"divergences_total": count, "divergences": [DIVERGENCE]}


def failed(error: str = "the VMM raised") -> dict[str, Any]:
    """What a replay has that did not come to its end."""
    unknown = ("profile", "events", "hypercalls", "unjudged", "inferred", "divergences_total")
    return {**dict.fromkeys(unknown), "errors": [error]}


def report(*replays: JsonObject) -> JsonObject:
    """A report of these replays."""
    return merge([{"rules": [rule(name) for name in RULES], "replays": replays}])
