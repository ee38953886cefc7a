"""Bounded msgpack: what a block's content may hold, and that it ends where an object ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from pytest_xenkvm.trace.values import Unfit

_COMMON_BLOCK: Final = 1 << 20
_MAX_ELEMENTS: Final = 1 << 20
"""Array elements in a block that is larger than `_COMMON_BLOCK`; in a smaller one its size is the bound."""

_END: Final = b"\xc0"
"""A msgpack nil, put after a block's content when it is read: no row is nil, a row cut off swallows it."""

CUT_ROW: Final = "is damaged: a block ends inside a row"


def _refuse(*_found: Any) -> Any:
    raise Unfit("is damaged: msgpack of a type that the format doesn't use")


def _element_budget() -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    left = _MAX_ELEMENTS

    def spend(elements: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal left
        left -= len(elements) + 1
        if left < 0:
            raise Unfit(f"holds more than {_MAX_ELEMENTS} values in one block")
        return elements

    return spend


def unpacker(content: bytes) -> msgpack.Unpacker:
    """Return an unpacker of `content` with `_END` after it; arrays become tuples, nothing else nests.

    Unpacking raises `Unfit`, `ValueError` or `msgpack.UnpackException`.
    """
    unpacking = msgpack.Unpacker(
        use_list=False,
        raw=False,
        object_pairs_hook=_refuse,
        ext_hook=_refuse,
        list_hook=_element_budget() if len(content) > _COMMON_BLOCK else None,
        max_buffer_size=len(content) + len(_END),
        max_array_len=_MAX_ELEMENTS,
        max_ext_len=0,
    )
    unpacking.feed(content)
    unpacking.feed(_END)
    return unpacking


def objects(content: bytes) -> Iterator[Any]:
    """Unpack a small content that holds whole objects and nothing else."""
    unpacking = unpacker(content)
    for found in unpacking:
        if found is None:
            break
        yield found
    else:
        raise Unfit(CUT_ROW)
    check_tail(unpacking, content)


def check_tail(unpacking: msgpack.Unpacker, content: bytes) -> None:
    """Check that the nil just read is the one that was added."""
    if unpacking.tell() != len(content) + len(_END):
        raise Unfit("is damaged: a row is null")
