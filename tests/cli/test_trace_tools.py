"""`xenkvm diff`, `stat`, `shrink`, `convert`, `merge` and `cut`."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from pytest_xenkvm.cli.main import USAGE_EXIT, run
from pytest_xenkvm.trace.events import Event, Hypercall, Wait
from pytest_xenkvm.trace.files import bundled_traces, open_trace, write_trace
from pytest_xenkvm.trace.xkt import XktTrace, XktWriter

BOOT = "@linux-boot-1vcpu"
U64 = 1 << 64


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


Told = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Runs the command line: exit code, lines of stdout, stderr."""

    def told(*args: object) -> tuple[int, list[str], str]:
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return told


def events_of(path: str | Path) -> list[Event]:
    """All events of a trace."""
    return list(open_trace(path).events())


def tampered_boot(path: Path, index: int = 10_000) -> int:
    """A boot in which a timer call at or behind `index` is said to have been refused; the event's number."""
    trace = open_trace(BOOT)
    events = list(trace.events())
    where = next(
        i
        for i in range(index, len(events))
        if isinstance(event := events[i], Hypercall) and event.nr == 24 and event.handled == "kernel"
    )
    events[where] = evolve(events[where], rax=U64 - 22)  # type: ignore[call-arg]
    write_trace(path, trace.header, events)
    return where


# ---- convert


def test_convert_there_and_back(told: Told) -> None:
    """A trace goes to JSON Lines, plain or compressed, and back without a change."""
    code, out, err = told("convert", BOOT, "boot.jsonl.gz")
    assert (code, out, err) == (0, [], "wrote boot.jsonl.gz: 14,671 events\n")
    assert told("convert", "boot.jsonl.gz", "boot.xkt")[0] == 0
    assert Path("boot.xkt").read_bytes() == bundled_traces()[BOOT[1:]].read_bytes()


def test_convert_salvages_what_was_cut_off(told: Told) -> None:
    """Of an xkt file without an end, --salvage keeps the whole blocks; without it the file is refused."""
    whole = bundled_traces()[BOOT[1:]].read_bytes()
    Path("cut.xkt").write_bytes(whole[: len(whole) * 2 // 3])
    code, _, err = told("convert", "cut.xkt", "out.xkt")
    assert (code, Path("out.xkt").exists()) == (USAGE_EXIT, False)
    assert "is cut off" in err
    code, _, err = told("convert", "--salvage", "cut.xkt", "out.xkt")
    assert code == 0
    assert "its writer was stopped" in err
    kept = events_of("out.xkt")
    assert 0 < len(kept) < 14_671
    assert kept == events_of(BOOT)[: len(kept)]


@pytest.mark.parametrize("command", ["convert", "shrink", "cut", "merge"])
def test_outputs_are_not_replaced_unless_told(folder: Path, told: Told, command: str) -> None:
    """An output that exists, is the input, or has no trace's name is refused; --force replaces the first."""
    write_trace("in.xkt", open_trace(BOOT).header, events_of(BOOT)[:60])
    (folder / "there.xkt").write_text("mine")
    with_output: dict[str, Callable[[str], list[str]]] = {
        "convert": lambda out: ["in.xkt", out],
        "shrink": lambda out: [
            *("in.xkt", "--failing", "vcpu-id.unset-is-not-restored", "-o", out),
            *("--vmm", "broken-vcpu-id.unset-is-not-restored"),
        ],
        "cut": lambda out: ["in.xkt", "--to", "9", "-o", out],
        "merge": lambda out: ["in.xkt", "in.xkt", "-o", out],
    }
    arguments = with_output[command]
    assert told(command, *arguments("there.xkt"))[0] == USAGE_EXIT
    assert (folder / "there.xkt").read_text() == "mine"
    code, _, err = told(command, *arguments("in.xkt"), "--force")
    assert code == USAGE_EXIT
    assert "is the trace itself" in err
    code, _, err = told(command, *arguments("there.txt"))
    assert code == USAGE_EXIT
    assert "ends in .xkt, .jsonl or .jsonl.gz" in err
    assert told(command, *arguments("there.xkt"), "--force")[0] == 0
    assert open_trace("there.xkt").header.vm is not None


# ---- shrink


def test_shrink_a_divergence(told: Told) -> None:
    """A divergence after 10,000 events is left with a handful, and the command that is printed shows it."""
    where = tampered_boot(Path("bad.xkt"))
    code, out, _ = told("shrink", "bad.xkt", "--failing", "divergence")
    assert code == 0
    assert out[0] == f"bad.xkt: diverges from the recording (rax) at event {where}"
    assert out[1].startswith("14,671 -> 3 events, in ")
    assert out[1].endswith("; none can be left out")
    assert "VCPUOP_set_singleshot_timer" in out[4]
    rerun = shlex.split(out[-1].partition("rerun: ")[2])
    assert rerun == ["xenkvm", "replay", "bad.shrunk.xkt"]
    code, out, _ = told(*rerun[1:])
    assert code == 1
    assert any("rax differs" in line for line in out)
    assert len(events_of("bad.shrunk.xkt")) == 3
    assert "3 of 14671 events of bad.xkt" in open_trace("bad.shrunk.xkt").header.notes


def test_shrink_for_a_vmm(told: Told) -> None:
    """With a VMM that breaks a rule, rule, VMM and profile are in the command that shows it again."""
    rule = "hypercalls.version-is-told"
    arguments = ["--failing", rule, "--vmm", f"broken-{rule}", "--profile", "linux-7.3", "-o", "v.jsonl"]
    code, out, _ = told("shrink", BOOT, *arguments)
    assert code == 0
    rerun = shlex.split(out[-1].partition("rerun: ")[2])
    assert rerun[2:] == ["v.jsonl", "--profile", "linux-7.3", "--rules", rule, "--vmm", f"broken-{rule}"]
    assert len(events_of("v.jsonl")) == 1
    assert told(*rerun[1:])[0] == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--failing", "divergence"], "does not fail as --failing divergence says: there is no divergence"),
        (["--failing", "vcpu-id.unique"], "the rule vcpu-id.unique is not exercised on linux-6.12"),
        (["--failing", "vcpu-id"], "--failing vcpu-id names 8 rules, expected one"),
        (["--failing", "nothing"], "no rule matches 'nothing'; `xenkvm rules` lists the installed ones"),
        (["--failing", "vcpu-id.unset-forward"], "; did you mean vcpu-id.unset-forwards"),
        (["--failing", "unset-forwards"], "; did you mean vcpu-id.unset-forwards"),
        (["--failing", "divergence", "--profile", "linux-1"], "there is no profile 'linux-1'"),
        (["--failing", "error", "--vmm", "nobody"], "nobody"),
    ],
)
def test_shrink_refuses_what_does_not_fail(told: Told, arguments: list[str], what: str) -> None:
    """What can't be shrunk is told in one sentence, and nothing is written."""
    code, out, err = told("shrink", BOOT, *arguments)
    assert (code, out) == (USAGE_EXIT, [])
    assert what in err
    assert err.count("\n") == 1
    assert not list(Path().iterdir())


