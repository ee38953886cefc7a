"""What keeps a lab from running."""

from __future__ import annotations

from attrs import define


class LabError(Exception):
    """The lab can't be had; `str()` is one sentence: what was found, what was expected, what to do."""


@define
class GuestDied(Exception):
    """The guest ended before its command did."""

    reason: str
    """One sentence."""
    console: tuple[str, ...] = ()
    """The last lines of its console, and what QEMU said."""

    def __str__(self) -> str:
        return self.reason


@define
class TimedOut(GuestDied):
    """The command took longer than it may."""
