"""What the guest's first process does that can be done on a host, too, and what the host takes from it."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.lab import guest_init
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.returned import extract

LATE: Final = 98


def run(*command: str, folder: Path = Path("/"), seconds: float | None = None) -> tuple[int, bytes, bytes]:
    """Run a command as the guest does: exit status (LATE: it had to be ended), stdout, stderr."""
    (out_read, out), (err_read, err) = os.pipe(), os.pipe()
    got: dict[int, bytes] = {}

    def read(descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as file:
            got[descriptor] = file.read()

    threads = [threading.Thread(target=read, args=(descriptor,)) for descriptor in (out_read, err_read)]
    for thread in threads:
        thread.start()
    config = {
        "command": command,
        "folder": str(folder),
        "environment": {"NAME": "value", "PATH": "/usr/bin:/bin"},
        "deadline": None if seconds is None else time.time() + seconds,
    }
    child = os.fork()  # it takes over the handling of ended children
    if child == 0:
        try:
            status, late = guest_init._run(config, out, err)
            os._exit(LATE if late else status)
        finally:
            os._exit(99)
    os.close(out)
    os.close(err)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for thread in threads:
        thread.join()
    return status, got[out_read], got[err_read]


def test_output_and_status(tmp_path: Path) -> None:
    """Output and errors come apart, the status is kept, and the command has its folder and variables."""
    script = "pwd; echo $NAME; echo wrong >&2; cat; exit 7"
    assert run("sh", "-c", script, folder=tmp_path) == (7, f"{tmp_path}\nvalue\n".encode(), b"wrong\n")


def test_much_output() -> None:
    """Output of many times a pipe's size arrives whole."""
    status, out, _ = run("sh", "-c", "head -c 3000000 /dev/zero")
    assert (status, len(out)) == (0, 3_000_000)


def test_a_signal_is_told_as_shells_do() -> None:
    """A command that signal 9 ends has the status 137."""
    assert run("sh", "-c", "kill -9 $$")[0] == 137


def test_a_command_that_cant_be_run() -> None:
    """A program that isn't there has the status 127, and is named on stderr."""
    assert run("/no/such") == (127, b"", b"/no/such: No such file or directory in the lab\n")


def test_what_a_command_leaves_running_isnt_waited_for() -> None:
    """A process in the background that holds the output open doesn't keep the guest from ending."""
    start = time.monotonic()
    status, out, _ = run("sh", "-c", "sleep 30 >/dev/null 2>&1 & sleep 20 & echo done; exit 3")
    assert (status, out) == (3, b"done\n")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("seconds", [-1, 0.5])
def test_a_command_whose_time_is_over_is_ended(seconds: float) -> None:
    """It is ended with what it started, even if its time was over before it began."""
    start = time.monotonic()
    status, out, _ = run("sh", "-c", "echo begun; sleep 30; echo no", seconds=seconds)
    assert status == LATE
    assert out in {b"begun\n", b""}
    assert time.monotonic() - start < 15


def test_a_command_within_its_time() -> None:
    """A deadline that isn't reached changes nothing."""
    assert run("sh", "-c", "exit 3", seconds=60) == (3, b"", b"")


def test_only_what_changed_comes_back(tmp_path: Path) -> None:
    """Files made or changed since the start come back with their folders; links and caches don't."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("old", "changed"):
        (folder / name).write_text(name)
    time.sleep(0.05)
    since = time.time_ns()
    time.sleep(0.05)
    (folder / "changed").write_text("anew")
    (folder / "link").symlink_to("old")
    for name in ("a/b/made", "__pycache__/x.pyc", ".pytest_cache/v"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "a/b/made").chmod(0o755)
    with (tmp_path / "stream").open("wb") as file:
        guest_init.send_files(file.fileno(), str(folder), since)
    with (tmp_path / "stream").open("rb") as file:
        written = extract(file, out)
    assert sorted(path.relative_to(out).as_posix() for path in written) == ["a/b/made", "changed"]
    assert (out / "changed").read_text() == "anew"
    assert os.access(out / "a/b/made", os.X_OK)


def stream(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    """A tar, as a guest might make it up."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    made.seek(0)
    return made


@pytest.mark.parametrize("name", ["/etc/motd", "../motd", "a/../../motd", "link/motd", ".."])
def test_a_file_outside_is_refused(tmp_path: Path, name: str) -> None:
    """A name that leads out of the folder is refused, and nothing is written."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(LabError, match="would lie outside"):
        extract(stream((tarfile.TarInfo(name), b"text")), out)
    assert not (tmp_path / "motd").exists()


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    """Only regular files are written."""
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    device = tarfile.TarInfo("device")
    device.type = tarfile.CHRTYPE
    (written,) = extract(stream((link, b""), (device, b""), (tarfile.TarInfo("file"), b"text")), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert written.read_bytes() == b"text"


def test_a_link_that_lies_there_isnt_written_through(tmp_path: Path) -> None:
    """A file replaces a link of its name."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "precious").write_text("mine")
    (out / "file").symlink_to(tmp_path / "precious")
    extract(stream((tarfile.TarInfo("file"), b"text")), out)
    assert (tmp_path / "precious").read_text() == "mine"
    assert (out / "file").read_text() == "text"


def test_a_stream_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    """A guest that dies while it sends doesn't leave half a file as if it were whole."""
    cut = io.BytesIO(stream((tarfile.TarInfo("file"), b"x" * 5000)).getvalue()[:2000])
    with pytest.raises(tarfile.TarError):
        extract(cut, tmp_path)
