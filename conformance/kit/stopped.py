"""Timers that were stopped, or armed for another time, and must not fire when they were due."""

from __future__ import annotations

from typing import Final

from .setting import MS
from .vm import ProbeVm

SOON: Final = 100 * MS
"""When a timer is due that a probe stops before (ns from now)."""


def stays_quiet(vm: ProbeVm) -> None:
    """No event must come, though time passes until well beyond the old expiry.

    On a slow host the timer may fire before it is stopped, as it must: that event goes first.
    """
    __tracebackhide__ = True
    vm.clear_events()
    vm.wait(SOON * 3 // 2)
    vm.pending()
