"""Traces in memory, and the recordings that these tests work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from pytest_xenkvm.rules.registry import all_rules, select_rules
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.files import open_trace
from pytest_xenkvm.trace.labels import event_label
from pytest_xenkvm.traceops.failure import Part, Setting
from pytest_xenkvm.vmm.load import find_behaviour

GOLDENS: Final = Path(__file__).parents[2] / "traces" / "golden"


def load(name: str) -> Part:
    """A bundled trace (@NAME) or a golden, in memory."""
    path = name if name.startswith("@") else GOLDENS / f"{name}.jsonl.gz"
    trace = open_trace(path)
    return Part(name, trace.header, list(trace.events()))


def kernel_replay_of(**options: Any) -> Setting:
    """A kernel replay that judges no rule."""
    return Setting(options=ReplayOptions(**options))


def judging(rule: str, vmm: str | None = None, **options: Any) -> Setting:
    """A replay that judges one rule, with a VMM behaviour or without."""
    maker = None if vmm is None else find_behaviour(vmm)
    return Setting(options=ReplayOptions(**options), rules=select_rules(all_rules(), rule), vmm=maker)


def tampered(trace: Part, label: str, after: int, change: Callable[[Any], Event]) -> tuple[Part, int]:
    """The trace with another outcome in the first event so called from event `after` on, and its index."""
    index = next(i for i in range(after, len(trace.kept)) if event_label(trace.kept[i]) == label)
    events = list(trace.kept)
    events[index] = change(events[index])
    return evolve(trace, kept=events), index


def diverging(trace: Part, profile: str = "auto") -> list[tuple[int, str]]:
    """Where a kernel replay differs from the recording, and in what."""
    found = run_trace(trace, (), ReplayOptions(profile=profile)).divergences
    return [(divergence.place.index, divergence.kind) for divergence in found]


def labels(events: Sequence[Event]) -> list[str]:
    """What the events are called."""
    return [event_label(event) for event in events]
