"""The guest's clock as a recording shows it: no event tells it, but each expired timer does.

A timer armed for guest time T that fires at trace time t shows t - T, the two clocks' offset plus the
interrupt's latency (some 10 us). One re-armed in the very moment shows nonsense, so the middle of
several is taken; the nearest ones, since the clocks drift and a pause moves them apart.
"""

from __future__ import annotations

from bisect import bisect_left
from statistics import median_low
from typing import Final

from attrs import Factory, define

_NEAR: Final = 7
"""Expiries looked at on either side."""

_S64_END: Final = 1 << 63


@define
class GuestClock:
    """Offsets between the trace clock and the guest's, in ns, by trace time."""

    _armed: dict[int, int] = Factory(dict)
    _when: list[int] = Factory(list)
    _offsets: list[int] = Factory(list)

    def arm(self, vcpu: int, abs_ns: int) -> None:
        """The vCPU's timer was armed for guest time `abs_ns`."""
        self._armed[vcpu] = abs_ns

    def fired(self, vcpu: int, ns: int) -> None:
        """The vCPU's timer interrupt came at trace time `ns`."""
        abs_ns = self._armed.pop(vcpu, None)
        if abs_ns is not None:
            self._when.append(ns)
            self._offsets.append(ns - abs_ns)

    def expires(self, ns: int, *, abs_ns: int, at: int) -> None:
        """At trace time `ns`, a timer for guest time `abs_ns` was seen to be set to trace time `at`."""
        self._when.append(ns)
        self._offsets.append(at - abs_ns)

    def forget(self, ns: int) -> None:
        """Nothing before trace time `ns` will be asked for any more."""
        old = bisect_left(self._when, ns) - _NEAR
        if old > 0:
            del self._when[:old], self._offsets[:old]

    def delta(self, abs_ns: int, ns: int) -> int | None:
        """Return how far guest time `abs_ns` was ahead at trace time `ns`; None if nothing shows it.

        A guest's time is an s64: one close to 2^64 lies before the clock's start.
        """
        middle = bisect_left(self._when, ns)
        near = self._offsets[max(middle - _NEAR, 0) : middle + _NEAR + 1]
        if not near:
            return None
        delta = abs_ns - (ns - median_low(near))
        return (delta + _S64_END) % (1 << 64) - _S64_END
