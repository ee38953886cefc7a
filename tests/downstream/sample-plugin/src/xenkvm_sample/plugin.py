"""Counts what was replayed and says so at the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_xenkvm.replay.observation import Observation
    from pytest_xenkvm.rules.model import Verdict
    from pytest_xenkvm.rules.run import TraceSource
    from pytest_xenkvm.trace.events import Event

COUNTS = pytest.StashKey["Counter[str]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin at 0."""
    config.stash[COUNTS] = Counter()


def pytest_xenkvm_before_replay(config: pytest.Config, trace: TraceSource, profile: str) -> None:
    """Count replays by trace and kernel."""
    config.stash[COUNTS][f"replay of {trace.name} on {profile}"] += 1


def pytest_xenkvm_before_event(config: pytest.Config, event: Event) -> None:
    """Count what the guest is about to do."""
    config.stash[COUNTS][f"{event.kind} begun"] += 1


def pytest_xenkvm_after_event(config: pytest.Config, observation: Observation) -> None:
    """Count what was done, and by whom."""
    who = "VMM" if observation.by_vmm else "guest"
    config.stash[COUNTS][f"{observation.event.kind} done by the {who}"] += 1


def pytest_xenkvm_verdict(config: pytest.Config, verdict: Verdict) -> None:
    """Count verdicts."""
    config.stash[COUNTS][f"{verdict.rule.id} {verdict.state.value}"] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the counts."""
    for what, count in terminalreporter.config.stash[COUNTS].items():
        terminalreporter.line(f"sample: {what}: {count}")
