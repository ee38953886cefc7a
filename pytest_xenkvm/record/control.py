"""When a recording ends: the command that it watches, signals, limits."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from attrs import define

from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.session import Recorder

_PAUSE_S: Final = 0.05
"""Between two looks at the kernel's buffers."""
_GRACE_S: Final = 5.0
"""How long a command that was told to end is recorded."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@define
class Signals:
    """The signals that end a recording: which one came last, and when the first did."""

    last: int = 0
    since: float = 0.0
    child: subprocess.Popen[bytes] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal came. The command gets it too, unless the terminal has sent Ctrl-C to both."""
        del frame
        self.since = self.since or time.monotonic()
        self.last = number
        if self.child is not None and not (number == signal.SIGINT and os.isatty(0)):
            self.child.send_signal(number)


@contextmanager
def signals_noted(signals: Signals) -> Iterator[None]:
    """Note signals instead of dying of them."""
    before = {number: signal.signal(number, signals.note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command; raises RecordError if it can't be."""
    try:
        return subprocess.Popen(command)  # noqa: S603 - the user's own command
    except OSError as error:
        raise RecordError(f"{command[0]}: can't be run ({error.strerror})") from None


@define(kw_only=True)
class Ending:
    """What ends a recording: the end of `child` or process `pid`, `duration` (s), `max_events`, a signal."""

    signals: Signals
    child: subprocess.Popen[bytes] | None = None
    pid: int | None = None
    duration: float | None = None
    max_events: int | None = None

    def watch(self, recorder: Recorder, progress: Callable[[], None]) -> str:
        """Record until the end has come; return in words why it has. Raises `TraceError`."""
        began = time.monotonic()
        while True:
            drained = recorder.pump()
            progress()
            why = self._why(recorder, time.monotonic() - began)
            if why:
                return why
            if drained:
                select.select([], [], [], _PAUSE_S)

    def _why(self, recorder: Recorder, seconds: float) -> str:
        if self.child is not None and self.child.poll() is not None:
            return "the command ended"
        if self.pid is not None and not Path(f"/proc/{self.pid}").exists():
            return f"process {self.pid} ended"
        if self.max_events is not None and recorder.sorter.written >= self.max_events:
            return f"{self.max_events:,} events are recorded"
        if self.duration is not None and seconds >= self.duration:
            return f"{self.duration:g} s are over"
        if self.signals.last and (self.child is None or time.monotonic() - self.signals.since > _GRACE_S):
            return f"{signal.Signals(self.signals.last).name} came"
        return ""
