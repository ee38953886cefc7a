"""The interchange format: what is read comes back as it was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from samples import EVENT_LINES, HEADER, HEADER_LINE, SAMPLE, compact
from strategies import Trace, traces

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import EVENTS, Behind, Header, Hypercall, Mem, NowPlus, Wait
from pytest_xenkvm.trace.jsonl import (
    JsonlTrace,
    JsonlWriter,
    event_from_json,
    event_to_json,
    header_from_json,
    header_to_json,
)


def read(text: str, path: Path) -> list[Any]:
    """Read the events of a trace given as text."""
    path.write_text(text)
    return list(JsonlTrace(path).events())


@pytest.mark.parametrize("line", EVENT_LINES)
def test_event_lines_come_out_as_they_went_in(line: str) -> None:
    """An event in canonical form is written again with the same text."""
    event = event_from_json(json.loads(line), path=None, line=None, event=None)
    assert compact(event_to_json(event)) == line


def test_samples_hold_every_kind_of_event() -> None:
    """No kind of event is left out of the tests of the formats."""
    assert {json.loads(line)["ev"] for line in EVENT_LINES} == EVENTS.keys()


def test_header_comes_out_as_it_went_in() -> None:
    """A header in canonical form is written again with the same text."""
    header = header_from_json(json.loads(HEADER_LINE), path=None)
    assert header == HEADER
    assert compact(header_to_json(header)) == HEADER_LINE


def test_hypercall_is_read_into_its_fields() -> None:
    """Every key of a hypercall ends in the attribute of its name, what is absent in its default."""
    event = event_from_json(json.loads(EVENT_LINES[14]), path=None, line=None, event=None)
    assert event == Hypercall(
        ts=30559400,
        inferred=True,
        extra={"during": {"vcpu": 0, "b": [], "a": [{}]}},
        vcpu=0,
        longmode=False,
        cpl=0,
        nr=17,
        args=(0, 0, NowPlus(5), 0, 0, 0),
        handled="kernel",
        rax=262161,
        behind=(Behind(arg=2, data=b"\0\xff", extra={"z": None}),),
        compat=True,
        raw={"nr": 4294967313, "args": [4294967296, 0, 0, 0, 0, 0]},
        run_ret=-14,
    )


def test_hex_may_be_upper_case(tmp_path: Path) -> None:
    """Bytes are read from upper-case hex and written in lower case."""
    [event] = read(f'{HEADER_LINE}\n{{"ev":"mem","op":"read","gpa":0,"data":"AbCD"}}\n', tmp_path / "t.jsonl")
    assert event == Mem(op="read", gpa=0, data=b"\xab\xcd")
    assert event_to_json(event)["data"] == "abcd"


def test_unseen_kinds_are_a_list_in_the_header() -> None:
    """`unseen` is read and written, and left out when the recorder sees all."""
    obj = {**json.loads(HEADER_LINE), "unseen": ["irq", "mem"]}
    header = header_from_json(obj, path=None)
    assert header.unseen == ("irq", "mem")
    assert header_to_json(header) == obj


def test_header_may_leave_out_what_it_does_not_know() -> None:
    """A header without kernel, max_vcpus, recorder and notes means "unknown"."""
    obj = json.loads(HEADER_LINE)
    for key in ("kernel", "max_vcpus", "recorder", "notes"):
        del obj[key]
    assert header_from_json(obj, path=None) == Header(vm=HEADER.vm)


@given(traces())
def test_any_trace_survives_json(trace: Trace) -> None:
    """Header and events come back equal, in the same text, keys of free objects in the same order."""
    header, events = trace
    assert header_from_json(json.loads(compact(header_to_json(header))), path=None) == header
    for event in events:
        text = compact(event_to_json(event))
        again = event_from_json(json.loads(text), path=None, line=None, event=None)
        assert again == event
        assert compact(event_to_json(again)) == text


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_files_are_read_again_and_again(tmp_path: Path, suffix: str) -> None:
    """A written file is read back each time `events()` is called, compressed or not."""
    (tmp_path / "source.jsonl").write_text(SAMPLE)
    source = JsonlTrace(tmp_path / "source.jsonl")
    with JsonlWriter(tmp_path / f"copy{suffix}", source.header) as writer:
        for event in source.events():
            writer.write(event)
    copy = JsonlTrace(tmp_path / f"copy{suffix}")
    content = copy.path.read_bytes()
    assert (gzip.decompress(content) if suffix.endswith("gz") else content).decode() == SAMPLE
    assert copy.header == HEADER
    assert list(copy.events()) == list(copy.events()) == list(source.events())
    assert copy.counts() is None
    assert copy.name == f"copy{suffix}"


def test_writer_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    """An event out of range is refused when it is written, and no file appears."""
    with (
        pytest.raises(Malformed, match=r"line 2, event 0: wait: ns is -1"),
        JsonlWriter(tmp_path / "t.jsonl", HEADER) as writer,
    ):
        writer.write(Wait(ns=-1))
    with (
        pytest.raises(Malformed, match="line 1: header: scope is 'all'"),
        JsonlWriter(tmp_path / "t.jsonl", Header(scope="all")),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_extra_may_not_hold_the_formats_own_keys() -> None:
    """An event whose `extra` would overwrite a key of the format can't be written."""
    with pytest.raises(Malformed, match="extra holds 'ns', a key of the format's own"):
        event_to_json(Wait(ns=1, extra={"ns": 2}))
    with pytest.raises(Malformed, match="extra holds 'version', a key of the format's own"):
        header_to_json(Header(extra={"version": 2}))


def test_unknown_outcomes_are_for_scope_hypercalls(tmp_path: Path) -> None:
    """Handled and rax may be null where only hypercalls were seen."""
    header = HEADER_LINE.replace('"full"', '"hypercalls"')
    line = compact({**json.loads(EVENT_LINES[12]), "handled": None, "rax": None})
    [event] = read(f"{header}\n{line}\n", tmp_path / "t.jsonl")
    assert event.handled is event.rax is None
    assert compact(event_to_json(event)) == line


def test_answer_of_the_vmm_may_be_unseen(tmp_path: Path) -> None:
    """A forwarded hypercall's rax may be null in any scope: the host's kernel doesn't see it."""
    line = compact({**json.loads(EVENT_LINES[13]), "rax": None})
    [event] = read(f"{HEADER_LINE}\n{line}\n", tmp_path / "t.jsonl")
    assert event.rax is None
    assert compact(event_to_json(event)) == line