def test_shrink_a_vmm_that_raises(folder: Path, told: Told) -> None:
    """An exception of one's own VMM is shrunk to if asked for; otherwise it is told, and how to do so."""
    (folder / "lookup_vmm.py").write_text(
        "from pytest_xenkvm.vmm import Vmm\n"
        "class Mine(Vmm):\n"
        "    def configure(self, vm): vm.xen_hvm_config()\n"
        "    def on_hypercall(self, vcpu, xen_exit):\n"
        "        if xen_exit.input == 33: raise LookupError('no GSI')\n"
        "        return 0\n"
    )
    code, _, err = told("shrink", BOOT, "--failing", "vcpu-id.unique", "--vmm", "lookup_vmm:Mine")
    assert code == USAGE_EXIT
    assert "raised LookupError: no GSI; --failing error shrinks to what makes it raise" in err
    code, out, _ = told("shrink", BOOT, "--failing", "error", "--vmm", "lookup_vmm:Mine")
    assert code == 0
    assert "ends with LookupError: no GSI" in out[0]
    assert len(events_of("linux-boot-1vcpu.shrunk.xkt")) == 1


# ---- cut


def test_cut_by_number_and_time(told: Told) -> None:
    """A piece is cut by the numbers of events or by times, and replays as the whole did."""
    code, out, err = told("cut", BOOT, "--from", "9000", "--to", "9999", "-o", "piece.xkt")
    assert (code, out) == (0, [])
    lines = err.splitlines()
    assert lines[0].startswith("wrote piece.xkt: 1,000 events, after ")
    assert lines[1] == "replayed: every outcome is as in the whole"
    assert events_of("piece.xkt")[-1000:] == events_of(BOOT)[9000:10_000]
    assert told("replay", "piece.xkt")[0] == 0
    notes = open_trace("piece.xkt").header.notes
    assert notes.startswith(
        "Cut from event 9000 to event 9999 of linux-boot-1vcpu.xkt with the set-up before it; "
    )
    assert told("cut", BOOT, "--from", "6s", "--to", "6200ms", "--bare", "-o", "time.xkt")[0] == 0
    between = [event for event in events_of(BOOT) if 6_000_000_000 <= (event.ts or 0) <= 6_200_000_000]
    assert events_of("time.xkt") == between


