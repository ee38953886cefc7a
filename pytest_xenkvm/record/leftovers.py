"""What recordings leave in tracefs if they are killed, and how it is told from what is in use.

Instance and probe group of a recording are named after its process: `xenkvm_PID_START`, START being the
process's start time in clock ticks after boot, so that a later process of the same number is another one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from pytest_xenkvm.record.tracefs import Instance, Tracefs

_NAME: Final = re.compile(r"xenkvm_(\d{1,10})_(\d{1,20})")
_START_FIELD: Final = 19
"""Of /proc/PID/stat, counted after the command's name: starttime."""


def own_name(pid: int | None = None, proc: Path = Path("/proc")) -> str:
    """Return the name for what process `pid` (default: this one) makes in tracefs."""
    pid = os.getpid() if pid is None else pid
    return f"xenkvm_{pid}_{_start_time(pid, proc) or 0}"


def find_leftovers(tracefs: Tracefs, proc: Path = Path("/proc")) -> list[str]:
    """Return the names of dead recordings that have left something behind."""
    groups = (name.partition(":")[2].partition("/")[0] for name in tracefs.probe_names())
    names = {name for name in (*tracefs.instances(), *groups) if _NAME.fullmatch(name)}
    return sorted(name for name in names if not _lives(name, proc))


def remove_leftovers(tracefs: Tracefs, name: str) -> bool:
    """Remove what a recording has made; return whether it is all gone.

    It isn't if someone has the instance open: then its process lives after all (in another PID namespace,
    say), and nothing is touched. Raises OSError for anything else that goes wrong.
    """
    try:
        Instance(tracefs, name).remove()
        tracefs.remove_probes(name)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _lives(name: str, proc: Path) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and _start_time(int(match[1]), proc) == int(match[2])


def _start_time(pid: int, proc: Path) -> int | None:
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[_START_FIELD])
