"""`xenkvm check`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.check import BROKEN_EXIT
from pytest_xenkvm.cli.main import USAGE_EXIT, run
from pytest_xenkvm.trace.files import bundled_traces

HEADER: Final = {"format": "xenkvm-trace", "version": 1, "scope": "hypercalls", "cpu_vendor": "amd"}
WAIT: Final = {"ev": "wait", "ns": 1}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *objects: object) -> None:
    """Write a JSON Lines trace."""
    path.write_text("".join(f"{json.dumps(obj)}\n" for obj in [HEADER, *objects]), encoding="utf-8")


def test_whole_traces_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each trace that can be read to its end is named with the number of its events, and all is well."""
    write(folder / "two.jsonl", WAIT, WAIT)
    write(folder / "none.jsonl")
    assert run(["check", "two.jsonl", "none.jsonl", "@linux-boot-1vcpu"]) == 0
    bundled = bundled_traces()["linux-boot-1vcpu"]
    assert capsys.readouterr().out.splitlines() == [
        "two.jsonl: 2 events",
        "none.jsonl: 0 events",
        f"{bundled}: 14,671 events",
    ]


def test_the_first_mistake_is_told_with_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken event is told with file, line and event, and the exit code is 1."""
    write(folder / "bad.jsonl", WAIT, {"ev": "wait", "ns": -1}, {"ev": "nothing"})
    assert run(["check", "bad.jsonl"]) == BROKEN_EXIT
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("bad.jsonl, line 3, event 1: ")


def test_what_follows_a_broken_trace_is_checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every trace is checked, however many before it are broken; an xkt file that was cut off is."""
    whole = bundled_traces()["linux-boot-1vcpu"].read_bytes()
    (folder / "cut.xkt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.xkt").touch()
    write(folder / "whole.jsonl", WAIT)
    assert run(["check", "cut.xkt", "empty.xkt", "whole.jsonl"]) == BROKEN_EXIT
    cut, empty, fine = capsys.readouterr().out.splitlines()
    assert cut.startswith("cut.xkt: is cut off")
    assert empty.startswith("empty.xkt: is empty")
    assert fine == "whole.jsonl: 1 event"


def test_quiet_says_only_what_is_broken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--quiet`, traces without a mistake aren't mentioned."""
    write(folder / "bad.jsonl", {})
    write(folder / "good.jsonl", WAIT)
    assert run(["check", "-q", "good.jsonl"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["check", "--quiet", "good.jsonl", "bad.jsonl"]) == BROKEN_EXIT
    assert "good.jsonl" not in capsys.readouterr().out


def test_folders_are_searched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder stands for all traces in it and below, and for no other file."""
    below = folder / "traces" / "more"
    below.mkdir(parents=True)
    write(below / "b.jsonl", WAIT)
    write(below.parent / "a.jsonl", WAIT)
    (below / "README.md").touch()
    assert run(["check", "traces"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "traces/a.jsonl: 1 event",
        "traces/more/b.jsonl: 1 event",
    ]


def test_a_trace_that_is_not_there_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that names nothing is told on stderr, with exit code 2."""
    assert run(["check", "nothing.xkt"]) == USAGE_EXIT
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "xenkvm: nothing.xkt: there is no such file or folder\n")


def test_a_terminal_shows_progress(folder: Path) -> None:
    """On a terminal, the events read so far are shown on stderr, and wiped off at the end."""
    write(folder / "long.jsonl", *[WAIT] * 100_000)
    ours, theirs = pty.openpty()
    code = "from pytest_xenkvm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "check", "long.jsonl"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert "long.jsonl: 100,000 events read" in shown
    assert shown.endswith("\r\x1b[K")
    assert done.stdout == "long.jsonl: 100,000 events\n"
