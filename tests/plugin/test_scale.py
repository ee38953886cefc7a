"""Many traces, and long ones."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, HEADER, write

from pytest_xenkvm.report.progress import Progress
from pytest_xenkvm.trace.blocks import EVENTS, write_block
from pytest_xenkvm.trace.files import open_trace

Run = Callable[..., pytest.RunResult]


def with_garbage(path: Path, size: int) -> Path:
    """Put an event block of so many random bytes before the others."""
    content = path.read_bytes()
    start = content.index(EVENTS, len(content) // 4)
    with path.open("wb") as file:
        file.write(content[:start])
        write_block(file, b"E", b"")
        file.write(os.urandom(size))
        file.write(content[start:])
    return path


def _read_so_far() -> int:
    """Bytes that this process has read."""
    (count,) = re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text(encoding="ascii"))
    return int(count)


def test_collection_reads_headers_only(traces: Path, collect: Callable[..., list[str]]) -> None:
    """A trace whose events are megabytes of garbage is collected, by a few hundred bytes of it."""
    path = with_garbage(traces / "good.xkt", 8 << 20)
    assert len(collect(path)) == 4
    before = _read_so_far()
    trace = open_trace(path)
    assert _read_so_far() - before < 64 << 10
    assert trace.header == HEADER


def test_hooks_are_asked_once_for_many_traces(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """Traces that the same conftest.py files count for share the answer of `pytest_xenkvm_rules`."""
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("    return [", "    print('asked')\n    return ["))
    for number in range(9):
        write(traces / f"{number}.xkt", *ANSWERED)
    result = run("--collect-only", "-s", "-q")
    assert len([line for line in result.outlines if line.startswith("traces/")]) == 40
    assert result.outlines.count("asked") == 2  # the first time to check the option


def test_folders_keep_their_rules(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """A conftest.py adds its rules to the traces of its folder alone."""
    inner = write(traces / "inner" / "b.xkt", *ANSWERED)
    rules = (project.path / "conftest.py").read_text().replace("demo.", "inner.")
    (inner.parent / "conftest.py").write_text(rules)
    result = run("--collect-only", "-q", "--xenkvm-rules=demo,!demo.msr")
    assert "traces/inner/b.xkt::demo.answered" in result.outlines
    result = run("--collect-only", "-q", "--xenkvm-rules=", "-c", os.devnull, f"--rootdir={project.path}")
    assert "traces/inner/b.xkt::inner.answered" in result.outlines
    assert "traces/good.xkt::inner.answered" not in result.outlines


# ---- progress


def shown(done: int, seconds: float, total: int | None = None, columns: int = 80) -> str:
    """The line after so many seconds."""
    return Progress(write=print, total=total, columns=columns).line(done, seconds)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (shown(0, 0, total=10), "  0% 0 of 10 events, 0/s [----------------------------------------]"),
        (
            shown(5_000_000, 40, total=10_000_000, columns=80),
            " 50% 5,000,000 of 10,000,000 events, 125,000/s, 0:40 left [#########----------]",
        ),
        (shown(9_999, 1, total=10_000), " 99% 9,999 of 10,000 events, 9,999/s, 0:00 left [#######"),
        (shown(1, 10, total=100_000, columns=48), "  0% 1 of 100,000 events, 0/s, 277:46:30 left"),
        (shown(10, 1, total=5), "100% 10 of 5 events, 10/s, 0:00 left [####"),
        (shown(30_000, 2), "30,000 events, 15,000/s"),
        (shown(30_000, 2, columns=10), "30,000 ev"),
    ],
)
def test_a_line_says_how_far_it_is(line: str, words: str) -> None:
    """Share, events, rate and time left, never rounded up to 100 %, and as wide as the terminal at most."""
    assert line.startswith(words)


def test_progress_is_shown_now_and_then() -> None:
    """Nothing is written in the first half second, then at most five lines a second; nothing stays."""
    written: list[str] = []
    now = 0.0
    progress = Progress(write=written.append, total=1000, before="<", after=">", clock=lambda: now)
    for tick in range(100):
        now = tick / 100
        progress(tick)
    assert len(written) == 3
    assert written[0].startswith("<\r\x1b[K  5% 50 of 1,000 events, 100/s")
    assert written[1].startswith("\r\x1b[K  7%")
    progress.close()
    assert written[3:] == ["\r\x1b[K>"]
    progress.close()
    assert len(written) == 4


def test_a_short_replay_shows_nothing() -> None:
    """A replay that is over at once leaves the terminal alone."""
    written: list[str] = []
    progress = Progress(write=written.append)
    progress(1)
    progress.close()
    assert not written


HASTE = "import pytest_xenkvm.report.progress as progress\nprogress._FIRST_S = 0\n"
BAR = "\r\x1b[K  0% 0 of 5 events, 0/s"


def on_terminal(folder: Path, main: str, *arguments: str) -> str:
    """What a program, by the function that is its main one, writes to a terminal."""
    ours, theirs = pty.openpty()
    module, _, name = main.rpartition(".")
    program = f"{HASTE}import sys\nfrom {module} import {name}\nsys.exit({name}({list(arguments)!r}))"
    run = [sys.executable, "-c", program]
    with subprocess.Popen(run, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
        os.close(ours)
    assert process.returncode == 0
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side is closed
        return b""


PYTEST = ("pytest.main", "-p", "pytest_xenkvm.plugin.entry", "--color=no")


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_pytest_shows_progress_on_a_terminal(project: pytest.Pytester, traces: Path, capture: str) -> None:
    """The bar is below the line that pytest is writing, and gone when that goes on."""
    del traces
    written = on_terminal(project.path, *PYTEST, f"--capture={capture}")
    assert written.count(BAR) == 1
    assert re.search(r"traces/good\.xkt \r\n\r\x1b\[K  0% [^\r]*\r\x1b\[K\x1b\[A\x1b\[16C\.", written)


def test_a_quiet_run_shows_no_progress(project: pytest.Pytester, traces: Path) -> None:
    """With `-q` there is no bar."""
    del traces
    assert BAR not in on_terminal(project.path, *PYTEST, "-q")


def test_xenkvm_replay_shows_progress_on_a_terminal(traces: Path) -> None:
    """The command shows the same bar, which is gone in the end."""
    written = on_terminal(
        traces, "pytest_xenkvm.cli.main.run", "replay", "good.xkt", "--rules=vcpu-id.new-is-unset"
    )
    assert BAR + " [" in written
    assert re.search(r"\r\x1b\[Kgood\.xkt: 5 events", written)


def test_a_file_shows_no_progress(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """Where the output is no terminal there is no bar."""
    del traces
    (project.path / "haste.py").write_text(HASTE)
    run("-p", "haste").stdout.no_fnmatch_line("*of 5 events*")
