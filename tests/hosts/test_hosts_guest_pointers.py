"""Guest virtual addresses without a CPU: virtual = physical, or what the trace saw behind an argument."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.guest_pointers import GuestPointers
from pytest_xenkvm.hosts.protocol import GuestCall

PAGE = 4096
GIB_4 = 1 << 32
MEMORY = GuestMemory(
    [
        (0, bytearray(b"\1" * PAGE)),
        (PAGE, bytearray(b"\2" * PAGE)),
        (GIB_4 - PAGE, bytearray(b"\3" * PAGE)),
        (GIB_4, bytearray(b"\4" * PAGE)),
    ]
)


def read(address: int, size: int, needed: int | None = None, **members: Any) -> bytes | None:
    """Read behind a pointer of a 64-bit call."""
    defaults = {"nr": 0, "args": (0, 0, 0, 0, 0, 0), "longmode": True, "cpl": 0}
    return GuestPointers(MEMORY, GuestCall(**{**defaults, **members})).read(address, size, needed or size)


@pytest.mark.parametrize(
    ("address", "longmode", "data"),
    [
        (0, True, b"\1\1"),
        (PAGE - 1, True, b"\1\2"),
        (2 * PAGE - 1, True, None),
        (GIB_4 - 1, True, None),
        (GIB_4, True, None),
        (GIB_4 - 1, False, b"\3\1"),
        (GIB_4, False, b"\1\1"),
        (1 << 48 | PAGE - 1, True, b"\1\2"),
        ((1 << 64) - (1 << 48), True, b"\1\1"),
        ((1 << 64) - 1, True, None),
        (1 << 47, True, None),
    ],
)
def test_where_pointers_lead(*, address: int, longmode: bool, data: bytes | None) -> None:
    """4 GiB are mapped; long mode doesn't look at bits 48-63, 32-bit mode not at bits 32-63."""
    assert read(address, 2, longmode=longmode) == data


def test_nothing_is_read_of_no_bytes() -> None:
    """A read of 0 bytes succeeds anywhere."""
    assert read(GIB_4, 0) == b""


@pytest.mark.parametrize(
    ("size", "needed", "data"), [(4, 4, b"abcd"), (2, 2, b"ab"), (6, 4, b"abcd"), (6, 3, b"abcd")]
)
def test_recorded_bytes_come_first(size: int, needed: int, data: bytes) -> None:
    """Bytes recorded behind an argument serve reads there; those that don't matter may be missing."""
    members: dict[str, Any] = {"args": (0, 0, 77, 0, 0, 0), "behind": ((2, b"abcd"),)}
    assert read(77, size, needed, **members) == data
    assert read(0, 1, **members) == b"\1"


def test_recorded_bytes_that_end_too_early() -> None:
    """If bytes that matter were not recorded, the read can't be answered, whatever the VM's memory holds."""
    with pytest.raises(UnseenMemory):
        read(0, 5, behind=((2, b"abcd"),))


def test_memory_that_the_recorder_did_not_see() -> None:
    """Where no memory was recorded, a pointer without recorded bytes can't be followed."""
    with pytest.raises(UnseenMemory):
        read(0, 1, unseen_memory=True)
