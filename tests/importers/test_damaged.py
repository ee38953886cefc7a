"""Damaged recordings: whatever happened to the text, the import ends with a trace or with one sentence."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

import pytest
from ftrace_text import DATA, KPROBES, QEMU_LOG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.trace.importers import IMPORTERS, Given, open_recording

FILES: Final = {
    "ftrace-kprobes": KPROBES,
    "ftrace": KPROBES,
    "qemu-log": QEMU_LOG,
    "trace-cmd": DATA / "one_run" / "trace-cmd.txt.gz",
    "perf": DATA / "one_run" / "perf.txt.gz",
    "bpftrace": DATA / "one_run" / "bpftrace.txt.gz",
    "strace": DATA / "strace.txt.gz",
}
"""Real text for every importer."""
NUMBER: Final = re.compile(r"(?:0x)?[0-9a-f]*[0-9]")
LINES: Final = {name: list(islice(open_recording(path), 700)) for name, path in FILES.items()}

Edit = Callable[[list[str]], None]
PIECES: Final = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["\0", "(fault)", "=", "0x", "-1", "4294967296", "18446744073709551616", "9" * 25, "f" * 17, " " * 40]
    ),
    st.integers(-(1 << 65), 1 << 65).map(str),
    st.integers(0, 1 << 65).map(hex),
)
"""What damage puts into a line."""


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """One piece of damage: in a line, or to the order of lines."""
    kind = draw(st.sampled_from(["drop", "double", "move", "cut", "insert", "replace", "number", "join"]))
    where, to = draw(st.integers(0, 699)), draw(st.integers(0, 699))
    start, length = draw(st.integers(0, 150)), draw(st.integers(0, 20))
    piece = draw(PIECES)

    def edit(lines: list[str]) -> None:
        at = where % len(lines)
        line = lines[at]
        if kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "double":
            lines.insert(to % len(lines), line)
        elif kind == "move":
            lines.insert(to % len(lines), lines.pop(at))
        elif kind == "cut":
            lines[at] = line[:start]
        elif kind == "number":
            numbers = NUMBER.findall(line)
            lines[at] = line.replace(numbers[start % len(numbers)], piece) if numbers else line
        elif kind == "join":
            lines[at] = line + lines[to % len(lines)]
        else:
            lines[at] = line[:start] + piece + line[start + (length if kind == "replace" else 0) :]

    return edit


@pytest.mark.parametrize("name", IMPORTERS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(damage=st.lists(edits(), min_size=1, max_size=12))
def test_damaged_text_never_crashes(tmp_path: Path, name: str, damage: list[Edit]) -> None:
    """Real text with damage in it gives a trace that can be read again, or an error that names the file."""
    lines = list(LINES[name])
    for edit in damage:
        edit(lines)
    try:
        imported = IMPORTERS[name].run(lines, path="recording", given=Given(kernel="6.12.117"))
    except TraceError as error:
        assert re.fullmatch("recording.*", str(error))  # noqa: PT017 - it need not be raised
        return
    report = imported.report
    assert report.lines == len(lines) == report.used + sum(report.skipped.values())
    path = tmp_path / "trace.xkt"
    assert write_trace(path, imported.header, imported.events) == len(imported.events)
    assert list(open_trace(path).events()) == imported.events


@pytest.mark.parametrize("name", [name for name in IMPORTERS if name != "ftrace"])
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_damaged_files_never_crash(
    tmp_path: Path, name: str, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with damaged bytes, packed or not, is imported or refused in one sentence."""
    content = bytearray("\n".join(LINES[name][:200]).encode())
    if data.draw(st.booleans()):
        content = bytearray(gzip.compress(content))
    for at, piece in data.draw(
        st.lists(st.tuples(st.integers(0, len(content)), st.binary(max_size=8)), min_size=1, max_size=8)
    ):
        content[at : at + len(piece)] = piece
    recording = tmp_path / "recording"
    recording.write_bytes(content)
    status = run(["import", str(recording), "-o", str(tmp_path / "trace.xkt"), "--force"])
    output = capsys.readouterr().err
    assert status in (0, 2)
    assert "Traceback" not in output
    if status:
        assert output.startswith("xenkvm: ")
        assert output.count("\n") == 1


def test_every_importer_is_fuzzed() -> None:
    """There is real text for every importer that comes with the package."""
    assert FILES.keys() == IMPORTERS.keys()
