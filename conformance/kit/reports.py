"""What a probe has to tell badge and reports: a replay of its own, with the verdicts of its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_xenkvm.plugin.results import part_of_probe
from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.report.json_result import header_json, rule_json, verdict_json
from pytest_xenkvm.trace.events import Hypercall

if TYPE_CHECKING:
    import pytest

    from .hosts import Builder


def probe_part(builder: Builder, item: pytest.Item, call: pytest.CallInfo[None]) -> str:
    """The part of a report: what was done, which demands weren't met, how its rules came out."""
    unmet = builder.probe.unmet
    errors = []
    if call.excinfo is not None and not unmet and not builder.disagreement():
        errors = [f"{call.excinfo.typename}: {call.excinfo.value}"]
    told = [observation.event for vm in builder.vms for observation in vm.told]
    verdicts = builder.verdicts() if builder.vms else ()
    facts = {
        "profile": builder.profile.name,
        "engine": builder.xen_host.host.name,
        "header": header_json(builder.vms[0].header) if builder.vms else None,
        "events": len(told) + sum(scenario.events for scenario in builder.replayed),
        "hypercalls": sum(isinstance(event, Hypercall) for event in told)
        + sum(scenario.hypercalls for scenario in builder.replayed),
        "unjudged": 0,
        "inferred": 0,
        "divergences_total": len(unmet),
        "divergences": [
            {
                "event": found.event,
                "line": Place(found.event).line,
                "vcpu": found.vcpu,
                "kind": "demand",
                "expected": found.demanded,
                "observed": found.observed,
                "recorded": found.demanded,
                "happened": found.observed,
            }
            for found in unmet
        ],
        "verdicts": [verdict_json(verdict) for verdict in verdicts],
    }
    return part_of_probe(item.nodeid, facts, [rule_json(verdict.rule) for verdict in verdicts], errors)
