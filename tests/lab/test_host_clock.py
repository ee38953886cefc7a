"""The host's time stamp counter."""

from __future__ import annotations

import itertools

import pytest

from pytest_xenkvm.lab import host_clock
from pytest_xenkvm.lab.host_clock import tsc_khz


def test_the_frequency_is_stable() -> None:
    """Two measurements agree to a thousandth, which noise wouldn't."""
    first, second = tsc_khz(), tsc_khz()
    assert first
    assert second
    assert abs(first - second) < first / 1000


def test_an_implausible_frequency_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that stands still has no frequency."""
    times = itertools.count(step=1000)
    monkeypatch.setattr(host_clock, "_read", lambda: (next(times), 5))
    assert tsc_khz() is None
