"""The interchange format: JSON Lines, a header and then one event a line (docs/reference/trace-format.md).

Plain or gzip-compressed. Input is untrusted: lines are bounded before they are parsed, numbers and nesting
while they are, and every event is checked against its table.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, cast, final

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header
from pytest_xenkvm.trace.fields import check_event, decode_event, encode_event
from pytest_xenkvm.trace.header import decode_header, encode_header
from pytest_xenkvm.trace.storage import complaining, reading, replacing
from pytest_xenkvm.trace.values import MAX_VALUES, Unfit, shown, unexpected

MAX_LINE: Final = 16 << 20
"""Bytes of a line, its newline included."""

GZIP_MAGIC: Final = b"\x1f\x8b"

_U64_DIGITS: Final = 20
_HEADER_LINE: Final = 1


def _parse_int(digits: str) -> int:
    if len(digits) > _U64_DIGITS:
        raise Unfit(f"holds an integer of {len(digits.lstrip('-'))} digits, expected at most 2^64-1")
    return int(digits)


def _no_number(found: str) -> Any:
    raise Unfit(f"holds the number {shown(found)}, expected integers only")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _value in pairs]
        raise Unfit(f"holds the key {shown(next(key for key in keys if keys.count(key) > 1))} twice")
    return members


_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_parse_int, parse_float=_no_number, parse_constant=_no_number
)


def check_line_size(line: bytes) -> None:
    """Check a line's length and, without parsing it, that it can't hold too many values. Raises `Unfit`."""
    if len(line) > MAX_LINE:
        raise Unfit(f"is a line of more than {MAX_LINE} bytes (16 MiB)")
    if len(line) > MAX_VALUES and line.count(b",") + line.count(b"[") + line.count(b"{") > MAX_VALUES:
        raise Unfit(f"holds more than {MAX_VALUES} values")


def parse_line(line: bytes) -> Any:
    """Parse one line of JSON within the format's limits. Raises `Unfit`."""
    check_line_size(line)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise Unfit(f"is not UTF-8 text (byte {byte:#04x} at column {error.start + 1})") from None
    if not text or text.isspace():
        raise Unfit("is blank, expected one JSON object a line")
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise Unfit(f"is not JSON: {error.msg.lower()} at column {error.colno}") from None
    except RecursionError:
        raise Unfit("is nested too deeply") from None


def event_from_json(obj: object, *, path: str | None, line: int | None, event: int | None) -> Event:
    """Build an event from its parsed JSON object.

    Raises `Malformed` at this place: `line` counts from 1, `event` from 0.
    """
    try:
        return _decode(obj)
    except Unfit as unfit:
        raise Malformed(str(unfit), path, line=line, event=event) from None


def event_to_json(event: Event) -> dict[str, Any]:
    """Return an event's JSON object: `ev` first, then the keys in the order of docs, `ts` last.

    Raises `Malformed` if `event.extra` holds a key that the format uses itself.
    """
    try:
        return {"ev": event.kind, **encode_event(event, text=True)}
    except Unfit as unfit:
        raise Malformed(str(unfit)) from None


def header_from_json(obj: object, *, path: str | None) -> Header:
    """Build the header from its parsed JSON object. Raises `Malformed` at line 1."""
    try:
        return decode_header(obj)
    except Unfit as unfit:
        raise Malformed(str(unfit), path, line=_HEADER_LINE) from None


def header_to_json(header: Header) -> dict[str, Any]:
    """Return the header's JSON object, `format` and `version` first.

    Raises `Malformed` if `header.extra` holds a key that the format uses itself.
    """
    try:
        return encode_header(header)
    except Unfit as unfit:
        raise Malformed(str(unfit)) from None


def _decode(obj: object) -> Event:
    if type(obj) is not dict:
        raise unexpected(obj, "an event object")
    if "ev" not in obj:
        raise Unfit('has no "ev", which says what kind of event it is')
    members = {**obj}
    return decode_event(members.pop("ev"), members)


class JsonlTrace:
    """A trace in a JSON Lines file, read as it is iterated. Raises `TraceError` if it can't be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path) as file:
            line = next(self._lines(file), b"")
        if not line:
            raise Malformed("is empty, expected a trace header on line 1", str(path))
        try:
            self.header = decode_header(parse_line(line))
        except Unfit as unfit:
            raise Malformed(str(unfit), str(path), line=_HEADER_LINE) from None

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.name

    def counts(self) -> Mapping[str, int] | None:
        """Return None: counting would take reading the whole file."""
        return None

    def events(self) -> Iterator[Event]:
        """Read the events, one line in memory at a time. Raises `Malformed`."""
        with reading(self.path) as file:
            lines = self._lines(file)
            next(lines, None)
            for index, line in enumerate(lines):
                try:
                    event = _decode(parse_line(line))
                    check_event(event, self.header)
                except Unfit as unfit:
                    raise Malformed(str(unfit), str(self.path), line=index + 2, event=index) from None
                yield event

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        source = cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb")) if compressed else file
        number = 0
        try:
            while line := source.readline(MAX_LINE + 1):
                number += 1
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            what = f"is damaged or cut off after line {number}: {str(error).rstrip('.').lower()}"
            raise Malformed(what, str(self.path)) from None


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _line(obj: dict[str, Any]) -> bytes:
    line = _ENCODER.encode(obj).encode() + b"\n"
    check_line_size(line)
    return line


@final
class JsonlWriter:
    """Writes a JSON Lines file event by event, compressed if the name ends in `.gz`.

    A context manager: the file appears under its name when the block ends without an exception. The same
    trace gives the same bytes. What can't be read back is refused with `Malformed`.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.written = 0

    def __enter__(self) -> JsonlWriter:
        with ExitStack() as stack:
            out = stack.enter_context(replacing(self.path))
            if self.path.suffix == ".gz":
                zipped = gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0)
                out = stack.enter_context(cast("BinaryIO", zipped))
            self._out = out
            self._write(self._header_line())
            self._stack = stack.pop_all()
        return self

    def write(self, event: Event) -> None:
        """Append an event."""
        try:
            encoded = encode_event(event, text=True)
            check_event(decode_event(event.kind, encoded), self.header)
            line = _line({"ev": event.kind, **encoded})
        except Unfit as unfit:
            where = self.written
            raise Malformed(str(unfit), str(self.path), line=where + 2, event=where) from None
        self._write(line)
        self.written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
        else:
            with complaining(self.path, "written"):
                self._stack.close()

    def _header_line(self) -> bytes:
        try:
            encoded = encode_header(self.header)
            decode_header(encoded)
            return _line(encoded)
        except Unfit as unfit:
            raise Malformed(str(unfit), str(self.path), line=_HEADER_LINE) from None

    def _write(self, line: bytes) -> None:
        with complaining(self.path, "written"):
            self._out.write(line)
