"""What the vCPUs did in a replay, for the reports that show it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol

import pytest

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.events import Header

_MODULE: Final = "pytest_xenkvm.report.timeline"


class Timeline(Protocol):
    """An observer of a replay that remembers what there is to draw."""

    def __call__(self, observation: Observation) -> None:
        """Take in an observation."""

    def as_json(self, around: Iterable[int] = ()) -> dict[str, Any]:
        """What was taken in; if not all can be kept, what is near the events with these indexes."""


def new_timeline(config: pytest.Config, header: Header) -> Timeline | None:
    """An observer for a replay, if a report shows timelines; replays with an observer take longer."""
    option = config.option
    wanted = option.xenkvm_report_timeline or any(path.endswith(".html") for path in option.xenkvm_report)
    if not wanted or find_spec(_MODULE) is None:
        return None
    timeline: Timeline = import_module(_MODULE).TimelineObserver(header)
    return timeline


def timeline_json(timeline: Timeline, result: ReplayResult) -> dict[str, Any]:
    """A timeline, with what is near to what went wrong."""
    wrong = {divergence.place.index for divergence in result.divergences}
    wrong.update(finding.place.index for verdict in result.verdicts for finding in verdict.findings)
    return timeline.as_json(around=sorted(wrong))
