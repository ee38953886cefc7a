"""Reports to make pages of: real replays with their timelines, and small ones by hand."""

from __future__ import annotations

from typing import Any, Final

from pytest_xenkvm.abi.numbers import Hypercall
from pytest_xenkvm.report.json_result import (
    counts_json,
    divergences_json,
    header_json,
    rule_json,
    verdict_json,
)
from pytest_xenkvm.report.results import Results
from pytest_xenkvm.report.timeline import TimelineObserver
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.vmm import Vmm

Report = dict[str, Any]

FAMILIES: Final = {"vcpu-id", "vcpu-id-bounds", "forwarded-timers"}
RULES: Final = tuple(
    rule for rule in BUNDLED if rule.id.split(".")[0] in FAMILIES or rule.id == "timers.are-served"
)
"""Some of each kind, whatever others come to the bundled ones."""


class Forgetful(Vmm):
    """Gives only vCPU 0 its Xen ID, and every vCPU a timer."""

    def configure(self, vm: Any) -> None:
        """Set it up."""
        vm.xen_hvm_config()
        vm.vcpus[0].set_vcpu_id(0)
        for vcpu in vm.vcpus:
            vcpu.set_timer(16 + vcpu.index)

    def on_hypercall(self, vcpu: Any, xen_exit: Any) -> int:
        """Answer nothing but physdev_op."""
        del vcpu
        return 0 if xen_exit.input == Hypercall.physdev_op else -38


def replay_report(trace: str, *, profile: str = "auto", vmm: Vmm | None = None) -> Report:
    """The report of one replay, judged by `RULES`."""
    opened = open_trace(trace)
    observer = TimelineObserver(opened.header)
    result = run_trace(opened, RULES, ReplayOptions(profile=profile, behaviour=vmm), observer)
    wrong = {divergence.place.index for divergence in result.divergences}
    wrong |= {finding.place.index for verdict in result.verdicts for finding in verdict.findings}
    replay = {
        **replay_json(opened.name),
        "profile": result.profile,
        "vmm": result.vmm,
        "header": header_json(opened.header),
        **counts_json(result),
        **divergences_json(result),
        "verdicts": [verdict_json(verdict) for verdict in result.verdicts],
        "timeline": observer.as_json(wrong),
    }
    return report_of(replay, rules=[rule_json(rule) for rule in RULES])


def replay_json(trace: str, **more: Any) -> dict[str, Any]:
    """A replay of a report, of which nothing is known unless `more` says so."""
    return {
        "trace": trace,
        "parameters": "",
        "path": trace,
        "version": "1.0",
        "engine": "model",
        "profile": "linux-7.3",
        "vmm": None,
        "header": None,
        **dict.fromkeys(("events", "hypercalls", "unjudged", "inferred"), 1),
        "divergences_total": 0,
        "divergences": [],
        "verdicts": [],
        "errors": [],
        **more,
    }


def report_of(*replays: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> Report:
    """A report of these replays."""
    results = Results()
    results.add({"rules": rules or [], "replays": list(replays)})
    return results.report()


def merged(*reports: Report) -> Report:
    """One report of several."""
    results = Results()
    for report in reports:
        results.add(report)
    return results.report()


NASTY: Final = (
    "</script><script>document.title='owned'</script><!--<img src=x onerror=alert(1)>\u2028&amp;.xkt"
)
"""A trace's name that would be a page's end if it were taken for HTML."""


def nasty_report() -> Report:
    """Names, messages and words that look like HTML wherever a trace has a say."""
    rule = {
        **dict.fromkeys(("title", "citation", "explanation", "advice"), NASTY),
        "rule": "bad.rule",
        "level": "MUST",
        "judges": "vmm",
    }
    place = {"event": 0, "line": 2, "vcpu": None}
    finding = {**place, "after": False, "words": NASTY, "message": NASTY}
    divergence = {
        **place,
        "kind": "mem",
        "expected": NASTY,
        "observed": (1 << 64) - 38,
        "recorded": NASTY,
        "happened": NASTY,
    }
    verdict = {
        **{name: rule[name] for name in ("rule", "level", "judges")},
        "state": "violated",
        "exercised": 1,
        "violations": 1,
        "findings": [finding],
        "reason": "",
    }
    replay = replay_json(
        NASTY,
        verdicts=[verdict],
        divergences=[divergence],
        divergences_total=1,
        errors=[NASTY],
        timeline=small_timeline(2, NASTY),
    )
    return report_of(replay, rules=[rule])


def small_timeline(vcpus: int, name: str = "VCPUOP_up") -> dict[str, Any]:
    """A timeline with a hypercall for each vCPU."""
    kinds = [{"id": "kernel", "label": "Hypercall in the kernel", "tracks": ["kernel"]}]
    return {
        "version": 1,
        "timed": False,
        "events": vcpus,
        "end_ns": vcpus * 1000,
        "unseen": ["irq"],
        "lanes": [
            {"kind": "vcpu", "label": f"vCPU {vcpu}", "index": vcpu, "id": vcpu} for vcpu in range(vcpus)
        ],
        "kinds": kinds,
        "rows": [[vcpu, 0, name, "0", 0] for vcpu in range(vcpus)],
        "marks": vcpus + 7,
        "gaps": [[vcpus, 7]],
        "tick_ns": 1000,
        "t": [1] * vcpus,
        "event": [0] + [1] * (vcpus - 1),
        "row": list(range(vcpus)),
        "ahead_ns": [],
        "ahead": [],
    }
