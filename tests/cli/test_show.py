"""`xenkvm show`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_xenkvm.cli.main import run

HEADER: Final[dict[str, Any]] = {
    "format": "xenkvm-trace",
    "version": 1,
    "kernel": "7.3.0-test",
    "max_vcpus": 1024,
    "cpu_vendor": "amd",
    "recorder": "test",
    "scope": "full",
    "vm": {
        "irqchip": "split",
        "memory": [{"gpa": 0, "size": 4 << 20}],
        "vcpus": [{"index": 0, "id": 0}, {"index": 1, "id": 2}],
    },
    "notes": "two vCPUs\x1b[2J",
}


def hypercall(
    vcpu: int, nr: int, *args: int, handled: str = "kernel", rax: int = 0, **more: Any
) -> dict[str, Any]:
    """A hypercall's JSON object."""
    registers = [*args, *[0] * (6 - len(args))]
    event = {"ev": "hypercall", "vcpu": vcpu, "longmode": True, "cpl": 0, "nr": nr, "args": registers}
    event["handled"] = handled
    if handled == "userspace":
        event["exit"] = {"type": 1, "longmode": 1, "cpl": 0, "input": nr, "params": registers}
    return {**event, "rax": rax, **more}


EVENTS: Final[list[dict[str, Any]]] = [
    {
        "ev": "ioctl",
        "name": "KVM_XEN_VCPU_SET_ATTR",
        "vcpu": 1,
        "arg": {"type": 6, "vcpu_id": 1},
        "ret": 0,
        "ts": 0,
    },
    hypercall(0, 24, 8, 0, 4096, ts=1_500_000),
    hypercall(1, 24, 8, 0, 4096, rax=2**64 - 22, ts=2_000_000),
    hypercall(1, 0x1_0018, 9, ts=2_100_000),
    hypercall(0, 17, 1, 4096, handled="userspace", rax=2**64 - 38, ts=2_500_000),
    {"ev": "mem", "op": "write", "gpa": 4096, "data": "01", "inferred": True},
    {"ev": "wrmsr", "vcpu": 0, "longmode": True, "msr": 0x4000_0000, "value": 1, "ok": False},
    {"ev": "wait", "ns": 1000, "ts": 3_000_000},
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A small trace with an event of each sort that options can select."""
    return write_trace(tmp_path / "small.jsonl", HEADER, EVENTS)


def write_trace(path: Path, header: dict[str, Any], events: list[dict[str, Any]]) -> Path:
    """Write a JSON Lines trace."""
    path.write_text("".join(f"{json.dumps(obj)}\n" for obj in [header, *events]), encoding="utf-8")
    return path


def shown(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    """What `xenkvm show` prints for these arguments, line by line."""
    assert run(["show", *map(str, args)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_a_trace_in_words(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A summary of the header, then one line an event: index, line, time, vCPU, action and outcome."""
    assert shown(capsys, trace) == [
        "# host kernel 7.3.0-test, KVM_MAX_VCPUS 1024, amd, recorder test, scope full",
        "# VM: irqchip split, 4 MiB, vCPUs 0 (id 0), 1 (id 2)",
        "# two vCPUs\\x1b[2J",
        "#event   line  ms since start  vCPU  what happened",
        "     0      2           0.000     1  KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = 0",
        (
            "     1      3           1.500     0  VCPUOP_set_singleshot_timer(vcpu=0, arg=0x1000)"
            " -> handled in the kernel: 0"
        ),
        (
            "     2      4           2.000     1  VCPUOP_set_singleshot_timer(vcpu=0, arg=0x1000)"
            " -> handled in the kernel: -EINVAL (-22)"
        ),
        (
            "     3      5           2.100     1  hypercall 0x10018(a0=0x9, a1=0x0, a2=0x0,"
            " a3=0x0, a4=0x0, a5=0x0) -> handled in the kernel: 0"
        ),
        (
            "     4      6           2.500     0  XENVER_extraversion(arg=0x1000)"
            " -> forwarded to the VMM, which answered -ENOSYS (-38)"
        ),
        "     5      7               -     -  mem write 0x1000: 01  (inferred)",
        "     6      8               -     0  wrmsr 0x40000000 = 0x1 (#GP)",
        "     7      9           3.000     -  wait 1 us",
    ]


@pytest.mark.parametrize(
    ("options", "indexes"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6, 7]),
        (["--vcpu", "1"], [0, 2, 3]),
        (["--kind", "mem, wait"], [5, 7]),
        (["--hypercall", "vcpu_op"], [1, 2]),
        (["--hypercall", "24,XENVER_extraversion"], [1, 2, 4]),
        (["--hypercall", "vcpuop_SET_singleshot_timer"], [1, 2]),
        (["--hypercall", "VCPUOP_stop_singleshot_timer"], []),
        (["--hypercall", "0x11"], [4]),
        (["--forwarded"], [4]),
        (["--handled"], [1, 2, 3]),
        (["--failed"], [2, 4, 6]),
        (["--failed", "--vcpu", "0", "--kind", "hypercall"], [4]),
        (["--inferred"], [5]),
        (["--from", "6"], [6, 7]),
        (["--to", "1"], [0, 1]),
        (["--from", "2", "--to", "3"], [2, 3]),
        (["--from", "3", "--to", "2"], []),
        (["--grep", "einval"], [2]),
        (["--grep", "(#GP)"], [6]),
    ],
)
def test_options_select(
    trace: Path, options: list[str], indexes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option keeps the events that it names, and several keep those that all of them name."""
    lines = [line for line in shown(capsys, trace, *options) if not line.startswith("#")]
    assert [int(line.split()[0]) for line in lines] == indexes


def test_a_truncated_sub_operation_is_selected_by_what_kvm_makes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0x100000008 is VCPUOP_set_singleshot_timer to KVM, but 0x100000004 is no EVTCHNOP_send."""
    events = [hypercall(0, 24, 0x1_0000_0008), hypercall(0, 32, 0x1_0000_0004)]
    path = write_trace(tmp_path / "t.jsonl", HEADER, events)
    options = ["--hypercall", "VCPUOP_set_singleshot_timer,EVTCHNOP_send"]
    lines = [line for line in shown(capsys, path, *options) if not line.startswith("#")]
    assert [int(line.split()[0]) for line in lines] == [0]


def test_json_is_a_trace_again(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints header and selected events in the interchange format."""
    assert [json.loads(line) for line in shown(capsys, trace, "--json")] == [HEADER, *EVENTS]
    assert [json.loads(line) for line in shown(capsys, trace, "--json", "--failed")][1:] == [
        EVENTS[2],
        EVENTS[4],
        EVENTS[6],
    ]


def test_count_sums_up(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--count` counts events by kind, and hypercalls by name, who answered and whether they failed."""
    lines = [line for line in shown(capsys, trace, "--count") if not line.startswith("#")]
    assert [line.split() for line in lines] == [
        ["event", "count"],
        ["hypercall", "4"],
        ["KVM_XEN_VCPU_SET_ATTR", "1"],
        ["mem", "1"],
        ["wrmsr", "1"],
        ["wait", "1"],
        [],
        ["hypercall", "count", "kernel", "forwarded", "unknown", "failed"],
        ["VCPUOP_set_singleshot_timer", "2", "2", "0", "0", "1"],
        ["XENVER_extraversion", "1", "0", "1", "0", "1"],
        ["hypercall", "0x10018", "1", "1", "0", "0", "0"],
    ]


def test_counting_nothing(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selection without events gives an empty table, and says so."""
    assert shown(capsys, trace, "--count", "--vcpu", "7")[-1] == "(nothing)"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--hypercall", "vcpuop_set_singelshot_timer"], "did you mean VCPUOP_set_singleshot_timer"),
        (["--kind", "hypercalls"], "did you mean hypercall"),
        (["--kind", "?"], "one is ioctl"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion(
    trace: Path, options: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown hypercall or kind is a usage error that names the nearest known one."""
    assert run(["show", str(trace), *options]) == 2
    assert hint in capsys.readouterr().err


def test_a_missing_trace_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that isn't there is named on stderr, with exit code 2."""
    assert run(["show", str(tmp_path / "none.xkt")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xenkvm: ")
    assert "none.xkt" in captured.err
    assert captured.err.count("\n") == 1


def test_a_damaged_line_ends_the_output_with_its_place(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events before a damaged line are shown; the line is named on stderr, with exit code 2."""
    with trace.open("a", encoding="utf-8") as file:
        file.write('{"ev":"surprise"}\n')
    assert run(["show", str(trace)]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].endswith("wait 1 us")
    assert "line 10" in captured.err
    assert captured.err.count("\n") == 1


def test_reading_stops_after_the_last_event_asked_for(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes after `--to` is not even read."""
    with trace.open("a", encoding="utf-8") as file:
        file.write("damaged\n")
    assert shown(capsys, trace, "--to", "7")


def on_a_terminal(trace: Path, **environment: str) -> str:
    """What a terminal receives from `xenkvm show`, paged by a `less` that only copies."""
    less = trace.with_name("less")
    less.write_text("#!/bin/sh\nexec cat\n")
    less.chmod(0o755)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from pytest_xenkvm.cli.main import main; main()", "show", str(trace)]
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env = {**kept, "PAGER": str(less), "TERM": "xterm", **environment}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        received = b""
        try:
            while part := os.read(ours, 65536):
                received += part
        except OSError:  # Linux's way of saying that the other end is closed
            pass
    os.close(ours)
    return received.decode()


@pytest.mark.parametrize("times", [1, 200])
def test_colours_are_for_terminals_that_want_them(tmp_path: Path, times: int) -> None:
    """A terminal gets colours unless NO_COLOR is set, with and without the pager."""
    trace = write_trace(tmp_path / "t.jsonl", HEADER, EVENTS * times)
    assert "\x1b[31m" in on_a_terminal(trace)
    assert "\x1b[" not in on_a_terminal(trace, NO_COLOR="1")


@pytest.mark.parametrize("events", [1, 3000])
def test_a_terminal_gets_every_event(tmp_path: Path, events: int) -> None:
    """Whether it fits on the screen or goes through the pager, each event is shown once."""
    path = write_trace(tmp_path / "t.jsonl", HEADER, [{"ev": "vcpu_run", "vcpu": 0}] * events)
    assert on_a_terminal(path).count("vcpu_run") == events


def test_an_error_behind_the_pager_is_told(tmp_path: Path) -> None:
    """A damaged line that the pager reaches late still ends in one sentence, not in a traceback."""
    path = write_trace(
        tmp_path / "t.jsonl", HEADER, [{"ev": "vcpu_run", "vcpu": 0}] * 3000 + [{"ev": "surprise"}]
    )
    received = on_a_terminal(path)
    assert "Traceback" not in received
    assert "line 3002" in received