def test_cut_tells_when_the_piece_diverges(told: Told) -> None:
    """A piece whose outcomes hang on what was cut away is written, told, and exit code 1."""
    golden = Path(__file__).parents[2] / "traces/golden/linux-6.12/directed/evtchn-send-ioctl.jsonl.gz"
    code, _, err = told("cut", golden, "--from", "75", "-o", "piece.xkt")
    assert code == 1
    assert "it diverges where the whole doesn't" in err
    assert "irq differs" in err
    assert Path("piece.xkt").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "nothing says what to cut"),
        (["--from", "x"], "'x' is no time: expected a number and a unit, like 4.6s"),
        (["--from", "10", "--to", "9"], "no event lies between --from and --to"),
        (["--from", "99999999"], "no event lies between --from and --to"),
        (["--vcpu", "7"], "has no vCPU 7; it has 1"),
    ],
)
def test_cut_refuses_what_it_cannot_cut(told: Told, arguments: list[str], what: str) -> None:
    """What can't be cut is told, and nothing is written."""
    code, _, err = told("cut", BOOT, *arguments, "-o", "piece.xkt")
    assert code == USAGE_EXIT
    assert what in err
    assert not list(Path().iterdir())


# ---- merge


def test_merge_what_was_cut(told: Told) -> None:
    """Two bare pieces come together to the whole; overlaps are counted and written once."""
    assert told("cut", BOOT, "--to", "6000", "--bare", "-o", "1.xkt")[0] == 0
    assert told("cut", BOOT, "--from", "5900", "--bare", "-o", "2.xkt")[0] == 0
    code, _, err = told("merge", "1.xkt", "2.xkt", "-o", "whole.xkt")
    assert code == 0
    assert err == "wrote whole.xkt: 14,671 events; 101 that were in more than one were written once\n"
    assert events_of("whole.xkt") == events_of(BOOT)


def test_merge_refuses_what_is_not_one_vm(told: Told) -> None:
    """Traces of different kernels, a single trace and offsets that don't fit are refused by name."""
    code, _, err = told("merge", "@linux-boot", "@linux-boot-7.3", "-o", "out.xkt")
    assert code == USAGE_EXIT
    assert "@linux-boot-7.3: its kernel is 7.3" in err
    assert "is one trace" in told("merge", BOOT, "-o", "out.xkt")[2]
    assert (
        "--offset was given 2 times, expected 1"
        in told(*("merge", BOOT, BOOT, "-o", "out.xkt", "--offset", "1s", "--offset", "2s"))[2]
    )
    assert not Path("out.xkt").exists()


# ---- diff


def test_diff_of_the_same(told: Told) -> None:
    """A trace and its conversion are the same: exit code 0."""
    told("convert", BOOT, "boot.jsonl")
    code, out, _ = told("diff", BOOT, "boot.jsonl")
    assert (code, out[-1]) == (0, "the same: 14,671 events")


def test_diff_tells_where_two_traces_part(told: Told) -> None:
    """The first difference is shown decoded, after what both have, and summed up by hypercall."""
    where = tampered_boot(Path("bad.xkt"))
    code, out, _ = told("diff", BOOT, "bad.xkt")
    assert code == 1
    removed, added = (next(line for line in out[2:] if line.startswith(mark)) for mark in "-+")
    assert removed.startswith(f"- event {where} (line {where + 2}), vCPU 0: VCPUOP_set_singleshot_timer(")
    assert removed.endswith("handled in the kernel: 0")
    assert added.endswith("handled in the kernel: -EINVAL (-22)")
    assert out[2] == "the last that both have:"
    (row,) = (line.split() for line in out if line.startswith("VCPUOP_set_singleshot_timer"))
    assert row[1:] == ["1457", "1", "0", "0", "0"]
    assert out[-1] == "1 differences, 14,670 events the same"


def test_diff_of_two_kernels(told: Told) -> None:
    """One trace on two profiles is told apart, and as JSON, too."""
    golden = Path(__file__).parents[2] / "traces/golden/linux-6.12/directed/singleshot-id.jsonl.gz"
    arguments = ["diff", golden, "--profile", "linux-7.2", "--profile", "linux-7.3"]
    code, out, _ = told(*arguments)
    assert code == 1
    assert out[0].endswith("singleshot-id.jsonl.gz on linux-7.2")
    code, out, _ = told(*arguments, "--json", "--limit", "1")
    assert code == 1
    document = json.loads(out[0])
    (first,) = document["differences"]
    assert document["differences_total"] > 1
    assert first["how"] == "outcome"
    assert first["a"]["event"] == first["b"]["event"]
    assert sum(row["outcome"] for row in document["summary"]) == document["differences_total"]


