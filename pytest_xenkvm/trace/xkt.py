"""The binary trace format: msgpack rows in compressed blocks (docs/reference/trace-format.md).

Header and totals are found without decoding an event; a reader holds one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, final

import msgpack  # type: ignore[import-untyped]
from attrs import frozen

from pytest_xenkvm.trace import blocks
from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.events import Event, Header, Hypercall, TimedEvent, as_told, at_time
from pytest_xenkvm.trace.fields import check_event, decode_event, encode_event
from pytest_xenkvm.trace.header import VERSION, decode_header, encode_header
from pytest_xenkvm.trace.row_events import MORE, RowEvents
from pytest_xenkvm.trace.rows import CODES, KINDS, RowDecoder, RowEncoder, elapsed, plain_check, plain_row
from pytest_xenkvm.trace.storage import complaining, reading, replacing
from pytest_xenkvm.trace.unpack import CUT_ROW, check_tail, objects, unpacker
from pytest_xenkvm.trace.values import U64, Unfit, shown

BLOCK_TARGET: Final = 64 << 10
"""Bytes of rows after which a block is written: large enough to compress, small enough to hold."""

MAX_EVENT: Final = 16 << 20
"""Bytes of one event's rows."""

UNFINISHED: Final = "unfinished"
"""A header with this key, true, is of a recording that is going on or was cut off (`LiveXktWriter`)."""

_COUNTED: Final = len(KINDS)
_BATCH: Final = 64
"""Rows that are read ahead of what is done to them, or one more."""


@frozen
class _Totals:
    """The closing block: events, event blocks, events by code."""

    events: int
    blocks: int
    counts: tuple[int, ...]

    def packed(self) -> bytes:
        return bytes(msgpack.packb((self.events, self.blocks, self.counts)))


def _read_totals(content: bytes) -> _Totals:
    match list(objects(content)):
        case [(int(events), int(blocks_written), tuple(counts))] if len(counts) == _COUNTED:
            totals = _Totals(events, blocks_written, tuple(U64.decode(count) for count in counts))
            if totals.events == sum(totals.counts):
                return totals
    raise Unfit("is damaged: its closing block holds no totals")


def _read_header(content: bytes) -> Header:
    decoder = RowDecoder()
    *shapes, row = list(objects(content)) or [()]
    for shape in shapes:
        decoder.define(shape)
    return decode_header(decoder.value(row))


@final
class XktTrace:
    """A trace in an xkt file, read as it is iterated. Raises `TraceError` if it can't be.

    With `salvage`, a file that its writer couldn't finish is read up to its last whole block; so is one
    whose header says that it is unfinished (`UNFINISHED`). `file` is that file if it is open, to read it by.
    """

    def __init__(self, path: Path, *, salvage: bool = False, file: BinaryIO | None = None) -> None:
        self.path = path
        self.salvage = salvage
        if file is None:
            with reading(path) as opened:
                self._read_ends(opened)
        else:
            file.seek(0)
            self._read_ends(file)

    def _read_ends(self, file: BinaryIO) -> None:
        """Read header and totals."""
        with self._complaints():
            blocks.read_prefix(file)
            self._header_content = self._read_header_block(file)
            self.header = _read_header(self._header_content)
            self.salvage = self.salvage or self.header.extra.get(UNFINISHED) is True
            closing = blocks.find_closing(file, salvage=self.salvage)
            self._totals = None if closing is None else _read_totals(closing)

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.name

    @property
    def complete(self) -> bool:
        """Whether the writer finished the file; always true without `salvage`."""
        return self._totals is not None

    def counts(self) -> Mapping[str, int] | None:
        """Return the number of events of each kind that occurs, from the closing block; None without one."""
        if self._totals is None:
            return None
        return {kind: count for kind, count in zip(KINDS, self._totals.counts, strict=True) if count}

    def events(self) -> Iterator[Event]:
        """Read the events, one block in memory at a time. Raises `Malformed`."""
        for ts, event, told in self.timed_events():
            yield at_time(as_told(event, told), ts)

    def timed_events(self) -> Iterator[TimedEvent]:
        """Read the events without a `ts`, each with its time. Raises `Malformed`.

        Events that differ in time only, and hypercalls that differ only in what `Told` tells, are one object,
        as long as they are remembered: what is found out about it once holds for all of them.
        """
        return chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[list[TimedEvent]]:
        """Some events of one block at a time: reading one by one, in turns with a replay, takes longer."""
        decoder = RowEvents(self.header)
        counts = decoder.counts
        with reading(self.path) as file, self._complaints(counts):
            for content in self._contents(file, counts):
                unpacking = unpacker(content)
                if next(unpacking, None) != (sum(counts), decoder.ts):
                    raise Unfit("is damaged: a block doesn't go on where the one before ended")
                decoder.next_block()
                for row in unpacking:
                    batch: list[TimedEvent] = []
                    try:
                        stop = decoder.read(chain((row,), islice(unpacking, _BATCH)), batch)
                    finally:
                        yield batch
                    if stop is not MORE:
                        break
                else:
                    raise Unfit(CUT_ROW)
                if stop is not None:
                    raise Unfit(f"is damaged: a row is {shown(stop)}")
                check_tail(unpacking, content)

    def _contents(self, file: BinaryIO, counts: list[int]) -> Iterator[bytes]:
        """Read the event blocks' contents; check at the end that the totals are those that were read."""
        blocks.read_prefix(file)
        if self._read_header_block(file) != self._header_content:
            raise Unfit("has changed since it was opened")
        blocks_read = 0
        while (block := blocks.read_block(file, salvage=self.salvage)) is not None:
            if block.tag == blocks.CLOSING:
                if not self.complete:
                    return
                blocks.read_end(file)
                if _read_totals(block.content) != _Totals(sum(counts), blocks_read, tuple(counts)):
                    raise Unfit("is damaged: its events are not as many as its closing block says")
                return
            if block.tag != blocks.EVENTS:
                raise Unfit("is damaged: it has two headers")
            blocks_read += 1
            yield block.content
        if not self.salvage:
            raise Unfit("is cut off: it has no closing block")

    @staticmethod
    def _read_header_block(file: BinaryIO) -> bytes:
        block = blocks.read_block(file)
        if block is None or block.tag != blocks.HEADER:
            raise Unfit("is cut off or damaged: it has no header")
        return block.content

    @contextmanager
    def _complaints(self, counts: list[int] | None = None) -> Iterator[None]:
        """Turn what is found wrong into `Malformed`, at the event after those that were counted."""
        try:
            yield
        except TraceError:
            raise
        except Unfit as unfit:
            what = str(unfit)
        except (ValueError, msgpack.UnpackException) as error:
            what = f"is damaged: its msgpack can't be decoded ({error or type(error).__name__})"
        else:
            return
        raise Malformed(what, str(self.path), event=None if counts is None else sum(counts))


