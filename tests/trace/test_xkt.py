"""The binary format: nothing is lost, little is read, nothing half is written."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from samples import EVENTS, HEADER, SAMPLE, calls, write_xkt
from strategies import Trace, traces

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.trace import blocks, rows
from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.events import (
    LEAST_POINTER,
    Behind,
    Event,
    Header,
    Hypercall,
    HypercallExit,
    Mem,
    Wait,
    as_told,
    at_time,
)
from pytest_xenkvm.trace.fields import encode_event
from pytest_xenkvm.trace.jsonl import JsonlTrace, event_to_json, header_to_json
from pytest_xenkvm.trace.row_events import RowEvents
from pytest_xenkvm.trace.rows import RowEncoder, plain_check, plain_row
from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.trace.xkt import XktTrace, XktWriter

many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_sample_survives_both_conversions(tmp_path: Path) -> None:
    """JSON Lines to xkt and back gives the same text, and the same bytes on the way there again."""
    (tmp_path / "a.jsonl").write_text(SAMPLE)
    source = JsonlTrace(tmp_path / "a.jsonl")
    copy = XktTrace(write_xkt(tmp_path / "a.xkt", source.events(), source.header))
    lines = [header_to_json(copy.header), *map(event_to_json, copy.events())]
    assert "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines) == SAMPLE
    again = write_xkt(tmp_path / "b.xkt", copy.events(), copy.header)
    assert again.read_bytes() == copy.path.read_bytes()


@many
@given(traces())
def test_any_trace_survives_xkt(tmp_path: Path, trace: Trace) -> None:
    """Header and events come back equal, keys of free objects in the same order, each time they are read."""
    header, events = trace
    copy = XktTrace(write_xkt(tmp_path / "t.xkt", events, header))
    assert copy.header == header
    assert list(copy.events()) == list(copy.events()) == events
    assert json.dumps([*map(event_to_json, copy.events())]) == json.dumps([*map(event_to_json, events)])
    content = copy.path.read_bytes()
    assert write_xkt(tmp_path / "t.xkt", copy.events(), copy.header).read_bytes() == content


@many
@given(traces())
def test_both_ways_to_a_plain_row_agree(trace: Trace) -> None:
    """A hypercall that fits a plain row gets the same one from the fast and from the general way."""
    header, events = trace
    plain = plain_check(header)
    for event in events:
        if isinstance(event, Hypercall) and plain(row := plain_row(event, event.ts)):
            assert event.ts is not None
            general = RowEncoder().row("hypercall", encode_event(event, text=False), event.ts)
            assert general == row
            assert at_time(RowEvents(header).event(row), event.ts) == event


def test_times_stand_beside_the_events(tmp_path: Path) -> None:
    """`timed_events()` gives every event without its time, beside it."""
    trace = XktTrace(write_xkt(tmp_path / "t.xkt", [*EVENTS, *calls(5000), *EVENTS]))
    found = list(trace.timed_events())
    assert [at_time(as_told(event, told), ts) for ts, event, told in found] == [
        *EVENTS,
        *calls(5000),
        *EVENTS,
    ]
    assert {event.ts for _ts, event, _told in found} == {None}


def test_events_that_differ_in_time_only_are_one_object(tmp_path: Path) -> None:
    """Stores and ioctls that come again are decoded once."""
    store, other = Mem(op="write", gpa=1, data=b"x"), Mem(op="write", gpa=2, data=b"x")
    (call,) = calls(1)
    repeated = [at_time(event, ts) for ts, event in enumerate([store, other, call] * 3)]
    trace = XktTrace(write_xkt(tmp_path / "t.xkt", repeated))
    stores = [event for _ts, event, _told in trace.timed_events() if isinstance(event, Mem)]
    assert [id(event) for event in stores] == [id(stores[0]), id(stores[1])] * 3
    assert list(trace.events()) == repeated


def test_hypercalls_that_are_alike_are_one_object(tmp_path: Path) -> None:
    """What they differ in, arguments and what lies behind them, is told beside the object."""
    recorded: list[Event] = [
        Hypercall(
            ts=ts,
            vcpu=0,
            longmode=True,
            cpl=0,
            nr=24,
            args=(8, ts % 2, 1 << 63 | ts, 0, 5, ts),
            handled="userspace" if ts % 2 else "kernel",
            exit=HypercallExit(type=1, longmode=1, cpl=0, input=24, params=(8, 1, 1 << 63 | ts, 0, 5, ts))
            if ts % 2
            else None,
            rax=0,
            behind=(Behind(arg=2, data=bytes([ts] * 8), now_plus_at=((0, -ts),), extra={"abs_ns": ts}),),
        )
        for ts in range(6)
    ]
    trace = XktTrace(write_xkt(tmp_path / "t.xkt", recorded))
    found = list(trace.timed_events())
    assert [id(event) for _ts, event, _told in found] == [id(found[0][1]), id(found[1][1])] * 3
    assert list(trace.events()) == recorded


def test_hypercalls_that_differ_in_a_pointer_are_one_object(tmp_path: Path) -> None:
    """An argument 1 that may be an address is told beside the object; a small number makes two."""
    (call,) = calls(1)
    assert isinstance(call, Hypercall)
    seconds = [LEAST_POINTER - 1, LEAST_POINTER, 1 << 63, LEAST_POINTER - 2, U64_MAX]
    recorded = [evolve(call, ts=ts, args=(4, second, 0, 0, 0, 0)) for ts, second in enumerate(seconds)]
    trace = XktTrace(write_xkt(tmp_path / "t.xkt", recorded))
    small, one, same, other, again = (id(event) for _ts, event, _told in trace.timed_events())
    assert one == same == again
    assert len({small, one, other}) == 3
    assert list(trace.events()) == recorded


def test_what_is_known_is_known_in_the_next_block(tmp_path: Path) -> None:
    """In blocks that begin alike, an event is one object; a shape's number stands for others elsewhere."""
    one = Mem(ts=0, op="read", gpa=1, data=bytes(48), sum_ok=True)
    other = Mem(ts=0, op="read", gpa=1, data=bytes(48), inferred=True)
    events = [one, other, one, other, other, one, one, other]
    with XktWriter(tmp_path / "t.xkt", HEADER) as writer:
        for index, event in enumerate(events):
            writer.write(event)
            if index % 2:
                writer._end_block()
    trace = XktTrace(tmp_path / "t.xkt")
    assert list(trace.events()) == events
    ids = [id(event) for _ts, event, _told in trace.timed_events()]
    assert ids[:2] == ids[2:4] == ids[6:]


