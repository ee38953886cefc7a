"""The guest that a replay runs on Unicorn: stubs that make one hypercall or MSR write, and take interrupts.

What it executes: `vmmcall` (`vmcall`), `wrmsr` or `call rax` (into the hypercall page), then `cpuid`, which
leaves the guest at every privilege level: there it is parked, with interrupts enabled. Each interrupt handler
pushes its vector and halts, so that the vector can be read from the guest's stack; then it returns. The
handler of #GP steps over the WRMSR that caused it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from pytest_xenkvm.core.memory import Slot
from pytest_xenkvm.cpu.engine import PRIVATE_BASE, Stop
from pytest_xenkvm.hosts.guest_image import (
    CODE,
    COMMON,
    HANDLER_SIZE,
    HANDLERS_32,
    HANDLERS_64,
    VECTORS,
    GuestImage,
)
from pytest_xenkvm.hosts.hypercall_pages import INSTRUCTIONS

HYPERCALL: Final = CODE
WRMSR: Final = CODE + 0x10
CALL_PAGE: Final = CODE + 0x20
IDLE: Final = CODE + 0x30

_PARK: Final = b"\x0f\xa2"
_WRMSR_CODE: Final = b"\x0f\x30"
_CALL_RAX: Final = b"\xff\xd0"
_PARK_AND_RETURN_64: Final = bytes.fromhex("f4 4883c408 48cf")  # hlt; add rsp, 8; iretq
_PARK_AND_RETURN_32: Final = bytes.fromhex("f4 83c404 cf")  # hlt; add esp, 4; iretd
_SKIP_WRMSR_64: Final = bytes.fromhex("f4 4883442410 02 4883c410 48cf")  # hlt; add qword [rsp+16], 2; ...
_SKIP_WRMSR_32: Final = bytes.fromhex("f4 8344240802 83c408 cf")


def replay_image(slots: Sequence[Slot], cpu_vendor: str) -> GuestImage:
    """The guest for a VM with those memory slots, in the engine's private memory."""
    return GuestImage.build(slots, _code(INSTRUCTIONS[cpu_vendor]), physical=PRIVATE_BASE)


@cache
def _code(hypercall: bytes) -> list[tuple[int, bytes]]:
    return [
        (HYPERCALL, hypercall + _PARK),
        (WRMSR, _WRMSR_CODE + _PARK),
        (CALL_PAGE, _CALL_RAX + _PARK),
        (IDLE, _PARK),
        *_handlers(HANDLERS_64, COMMON, _PARK_AND_RETURN_64, _SKIP_WRMSR_64),
        *_handlers(HANDLERS_32, COMMON + 0x80, _PARK_AND_RETURN_32, _SKIP_WRMSR_32),
    ]


def _handlers(base: int, common: int, ordinary: bytes, protection: bytes) -> list[tuple[int, bytes]]:
    ends = {True: common + 0x40, False: common}
    stubs = []
    for vector in range(VECTORS):
        jump_from = base + vector * HANDLER_SIZE + 10
        distance = ends[vector == Stop.GENERAL_PROTECTION] - jump_from
        push = b"\x68" + vector.to_bytes(4, "little")
        stubs.append((push + b"\xe9" + distance.to_bytes(4, "little", signed=True)).ljust(HANDLER_SIZE))
    return [(base, b"".join(stubs)), (ends[False], ordinary), (ends[True], protection)]
