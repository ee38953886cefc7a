"""The items of rules: held, violated or not exercised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import REFUSED, RULES, write

Run = Callable[..., pytest.RunResult]


def test_held_passes_and_not_exercised_is_skipped(traces: Path, run_anyhow: Run) -> None:
    """A rule that held passes; one that nothing exercised is skipped with the reason, never passed."""
    result = run_anyhow("-v", "-rs", traces)
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*traces/good.xkt::demo.answered*",
            "SKIPPED [[]1] traces/good.xkt:1: not exercised: nothing in the trace exercises it (demo.msr)",
        ]
    )


def test_a_violated_rule_fails(traces: Path, run_anyhow: Run) -> None:
    """The failure names rule, level, source, every finding with event, vCPU and call, and the advice."""
    write(traces / "good.xkt", *REFUSED)
    result = run_anyhow()
    result.assert_outcomes(passed=1, failed=1, xfailed=1, skipped=1)
    call = "VCPUOP_stop_singleshot_timer(vcpu=1) -> forwarded to the VMM, which answered -ENOSYS (-38)"
    result.stdout.fnmatch_lines(
        [
            f"demo.answered (MUST): event 3 (line 5), vCPU 1: {call}",
            "demo.answered (MUST): violated 1 of 2 times",
            "  Calls are answered.",
            "  source: Paper, section 1",
            f"  event 3 (line 5), vCPU 1: {call}",
            "    vCPU 1 got no answer",
            "  why: Guests wait for an answer.",
            "  advice: Answer.",
            "run this again: pytest traces/good.xkt::demo.answered",
        ]
    )
    result.stdout.fnmatch_lines(["FAILED traces/good.xkt::demo.answered - *demo.answered (MUST): event 3*"])
    result.stdout.no_fnmatch_line("*items.py*")


def test_a_violated_should_is_expected_to_fail(traces: Path, run: Run) -> None:
    """A violated SHOULD is an xfail; `--xenkvm-strict` and `--runxfail` make it a failure."""
    write(traces / "good.xkt", *REFUSED)
    result = run("-rx", "-k", "advised")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *demo.advised - *demo.advised (SHOULD): event 3 (line 5), vCPU 1: *"])
    for option in ("--xenkvm-strict", "--runxfail"):
        run("-k", "advised", option).assert_outcomes(failed=1)


def test_a_known_violation_may_be_marked(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """A conftest.py may mark an item as xfail, as it may any test."""
    write(traces / "good.xkt", *REFUSED)
    project.makeconftest(
        RULES
        + "def pytest_collection_modifyitems(items):\n"
        + "    for item in items:\n"
        + "        if item.name == 'demo.answered':\n"
        + "            item.add_marker(pytest.mark.xfail(reason='known', strict=True))\n"
    )
    run("-k", "answered").assert_outcomes(xfailed=1)


def test_many_findings_are_cut_short(traces: Path, run: Run) -> None:
    """Of many findings the first ten are shown and the others counted."""
    write(traces / "good.xkt", *REFUSED, *(REFUSED[3] for _ in range(120)))
    result = run("-k", "answered")
    result.stdout.fnmatch_lines(["demo.answered (MUST): violated 121 of 122 times", "  ... and 111 more"])
    assert result.stdout.str().count("    vCPU 1 got no answer") == 10
