"""The adapter's process: pipes that never block us, what it wrote to stderr, and its end.

It leads a session of its own, so that what it started can be ended with it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Final

from attrs import Factory, define, field

_CHUNK: Final = 1 << 16
_KEPT_STDERR: Final = 1 << 13
_SHOWN_LINES: Final = 10
_SHOWN_CHARS: Final = 200
_LOOK_S: Final = 0.25
"""How often to look whether a silent adapter still runs: its children may hold its pipes open."""
_LONGEST_NAP_S: Final = 0.05
_CHUNKS_HEARD: Final = 16
"""Who writes to stderr without end is not listened to without end."""
FINE: Final = "exited with status 0"
_DEATH_S: Final = 5.0
"""How long the kernel may take to end a killed process."""


class Late(Exception):
    """The deadline passed."""


class Gone(Exception):
    """The process ended, or closed its end of a pipe."""


@define(eq=False)
class Process:
    """A process that is spoken to over stdin and stdout. Deadlines are values of `time.monotonic`, in s."""

    pid: int
    _popen: subprocess.Popen[bytes] = field(repr=False)
    _stdin: int
    _stdout: int
    _stderr: int
    _complaints: bytearray = field(factory=bytearray, init=False, repr=False)
    """The end of what it wrote to stderr."""
    _stderr_open: bool = field(default=True, init=False)
    _reading: select.poll = field(factory=select.poll, init=False, repr=False)
    _owner: int = field(default=Factory(os.getpid), init=False)
    """Who started it: a fork of this process must leave it alone."""

    @classmethod
    def start(cls, command: Sequence[str]) -> Process:
        """Start `command` in the working directory. Raises OSError or ValueError if it can't be."""
        pipe = subprocess.PIPE
        popen = subprocess.Popen(  # noqa: S603 - the user's own command
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
        pipes = [stream.fileno() for stream in (popen.stdin, popen.stdout, popen.stderr) if stream]
        for fd in pipes:
            os.set_blocking(fd, False)
        process = cls(popen.pid, popen, *pipes)
        for fd in pipes[1:]:
            process._reading.register(fd, select.POLLIN)
        return process

    def send(self, data: bytes, deadline: float) -> None:
        """Write to its stdin. Raises Late if it doesn't read in time, Gone."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._stdin, left) :]
            except BlockingIOError:
                self._wait_for_room(deadline)
            except BrokenPipeError:
                raise Gone from None

    def receive(self, deadline: float) -> bytes:
        """What it wrote to stdout, at least a byte. Raises Late, Gone."""
        while True:
            ready = {fd for fd, _ in self._reading.poll(_milliseconds(deadline))}
            if self._stderr in ready:
                self._hear_complaints()
            if self._stdout in ready:
                data = os.read(self._stdout, _CHUNK)
            elif not ready and self._has_ended():
                data = self.pending()
            elif monotonic() < deadline:
                continue
            else:
                raise Late
            if not data:
                raise Gone
            return data

    def pending(self) -> bytes:
        """What it has written to stdout by now; empty if nothing."""
        try:
            return os.read(self._stdout, _CHUNK)
        except BlockingIOError:
            return b""

    def close_stdin(self) -> None:
        """Let it find the end of its input."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def finish(self, grace_s: float = 0.0) -> str | None:
        """Give it `grace_s` to end, kill what is left of it and clean up.

        Returns how it ended ("was killed by SIGSEGV"), `FINE` if well; None if it had to be killed.
        """
        deadline = monotonic() + grace_s
        nap = 0.001
        while not (ended := self._has_ended()) and monotonic() < deadline:
            sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP_S)
        self._kill()
        return _ending(self._popen.returncode) if ended else None

    def abandon(self) -> None:
        """The same at once, unless this is a fork of the process that started it."""
        if os.getpid() == self._owner:
            self._kill()

    def complaints(self) -> str:
        """The last lines that it wrote to stderr, fit for a terminal; empty if there are none."""
        text = self._complaints.decode(errors="replace")
        lines = [
            "".join(char if char.isprintable() else " " for char in line.expandtabs())[:_SHOWN_CHARS].rstrip()
            for line in text.splitlines()
        ]
        return "\n".join([line for line in lines if line][-_SHOWN_LINES:])

    def _has_ended(self) -> bool:
        """Whether it has, without taking its status: until then nobody else gets its number."""
        if self._popen.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # SIGCHLD is ignored in this process, so nobody gets to know its status
            return True

    def _kill(self) -> None:
        if self._popen.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_DEATH_S)
            self._hear_complaints()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()

    def _wait_for_room(self, deadline: float) -> None:
        """Wait until its stdin takes more; it may be held up by its stderr being full."""
        waiting = select.poll()
        waiting.register(self._stdin, select.POLLOUT)
        if self._stderr_open:
            waiting.register(self._stderr, select.POLLIN)
        ready = {fd for fd, _ in waiting.poll(_milliseconds(deadline))}
        if self._stderr in ready:
            self._hear_complaints()
        if self._stdin not in ready and monotonic() >= deadline:
            raise Late

    def _hear_complaints(self) -> None:
        """Take in what is there of its stderr."""
        for _ in range(_CHUNKS_HEARD if self._stderr_open else 0):
            try:
                data = os.read(self._stderr, _CHUNK)
            except BlockingIOError:
                return
            if not data:
                self._stderr_open = False
                self._reading.unregister(self._stderr)
                return
            self._complaints += data
            del self._complaints[:-_KEPT_STDERR]


def _milliseconds(deadline: float) -> int:
    return int(1000 * max(0.0, min(deadline - monotonic(), _LOOK_S))) + 1


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"
