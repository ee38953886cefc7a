"""Where the guest asked for hypercall pages, and which of their stubs make a call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX, U64_MAX
from pytest_xenkvm.core.hypercall_page import STUB_SIZE
from pytest_xenkvm.hosts.protocol import GuestCall

INSTRUCTIONS: Final = {"intel": b"\x0f\x01\xc1", "amd": b"\x0f\x01\xd9"}
"""VMCALL, VMMCALL."""

_IDENTITY_MAPPED: Final = 1 << 32
_REMEMBERED_PAGES: Final = 16
_MOV_EAX: Final = b"\xb8"
_RET: Final = b"\xc3"


@define(eq=False)
class HypercallPages:
    """The hypercall pages of a VM."""

    pages: deque[int] = field(factory=lambda: deque(maxlen=_REMEMBERED_PAGES), init=False)
    """Guest addresses, newest last."""

    def remember(self, msr_value: int) -> None:
        """The guest wrote this to the hypercall MSR."""
        page = msr_value & ~(PAGE_SIZE - 1)
        if page < _IDENTITY_MAPPED:
            if page in self.pages:
                self.pages.remove(page)
            self.pages.append(page)

    def stub(
        self, call: GuestCall, read_memory: Callable[[int, int], bytes | None]
    ) -> tuple[int, bytes] | None:
        """Address and content of the stub for a call in the newest page that has one; None if none has.

        Only what looks like a stub counts: a trace may store anything there.
        """
        number = call.nr & (U64_MAX if call.longmode else U32_MAX)
        if number >= PAGE_SIZE // STUB_SIZE:
            return None
        for page in reversed(self.pages):
            address = page + number * STUB_SIZE
            found = read_memory(address, STUB_SIZE) or b""
            if _is_stub(found, number):
                return address, found
        return None


def _is_stub(found: bytes, number: int) -> bool:
    mov = _MOV_EAX + number.to_bytes(4, "little")
    return any(found.startswith(mov + instruction + _RET) for instruction in INSTRUCTIONS.values())
