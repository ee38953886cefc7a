"""How far a replay has come, as one line of a terminal that is written over and over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from attrs import define, field

CLEAR: Final = "\r\x1b[K"
"""To the start of the line, and erase it."""

_FIRST_S: Final = 0.5
"""A replay that is over sooner shows nothing."""
_BETWEEN_S: Final = 0.2
_MINUTE: Final = 60
_SHORTEST_BAR: Final = 10
_LONGEST_BAR: Final = 40


@define(eq=False, kw_only=True)
class Progress:
    """Tells a terminal how many events are done; call it with their number now and then, and `close` it."""

    write: Callable[[str], None]
    """Writes to the terminal, at once."""
    total: int | None = None
    """Events that there are to do, if known."""
    columns: int = 80
    before: str = ""
    """What to write before the first line and, with `after`, around them all."""
    after: str = ""
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _next: float = field(init=False)
    _is_shown: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._began = self.clock()
        self._next = self._began + _FIRST_S

    def __call__(self, done: int) -> None:
        """So many events are done."""
        now = self.clock()
        if now < self._next:
            return
        self._next = now + _BETWEEN_S
        before = "" if self._is_shown else self.before
        self._is_shown = True
        self.write(before + CLEAR + self.line(done, now - self._began))

    def close(self) -> None:
        """Leave nothing behind."""
        if self._is_shown:
            self._is_shown = False
            self.write(CLEAR + self.after)

    def line(self, done: int, seconds: float) -> str:
        """What is shown when `done` events took so many seconds; shorter than the terminal's columns."""
        rate = done / seconds if seconds > 0 else 0.0
        if not self.total:
            return f"{done:,} events, {rate:,.0f}/s"[: self.columns - 1]
        share = min(done / self.total, 1.0)
        words = f"{int(share * 100):3d}% {done:,} of {self.total:,} events, {rate:,.0f}/s"
        if rate:
            words += f", {_clock_time(max(self.total - done, 0) / rate)} left"
        length = min(self.columns - 1 - len(words) - len(" []"), _LONGEST_BAR)
        if length >= _SHORTEST_BAR:
            words = f"{words} [{'#' * int(share * length):-<{length}}]"
        return words[: self.columns - 1]


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), _MINUTE)
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
