"""Running a command in a guest: its output as it comes, its exit status, its files."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from attrs import define, evolve, field

from pytest_xenkvm.lab.errors import GuestDied, LabError, TimedOut
from pytest_xenkvm.lab.guest import Job, check_size, guest_files
from pytest_xenkvm.lab.guest_files import GuestFiles
from pytest_xenkvm.lab.guest_init import PORTS
from pytest_xenkvm.lab.kernels import Kernel
from pytest_xenkvm.lab.last_words import LastWords
from pytest_xenkvm.lab.qemu import Machine, command_line, find_qemu, start
from pytest_xenkvm.lab.returned import extract

_CHUNK: Final = 65536
_RETURN_S: Final = 30.0
"""How long files may take to come back after a command whose time was over."""
_MAX_OUTCOME: Final = 4096
"""Bytes of the line that tells how the command ended."""


@define
class Output:
    """Where a guest's output goes."""

    stdout: BinaryIO
    stderr: BinaryIO
    out: Path | None = None
    """Folder for the files that come back."""
    on_first: Callable[[], None] = lambda: None
    """Called, once, before the first output is written."""
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _has_begun: bool = field(default=False, init=False)

    def write(self, stream: BinaryIO, data: bytes) -> None:
        """Write to one of the streams, at once."""
        with self._lock:
            if not self._has_begun:
                self._has_begun = True
                self.on_first()
            stream.write(data)
            stream.flush()


def run(job: Job, kernel: Kernel, machine: Machine, output: Output, timeout: float | None = None) -> int:
    """Start a guest, run the job's command in it, end the guest; returns the command's exit status.

    `timeout` is in seconds of the host's clock, start included; if files are wanted, the guest ends the
    command itself then, to send what is there. Raises LabError if it can't be started, TimedOut or GuestDied
    if the command didn't end or the guest didn't say how; an interruption ends the guest.
    """
    find_qemu()
    if timeout is not None and job.wants_files:
        job = evolve(job, deadline=time.time() + timeout)
    files = guest_files(job, kernel)
    check_size(files, machine.memory)
    with _in_memory(files) as initramfs, ExitStack() as stack:
        reading, writing = zip(*(os.pipe() for _ in ("console", *PORTS)), strict=True)
        console, *ports = (stack.enter_context(os.fdopen(descriptor, "rb", 0)) for descriptor in reading)
        words = command_line(machine, kernel.image, initramfs, writing)
        try:
            process = start(words, (initramfs, *writing))
        finally:
            for descriptor in writing:
                os.close(descriptor)
        stack.enter_context(process)
        return _Attendance(process, output, timeout).attend(console, ports)


@contextmanager
def _in_memory(files: GuestFiles) -> Iterator[int]:
    """Write the archive into memory that vanishes with its last user, however that ends."""
    descriptor = os.memfd_create("initramfs")
    with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
        files.write(file)
        file.flush()
        yield descriptor


@define
class _Attendance:
    """Threads that carry what a guest writes, and the wait for its end."""

    process: subprocess.Popen[bytes]
    output: Output
    timeout: float | None
    _console: LastWords = field(factory=LastWords, init=False)
    _complaints: LastWords = field(factory=LastWords, init=False)
    _outcome: dict[str, object] = field(factory=dict, init=False)
    _failure: BaseException | None = field(default=None, init=False)

    def attend(self, console: BinaryIO, ports: Sequence[BinaryIO]) -> int:
        out, err, result = ports
        complaints = cast(BinaryIO, self.process.stderr)
        work: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (self._carry, (out, self.output.stdout)),
            (self._carry, (err, self.output.stderr)),
            (self._take_result, (result,)),
            (self._remember, (console, self._console)),
            (self._remember, (complaints, self._complaints)),
        ]
        threads = [threading.Thread(target=self._guarded, args=part, daemon=True) for part in work]
        for thread in threads:
            thread.start()
        is_late = False
        more = _RETURN_S if self.output.out is not None else 0
        try:
            self.process.wait(None if self.timeout is None else self.timeout + more)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            self.process.kill()
            self.process.wait()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        if is_late or self._outcome.get("late"):
            lost = "; its files didn't come back" if is_late and more else ""
            raise TimedOut(f"the command hadn't ended after {self.timeout:g} s{lost}", self._last_lines())
        return self._status()

    def _status(self) -> int:
        if "error" in self._outcome:
            raise LabError(str(self._outcome["error"]))
        status = self._outcome.get("status")
        if not isinstance(status, int):
            raise GuestDied("the guest ended before its command did", self._last_lines())
        return status

    def _guarded(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Run in a thread; what goes wrong ends the guest, and is raised in the end."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised elsewhere
            self._failure = self._failure or error
            self.process.kill()

    def _carry(self, source: BinaryIO, stream: BinaryIO) -> None:
        while data := source.read(_CHUNK):
            self.output.write(stream, data)

    @staticmethod
    def _remember(source: BinaryIO, kept: LastWords) -> None:
        while data := source.read(_CHUNK):
            kept.add(data)

    def _take_result(self, source: BinaryIO) -> None:
        with os.fdopen(os.dup(source.fileno()), "rb") as buffered:
            line = buffered.readline(_MAX_OUTCOME)
            if not line.endswith(b"\n"):
                return
            outcome = dict(json.loads(line))
            if self.output.out is not None and "status" in outcome:
                try:
                    extract(buffered, self.output.out)
                except tarfile.TarError:
                    return  # the guest died over it
            while buffered.read(_CHUNK):
                pass
            self._outcome = outcome

    def _last_lines(self) -> tuple[str, ...]:
        return (*self._console.lines(), *self._complaints.lines())
