"""Single values in words: numbers, times, addresses, results. Every function is total: it never raises.

Small numbers are decimal, large ones and addresses hexadecimal; times are exact, in the largest unit
that fits; text from a trace is made safe for a terminal and cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, Protocol

from pytest_xenkvm.abi import names
from pytest_xenkvm.abi.numbers import INVALID_GFN, INVALID_GPA, U32_MAX, U64_MAX, XEN_VCPU_ID_INVALID
from pytest_xenkvm.trace.events import NowPlus

_DECIMAL_BELOW: Final = 1 << 16
_MAX_ERRNO: Final = 4095
_MAX_TEXT: Final = 80
_MAX_ITEMS: Final = 16
_MAX_DEPTH: Final = 4
_MAX_BYTES: Final = 16
_UNITS: Final = (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000))

Words = Callable[[int], str]
"""Puts a number into words."""


class Flags(Protocol):
    """The class of an IntFlag, as far as naming its bits goes."""

    @property
    def __members__(self) -> Mapping[str, int]: ...


def number(value: int) -> str:
    """A number of no particular meaning: decimal below 65536, hexadecimal from there on."""
    return str(value) if abs(value) < _DECIMAL_BELOW else f"{value:#x}"


def hexadecimal(value: int) -> str:
    """A register, an address or a set of bits."""
    return f"{value:#x}"


def address(value: int) -> str:
    """A guest physical address, or the value that switches an area off."""
    return f"INVALID_GPA ({value:#x})" if value == INVALID_GPA else f"{value:#x}"


def frame(value: int) -> str:
    """A guest frame number, or the value that switches an area off."""
    return f"INVALID_GFN ({value:#x})" if value == INVALID_GFN else f"{value:#x}"


def vcpu_id(value: int) -> str:
    """A Xen vCPU ID as stored: XEN_VCPU_ID_INVALID by its name."""
    return f"XEN_VCPU_ID_INVALID ({value:#x})" if value == XEN_VCPU_ID_INVALID else number(value)


def truncated_vcpu_id(value: int) -> str:
    """The vCPU that a guest names; if it exceeds 32 bits, the number that KVM makes of it follows."""
    if value <= U32_MAX:
        return vcpu_id(value)
    kept = value & U32_MAX
    return f"{value:#x} ({'XEN_VCPU_ID_INVALID' if kept == XEN_VCPU_ID_INVALID else number(kept)})"


def truncated(value: int) -> str:
    """A number of which KVM keeps 32 bits: `0x100000008 (8)`."""
    return number(value) if value <= U32_MAX else f"{value:#x} ({number(value & U32_MAX)})"


def duration(ns: int) -> str:
    """A length of time of `ns` nanoseconds, exactly: `1.5 ms`, `-5 us`, `0 ns`."""
    magnitude, sign = abs(ns), "-" if ns < 0 else ""
    if magnitude > U64_MAX:
        return f"{ns:#x} ns"
    for unit, size in _UNITS:
        if magnitude >= size:
            whole, rest = divmod(magnitude, size)
            digits = f"{whole}.{rest:0{len(str(size)) - 1}}".rstrip("0").rstrip(".")
            return f"{sign}{digits} {unit}"
    return f"{ns} ns"


def relative(ns: int) -> str:
    """A point in time `ns` nanoseconds after the guest's now: `+1 ms`, `-5 us`, `now`."""
    return "now" if ns == 0 else f"{'+' if ns > 0 else ''}{duration(ns)}"


def absolute(time: int | NowPlus, now: int | None = None) -> str:
    """An absolute guest time (ns, s64), relative to `now` (ns) if that is known: `+1 ms` or `@123456 ns`."""
    if isinstance(time, NowPlus):
        return relative(time.delta)
    signed = time - (1 << 64) if 1 << 63 <= time <= U64_MAX else time
    if now is None or signed < 0 or signed > U64_MAX:
        return f"@{signed if abs(signed) <= U64_MAX else hex(signed)} ns"
    return relative(signed - now)


def argument(value: int | NowPlus | None, words: Words = hexadecimal) -> str:
    """A hypercall argument; a time that was recorded relative to the guest's clock stays so."""
    if value is None:
        return "?"
    return absolute(value) if isinstance(value, NowPlus) else words(value)


def named(table: Mapping[int, str]) -> Words:
    """Words that name a number by `table`, other numbers as they are."""
    return lambda value: table.get(value) or number(value)


def bits(flags: Flags) -> Words:
    """Words that name set bits: `INTERCEPT_HCALL|EVTCHN_SEND`, bits without a name in hexadecimal."""

    def words(value: int) -> str:
        found = [name for name, bit in flags.__members__.items() if value & bit]
        rest = value & ~sum(bit for bit in flags.__members__.values())
        return "|".join([*found, *([f"{rest:#x}"] if rest or not found else [])]) if value else "0"

    return words


def errno(value: int) -> str | None:
    """`-EINVAL (-22)` for a negative errno, None for anything else."""
    if not -_MAX_ERRNO <= value < 0:
        return None
    name = names.ERRNO.get(-value)
    return f"-{name} ({value})" if name else str(value)


def result(value: int | None) -> str:
    """What an ioctl returned: 0, a positive number, a negative errno; None is unknown."""
    return "unknown" if value is None else errno(value) or number(value)


def signed_rax(rax: int, *, longmode: bool) -> int:
    """RAX (EAX in 32-bit mode) as the signed number that a hypercall's result is."""
    width = 64 if longmode else 32
    return rax - (1 << width) if rax >> (width - 1) == 1 else rax


def register_result(rax: int | None, *, longmode: bool) -> str:
    """A hypercall's result from the guest's RAX (EAX in 32-bit mode); None is unknown."""
    if rax is None:
        return "unknown"
    return errno(signed_rax(rax, longmode=longmode)) or number(rax)


def data(content: bytes) -> str:
    """Bytes in hexadecimal; long ones cut short, with their number."""
    if len(content) <= _MAX_BYTES:
        return content.hex() or "nothing"
    return f"{content[:_MAX_BYTES].hex()}... ({len(content)} bytes)"


def text(content: str, limit: int = _MAX_TEXT) -> str:
    """Text from a trace, on one line, without control characters, at most `limit` characters of it."""
    shown = content[:limit]
    safe = shown if shown.isprintable() else "".join(map(_printable, shown))
    return f"{safe}..." if len(content) > limit else safe


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


_SCALARS: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda _null: "null",
    bool: lambda value: "true" if value else "false",
    float: repr,
    str: text,
    bytes: data,
    NowPlus: lambda time: relative(time.delta),
}


def anything(value: object, words: Words = number, depth: int = 0) -> str:
    """Any JSON value: numbers by `words`, the rest as it is, cut short where it is long or deep."""
    if type(value) is int:
        return words(value)
    scalar = _SCALARS.get(type(value))
    if scalar:
        return scalar(value)
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, (list, tuple)):
        return f"[{enough(anything(item, words, depth + 1) for item in value)}]"
    return text(repr(value))


def _object(value: Mapping[Any, Any], depth: int) -> str:
    match value:
        case {"now_plus": int(delta), **rest} if not rest:
            return relative(delta)
    members = (f"{anything(key)}={anything(item, number, depth + 1)}" for key, item in value.items())
    return f"{{{enough(members)}}}"


def enough(parts: Iterable[str], limit: int = _MAX_ITEMS) -> str:
    """The first `limit` parts, joined by commas, and `...` if there are more."""
    remaining = iter(parts)
    shown = list(islice(remaining, limit))
    return ", ".join([*shown, "..."] if next(remaining, None) is not None else shown)
