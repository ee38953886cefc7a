"""`xenkvm import`."""

from __future__ import annotations

import gzip
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import Hypercall, MemorySlot

QEMU_LOG: Final = """\
156@1795343236.631223:xen_bus_realize 
156@1795343237.000001:kvm_xen_hypercall xen_hypercall: cpu 0 cpl 0 input 24 a0 0x8 a1 0x0 a2 0x1000 ret 0x0
"""  # noqa: W291 - as QEMU writes it
"""Two lines of QEMU's trace log, one of them a hypercall."""


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording that an importer knows, compressed."""
    path = tmp_path / "boot.log.gz"
    path.write_bytes(gzip.compress(QEMU_LOG.encode()))
    return path


def test_a_recording_becomes_a_trace_in_this_folder(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -o the trace takes the recording's name; the report goes to stderr, nothing to stdout."""
    assert run(["import", str(recording)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2  lines read" in captured.err
    assert "1  skipped: other events" in captured.err
    assert captured.err.splitlines()[-1].startswith("from qemu-log, wrote ")
    events = list(open_trace(recording.with_name("boot.xkt")).events())
    assert [type(event) for event in events] == [Hypercall]


def test_what_the_user_knows_goes_into_the_header(recording: Path) -> None:
    """Options fill in what the recording doesn't show, and the suffix of -o names the format."""
    target = recording.with_name("boot.jsonl")
    options = ["--kernel", "6.12.117", "--max-vcpus", "4096", "--cpu-vendor", "intel"]
    assert run(["import", str(recording), "-o", str(target), *options, "--from", "qemu-log"]) == 0
    assert target.read_text().startswith('{"format":"xenkvm-trace"')
    header = open_trace(target).header
    assert (header.kernel, header.max_vcpus, header.cpu_vendor) == ("6.12.117", 4096, "intel")


@pytest.mark.parametrize("kernel", ["bla", "linux-6.12", "7", ""])
def test_a_kernel_is_told_by_its_release(
    recording: Path, kernel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be no release of a kernel is refused, and the sentence says what is expected."""
    assert run(["import", str(recording), "--kernel", kernel]) == 2
    assert f"{kernel!r} is no kernel's release: expected what `uname -r` says" in capsys.readouterr().err
    assert not recording.with_name("boot.xkt").exists()


def test_an_existing_trace_is_not_overwritten(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that exists is left alone, unless --force says otherwise."""
    target = recording.with_name("boot.xkt")
    target.write_bytes(b"precious")
    assert run(["import", str(recording)]) == 2
    assert target.read_bytes() == b"precious"
    assert "--force" in capsys.readouterr().err
    assert run(["import", str(recording), "--force"]) == 0
    assert target.read_bytes() != b"precious"


@pytest.mark.parametrize("name", ["trace", "trace.txt", "trace.json"])
def test_the_name_must_tell_the_format(
    recording: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name without a trace's suffix is refused before any work is done."""
    assert run(["import", str(recording), "-o", str(tmp_path / name)]) == 2
    assert not (tmp_path / name).exists()
    assert ".xkt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"nonsense\n", b"\x1f\x8bnonsense", bytes(10_000), b"\xff" * 100, QEMU_LOG[:-8].encode()]
)
def test_what_is_no_recording_is_one_sentence(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown, damaged or truncated input names the file on stderr, exits with 2 and leaves no trace."""
    path = tmp_path / "odd.txt"
    path.write_bytes(content)
    assert run(["import", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"xenkvm: {path}")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["none.txt", "."])
def test_a_recording_that_cannot_be_read(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file or a folder is named on stderr, with exit code 2."""
    options = ["-o", str(tmp_path / "out.xkt")]
    assert run(["import", str(tmp_path / missing), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"xenkvm: {tmp_path / missing}: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("size", ["192M", "192MiB", "192 mb", "196608k", "201326592", "0xc000000"])
def test_sizes_are_written_in_many_ways(
    recording: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guest memory may be given in bytes or with a binary unit."""
    assert run(["import", str(recording), "--memory", size, "--irqchip", "split"]) == 0
    assert "Error" not in capsys.readouterr().err
    vm = open_trace(recording.with_name("boot.xkt")).header.vm
    assert vm is not None
    assert vm.memory == (MemorySlot(gpa=0, size=192 << 20),)


@pytest.mark.parametrize("size", ["", "M", "0", "-1M", "1", "4097", "2T", "1.5G", "x", "0xzz"])
def test_an_impossible_size_is_refused(
    recording: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guest memory is at least one page, whole pages, and at most 1 TiB."""
    assert run(["import", str(recording), "--memory", size]) == 2
    assert "expected whole pages up to 1 TiB" in capsys.readouterr().err


def test_progress_is_for_terminals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A long import shows on a terminal how far it is, and clears that line before the report."""
    recording = tmp_path / "long.log"
    recording.write_text(QEMU_LOG + QEMU_LOG.splitlines(keepends=True)[0] * 20_000)
    assert run(["import", str(recording), "-o", str(tmp_path / "unwatched.xkt")]) == 0
    assert "\r" not in capsys.readouterr().err
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "from pytest_xenkvm.cli.main import main; main()",
        "import",
        str(recording),
    ]
    with subprocess.Popen(command, stderr=theirs) as process:
        os.close(theirs)
        received = b""
        try:
            while part := os.read(ours, 65536):
                received += part
        except OSError:  # Linux's way of saying that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"\r10,000 lines read\r20,000 lines read\r\x1b[K" in received


def test_the_recording_itself_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that is the recording is refused, --force or not."""
    recording = tmp_path / "boot.jsonl"
    recording.write_text(QEMU_LOG)
    assert run(["import", str(recording), "-o", str(recording), "--force"]) == 2
    assert "is the recording itself" in capsys.readouterr().err
    assert recording.read_text() == QEMU_LOG


def test_the_script_for_bpftrace_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    """--bpftrace-script prints the path of a file that is there, and nothing is imported."""
    assert run(["import", "--bpftrace-script"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_text().startswith("#!/usr/bin/env bpftrace")


def test_strace_gets_its_hypercalls_from_qemus_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of strace alone the hypercalls have no names, which is said; with --answers they are QEMU's."""
    strace, log = tmp_path / "strace.txt", tmp_path / "qemu.log"
    strace.write_text(
        "ioctl(3</dev/kvm>, KVM_CREATE_VM, 0) = 4\nioctl(4, KVM_CREATE_VCPU, 0) = 5\n"
        "ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_XEN)\n"
    )
    log.write_text(QEMU_LOG)
    assert run(["import", str(strace)]) == 0
    output = capsys.readouterr().err
    assert "1  not recorded: number and arguments of a forwarded hypercall (left out)" in output
    assert "--answers" in output
    assert run(["import", str(strace), "--answers", str(log), "--force"]) == 0
    (event,) = open_trace(tmp_path / "strace.xkt").events()
    assert isinstance(event, Hypercall)
    assert (event.nr, event.rax) == (24, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-vcpus", "1"], "shows 2 vCPUs, but max_vcpus 1 was given"),
        (["--memory", "4K"], "irqchip is missing"),
    ],
)
def test_contradictions_are_one_sentence(
    recording: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that contradict the recording end the import with a sentence that names the file."""
    recording.write_text(QEMU_LOG + QEMU_LOG.replace("cpu 0", "cpu 1"))
    assert run(["import", str(recording), *options]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"xenkvm: {recording}: ")
    assert message in output
    assert output.count("\n") == 1
