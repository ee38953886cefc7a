"""Real recordings of a real VM: for root, on a kernel with KVM's Xen support (`xenkvm lab run`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.leftovers import find_leftovers
from pytest_xenkvm.record.tracefs import Tracefs, find_tracefs
from pytest_xenkvm.trace.events import Hypercall
from pytest_xenkvm.trace.files import Trace, open_trace

XENKVM: Final = (sys.executable, "-c", "from pytest_xenkvm.cli.main import main; main()")
GUEST: Final = (sys.executable, str(Path(__file__).with_name("tiny_guest.py")))
PATIENCE_S: Final = 120


@pytest.fixture
def tracefs() -> Tracefs:
    """The kernel's own tracefs, if a recording is possible here."""
    if os.getuid() != 0:
        pytest.skip("recording needs root")
    try:
        DevKvmHost.open()
        return find_tracefs()
    except (HostError, RecordError) as error:
        pytest.skip(str(error))


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def events_in(path: Path) -> int:
    """Events in a recording that may not be there yet."""
    return len(list(open_trace(path).events())) if path.exists() and path.stat().st_size else 0


def check_calls(trace: Trace) -> None:
    """Every third call was forwarded and answered with its number, the others told the version."""
    calls = [event for event in trace.events() if isinstance(event, Hypercall)]
    assert calls
    for number, call in enumerate(calls):
        expected = ("userspace", number) if number % 3 == 2 else ("kernel", 0x40011)
        assert (call.handled, call.rax) == expected


def test_a_real_vm_is_recorded(tracefs: Tracefs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A VM becomes a trace of scope "full" that replays without a divergence, and tracefs is as it was."""
    before = (tracefs.instances(), list(tracefs.probe_names()))
    path = tmp_path / "guest.xkt"
    assert run(["record", "-o", str(path), "--", *GUEST, "9", "0.01"]) == 0
    assert (tracefs.instances(), list(tracefs.probe_names())) == before
    trace = open_trace(path)
    assert (trace.header.scope, trace.header.kernel) == ("full", os.uname().release)
    check_calls(trace)
    capsys.readouterr()
    run(["replay", str(path)])
    assert "no divergence" in capsys.readouterr().out


def test_a_killed_recording(tracefs: Tracefs, tmp_path: Path) -> None:
    """After SIGKILL in the middle the file can be read, and the next recording finds a clean tracefs."""
    path = tmp_path / "guest.xkt"
    guest = (*GUEST, "100000", "0.01")
    with subprocess.Popen([*XENKVM, "record", "-o", str(path), "--", *guest]) as recorder:
        wait_for(lambda: events_in(path) > 20)
        recorder.kill()
    children = [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if guest_of(stat)]
    for child in children:
        os.kill(child, signal.SIGKILL)
    trace = open_trace(path)
    assert trace.header.scope == "full"
    check_calls(trace)
    assert len(find_leftovers(tracefs)) == 1
    assert run(["record", "--clean"]) == 0
    assert find_leftovers(tracefs) == []
    assert not [name for name in tracefs.probe_names() if "xenkvm" in name]


def guest_of(stat: Path) -> bool:
    """Whether this is the process of our guest program."""
    try:
        return GUEST[1].encode() in stat.with_name("cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.usefixtures("tracefs")
def test_a_vm_that_runs_already(tmp_path: Path) -> None:
    """Of a VM that was there before, hypercalls are recorded with their results; no more is claimed."""
    path = tmp_path / "guest.xkt"
    with subprocess.Popen([*GUEST, "100000", "0.01"], stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdout is not None
        assert guest.stdout.readline() == "running\n"
        assert run(["record", "--pid", str(guest.pid), "--max-events", "12", "-o", str(path)]) == 0
        guest.kill()
    trace = open_trace(path)
    calls = [event for event in trace.events() if isinstance(event, Hypercall)]
    assert (trace.header.scope, len(calls)) == ("hypercalls", 12)
    assert "the VM was there before" in trace.header.notes
    assert {call.handled for call in calls} == {"kernel", "userspace"}