BEHIND: Final = {
    "bytes": Behind(arg=5, data=b"abc"),
    "clock": Behind(arg=2, data=bytes(9), now_plus_at=((1, -(1 << 63)),)),
    "no data": Behind(arg=0, data=b""),
    "number beside": Behind(arg=2, data=bytes(8), now_plus_at=((0, 5),), extra={"abs_ns": 7, "b": -1}),
    "text beside": Behind(arg=2, data=bytes(8), extra={"abs_ns": "7"}),
    "bool beside": Behind(arg=2, data=bytes(8), extra={"late": True}),
    "two clocks": Behind(arg=2, data=bytes(16), now_plus_at=((0, 5), (8, 5))),
}


@pytest.mark.parametrize("items", [*((item,) for item in BEHIND.values()), tuple(BEHIND.values()), ()])
def test_what_lies_behind_comes_back(tmp_path: Path, items: tuple[Behind, ...]) -> None:
    """Bytes behind pointers come back equal, of the same types, whether a quick way reads them or not."""
    event = Hypercall(
        ts=0, vcpu=0, longmode=True, cpl=0, nr=1, args=(0,) * 6, handled="kernel", rax=0, behind=items
    )
    (read,) = XktTrace(write_xkt(tmp_path / "t.xkt", [event])).events()
    assert repr(read) == repr(event)


