"""Which processes a recording is about: one and all that it starts, as the scheduler's events tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.trace.importers.lines import TraceLine

FORK: Final = "sched/sched_process_fork"
EXIT: Final = "sched/sched_process_exit"
EVENTS: Final = (FORK, EXIT)

_FORK_FIELDS: Final = re.compile(r": comm=.* pid=(\d{1,10}) child_comm=.* child_pid=(\d{1,10})")


@define
class Family:
    """Threads by number. Without a root, everybody belongs to it."""

    everybody: bool = True
    threads: set[int] = Factory(set)

    def adopt(self, pid: int, proc: Path = Path("/proc")) -> None:
        """Take in a process with all its threads; whoever they start follows."""
        self.everybody = False
        self.threads.add(pid)
        try:
            self.threads |= {int(task.name) for task in (proc / str(pid) / "task").iterdir()}
        except OSError:
            return  # it is gone already; its events may still come

    def take(self, line: TraceLine) -> bool:
        """Follow a fork or an exit; return whether the line was one."""
        if line.event == "sched_process_fork":
            match = _FORK_FIELDS.fullmatch(line.fields.rstrip())
            if match and int(match[1]) in self.threads:
                self.threads.add(int(match[2]))
            return True
        if line.event == "sched_process_exit":
            self.threads.discard(line.pid)
            return True
        return False

    def __contains__(self, pid: int) -> bool:
        return self.everybody or pid in self.threads
