"""Kinds of value in a trace, each with its check and its two spellings.

A value comes from JSON (bytes as hex) or from msgpack (bytes as bytes); both are untrusted. A check that
fails raises `Unfit`, which collects where it was on its way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX
from pytest_xenkvm.trace.events import NowPlus

S64_MIN: Final = -(1 << 63)
S64_MAX: Final = (1 << 63) - 1
HYPERCALL_ARGS: Final = 6

MAX_DEPTH: Final = 16
"""Objects and lists inside each other, counted from a member of an event."""

MAX_VALUES: Final = 100_000
"""Values in one event: an empty list takes 3 bytes of text, and 64 of memory."""

_SHOWN_CHARS: Final = 40


class Unfit(ValueError):
    """Content that the format doesn't allow; `str()` is a clause: what was found and what was expected."""

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(problem, where)
        self.problem = problem
        self.where = where

    def inside(self, key: str) -> Unfit:
        """Return the same complaint, one level further out."""
        dot = "" if not self.where or self.where.startswith("[") else "."
        return Unfit(self.problem, f"{key}{dot}{self.where}")

    def __str__(self) -> str:
        return f"{self.where} {self.problem}" if self.where else self.problem


def shown(value: object) -> str:
    """Name a found value in a few words, however large it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!a}..."
    return ascii(value)


def unexpected(value: object, expected: str) -> Unfit:
    """Return the complaint that `value` was found where `expected` belongs."""
    return Unfit(f"is {shown(value)}, expected {expected}")


def within(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    """Return `check(value)`; its complaint names `key`."""
    try:
        return check(value)
    except Unfit as unfit:
        raise unfit.inside(key) from None


def _as_is(value: Any, _text: bool) -> Any:  # noqa: FBT001 (the signature of every encoder)
    return value


@frozen
class Kind:
    """A kind of value: `decode` checks and converts, `encode(value, text)` converts back.

    `text` says whether bytes become hex (JSON) or stay bytes (msgpack).
    """

    decode: Callable[[Any], Any]
    encode: Callable[[Any, bool], Any] = _as_is


def integer(low: int, high: int, expected: str = "") -> Kind:
    """An integer in [low, high]; a bool is none."""
    expected = expected or f"an integer {low} ... {high}"

    def decode(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise unexpected(value, expected)
        return value

    return Kind(decode)


def one_of(*names: str) -> Kind:
    """One of a few words."""
    expected = " or ".join(f'"{name}"' for name in names)

    def decode(value: Any) -> str:
        if type(value) is not str or value not in names:
            raise unexpected(value, expected)
        return value

    return Kind(decode)


def nullable(kind: Kind) -> Kind:
    """`kind` or null."""

    def decode(value: Any) -> Any:
        return None if value is None else kind.decode(value)

    def encode(value: Any, text: bool) -> Any:  # noqa: FBT001
        return None if value is None else kind.encode(value, text)

    return Kind(decode, encode)


def items(kind: Kind, count: int | None = None) -> Kind:
    """A list of `kind`, of exactly `count` entries if given; a tuple in Python."""
    expected = "a list" if count is None else f"a list of {count}"

    def decode(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or (count is not None and len(value) != count):
            raise unexpected(value, expected)
        return tuple(within(f"[{number}]", kind.decode, entry) for number, entry in enumerate(value))

    def encode(value: Any, text: bool) -> list[Any]:  # noqa: FBT001
        return [kind.encode(entry, text) for entry in value]

    return Kind(decode, encode)


def as_object(value: Any) -> dict[str, Any]:
    """Check that `value` is a JSON object."""
    if type(value) is not dict:
        raise unexpected(value, "an object")
    return value


def check_members(value: Any, required: Mapping[str, Kind], optional: Mapping[str, Kind]) -> None:
    """Check the members of a JSON object that stays one; members that no table knows may hold anything."""
    for key in required:
        if key not in as_object(value):
            raise Unfit(f'has no "{key}"')
    for key, member in as_object(value).items():
        kind = required.get(key) or optional.get(key)
        within(key, free if kind is None else kind.decode, member)


def members(required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None) -> Kind:
    """A JSON object with these members, kept as the dict it is."""

    def decode(value: Any) -> dict[str, Any]:
        check_members(value, required, optional or {})
        return as_object(value)

    return Kind(decode)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise unexpected(value, "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise unexpected(value, "a string without lone surrogates") from None
    return value


def free(value: Any, depth: int = 0) -> Any:
    """Check that `value` is JSON that both formats can hold; return it."""
    if depth > MAX_DEPTH:
        raise Unfit(f"is nested more than {MAX_DEPTH} deep")
    if type(value) is dict:
        for key, member in value.items():
            _text(key)
            free(member, depth + 1)
    elif type(value) is list:
        for member in value:
            free(member, depth + 1)
    elif type(value) is str:
        _text(value)
    elif type(value) is int:
        if not S64_MIN <= value <= U64_MAX:
            raise unexpected(value, "an integer -2^63 ... 2^64-1")
    elif value is not None and type(value) is not bool:
        raise unexpected(value, "null, a bool, an integer, a string, a list or an object")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise unexpected(value, "true or false")
    return value


_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")


def _bytes(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is not str or len(value) % 2 or not _HEX_DIGITS.issuperset(value):
        raise unexpected(value, "a string of hex digits, two a byte")
    return bytes.fromhex(value)


def _bytes_out(value: bytes, text: bool) -> str | bytes:  # noqa: FBT001
    return value.hex() if text else value


def _now_plus(value: Any) -> NowPlus:
    if len(value) != 1 or "now_plus" not in value:
        raise unexpected(value, 'an object with the one member "now_plus"')
    return NowPlus(within("now_plus", S64.decode, value["now_plus"]))


def _time(value: Any) -> int | NowPlus:
    if type(value) is dict:
        return _now_plus(value)
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise unexpected(value, 'an integer 0 ... 2^64-1 or {"now_plus": D}')
    return value


def _time_out(value: int | NowPlus, _text: bool) -> int | dict[str, int]:  # noqa: FBT001
    return {"now_plus": value.delta} if isinstance(value, NowPlus) else value


def _time_member(value: Any) -> Any:
    _time(value)
    return value


_SYMBOLIC_ADDRESS: Final = {"gpa": integer(0, U64_MAX, "an integer 0 ... 2^64-1")}


def _address(value: Any) -> Any:
    if type(value) is dict:
        check_members(value, _SYMBOLIC_ADDRESS, {})
    elif type(value) is not int or not 0 <= value <= U64_MAX:
        raise unexpected(value, 'an integer 0 ... 2^64-1 or {"gpa": G}')
    return value


U8: Final = integer(0, 0xFF)
U16: Final = integer(0, 0xFFFF)
U32: Final = integer(0, U32_MAX, "an integer 0 ... 2^32-1")
U64: Final = integer(0, U64_MAX, "an integer 0 ... 2^64-1")
S64: Final = integer(S64_MIN, S64_MAX, "an integer -2^63 ... 2^63-1")
BOOL: Final = Kind(_bool)
TEXT: Final = Kind(_text)
BYTES: Final = Kind(_bytes, _bytes_out)
OBJECT: Final = Kind(lambda value: free(as_object(value)))
TIME: Final = Kind(_time, _time_out)
"""A guest register or absolute guest time (ns): an integer, or `NowPlus` for {"now_plus": D}."""
TIME_MEMBER: Final = Kind(_time_member)
"""The same inside a JSON object that stays one."""
ADDRESS: Final = Kind(_address)
"""A host virtual address: a number, or {"gpa": G} for the one that backs guest address G."""
