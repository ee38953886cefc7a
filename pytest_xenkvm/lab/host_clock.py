"""The frequency of the host's time stamp counter, which is the guest's, too.

QEMU's TCG answers RDTSC with the host's counter. A kernel measures its frequency while it boots, and on a
busy host it may find a fifth of it, or less: the guest's clocks then run at another pace than its timers.
So the kernel is told.
"""

from __future__ import annotations

import time
from mmap import PAGESIZE, mmap
from typing import Final

from pytest_xenkvm.cpu.errors import NoUnicorn

_RDTSC: Final = b"\x0f\x31"
_CODE: Final = 0x1000
_APART_S: Final = 0.05
_TRIES: Final = 8
_PLAUSIBLE_KHZ: Final = range(500_000, 10_000_000)
_NS_PER_MS: Final = 1_000_000


def tsc_khz() -> int | None:
    """Return the frequency in kHz, good to some 10 ppm; None if it can't be told. Takes a tenth of a second.

    Unicorn, which is QEMU's TCG without a machine, answers RDTSC alike: it takes no machine code of the host.
    """
    try:
        first_ns, first = _read()
    except NoUnicorn:
        return None
    time.sleep(_APART_S)
    last_ns, last = _read()
    found = round((last - first) * _NS_PER_MS / (last_ns - first_ns))
    return found if found in _PLAUSIBLE_KHZ else None


def _read() -> tuple[int, int]:
    """The monotonic clock in ns and the counter at that moment: of some tries, the least disturbed one."""
    from pytest_xenkvm.cpu.unicorn_api import RAX, RDX, Unicorn  # noqa: PLC0415 - slow, and rarely wanted

    memory = mmap(-1, PAGESIZE)
    memory[: len(_RDTSC)] = _RDTSC
    cpu = Unicorn()
    cpu.map(_CODE, memory)
    registers = cpu.registers(RAX, RDX)
    readings = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        cpu.start(_CODE, 1)
        after = time.monotonic_ns()
        low, high = registers.read()
        readings.append((after - before, (before + after) // 2, high << 32 | low))
    _, moment, counter = min(readings)
    return moment, counter
