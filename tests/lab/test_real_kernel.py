"""Guests with a real kernel: they need QEMU and a fetched kernel, else the tests skip.

With XENKVM_LAB=required in the environment they fail instead: so CI notices when the lab is lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from guests import KERNEL, lab, needed, run

from pytest_xenkvm.cli.lab import DIED_EXIT, LATE_EXIT
from pytest_xenkvm.cli.main import INTERRUPT_EXIT, PIPE_EXIT
from pytest_xenkvm.lab.host_clock import tsc_khz

LOOK: Final = """
import fcntl, json, os, sys
from pathlib import Path
import pytest_xenkvm

KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM = 0xAE03, 38
with open("/dev/kvm", "rb") as kvm:
    capability = fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM)
Path("made").mkdir()
Path("made/file").write_text("made in the lab")
json.dump({
    "release": os.uname().release,
    "mhz": float(Path("/proc/cpuinfo").read_text().partition("cpu MHz")[2].split()[1]),
    "capability": capability,
    "events": Path("/sys/kernel/tracing/events/kvm/kvm_xen_hypercall/format").exists(),
    "loopback": "127.0.0.1" in Path("/proc/net/fib_trie").read_text(),
    "stdin": sys.stdin.read(),
    "folder": os.getcwd(),
    "prefix": sys.prefix,
    "package": pytest_xenkvm.__file__,
    "given": os.environ["GIVEN"],
    "uid": os.getuid(),
    "brought": Path("brought.txt").read_text(),
}, sys.stdout)
print("to stderr", file=sys.stderr)
sys.exit(7)
"""


def test_a_kernel_of_the_table_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a lab these tests skip, but fail where it is required."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XENKVM_LAB", "required")
    with pytest.raises(pytest.fail.Exception, match="XENKVM_LAB=required"):
        needed(KERNEL)
    monkeypatch.delenv("XENKVM_LAB")
    with pytest.raises(pytest.skip.Exception):
        needed(KERNEL)


@pytest.mark.parametrize("name", ["linux-6.12", "linux-7.2", "linux-7.3"])
def test_a_command_runs_on_a_real_kernel(tmp_path: Path, name: str) -> None:
    """It has KVM with Xen support, tracefs and this Python; output, exit status and files come back."""
    needed(name)
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "brought.txt").write_text("from the host")
    options = ["--kernel", name, "--copy", "brought.txt", "--env", "GIVEN=a b", "--out", "out"]
    done = run(folder, *options, "--", "python", "-c", LOOK)
    assert done.stderr == "to stderr\n"
    assert done.returncode == 7
    seen = json.loads(done.stdout)
    release = seen.pop("release")
    assert release.startswith(name.removeprefix("linux-"))
    assert seen.pop("mhz") * 1000 == pytest.approx(tsc_khz(), rel=0.01)
    import pytest_xenkvm  # noqa: PLC0415 - for its place only

    assert seen == {
        "capability": 0x1FF,
        "events": True,
        "loopback": True,
        "stdin": "",
        "folder": str(folder),
        "prefix": sys.prefix,
        "package": pytest_xenkvm.__file__,
        "given": "a b",
        "uid": 0,
        "brought": "from the host",
    }
    assert [path for path in (folder / "out").rglob("*") if path.is_file()] == [folder / "out/made/file"]
    assert (folder / "out/made/file").read_text() == "made in the lab"
    assert not (folder / "made").exists()


def test_a_panic_is_shown(tmp_path: Path) -> None:
    """When the kernel panics, its last words are shown, and the exit code is the lab's own."""
    needed(KERNEL)
    done = run(tmp_path, "--", "sh", "-c", "echo before; sleep 2; echo c > /proc/sysrq-trigger")
    assert done.returncode == DIED_EXIT
    assert done.stdout == "before\n"
    *console, last = done.stderr.splitlines()
    assert any("sysrq" in line for line in console)
    assert last == "xenkvm: the guest ended before its command did"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """After --timeout the guest is ended, and that is said."""
    needed(KERNEL)
    done = run(tmp_path, "--timeout", "2", "--", "sleep", "1000")
    assert done.returncode == LATE_EXIT
    assert done.stderr.endswith("xenkvm: the command hadn't ended after 2 s\n")


def test_files_of_a_command_that_takes_too_long_come_back(tmp_path: Path) -> None:
    """After --timeout, what the command made by then is put into --out; the exit code is as without."""
    needed(KERNEL)
    started = time.monotonic()
    assert run(tmp_path, "--", "true").returncode == 0
    enough = str(10 + 2 * round(time.monotonic() - started))
    script = "echo begun; echo half > part; sleep 1000; echo whole > part"
    done = run(tmp_path, "--timeout", enough, "--out", "out", "--", "sh", "-c", script)
    assert done.returncode == LATE_EXIT
    assert done.stdout == "begun\n"
    assert done.stderr.endswith(f"xenkvm: the command hadn't ended after {enough} s\n")
    assert (tmp_path / "out" / "part").read_text() == "half\n"


def test_too_little_memory_is_told_at_once(tmp_path: Path) -> None:
    """A guest whose files don't fit its memory isn't started; the sentence says how much it takes."""
    needed(KERNEL)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(600 << 20)
    done = run(tmp_path, "--memory", "1024", "--copy", "large", "--", "true")
    assert done.returncode == 2
    assert "the guest's files take" in done.stderr
    assert "--memory" in done.stderr


def descendants(pid: int) -> set[int]:
    """The processes that `pid` started and that run."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, INTERRUPT_EXIT), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_qemu_is_left_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """However the command ends, by Ctrl-C or killed, its QEMU ends with it."""
    needed(KERNEL)
    command = lab("--", "python", "-c", "import time; print('up', flush=True); time.sleep(1000)")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        started = descendants(process.pid)
        assert started
        process.send_signal(number)
        assert process.wait(60) == code
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_output_into_a_closed_pipe_ends_the_guest(tmp_path: Path) -> None:
    """When nobody reads any more, the guest is ended."""
    needed(KERNEL)
    with subprocess.Popen(lab("--", "yes"), cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(60) == PIPE_EXIT
