"""One item a trace: `--xenkvm-items=trace`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, DIVERGING, REFUSED, RULES, write

Run = Callable[..., pytest.RunResult]

WHOLE = "--xenkvm-items=trace"
IDLE_VMM = """
from pytest_xenkvm.vmm import Vmm


@pytest.fixture
def xenkvm_vmm():
    return Vmm()
"""


def test_a_trace_is_one_item(traces: Path, collect: Callable[..., list[str]]) -> None:
    """Each trace has the item `all` and no other."""
    write(traces / "other.xkt", *ANSWERED)
    assert collect(traces, WHOLE) == ["traces/good.xkt::all", "traces/other.xkt::all"]


def test_the_setting_of_the_ini_file(
    project: pytest.Pytester, traces: Path, collect: Callable[..., list[str]]
) -> None:
    """The ini file may say it, and the option goes before."""
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nxenkvm_items = trace\n")
    assert collect(traces) == ["traces/good.xkt::all"]
    assert len(collect(traces, "--xenkvm-items=rule")) == 4


def test_another_kind_is_a_usage_error(traces: Path, run: Run) -> None:
    """The message says what there is."""
    result = run(traces, "--xenkvm-items=file")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --xenkvm-items: there is no 'file' (known: auto, rule, trace)"])


def test_all_held_passes(traces: Path, run_anyhow: Run) -> None:
    """The item passes, and the block at the end counts its rules."""
    result = run_anyhow(traces, WHOLE)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["replayed 1 trace: 5 events, 2 hypercalls", "rules: 2 held, 0 violated, 1 not exercised"]
    )


def test_violations_fail_together(traces: Path, run: Run) -> None:
    """The failure holds each violated MUST as its own item would, and one command that runs it again."""
    write(traces / "good.xkt", *REFUSED)
    result = run(traces, WHOLE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "demo.answered (MUST): event 3 (line 5), vCPU 1: VCPUOP_stop_singleshot_timer(vcpu=1) -> *",
            "demo.answered (MUST): violated 1 of 2 times",
            "run this again: pytest traces/good.xkt::all",
        ]
    )
    result.stdout.no_fnmatch_line("demo.advised*")
    strict = run(traces, WHOLE, "--xenkvm-strict")
    strict.stdout.fnmatch_lines(["demo.answered (MUST): violated*", "demo.advised (SHOULD): violated*"])


def test_a_divergence_fails_beside_violations(traces: Path, run: Run) -> None:
    """Divergences come first, with both sides."""
    write(traces / "good.xkt", *DIVERGING, REFUSED[-1])
    result = run(traces, WHOLE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "1 divergence; demo.answered (MUST): *",
            "*VCPU_ID, vcpu_id=1) = -EINVAL*",
            "demo.answered*violated*",
        ]
    )


def test_only_a_violated_should_is_expected_to_fail(traces: Path, run: Run) -> None:
    """Without a violated MUST the item is an xfail that says which SHOULD."""
    write(traces / "good.xkt", *REFUSED)
    result = run(traces, WHOLE, "--xenkvm-rules=demo.advised", "-rx")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *good.xkt::all - *demo.advised (SHOULD): event 3*"])


def test_nothing_exercised_is_skipped(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """With a VMM and rules that had nothing to judge, nothing was checked."""
    project.makeconftest(RULES + IDLE_VMM)
    result = run(traces, WHOLE, "--xenkvm-rules=demo.msr", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * not exercised: nothing was compared, and no rule *"])
