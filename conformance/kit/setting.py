"""Where probes put what they share with the kernel, and the modes that guests run in."""

from __future__ import annotations

from enum import Enum
from typing import Final

import pytest

from pytest_xenkvm.abi.numbers import PAGE_SIZE

MEMORY: Final = 4 << 20
"""Bytes of guest memory, from guest address 0. The guest's virtual addresses are its guest addresses."""

SHARED_INFO: Final = 0x10_0000
OTHER_SHARED_INFO: Final = 0x10_1000
VCPU_INFO: Final = 0x11_0000
"""vCPU i's is i pages further on, and so for the two below."""
TIME_INFO: Final = 0x12_0000
RUNSTATE: Final = 0x13_0000
ARGUMENT: Final = 0x20_0000
"""Where a hypercall's pointer argument points."""
PAGE: Final = 0x30_0000
"""A page that the kernel may fill."""
BLOB: Final = 0x31_0000
"""The VMM's hypercall blob."""

NOWHERE: Final = 0x4000_0000
"""A guest address that the guest has mapped but that no memory is behind."""
LAST_PAGE: Final = MEMORY - PAGE_SIZE

MSR: Final = 0x4000_0000
"""The hypercall MSR that probes configure."""

MS: Final = 1_000_000
SECOND: Final = 1000 * MS


class Mode(Enum):
    """What the guest executes: 64-bit code, 32-bit code, or 32-bit code in long mode."""

    LONG = "64-bit"
    PROTECTED = "32-bit"
    COMPAT = "compatibility mode"

    @property
    def longmode(self) -> bool:
        """The hypercall is made by the 64-bit ABI."""
        return self is Mode.LONG

    @property
    def lma(self) -> bool:
        """EFER.LMA is set."""
        return self is not Mode.PROTECTED


MODES: Final = tuple(pytest.param(mode, id=mode.value) for mode in Mode)
"""Each of them, as parameters of a probe."""
MODES_32: Final = tuple(pytest.param(mode, id=mode.value) for mode in Mode if not mode.longmode)
"""Those in which hypercalls are made by the 32-bit ABI."""