class XktWriter:
    """Writes an xkt file event by event, holding one block in memory.

    A context manager: the file appears under its name when the block ends without an exception. The same
    trace gives the same bytes. What can't be read back is refused with `Malformed`.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.written = 0
        self._counts = [0] * _COUNTED
        self._blocks = 0
        self._ts = 0
        self._plain = plain_check(header)
        self._pack = msgpack.Packer().pack
        self._start_block()

    def __enter__(self) -> XktWriter:  # noqa: PYI034 - Python 3.10 has no Self
        with ExitStack() as stack:
            self._file = stack.enter_context(replacing(self.path))
            content = self._header_content()
            with complaining(self.path, "written"):
                blocks.write_prefix(self._file, VERSION)
                blocks.write_block(self._file, blocks.HEADER, content)
            self._stack = stack.pop_all()
        return self

    def write(self, event: Event) -> None:
        """Append an event."""
        try:
            packed = self._packed(event)
        except Unfit as unfit:
            raise Malformed(str(unfit), str(self.path), event=self.written) from None
        self._content += packed
        self._ts = self._ts if event.ts is None else event.ts
        self._counts[CODES[event.kind]] += 1
        self.written += 1
        if len(self._content) >= BLOCK_TARGET:
            self._end_block()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
        else:
            with self._stack:
                self._finish()

    def _packed(self, event: Event) -> bytes:
        ts = elapsed(event.ts, self._ts)
        if isinstance(event, Hypercall) and self._plain(row := plain_row(event, ts)):
            return bytes(self._pack(row))
        members = encode_event(event, text=False)
        check_event(decode_event(event.kind, members), self.header)
        row = self._encoder.row(event.kind, members, ts)
        packed = b"".join(map(self._pack, [*self._encoder.fresh, row]))
        if len(packed) > MAX_EVENT:
            raise Unfit(f"takes {len(packed)} bytes, expected at most {MAX_EVENT} (16 MiB)")
        self._encoder.fresh.clear()
        return packed

    def _header_content(self) -> bytes:
        try:
            encoded = encode_header(self.header)
            decode_header(encoded)
            encoder = RowEncoder()
            row = encoder.value(encoded)
        except Unfit as unfit:
            raise Malformed(str(unfit), str(self.path)) from None
        return b"".join(map(self._pack, [*encoder.fresh, row]))

    def _start_block(self) -> None:
        self._encoder = RowEncoder()
        self._content = bytearray(self._pack((self.written, self._ts)))
        self._first = self.written

    def _end_block(self) -> None:
        with complaining(self.path, "written"):
            blocks.write_block(self._file, blocks.EVENTS, bytes(self._content))
        self._blocks += 1
        self._start_block()

    def _finish(self) -> None:
        if self.written > self._first:
            self._end_block()
        totals = _Totals(self.written, self._blocks, tuple(self._counts))
        with complaining(self.path, "written"):
            size = blocks.write_block(self._file, blocks.CLOSING, totals.packed())
            blocks.write_end(self._file, size)
