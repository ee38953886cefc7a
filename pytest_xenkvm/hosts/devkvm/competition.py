"""Time that the scheduler takes from the VMM's thread: another process wants the same CPU."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pytest_xenkvm.hosts.protocol import HostError

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")
"""Time on a CPU (ns), time that it waited for one (ns), and how often it got one."""
_BUSY: Final = ("/bin/sh", "-c", "while :; do :; done")
_PATIENCE_S: Final = 20.0


def wait_for_cpu(ns: int) -> int:
    """Keep this thread waiting for a CPU for `ns` or more: how long it waited; raises HostError."""
    start = run_delay()
    deadline = time.monotonic() + _PATIENCE_S
    with _competitor():
        while run_delay() - start < ns:
            if time.monotonic() > deadline:
                raise HostError(
                    f"a busy process on the same CPU took no {ns} ns from the VMM within {_PATIENCE_S:.0f} s"
                )
    return run_delay() - start


def run_delay() -> int:
    """How long this thread has waited for a CPU since it began (ns); raises HostError."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1])
    except (OSError, ValueError, IndexError) as error:
        raise HostError(f"{_SCHEDSTAT} doesn't tell how long a thread waited for the CPU: {error}") from error


@contextmanager
def _competitor() -> Iterator[None]:
    """Both on the CPU that this thread may use first."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with subprocess.Popen(_BUSY, stdin=subprocess.DEVNULL) as busy:  # noqa: S603 - a constant
            try:
                yield
            finally:
                busy.kill()
    except OSError as error:
        raise HostError(f"{_BUSY[0]} can't be started: {error}") from error
    finally:
        os.sched_setaffinity(0, allowed)