SHAPES: Final = (("behind",), ("arg", "data", "now_plus_at"), ("arg", "data"), ("arg", "data", "n"))
ITEM: Final = (1, 2, bytes(8), (None, (None, 0, 5)))


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        ((0, (None, (1, 6, bytes(8), (None,)))), "behind[0].arg is 6"),
        ((0, (None, (1, True, bytes(8), (None,)))), "behind[0].arg is true"),
        ((0, (None, (1, 2, "text", (None,)))), "behind[0].data is 'text'"),
        ((0, (None, (1, 2, bytes(8), 5))), "now_plus_at is 5"),
        ((0, (None, (1, 2, bytes(8), (None, (None, 1, 5))))), "names 8 bytes at 1"),
        ((0, (None, (1, 2, bytes(8), (None, (None, -1, 5))))), "names 8 bytes at -1"),
        (
            (0, (None, (1, 2, bytes(8), (None, (None, 0, 1 << 63))))),
            "now_plus_at[0][1] is 9223372036854775808",
        ),
        ((0, (None, (1, 2, bytes(8), (None, (None, True, 5))))), "now_plus_at[0][0] is true"),
        ((0, (None, (1, 2, bytes(8)))), "2 values for its 3 keys"),
        ((0, (None, (2, 2, bytes(8), 5))), "3 values for its 2 keys"),
        ((0, (None, (4, 2, bytes(8)))), "shape is 4, which is not defined"),
        ((0, (2, ITEM)), "1 values for its 2 keys"),
        ((None, (None, ITEM)), "14th field"),
        ("ab", "14th field"),
        (5, "14th field"),
    ],
)
def test_what_lies_behind_is_checked(rest: object, complaint: str) -> None:
    """A row that almost is what the quick way reads is refused with the general way's words."""
    decoder = RowEvents(HEADER)
    for shape in SHAPES:
        decoder.define((rows.SHAPE, *shape))
    with pytest.raises(Unfit) as refused:
        decoder.event((rows.HYPERCALL, 0, 0, rows.KERNEL | rows.RAX_KNOWN, 0, 1, *range(6), 0, rest))
    assert complaint in str(refused.value)


def test_exit_that_repeats_the_call_takes_no_room(tmp_path: Path) -> None:
    """A forwarded hypercall whose exit says what the guest passed is a plain row; any other exit is kept."""
    args = (1, 2, 3, 4, 5, 6)
    as_passed = HypercallExit(type=1, longmode=1, cpl=0, input=17, params=args)
    changed = HypercallExit(type=1, longmode=1, cpl=0, input=17, params=(1, 2, 3, 4, 5, 7))
    more = HypercallExit(type=1, longmode=1, cpl=0, input=17, params=args, extra={"x": 1})
    events = [
        Hypercall(ts=1, vcpu=0, longmode=True, cpl=0, nr=17, args=args, handled="userspace", exit=left, rax=0)
        for left in (as_passed, changed, more, None)
    ]
    plain = plain_check(HEADER)
    assert [plain(plain_row(event, 0)) for event in events] == [True, False, False, True]
    assert list(XktTrace(write_xkt(tmp_path / "t.xkt", events)).events()) == events


def test_listing_needs_no_event(tmp_path: Path) -> None:
    """Header and counts are known without reading the blocks between."""
    path = write_xkt(tmp_path / "t.xkt", [*EVENTS, *calls(6000)])
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    path.write_bytes(content)
    trace = XktTrace(path)
    assert trace.header == HEADER
    assert trace.name == "t.xkt"
    assert trace.complete
    assert trace.counts() == {
        "hypercall": 6003,
        "ioctl": 7,
        "eventfd": 1,
        "eventfd_write": 1,
        "eventfd_read": 1,
        "mem": 2,
        "wrmsr": 1,
        "wait": 1,
        "vcpu_run": 1,
        "irq": 1,
    }


