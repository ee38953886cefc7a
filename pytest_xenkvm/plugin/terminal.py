"""The block at the end of pytest's report.

All that it says is read from the reports of items, which travel from xdist's workers to the controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

_STATES: Final = {"held": "held", "violated": "violated", "not-exercised": "not exercised"}


_VERDICT: Final = "xenkvm_verdict"
"""What the names of properties begin with that say how a rule came out."""


def write_summary(terminal: pytest.TerminalReporter) -> None:
    """Write how much was replayed and how the rules came out; nothing if no trace was replayed."""
    traces: dict[str, dict[str, Any]] = {}
    verdicts: Counter[str] = Counter()
    replayed_now: set[str] = set()
    for properties in _items(terminal):
        if "xenkvm_events" in properties:
            traces[properties["xenkvm_trace"]] = properties
            if not properties["cached"]:
                replayed_now.add(properties["xenkvm_trace"])
        verdicts.update(str(value) for name, value in properties.items() if name.startswith(_VERDICT))
    if not traces:
        return
    events, hypercalls, unjudged = (
        sum(trace[f"xenkvm_{name}"] for trace in traces.values())
        for name in ("events", "hypercalls", "unjudged")
    )
    replayed = f"{_many(len(traces), 'trace')}: {_many(events, 'event')}, {_many(hypercalls, 'hypercall')}"
    unseen = f", {_many(unjudged, 'outcome')} not judged (not seen by the recording)" if unjudged else ""
    terminal.section("xenkvm")
    terminal.line(f"replayed {replayed}{unseen}")
    if len(replayed_now) < len(traces):
        terminal.line(f"cached: {len(traces) - len(replayed_now)} of them (--xenkvm-no-cache replays all)")
    vmms = dict.fromkeys(trace["xenkvm_vmm"] for trace in traces.values() if "xenkvm_vmm" in trace)
    if vmms:
        terminal.line(f"VMM{'' if len(vmms) == 1 else 's'} under test: {', '.join(vmms)}")
    for place in dict.fromkeys(trace.get("xenkvm_vmm_fixture") for trace in traces.values()):
        if place is not None:
            option = f"--xenkvm-vmm={terminal.config.option.xenkvm_vmm}"
            words = f"{option} had no effect where the fixture xenkvm_vmm in {place} counts, which is nearer"
            terminal.line(words, yellow=True)
    if verdicts.keys() & _STATES.keys():
        terminal.line(f"rules: {', '.join(f'{verdicts[state]} {words}' for state, words in _STATES.items())}")


def _items(terminal: pytest.TerminalReporter) -> Iterator[dict[str, Any]]:
    """The properties of each item of a trace that ran."""
    for reports in terminal.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                properties = dict(report.user_properties)
                if "xenkvm_trace" in properties:
                    properties["cached"] = getattr(report, "xenkvm_cached", False)
                    yield properties


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
