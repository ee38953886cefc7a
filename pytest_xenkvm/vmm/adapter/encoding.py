"""How messages travel: one JSON object a line, or, if the adapter asks for it, length-prefixed msgpack.

What comes from the adapter is bounded before it is parsed. Parsing gives plain objects, which
`messages.check_message` then looks at.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any, Final

from attrs import define, field

from pytest_xenkvm.trace.jsonl import parse_line
from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm.adapter.messages import JSON

MAX_MESSAGE: Final = 1 << 20
"""Bytes of a message from the adapter: of a line, or of what a length announces."""

_LENGTH: Final = Struct(">I")
_SHOWN: Final = 40


class Garbage(Exception):
    """The adapter wrote something that is no message; `str()` is a clause: "wrote ..."."""


def shown_bytes(data: bytes) -> str:
    """The start of what was written, for people to recognise it."""
    more = "..." if len(data) > _SHOWN else ""
    return f"{data[:_SHOWN]!r}"[1:] + more


def encode(message: dict[str, Any], encoding: str) -> bytes:
    """A message as it is sent: JSON is ASCII, without spaces, `type` first."""
    if encoding == JSON:
        return json.dumps(message, separators=(",", ":")).encode() + b"\n"
    import msgpack  # type: ignore[import-untyped]  # noqa: PLC0415 - loaded when used

    packed: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(packed)) + packed


@define
class Decoder:
    """Cuts what the adapter writes into messages. Raises `Garbage`."""

    encoding: str = JSON
    _buffer: bytearray = field(factory=bytearray, init=False)
    _searched: int = field(default=0, init=False)
    """Bytes of the buffer that hold no line end."""

    def feed(self, data: bytes) -> None:
        """Take in what was read."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """What was fed and is no whole message yet."""
        return bytes(self._buffer)

    def next(self) -> Any | None:
        """The next message as an object; None if it isn't whole yet."""
        return self._next_line() if self.encoding == JSON else self._next_frame()

    def _next_line(self) -> Any | None:
        end = self._buffer.find(b"\n", self._searched)
        if max(end, len(self._buffer) if end < 0 else 0) > MAX_MESSAGE:
            raise Garbage(
                f"wrote {len(self._buffer)} bytes without a line end, expected one JSON object a line"
            )
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            message = parse_line(line)
        except Unfit as unfit:
            raise Garbage(f"wrote a line that {unfit}: {shown_bytes(line)}") from None
        if type(message) is not dict:
            raise Garbage(f"wrote a line that is no JSON object: {shown_bytes(line)}")
        return message

    def _next_frame(self) -> Any | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_MESSAGE:
            raise Garbage(f"announced a message of {length} bytes, expected at most {MAX_MESSAGE}")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        packed = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        message = _unpack(packed)
        if type(message) is not dict:
            raise Garbage(f"wrote a message that is no msgpack map: {shown_bytes(packed)}")
        return message


def _unpack(packed: bytes) -> Any:
    import msgpack  # noqa: PLC0415 - as above

    try:
        return msgpack.unpackb(packed, raw=False, ext_hook=_refuse, object_pairs_hook=_unique)
    except (ValueError, Unfit, msgpack.UnpackException) as error:
        raise Garbage(f"wrote a message that is not msgpack ({error}): {shown_bytes(packed)}") from None


def _refuse(*_found: Any) -> Any:
    raise Unfit("an extension type")


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unfit("a key twice")
    return members