def test_reading_holds_a_block_and_not_the_file(tmp_path: Path) -> None:
    """Reading ten times the events takes no more memory."""

    def peak(count: int) -> int:
        trace = XktTrace(write_xkt(tmp_path / "t.xkt", calls(count)))
        tracemalloc.start()
        try:
            assert sum(1 for _event in trace.timed_events()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(60_000) < 1.5 * peak(6_000) < 1 << 20


def test_writing_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    """An exception while writing leaves the old file as it was and no draft beside it."""
    path = tmp_path / "t.xkt"
    path.write_bytes(b"old")

    def fail_in_the_middle() -> None:
        with XktWriter(path, HEADER) as writer:
            writer.write(Wait(ns=1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_passes_on_errors_that_are_not_its_own(tmp_path: Path) -> None:
    """An `OSError` of the caller is not turned into one about the file."""
    with pytest.raises(ConnectionResetError), XktWriter(tmp_path / "t.xkt", HEADER):
        raise ConnectionResetError


def test_writer_names_a_folder_that_is_missing(tmp_path: Path) -> None:
    """A file that can't be written is a `TraceError`."""
    with pytest.raises(TraceError, match=r"t\.xkt: cannot be written: No such file or directory"):
        write_xkt(tmp_path / "none" / "t.xkt", [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_a_trace_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of writing gives one sentence and no file."""
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda _path, _mode: real_open(Path("/dev/full"), "wb"))
    with pytest.raises(TraceError, match="cannot be written: No space left on device"):
        write_xkt(tmp_path / "t.xkt", calls(20_000))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("event", "clause"),
    [
        (Wait(ns=1 << 64), "event 0: wait: ns is 18446744073709551616, expected an integer 0 ... 2^64-1"),
        (Mem(op="write", gpa=0, data=bytes(17 << 20)), "event 0: takes 17825"),
        (Wait(ns=1, extra={"x": [0] * 100_001}), "event 0: holds more than 100000 values"),
        (Hypercall(vcpu=2, longmode=True, cpl=0, nr=1, args=(0,) * 6, handled="kernel", rax=0),
         "event 0: hypercall: vcpu is 2, but the header names 2 vCPUs"),
        (Hypercall(ts=1, vcpu=True, longmode=True, cpl=0, nr=1, args=(0,) * 6, handled="kernel", rax=0),
         "event 0: hypercall: vcpu is true, expected an integer 0 ... 4095"),
    ],
    ids=["range", "size", "values", "vcpu", "bool"],
)  # fmt: skip
def test_writer_refuses_what_could_not_be_read_back(tmp_path: Path, event: Event, clause: str) -> None:
    """An event that the reader would refuse is refused when it is written."""
    with pytest.raises(Malformed) as caught:
        write_xkt(tmp_path / "t.xkt", [event])
    assert str(caught.value).removeprefix(f"{tmp_path}/t.xkt, ").startswith(clause)
    assert not list(tmp_path.iterdir())


def test_large_events_fit(tmp_path: Path) -> None:
    """An event of several MiB, and one of many values, come back."""
    events: list[Event] = [
        Mem(op="write", gpa=0, data=os.urandom(8 << 20)),
        Wait(ns=1, extra={"x": [[]] * 50_000 + ["a" * 40] * 49_000}),
    ]
    assert list(XktTrace(write_xkt(tmp_path / "t.xkt", events)).events()) == events


def test_salvage_reads_up_to_the_last_whole_block(tmp_path: Path) -> None:
    """A file without its end is refused by default and read as far as it goes with `salvage`."""
    path = write_xkt(tmp_path / "t.xkt", calls(6000))
    whole = path.read_bytes()
    assert XktTrace(path, salvage=True).complete
    assert list(XktTrace(path, salvage=True).events()) == calls(6000)
    ends = []
    with path.open("rb") as file:
        blocks.read_prefix(file)
        while (block := blocks.read_block(file)) is not None and block.tag != blocks.CLOSING:
            ends.append(file.tell())
    read = []
    for size in (size for end in ends for size in (end, end + 20)):
        path.write_bytes(whole[:size])
        with pytest.raises(Malformed, match="cut off"):
            XktTrace(path)
        trace = XktTrace(path, salvage=True)
        assert not trace.complete
        assert trace.counts() is None
        events = list(trace.events())
        assert events == calls(len(events))
        read.append(len(events))
    assert read == [0, 0, 2980, 2980, 5959, 5959, 6000, 6000]


def test_salvage_reads_a_file_without_its_end_mark(tmp_path: Path) -> None:
    """A file cut inside its last bytes has all its events."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    path.write_bytes(path.read_bytes()[:-3])
    assert list(XktTrace(path, salvage=True).events()) == EVENTS


def test_a_file_replaced_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """Events are not read under the header of another file."""
    trace = XktTrace(write_xkt(tmp_path / "t.xkt", EVENTS))
    write_xkt(tmp_path / "t.xkt", [], Header(vm=HEADER.vm, notes="another"))
    with pytest.raises(Malformed, match="has changed since it was opened"):
        list(trace.events())
