"""The binary format: nothing broken is believed, whatever its checksums say."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from samples import EVENTS, blocks_of, calls, write_xkt

from pytest_xenkvm.trace import blocks, rows
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.xkt import XktTrace

PLAIN = (1, 50, 1, rows.LONGMODE | rows.KERNEL | rows.RAX_KNOWN, 0, 24, 8, 1, 2, 3, 4, 5, 0)


def complaint(path: Path) -> str:
    """Return the sentence about a broken file, which reading it raises at the latest at its end."""
    with pytest.raises(Malformed) as caught:
        list(XktTrace(path).events())
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def assemble(path: Path, contents: list[blocks.Block]) -> Path:
    """Write a file of these blocks with right checksums, whatever is in them."""
    with path.open("wb") as file:
        blocks.write_prefix(file, 1)
        sizes = [blocks.write_block(file, block.tag, block.content) for block in contents]
        blocks.write_end(file, sizes[-1])
    return path


def forge(path: Path, *found: Any) -> Path:
    """Write a file whose one event block holds these msgpack values after a correct start."""
    header = blocks_of(write_xkt(path, []))[0]
    content = b"".join(map(msgpack.packb, [(0, 0), *found]))
    totals = msgpack.packb((1, 1, (0, 1, *[0] * 9)))
    return assemble(
        path, [header, blocks.Block(blocks.EVENTS, content), blocks.Block(blocks.CLOSING, totals)]
    )


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Whatever byte of a file changes, and however, reading it is refused."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            complaint(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """A file cut anywhere is refused."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complaint(path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda _whole: b"", ": is no xkt file (its first bytes are not those of one)"),
        (lambda whole: whole[:9], ": is cut off inside its first bytes"),
        (lambda whole: whole[:8] + b"\2\0" + whole[10:], ": version 2 is not supported; this release reads"),
        (lambda whole: whole[:10], ": is cut off or damaged: it has no header"),
        (lambda whole: whole[:11] + b"\xff" * 8 + whole[19:],
         ": is damaged: a block of 4294967295 bytes, expected"),
        (lambda whole: whole[:10] + b"?" + whole[11:],
         ": is damaged: a block's tag is b'?', expected H, E or C"),
        (lambda whole: whole[:30] + b"?" + whole[31:], ": is damaged: a block's checksum is wrong"),
        (lambda whole: whole + b"\n", ": goes on after its end mark"),
        (lambda whole: whole[:-8], ": is damaged or cut off in its end mark"),
        (lambda whole: whole[: whole.rindex(b"C", 0, -8) - 40], ": is cut off: a block has "),
    ],
    ids=["empty", "start", "version", "no-header", "length", "tag", "checksum", "garbage", "end-mark", "cut"],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], sentence: str) -> None:
    """The usual kinds of damage have a sentence each."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    path.write_bytes(damage(path.read_bytes()))
    assert complaint(path).startswith(sentence)


def test_lengths_are_believed_only_within_bounds(tmp_path: Path) -> None:
    """A block that announces less than it decompresses to is refused without decompressing the rest."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    header = blocks_of(path)[0]
    bomb = zlib.compress(bytes(64 << 20))
    frame = struct.pack("<cII", b"E", len(bomb), 100)
    crc = zlib.crc32(bomb, zlib.crc32(frame + bytes(4)))
    with path.open("wb") as file:
        blocks.write_prefix(file, 1)
        blocks.write_block(file, header.tag, header.content)
        file.write(frame + struct.pack("<I", crc) + bomb)
        blocks.write_end(file, blocks.write_block(file, b"C", msgpack.packb((0, 1, [0] * 11))))
    tracemalloc.start()
    try:
        assert "a block doesn't decompress to the 100 bytes it announces" in complaint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_blocks_out_of_order_are_noticed(tmp_path: Path) -> None:
    """Two whole blocks that have changed places are refused."""
    path = write_xkt(tmp_path / "t.xkt", calls(6000))
    header, first, second, *rest = blocks_of(path)
    assert "doesn't go on where the one before ended" in complaint(
        assemble(path, [header, second, first, *rest])
    )


def test_missing_blocks_are_noticed(tmp_path: Path) -> None:
    """A file whose last events are gone doesn't agree with its totals."""
    path = write_xkt(tmp_path / "t.xkt", calls(6000))
    *start, _last, closing = blocks_of(path)
    assert "its events are not as many as its closing block says" in complaint(
        assemble(path, [*start, closing])
    )


def test_second_header_is_noticed(tmp_path: Path) -> None:
    """A header in the middle of the events is refused."""
    path = write_xkt(tmp_path / "t.xkt", EVENTS)
    header, *rest = blocks_of(path)
    assert "it has two headers" in complaint(assemble(path, [header, header, *rest]))


