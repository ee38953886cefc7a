"""The golden traces of this checkout, and their replay on the emulated core."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pytest_xenkvm.core.profile import HostLimits, Profile, profile_for_release
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import Divergence, Observation
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import Event, Header, timed

FOLDER: Final = Path(__file__).parents[2] / "traces" / "golden"
SUFFIX: Final = ".jsonl.gz"
NAMES: Final = sorted(
    path.relative_to(FOLDER).as_posix().removesuffix(SUFFIX) for path in FOLDER.rglob(f"*{SUFFIX}")
)
"""For example "linux-7.3/directed/singleshot-id"."""


def load(name: str) -> tuple[Header, list[Event]]:
    """Header and events of a golden."""
    trace = open_trace(FOLDER / f"{name}{SUFFIX}")
    return trace.header, list(trace.events())


def replay(header: Header, events: Iterable[Event], profile: Profile | None = None) -> list[Observation]:
    """Replay on the profile of the header's kernel, or on another one."""
    limits = HostLimits() if header.max_vcpus is None else HostLimits(max_vcpus=header.max_vcpus)
    host = EmulatedHost(profile=profile or profile_for_release(header.kernel), limits=limits)
    return list(kernel_replay(host, header, timed(events)))


def divergences(observations: Iterable[Observation]) -> list[Divergence]:
    """All divergences of a replay in order."""
    return [divergence for observation in observations for divergence in observation.divergences]


def in_words(found: Divergence) -> str:
    """A divergence on one line."""
    return f"line {found.place.line}: {found.kind}: expected {found.expected}, observed {found.observed}"