def test_diff_of_two_vmms(told: Told) -> None:
    """One guest on two VMMs: their ioctls are compared, too."""
    code, out, _ = told("diff", BOOT, "--vmm", "minimal", "--vmm", "broken-vcpu-id.unset-is-not-restored")
    assert code == 1
    assert any("(by the VMM)" in line for line in out)
    assert told("diff", BOOT, "--vmm", "minimal", "--vmm", "minimal")[0] == 0


def test_diff_of_a_selection(told: Told) -> None:
    """What isn't selected doesn't count."""
    tampered_boot(Path("bad.xkt"))
    assert told("diff", BOOT, "bad.xkt", "--kind", "ioctl,mem")[0] == 0
    assert told("diff", BOOT, "bad.xkt", "--hypercall", "VCPUOP_set_singleshot_timer")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([BOOT], "expected two traces, or one with two --profile or two --vmm"),
        ([BOOT, BOOT, *["--profile", "linux-7.3"] * 3], "--profile was given 3 times"),
        ([BOOT, BOOT, "--profile", "linux-1"], "there is no profile 'linux-1'"),
        ([BOOT, "gone.xkt"], "gone.xkt"),
    ],
)
def test_diff_refuses_what_it_cannot_compare(told: Told, arguments: list[str], what: str) -> None:
    """What can't be compared is trouble, exit code 2, in one sentence."""
    code, _, err = told("diff", *arguments)
    assert code == USAGE_EXIT
    assert what in err


# ---- stat


def test_stat_in_a_file(told: Told) -> None:
    """Where it isn't read on a terminal it is plain: tables, no pictures, no colours."""
    code, out, err = told("stat", BOOT)
    assert (code, err) == (0, "")
    assert "14,671 events (4,167 inferred), 2,346 hypercalls, in " in out[4]
    assert out[6].split() == ["hypercall", "count", "kernel", "forwarded", "unknown", "failed"]
    assert out[7].split() == ["VCPUOP_set_singleshot_timer", "1458", "1458", "0", "0", "0"]
    assert any(line.split()[:2] == ["vCPU", "events"] for line in out if line)
    assert "\n".join(out).isascii()


def test_stat_for_programs(told: Told) -> None:
    """--json prints one object with the same figures."""
    code, out, _ = told("stat", BOOT, "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(out[0])
    assert document["vcpus"][0]["timers"]["armed"] == 1458
    assert document["hypercalls"][0]["name"] == "VCPUOP_set_singleshot_timer"


def on_a_terminal(command: list[str], **environment: str) -> str:
    """What a command prints on a terminal of 150 columns."""
    main, side = pty.openpty()
    program = "import sys; from pytest_xenkvm.cli.main import main; main()"
    env = {**os.environ, "COLUMNS": "150", "LINES": "1000", "TERM": "xterm", "PAGER": "cat", **environment}
    with subprocess.Popen(
        [sys.executable, "-c", program, *command], stdin=side, stdout=side, stderr=side, env=env
    ) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                read = os.read(main, 65536)
            except OSError:
                break
            shown += read
        os.close(main)
    assert process.returncode == 0
    return shown.decode()


def test_stat_on_a_terminal() -> None:
    """On a terminal there is a picture of each hypercall over time."""
    shown = on_a_terminal(["stat", BOOT], PYTHONUTF8="1")
    (row,) = (line for line in shown.splitlines() if "VCPUOP_set_singleshot_timer" in line)
    assert "█" in row


def test_progress_is_for_terminals(folder: Path) -> None:
    """On a terminal, shrinking shows how far it has come, and leaves nothing of that behind."""
    tampered_boot(folder / "bad.xkt")
    shown = on_a_terminal(["shrink", "bad.xkt", "--failing", "divergence"])
    assert "events left after" in shown
    assert "\r\x1b[K" in shown.partition("diverges from the recording")[0].rpartition("events left after")[2]


def test_a_salvaged_file_without_events(told: Told) -> None:
    """A file that was cut off before its first events is refused even so."""
    with XktWriter(Path("whole.xkt"), open_trace(BOOT).header) as writer:
        writer.write(Wait(ns=1))
    content = Path("whole.xkt").read_bytes()
    trace = XktTrace(Path("whole.xkt"))
    assert trace.counts() == {"wait": 1}
    Path("cut.xkt").write_bytes(content[: content.index(b"E", len(content) - 120)])
    code, _, err = told("convert", "--salvage", "cut.xkt", "out.xkt")
    assert code == USAGE_EXIT
    assert "holds no whole block of events" in err
    assert not Path("out.xkt").exists()