def test_closing_block_must_hold_totals(tmp_path: Path) -> None:
    """Totals that don't add up are refused when the file is opened."""
    path = write_xkt(tmp_path / "t.xkt", [])
    header, _closing = blocks_of(path)
    totals = msgpack.packb((1, 0, [0] * 11))
    with pytest.raises(Malformed, match="its closing block holds no totals"):
        XktTrace(assemble(path, [header, blocks.Block(b"C", totals)]))


def test_forged_plain_row_is_read(tmp_path: Path) -> None:
    """The forgeries of the next test differ from a good file in one row only."""
    assert sum(1 for _event in XktTrace(forge(tmp_path / "t.xkt", PLAIN)).events()) == 1


def changed(place: int, value: Any) -> tuple[Any, ...]:
    """Return the plain row with another value in this place."""
    return (*PLAIN[:place], value, *PLAIN[place + 1 :])


@pytest.mark.parametrize(
    ("found", "clause"),
    [
        ([7], "is damaged: a row is 7"),
        ([()], "is damaged: a row is a list of 0"),
        ([{}], "is damaged: msgpack of a type that the format doesn't use"),
        ([{"a": 1}], "is damaged: msgpack of a type that the format doesn't use"),
        ([msgpack.Timestamp(1)], "is damaged: "),
        ([msgpack.ExtType(5, b"x")], "is damaged: "),
        ([changed(rows.VCPU, 2)], "hypercall: vcpu is 2, but the header names 2 vCPUs"),
        ([changed(rows.VCPU, -1)], "hypercall: vcpu is -1, expected an integer 0 ... 4095"),
        ([bytes(PLAIN)], "is damaged: a row is 13 bytes"),
        ([changed(rows.NR, 1.5)], "hypercall: nr is 1.5, expected an integer 0 ... 2^64-1"),
        ([changed(rows.TS, -1)], "is -1, expected an integer 0 ... 2^64-1"),
        ([changed(rows.TS, "0")], "is '0', expected an integer 0 ... 2^64-1"),
        ([changed(rows.CPL, 4)], "hypercall: cpl is 4, expected an integer 0 ... 3"),
        ([changed(rows.RAX, None)], "hypercall: rax is null, which in scope"),
        ([changed(rows.FLAGS, 1 << 7)], "is damaged: the flags of a hypercall are 128"),
        ([changed(rows.FLAGS, None)], "is damaged: the flags of a hypercall are null"),
        ([changed(rows.FLAGS, rows.KERNEL | rows.USERSPACE)], "is damaged: the flags of a hypercall are 24"),
        ([changed(6, 8.0)], "hypercall: args[0] is 8.0"),
        ([PLAIN[:12]], "is damaged: the row of a hypercall has 12 fields"),
        ([(*PLAIN, 7)], "is damaged: the 14th field of a hypercall is no object"),
        ([(1,)], "is damaged: the row of a hypercall has 1 fields"),
        ([(99, 0, 0)], "is damaged: a row's code is 99"),
        ([("x", 0, 0)], "is damaged: a row's code is 'x'"),
        ([(8,)], "is damaged: an object without a shape"),
        ([(8, 0, 0, 5)], "is damaged: an object's shape is 0, which is not defined"),
        ([(8, 0, None, 5)], "is damaged: the row of an event wait holds no object"),
        ([(0, "ns"), (8, 0, 0)], "is damaged: an object has 0 values for its 1 keys"),
        ([(0, "ns", "ns"), (8, 0, 0, 1, 2)], "is damaged: a shape's keys are not all different strings"),
        ([(0, 5), (8, 0, 0, 1)], "is damaged: a shape's keys are not all different strings"),
        ([(0, "ns"), (8, 0, 0, -5)], "wait: ns is -5, expected an integer 0 ... 2^64-1"),
        ([(0, "ns", "x"), (8, 0, 0, 5, b"\0")], "wait: x is 1 bytes, expected null, a bool"),
        ([(0, "ns", "x"), (8, 0, 0, 5, 2.5)], "wait: x is 2.5, expected null, a bool"),
        ([(0, "ns", "ts"), (8, None, 0, 5, -1)], "wait: ts is -1, expected an integer"),
        ([(0, "n\udc80".encode("utf-8", "surrogateescape")), (8, 0, 0, 1)], "is damaged: a shape's keys"),
    ],
)
def test_forged_rows_are_refused(tmp_path: Path, found: list[Any], clause: str) -> None:
    """Rows under a right checksum are checked like any input."""
    path = forge(tmp_path / "t.xkt", *found)
    assert complaint(path).removeprefix(", event 0: ").startswith(clause)


@pytest.mark.parametrize("place", [rows.VCPU, rows.FLAGS, rows.CPL, rows.NR, 6, 11, rows.RAX])
def test_a_row_like_one_before_is_checked(tmp_path: Path, place: int) -> None:
    """A number that isn't an integer is refused even where the same integer was read before."""
    path = forge(tmp_path / "t.xkt", PLAIN, changed(place, float(PLAIN[place])))
    assert complaint(path).startswith(", event 1: ")


