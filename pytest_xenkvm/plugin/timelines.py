"""What the vCPUs did in a replay, for the reports that show it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

import pytest

from pytest_xenkvm.replay.observation import Observation

_MODULE: Final = "pytest_xenkvm.report.timeline"


class Timeline(Protocol):
    """An observer of a replay that remembers what there is to draw."""

    def __call__(self, observation: Observation) -> None:
        """Take in an observation."""

    def as_json(self) -> dict[str, Any]:
        """All that was taken in."""


def new_timeline(config: pytest.Config) -> Timeline | None:
    """An observer for a replay, if a report shows timelines; replays with an observer take longer."""
    option = config.option
    wanted = option.xenkvm_report_timeline or any(path.endswith(".html") for path in option.xenkvm_report)
    if not wanted or find_spec(_MODULE) is None:
        return None
    timeline: Timeline = import_module(_MODULE).TimelineObserver()
    return timeline
