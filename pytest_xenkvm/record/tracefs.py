"""tracefs as files: where it is, how it is written to, and an instance of one's own in it.

Source: Documentation/trace/ftrace.rst and kprobetrace.rst of Linux 6.12. Files are opened for appending,
never truncated: truncating `dynamic_events` would remove other people's probes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import define

from pytest_xenkvm.record.errors import RecordError

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
"""Where tracefs is mounted."""

_PROBES: Final = ("dynamic_events", "kprobe_events")
"""Where events are defined: the first takes fprobe events, too, and has been there since Linux 5.0."""


def write(path: Path, text: str) -> None:
    """Write one line to a file of tracefs; raises OSError with its name."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, text.encode() + b"\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)


@define
class Tracefs:
    """A mounted tracefs."""

    root: Path

    @property
    def has_kprobes(self) -> bool:
        """Whether this kernel takes kprobe events."""
        return (self.root / _PROBES[-1]).exists()

    @property
    def definitions(self) -> Path:
        """The file in which events are defined."""
        return next(
            (self.root / name for name in _PROBES if (self.root / name).exists()), self.root / _PROBES[-1]
        )

    def probes(self, group: str) -> list[str]:
        """Return the names of the probes in a group."""
        mark = f":{group}/"
        return [name.partition(mark)[2] for name in self.probe_names() if mark in name]

    def probe_names(self) -> Iterator[str]:
        """Yield the first word of every event that was defined: `p:GROUP/NAME`."""
        if self.definitions.exists():
            for line in self.definitions.read_text().splitlines():
                yield (line.split() or [""])[0]

    def add_probe(self, definition: str) -> bool:
        """Define an event; return whether this kernel accepts it. Raises OSError for want of rights."""
        try:
            write(self.definitions, definition)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
            return False
        return True

    def remove_probes(self, group: str) -> None:
        """Remove a group of probes, which no instance may use any more. Raises OSError."""
        for name in self.probes(group):
            write(self.definitions, f"-:{group}/{name}")

    def instances(self) -> list[str]:
        """Return the names of all instances."""
        folder = self.root / "instances"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def find_tracefs(root: Path | None = None) -> Tracefs:
    """Return the mounted tracefs; raises RecordError, which says how to get at it."""
    candidates = TRACEFS if root is None else (root,)
    for candidate in candidates:
        try:
            if (candidate / "events").is_dir() and os.listdir(candidate / "instances") is not None:  # noqa: PTH208
                return Tracefs(candidate)
        except PermissionError:
            raise RecordError(
                f"{candidate} can't be read by user {os.getuid()}; recording needs root: run it with sudo"
            ) from None
        except OSError:
            continue
    raise RecordError(
        f"no tracefs is mounted at {candidates[0]}; as root, mount it with"
        f" `mount -t tracefs nodev {candidates[0]}` (it needs a kernel with CONFIG_FTRACE)"
    )


@define
class Instance:
    """A trace buffer of one's own, with its own switches for events: `instances/NAME`.

    `folder`: where it is. The kernel refuses to remove it (EBUSY) while someone reads its `trace_pipe`.
    """

    tracefs: Tracefs
    name: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.tracefs.root / "instances" / self.name

    def create(self) -> None:
        """Make it. Raises RecordError."""
        try:
            self.folder.mkdir()
        except OSError as error:
            raise RecordError(
                f"{self.folder} can't be made ({error.strerror}); recording needs root and a kernel that"
                " isn't locked down"
            ) from None

    def set(self, name: str, text: str) -> None:
        """Write to one of its files. Raises OSError."""
        write(self.folder / name, text)

    def has(self, event: str) -> bool:
        """Whether the kernel has an event `GROUP/NAME`."""
        return (self.folder / "events" / event).is_dir()

    def enable(self, event: str, *, condition: str | None = None) -> None:
        """Record an event, perhaps only if its fields fulfil a condition. Raises OSError."""
        if condition is not None:
            self.set(f"events/{event}/filter", condition)
        self.set(f"events/{event}/enable", "1")

    def overruns(self) -> int:
        """Return how many events did not fit into the buffers, as the kernel counts them."""
        lost = 0
        for stats in sorted(self.folder.glob("per_cpu/cpu*/stats")):
            for line in stats.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("overrun", "dropped events") and value.strip().isdigit():
                    lost += int(value)
        return lost

    def remove(self) -> None:
        """Remove it; its events are switched off with it. Raises OSError, EBUSY if it is in use."""
        if self.folder.exists():
            self.folder.rmdir()