def nested(depth: int) -> Any:
    """Return lists inside each other, as a row spells them."""
    value: Any = (None,)
    for _ in range(depth):
        value = (None, value)
    return value


@pytest.mark.parametrize("depth", [30, 400])
def test_forged_nesting_is_refused(tmp_path: Path, depth: int) -> None:
    """Nesting beyond the limit is refused, not recursed into."""
    path = forge(tmp_path / "t.xkt", (0, "ns", "x"), (8, 0, 0, 5, nested(depth)))
    assert "nested" in complaint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x91" * 100_000 + b"\xc0",
        msgpack.packb((0, 0)) + b"\xdd\xff\xff\xff\xff",
        msgpack.packb((0, 0)) + b"\xdf\xff\xff\xff\xff",
        msgpack.packb((0, 0)) + b"\xc6\xff\xff\xff\xff",
        msgpack.packb((0, 0)) + b"\xc1",
        msgpack.packb((0, 0)) + b"\xa2\xff\xff",
        msgpack.packb((0, 0)) + b"\x92\x08",
        msgpack.packb((0, 0)) + b"\xdd\x00\x20\x00\x00" + bytes(2 << 20),
        msgpack.packb((0, 0)) + (b"\xdc\xff\xff" + bytes(0xFFFF)) * 30,
        b"",
        b"\x93",
    ],
    ids=[
        "deep",
        "array",
        "map",
        "bin",
        "never",
        "utf-8",
        "cut",
        "long-array",
        "many",
        "nothing",
        "cut-start",
    ],
)
def test_hostile_msgpack_is_refused(tmp_path: Path, content: bytes) -> None:
    """Lengths that lie, bytes that are no msgpack, too many values: each one sentence."""
    path = tmp_path / "t.xkt"
    header = blocks_of(write_xkt(path, []))[0]
    totals = blocks.Block(blocks.CLOSING, msgpack.packb((0, 1, [0] * 11)))
    assert complaint(assemble(path, [header, blocks.Block(blocks.EVENTS, content), totals]))


def test_bool_in_a_plain_row_is_a_number(tmp_path: Path) -> None:
    """A hypercall's fields are integers, whatever msgpack called them."""
    trace = XktTrace(forge(tmp_path / "t.xkt", changed(rows.VCPU, value=True)))
    assert [str(event) for event in trace.events()] == [
        str(event) for event in XktTrace(forge(tmp_path / "u.xkt", PLAIN)).events()
    ]


def test_nothing_follows_a_null_row(tmp_path: Path) -> None:
    """A null among the rows is refused; it doesn't hide what stands behind it."""
    path = forge(tmp_path / "t.xkt", PLAIN, None, PLAIN)
    assert complaint(path) == ", event 1: is damaged: a row is null"


def test_values_in_a_large_block_are_bounded(tmp_path: Path) -> None:
    """An event of two million values is refused while it is unpacked."""
    path = forge(tmp_path / "t.xkt", (0, "ns", "x"), (8, 0, 0, 5, (None, *[(None, *[0] * 65_534)] * 30)))
    assert complaint(path) == ", event 0: holds more than 1048576 values in one block"


@pytest.mark.parametrize("good", [0, 1, 63, 64, 65, 66, 129, 130, 131, 500])
@pytest.mark.parametrize(
    ("bad", "clause"),
    [
        (changed(rows.RAX, -1), ""),
        (None, "is damaged: a row is null"),
        (5, "is damaged: a row is 5"),
        ((1, 50), "is damaged: the row of a hypercall has 2 fields"),
    ],
)
def test_what_stands_before_damage_is_read(tmp_path: Path, good: int, bad: Any, clause: str) -> None:
    """However many rows are read at a time, events come up to the damaged row, which the complaint names."""
    path = forge(tmp_path / "t.xkt", *[PLAIN] * good, bad, *[PLAIN] * 10)
    read: list[Event] = []
    with pytest.raises(Malformed) as caught:
        read.extend(XktTrace(path).events())
    assert len(read) == good
    assert str(caught.value).startswith(f"{path}, event {good}: {clause}")


@pytest.mark.parametrize("good", [0, 1, 63, 64, 65, 66, 130])
def test_a_row_cut_off_is_refused_wherever_it_stands(tmp_path: Path, good: int) -> None:
    """A block that ends inside a row is refused, at the start of the rows that are read at a time, too."""
    header, _events, closing = blocks_of(forge(tmp_path / "t.xkt", PLAIN))
    content = b"".join(map(msgpack.packb, [(0, 0), *[PLAIN] * good])) + msgpack.packb(PLAIN)[:-2]
    path = assemble(tmp_path / "u.xkt", [header, blocks.Block(blocks.EVENTS, content), closing])
    assert complaint(path) == f", event {good}: is damaged: a block ends inside a row"
