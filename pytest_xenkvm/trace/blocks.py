"""The outer form of an xkt file: magic, version and checksummed blocks (docs/reference/trace-format.md).

    magic, version | header block | event blocks ... | closing block | end mark

A block's CRC-32 covers its tag, its lengths and its stored bytes, so nothing is decompressed or decoded
that isn't as it was written. Lengths are bounded before anything is allocated for them.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import BinaryIO, Final, NoReturn

from attrs import frozen

from pytest_xenkvm.trace.header import check_version
from pytest_xenkvm.trace.values import Unfit

MAGIC: Final = b"\x89XKT\r\n\x1a\n"
"""As PNG's: shows transfers that drop bit 7 or translate line ends, and is no text."""

HEADER: Final = b"H"
EVENTS: Final = b"E"
CLOSING: Final = b"C"
_TAGS: Final = (HEADER, EVENTS, CLOSING)

MAX_BLOCK: Final = 17 << 20
"""Bytes of a block's content, compressed or not: one event of 16 MiB and what stood before it."""

COMPRESSION: Final = 6

_VERSION: Final = Struct("<H")
_FRAME: Final = Struct("<cIII")
"""Tag, stored length, length of the content, CRC-32."""
_END: Final = Struct("<I4s")
"""Length of the closing block with its frame, end mark."""
_END_MARK: Final = b"XKT\n"

PREFIX_SIZE: Final = len(MAGIC) + _VERSION.size


@frozen
class Block:
    """A block's tag and content."""

    tag: bytes
    content: bytes


def _crc(tag: bytes, stored: bytes, length: int) -> int:
    return zlib.crc32(stored, zlib.crc32(_FRAME.pack(tag, len(stored), length, 0)))


def write_prefix(file: BinaryIO, version: int) -> None:
    """Write magic and version."""
    file.write(MAGIC + _VERSION.pack(version))


def write_block(file: BinaryIO, tag: bytes, content: bytes) -> int:
    """Write a block, event blocks compressed; return the bytes it takes."""
    stored = zlib.compress(content, COMPRESSION) if tag == EVENTS else content
    file.write(_FRAME.pack(tag, len(stored), len(content), _crc(tag, stored, len(content))))
    file.write(stored)
    return _FRAME.size + len(stored)


def write_end(file: BinaryIO, closing_size: int) -> None:
    """Write the end mark, by which the closing block is found from the end."""
    file.write(_END.pack(closing_size, _END_MARK))


def read_prefix(file: BinaryIO) -> None:
    """Check magic and version. Raises `Unfit`."""
    if file.read(len(MAGIC)) != MAGIC:
        raise Unfit("is no xkt file (its first bytes are not those of one)")
    version = file.read(_VERSION.size)
    if len(version) < _VERSION.size:
        raise Unfit("is cut off inside its first bytes")
    check_version(_VERSION.unpack(version)[0])


def read_block(file: BinaryIO, *, salvage: bool = False) -> Block | None:
    """Read the next block whole and checked; None at the end of the file.

    Raises `Unfit` if it isn't whole; with `salvage`, that is an end too.
    """
    try:
        return _read_block(file)
    except Unfit:
        if salvage:
            return None
        raise


def _read_block(file: BinaryIO) -> Block | None:
    frame = file.read(_FRAME.size)
    if not frame:
        return None
    if len(frame) < _FRAME.size:
        raise Unfit("is cut off inside a block's frame")
    tag, size, length, crc = _FRAME.unpack(frame)
    if tag not in _TAGS:
        raise Unfit(f"is damaged: a block's tag is {tag!a}, expected H, E or C")
    if size > MAX_BLOCK or length > MAX_BLOCK:
        raise Unfit(f"is damaged: a block of {max(size, length)} bytes, expected at most {MAX_BLOCK}")
    stored = file.read(size)
    if len(stored) < size:
        raise Unfit(f"is cut off: a block has {len(stored)} of its {size} bytes")
    if _crc(tag, stored, length) != crc:
        raise Unfit("is damaged: a block's checksum is wrong")
    return Block(tag, _inflate(stored, length) if tag == EVENTS else stored)


def _inflate(stored: bytes, length: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        # One byte of room more than announced, so that zlib comes to the end of its stream.
        content = inflater.decompress(stored, length + 1)
    except zlib.error as error:
        raise Unfit(f"is damaged: a block doesn't decompress ({error})") from None
    if len(content) != length or not inflater.eof or inflater.unused_data:
        raise Unfit(f"is damaged: a block doesn't decompress to the {length} bytes it announces")
    return content


def read_end(file: BinaryIO) -> None:
    """Check that the end mark and nothing else follows the closing block. Raises `Unfit`."""
    closing_end = file.read(_END.size + 1)
    if len(closing_end) < _END.size or closing_end[_END.size - len(_END_MARK) : _END.size] != _END_MARK:
        raise Unfit("is damaged or cut off in its end mark")
    if len(closing_end) > _END.size:
        raise Unfit("goes on after its end mark")


def find_closing(file: BinaryIO, *, salvage: bool = False) -> bytes | None:
    """Return the closing block's content by way of the end mark.

    If the file doesn't end in one: None with `salvage`, otherwise `Unfit` says what is wrong with it.
    """
    try:
        closing = _closing_at_end(file)
    except Unfit:
        closing = None
    if closing is None and not salvage:
        _explain(file)
    return closing


def _closing_at_end(file: BinaryIO) -> bytes | None:
    size = file.seek(0, 2)
    if size < PREFIX_SIZE + _END.size:
        return None
    file.seek(size - _END.size)
    closing_size, mark = _END.unpack(file.read(_END.size))
    if mark != _END_MARK or not _FRAME.size <= closing_size <= size - PREFIX_SIZE - _END.size:
        return None
    file.seek(size - _END.size - closing_size)
    block = read_block(file)
    ends = file.tell() == size - _END.size
    return block.content if block is not None and block.tag == CLOSING and ends else None


def _explain(file: BinaryIO) -> NoReturn:
    file.seek(PREFIX_SIZE)
    while (block := read_block(file)) is not None:
        if block.tag == CLOSING:
            read_end(file)
            raise Unfit("is damaged: its end mark doesn't lead to its closing block")
    raise Unfit("is cut off: it has no closing block (its writer was stopped, or a copy of it was)")
