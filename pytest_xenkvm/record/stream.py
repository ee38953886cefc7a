"""The kernel's trace as it comes: lines of `trace_pipe`, put into order of time, and notes of losses.

The kernel merges the buffers of its CPUs as they are being filled, so a line may come a little after a later
one.
"""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterator
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.trace.importers.ftrace_lines import TraceLine, parse_line
from pytest_xenkvm.trace.importers.text import MAX_LINE

_CHUNK: Final = 64 << 10
_AT_ONCE: Final = 4 << 20
"""Bytes that are read before the caller gets a turn."""

SLACK_NS: Final = 20_000_000
"""How late a line may come."""

_LOST: Final = re.compile(r"CPU:\d{1,5} \[LOST (?:(\d{1,18}) )?EVENTS\]")


@frozen
class Lost:
    """The kernel's buffer was full: `count` events (at least) were lost before the next line."""

    count: int


Item = TraceLine | Lost


@define
class TraceStream:
    """Reads a `trace_pipe` that was opened without blocking, whose clock is CLOCK_MONOTONIC.

    `lines`: how many were read; `strange`: how many of them were no event.
    """

    file: int
    name: str
    lines: int = 0
    strange: int = 0
    drained: bool = False
    """Whether the last `read` came to the end of what there was."""
    _rest: bytes = b""
    _skipping: bool = False
    _heap: list[tuple[int, int, Item]] = Factory(list)
    _latest: int = 0
    _before: int = 0
    """Time of the line before."""

    def read(self) -> None:
        """Take in what there is, some megabytes at most. Raises OSError."""
        began = time.monotonic_ns()
        self.drained = False
        done = 0
        while done < _AT_ONCE:
            try:
                chunk = os.read(self.file, _CHUNK)
            except BlockingIOError:
                chunk = b""
            if not chunk:
                self.drained = True
                self._latest = max(self._latest, began)
                return
            done += len(chunk)
            self._take(chunk)

    def ordered(self, *, all_of_them: bool = False) -> Iterator[Item]:
        """Yield, in order of time, what no line to come can precede; or all that is left."""
        limit = self._latest - SLACK_NS
        while self._heap and (all_of_them or self._heap[0][0] < limit):
            yield heapq.heappop(self._heap)[2]

    @property
    def reached(self) -> int:
        """Everything before this time (ns, CLOCK_MONOTONIC) has been handed out."""
        return self._latest - SLACK_NS

    def _take(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self.lines += 1
            if self._skipping or len(line) > MAX_LINE:
                self._skipping = False
                self.strange += 1
            else:
                self._line(line.decode("utf-8", "replace"))
        if len(self._rest) > MAX_LINE:
            self._rest, self._skipping = b"", True

    def _line(self, text: str) -> None:
        line = parse_line(text, self.name, self.lines)
        if line is not None:
            self._latest, self._before = max(self._latest, line.ns), line.ns
            heapq.heappush(self._heap, (line.ns, self.lines, line))
        elif match := _LOST.match(text.strip()):
            heapq.heappush(self._heap, (self._before, self.lines, Lost(int(match[1] or 1))))
        elif text.strip():
            self.strange += 1
