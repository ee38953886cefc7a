"""`xenkvm record` as its user meets it, on a fake kernel."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_tracefs import FACTS, GUEST_PID, TINY_GUEST, FakeKernel

from pytest_xenkvm.cli import record
from pytest_xenkvm.cli.main import run
from pytest_xenkvm.record.leftovers import own_name
from pytest_xenkvm.record.tracefs import Instance
from pytest_xenkvm.trace.files import open_trace

DEAD = "xenkvm_4000000_17"
GUEST = """
import os, sys
lines = open(sys.argv[1]).read().replace("-{pid} ", "-%d " % os.getpid())
with open(sys.argv[2], "w") as pipe:
    pipe.write(lines)
sys.exit(int(sys.argv[3]))
""".replace("{pid}", str(GUEST_PID))
"""A program of which the kernel tells what it told of the guest; then it exits as it is told."""


@pytest.fixture(autouse=True)
def known_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host needs no KVM."""
    monkeypatch.setattr(record, "host_facts", lambda: FACTS)


@pytest.fixture
def guest(kernel: FakeKernel, tmp_path: Path) -> list[str]:
    """The command line of a guest, but for its exit code."""
    sample = tmp_path / "sample.txt"
    sample.write_text("".join(f"{line}\n" for line in TINY_GUEST))
    pipe = kernel.root / "instances" / own_name() / "trace_pipe"
    return [sys.executable, "-c", GUEST, str(sample), str(pipe)]


