"""The end of what a guest's console and QEMU said, to show why a guest died."""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field

_KEPT_BYTES: Final = 32 << 10
_SHOWN_LINES: Final = 60
_QUIET_LINES: Final = 15
"""How many are enough where the kernel didn't complain."""
_COMPLAINT: Final = re.compile(
    r"Kernel panic|BUG:|Oops|sysrq: |Call Trace|Traceback|general protection|fatal: "
)
_OF_NO_INTEREST: Final = ("reboot: ", "TCG doesn't support requested feature")
"""The kernel's line when it ends as it should, and what QEMU says of the CPU at each start."""


@define
class LastWords:
    """The last bytes of a text that comes piece by piece."""

    _kept: bytes = field(default=b"", init=False)

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._kept = (self._kept + data)[-_KEPT_BYTES:]

    def lines(self) -> tuple[str, ...]:
        """The lines from the first complaint on, else the last few."""
        text = self._kept.decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if not any(words in line for words in _OF_NO_INTEREST)]
        complaint = next((n for n, line in enumerate(lines) if _COMPLAINT.search(line)), None)
        start = max(len(lines) - _QUIET_LINES, 0) if complaint is None else complaint
        return tuple(lines[start : start + _SHOWN_LINES])
