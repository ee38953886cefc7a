"""xkt files that grow while they are read, and that outlive their writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Header, Hypercall
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.trace.xkt_live import LiveXktWriter

HEADER = Header(kernel="7.3.0", recorder="test", scope="hypercalls")
CALLS = [
    Hypercall(ts=ts, vcpu=0, longmode=True, cpl=0, nr=ts, args=(0,) * 6, handled="kernel", rax=ts)
    for ts in range(100)
]


def test_a_finished_recording_is_an_ordinary_trace(tmp_path: Path) -> None:
    """A recording that was closed has the very bytes of a trace that was written at once."""
    with LiveXktWriter(tmp_path / "live.xkt", evolve(HEADER, notes="at first")) as live:
        for call in CALLS:
            live.write(call)
        live.replace_header(HEADER)
    write_trace(tmp_path / "plain.xkt", HEADER, CALLS)
    assert (tmp_path / "live.xkt").read_bytes() == (tmp_path / "plain.xkt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.xkt", "plain.xkt"]


def test_what_was_flushed_can_be_read(tmp_path: Path) -> None:
    """After each flush another reader finds all events so far, under the header of that time."""
    path = tmp_path / "live.xkt"
    with LiveXktWriter(path, HEADER) as live:
        assert list(open_trace(path).events()) == []
        for number, call in enumerate(CALLS, 1):
            live.write(call)
            if number % 10 == 0:
                live.flush()
                assert list(open_trace(path).events()) == CALLS[:number]
            if number % 30 == 0:
                live.replace_header(evolve(HEADER, notes=f"{number}"))
                assert open_trace(path).header.notes == f"{number}"
                assert list(open_trace(path).events()) == CALLS[:number]
    assert open_trace(path).counts() == {"hypercall": len(CALLS)}


def test_a_cut_off_recording_is_read_up_to_its_last_whole_block(tmp_path: Path) -> None:
    """Wherever a recording that was never closed is cut, what stands in its whole blocks is read."""
    path, cut = tmp_path / "live.xkt", tmp_path / "cut.xkt"
    with LiveXktWriter(path, HEADER) as live:
        ends = [live.size]
        for call in CALLS[:5]:
            live.write(call)
            live.flush()
            ends.append(live.size)
        content = path.read_bytes()
    assert len(content) == ends[-1]
    for size in range(ends[0], len(content) + 1):
        cut.write_bytes(content[:size])
        whole = sum(end <= size for end in ends[1:])
        assert list(open_trace(cut).events()) == CALLS[:whole]


def test_a_failed_recording_is_closed(tmp_path: Path) -> None:
    """An exception in the middle of a recording leaves a whole trace of what there was."""

    def fail() -> None:
        with LiveXktWriter(tmp_path / "live.xkt", HEADER) as live:
            live.write(CALLS[0])
            live.write(evolve(CALLS[1], cpl=9))

    with pytest.raises(TraceError, match="cpl"):
        fail()
    trace = open_trace(tmp_path / "live.xkt")
    assert (trace.header, list(trace.events())) == (HEADER, CALLS[:1])


def test_a_file_is_replaced_only_if_told(tmp_path: Path) -> None:
    """A file that exists is left alone, unless it is to be replaced."""
    path = tmp_path / "live.xkt"
    path.write_text("mine")
    with (
        pytest.raises(TraceError, match=r"live\.xkt: cannot be written: File exists"),
        LiveXktWriter(path, HEADER),
    ):
        pass
    assert path.read_text() == "mine"
    with LiveXktWriter(path, HEADER, force=True):
        pass
    assert list(open_trace(path).events()) == []


def test_only_a_recording_is_read_without_its_end(tmp_path: Path) -> None:
    """A finished trace that was cut off is still refused: its writer had closed it."""
    write_trace(tmp_path / "plain.xkt", HEADER, CALLS)
    content = (tmp_path / "plain.xkt").read_bytes()
    (tmp_path / "plain.xkt").write_bytes(content[:-20])
    with pytest.raises(TraceError, match="cut off"):
        open_trace(tmp_path / "plain.xkt")


def test_an_unfinished_recording_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`xenkvm check` says of a recording that it was not finished, which breaks nothing."""
    path = tmp_path / "live.xkt"
    with LiveXktWriter(path, HEADER) as live:
        live.write(CALLS[0])
        live.flush()
        assert run(["check", str(path)]) == 0
        assert "live.xkt: 1 event (its recording was not finished)" in capsys.readouterr().out
    assert run(["check", str(path)]) == 0
    assert "not finished" not in capsys.readouterr().out