def test_a_command_is_recorded(
    kernel: FakeKernel, guest: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's VM is recorded, the exit code is the command's, and tracefs is as it was."""
    output = tmp_path / "out.xkt"
    assert run(["record", "--tracefs", str(kernel.root), "-o", str(output), "--", *guest, "3"]) == 3
    said = capsys.readouterr().err
    assert "out.xkt: 8 events, 6 hypercalls, scope full" in said
    assert "the command ended" in said
    assert open_trace(output).header.scope == "full"
    assert (kernel.probes, kernel.tracefs.instances()) == ([], [])


def test_a_recording_that_fails(
    kernel: FakeKernel, guest: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the trace can't be written, that is said, the command is waited for, and tracefs is as it was."""
    done = f"import time; time.sleep(1); open({str(tmp_path / 'done')!r}, 'w'); exit"
    program = [*guest, "0"]
    program[2] = "import time; time.sleep(0.6)\n" + program[2].replace("sys.exit", done)
    (tmp_path / "folder").mkdir()
    output = tmp_path / "folder" / "out.xkt"
    vanish = threading.Timer(0.2, (tmp_path / "folder").rmdir)
    vanish.start()
    assert run(["record", "--tracefs", str(kernel.root), "-o", str(output), "--", *program]) == 2
    vanish.join()
    assert "out.xkt: cannot be written: No such file or directory" in capsys.readouterr().err
    assert (tmp_path / "done").exists()
    assert (kernel.probes, kernel.tracefs.instances()) == ([], [])


def test_a_command_that_a_signal_ends(kernel: FakeKernel, tmp_path: Path) -> None:
    """The exit code of a command that was killed is 128 and the signal's number, as shells have it."""
    kill = "import os; os.kill(os.getpid(), 9)"
    output = str(tmp_path / "out.xkt")
    arguments = ["--tracefs", str(kernel.root), "-o", output, "--", sys.executable, "-c", kill]
    assert run(["record", *arguments]) == 128 + 9


def test_a_command_that_is_not_there(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that can't be run is named, and tracefs is as it was."""
    output = str(tmp_path / "out.xkt")
    assert run(["record", "--tracefs", str(kernel.root), "-o", output, "--", "/no/such/program"]) == 2
    assert "/no/such/program: can't be run (No such file or directory)" in capsys.readouterr().err
    assert (kernel.probes, kernel.tracefs.instances()) == ([], [])


def test_a_recording_of_nothing(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no Xen VM was seen, nothing is written, and the exit code is 1."""
    output = str(tmp_path / "out.xkt")
    assert run(["record", "--tracefs", str(kernel.root), "-o", output, "--duration", "0.1"]) == 1
    said = capsys.readouterr().err
    assert "0.1 s are over" in said
    assert "nothing was written" in said
    assert not (tmp_path / "out.xkt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_recording(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end a recording in good order, and signals do what they did before."""
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    assert run(["record", "--tracefs", str(kernel.root), "-o", str(tmp_path / "out.xkt")]) == 1
    timer.join()
    assert f"{number.name} came" in capsys.readouterr().err
    assert kernel.tracefs.instances() == []
    assert signal.getsignal(number) is before


def test_a_command_goes_on_after_the_recording(kernel: FakeKernel, tmp_path: Path) -> None:
    """When a limit ends the recording, the command is waited for, not killed."""
    late = tmp_path / "late"
    program = f"import time, pathlib; time.sleep(0.6); pathlib.Path({str(late)!r}).touch()"
    output = str(tmp_path / "out.xkt")
    arguments = ["--duration", "0.1", "--tracefs", str(kernel.root), "-o", output]
    assert run(["record", *arguments, "--", sys.executable, "-c", program]) == 0
    assert late.exists()


def test_leftovers_are_removed(kernel: FakeKernel, capsys: pytest.CaptureFixture[str]) -> None:
    """`--clean` removes what a killed recording has left, and says what; then there is nothing more."""
    kernel.create(Instance(kernel.tracefs, DEAD))
    kernel.write(kernel.root / "dynamic_events", f"p:{DEAD}/x do_exit ")
    assert run(["record", "--tracefs", str(kernel.root), "--clean"]) == 0
    assert f"1 killed recording left probes or buffers: {DEAD}; removing them" in capsys.readouterr().err
    assert (kernel.probes, kernel.tracefs.instances()) == ([], [])
    assert run(["record", "--tracefs", str(kernel.root), "--clean"]) == 0
    assert "no recording has left anything" in capsys.readouterr().err


def test_leftovers_that_live_stay(kernel: FakeKernel, capsys: pytest.CaptureFixture[str]) -> None:
    """What somebody has open is left alone, and that is said."""
    kernel.create(Instance(kernel.tracefs, DEAD))
    kernel.busy.add(DEAD)
    assert run(["record", "--tracefs", str(kernel.root), "--clean"]) == 0
    assert f"{DEAD}: is in use by another process, and stays" in capsys.readouterr().err
    assert kernel.tracefs.instances() == [DEAD]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "out.jsonl"], "a recording's name ends in .xkt"),
        (["-o", "/no/such/folder/out.xkt"], "its folder doesn't exist"),
        (["--pid", "1", "--", "true"], "--pid and a COMMAND were both given"),
        (["--pid", "4000000"], "there is no process 4000000"),
        (["--host", "kvm"], "--host kvm does one trace again, and 0 names were given"),
    ],
)
def test_what_can_not_be_done(
    kernel: FakeKernel, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    """A request that makes no sense is refused in one sentence, before anything is touched."""
    assert run(["record", "--tracefs", str(kernel.root), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert kernel.written == []


def test_no_tracefs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without tracefs it is said how to mount it."""
    assert run(["record", "--tracefs", str(tmp_path)]) == 2
    assert "no tracefs is mounted at" in capsys.readouterr().err


def test_a_file_is_not_overwritten(
    kernel: FakeKernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that exists is replaced only if that is asked for."""
    (tmp_path / "out.xkt").touch()
    assert run(["record", "--tracefs", str(kernel.root), "-o", str(tmp_path / "out.xkt")]) == 2
    assert "exists already; --force replaces it" in capsys.readouterr().err
    assert kernel.written == []


def test_counters_on_a_terminal(kernel: FakeKernel, capsys: pytest.CaptureFixture[str]) -> None:
    """Counters are shown only on a terminal, now and then."""
    del kernel

    class Recorder:
        class sorter:  # noqa: N801
            all = ()
            written, lost = 1234, 5

    progress = record.Progress(Recorder(), shown=True)  # type: ignore[arg-type]  # what it looks at
    for _ in range(3):
        progress()
        time.sleep(0.01)
    assert capsys.readouterr().err == "\r0 VMs, 0 hypercalls, 1,234 events written, 5 lost"
    record.Progress(Recorder(), shown=False)()  # type: ignore[arg-type]  # as above
    assert capsys.readouterr().err == ""
