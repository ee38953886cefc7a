"""A VMM in a process of its own takes part, and its failures are told in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

Run = Callable[..., pytest.RunResult]

ADAPTER: Final = """
import json, sys

def ask(message):
    print(json.dumps(message), flush=True)
    return json.loads(sys.stdin.readline())

BLOBS = {"blob_addr_32": 0, "blob_addr_64": 0, "blob_size_32": 0, "blob_size_64": 0}
CONFIG = {"flags": 34, "msr": 0x40000000, **BLOBS}
message = json.loads(sys.stdin.readline())
while message["type"] != "shutdown":
    if message["type"] == "start":
        message = ask({"type": "hello", "protocol": 1, "name": "mine"})
    elif message["type"] == "configure":
        ask({"type": "ioctl", "name": "KVM_XEN_HVM_CONFIG", "arg": CONFIG})
        message = ask({"type": "done"})
    elif "fail" in sys.argv:
        sys.exit("no idea what to do")
    else:
        message = ask({"type": "answer", "rax": -38 if "refuse" in sys.argv else 0})
"""


@pytest.fixture
def command(project: pytest.Pytester, traces: Path) -> str:
    """The option that names an adapter, to which arguments may be added."""
    del traces
    (project.path / "adapter.py").write_text(ADAPTER)
    return f"--xenkvm-vmm=cmd:{sys.executable} -I -S adapter.py"


def test_an_option_names_a_command(command: str, run_anyhow: Run) -> None:
    """`cmd:` and a command line name a VMM like any other, by whose own name it goes."""
    result = run_anyhow(command, "-k", "answered or replay")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["xenkvm: *VMM cmd:*"])


def test_its_violations_are_its_own(command: str, run: Run) -> None:
    """Arguments reach the program, and what it answers is judged."""
    result = run(f"{command} refuse", "-k", "answered")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*vCPU 0 got no answer*"])


def test_its_failure_is_told_in_a_sentence(command: str, run: Run) -> None:
    """An adapter's failure is no violation: one item says what it did, and nothing is judged."""
    result = run(f"{command} fail", "-rs")
    result.assert_outcomes(failed=1, skipped=3)
    sentence = (
        "the VMM adapter *adapter.py fail: exited with status 1 before it answered hypercall 24 (vcpu_op)"
    )
    result.stdout.fnmatch_lines([sentence, "The adapter's stderr ended with:", "no idea what to do"])
    result.stdout.fnmatch_lines([f"SKIPPED [[]3[]] *: not judged: {sentence}"])
    result.stdout.no_fnmatch_line("*conversation.py*")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [("cmd:", "names no command"), ("cmd:./x 'y", "is no command line: No closing quotation")],
)
def test_a_command_line_that_is_none(traces: Path, run: Run, spec: str, sentence: str) -> None:
    """Nothing to run, and a command that can't be split, are errors of usage."""
    del traces
    result = run(f"--xenkvm-vmm={spec}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{sentence}*"])
