"""The item `replay`: everything that was recorded happens again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from small_traces import ANSWERED, DIVERGING, HEADER, write

Run = Callable[..., pytest.RunResult]


def test_a_divergence_is_shown(traces: Path, run_anyhow: Run) -> None:
    """A failed replay names the event, both sides in words, what came before, and how to see it again."""
    write(traces / "good.xkt", *DIVERGING)
    result = run_anyhow("-k", "replay")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*replay of traces/good.xkt*",
            "good.xkt: 1 divergence from the recording on linux-7.3",
            "event 2 (line 4), vCPU 1: ret differs",
            "  recorded: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = -EINVAL (-22)",
            "  observed: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = 0",
            "  ret: expected -EINVAL (-22), observed 0",
            "see how it came to the first: xenkvm replay traces/good.xkt --until 3",
            "run this again: pytest traces/good.xkt::replay",
        ],
        consecutive=False,
    )
    result.stdout.fnmatch_lines(["FAILED traces/good.xkt::replay - Failed: good.xkt: 1 divergence*"])
    result.stdout.no_fnmatch_line("*items.py*")


def test_the_command_to_run_it_again_is_complete(
    tmp_path_factory: pytest.TempPathFactory, project: pytest.Pytester, run: Run
) -> None:
    """For a trace outside of rootdir the command names the trace, and works."""
    path = write(tmp_path_factory.mktemp("elsewhere") / "a b.xkt", *DIVERGING)
    del project
    command = f"pytest '--xenkvm-trace={path}' 'a b.xkt::replay'"
    run(f"--xenkvm-trace={path}").stdout.fnmatch_lines([f"run this again: {command}"])
    run(f"--xenkvm-trace={path}", "a b.xkt::replay").assert_outcomes(failed=1)


def test_a_broken_trace_is_a_collection_error(traces: Path, run_anyhow: Run) -> None:
    """A file that is no trace is an error of collection: one sentence, no traceback."""
    (traces / "bad.xkt").write_bytes(b"\x7fELF" * 9)
    result = run_anyhow()
    assert result.ret in {pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED}  # xdist runs the rest
    result.stdout.fnmatch_lines(["*traces/bad.xkt: is neither JSON Lines nor xkt*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*collect.py*")


def test_an_event_that_is_broken_fails_the_replay(traces: Path, run: Run) -> None:
    """An error deeper in the file fails the first item in one sentence, and the rest is skipped."""
    path = write(traces / "late.jsonl", *ANSWERED)
    path.write_text(path.read_text() + '{"ev":"nonsense"}\n')
    result = run(path)
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines([f"{path}, line 7, event 5: *"])
    result.stdout.no_fnmatch_line("*Error*")


def test_a_trace_of_hypercalls_needs_a_vmm(traces: Path, run: Run) -> None:
    """A trace without the VMM's side fails without a VMM behaviour, whichever items are selected."""
    write(traces / "good.xkt", *ANSWERED[3:], header=evolve(HEADER, scope="hypercalls"))
    for selected in ("replay", "answered"):
        result = run("-k", selected)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*hypercalls only*replay it with a VMM behaviour*"])
