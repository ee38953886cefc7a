"""What the vCPUs did in a replay, for the reports that show it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_xenkvm.report.timeline import TimelineObserver
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.events import Header


def new_timeline(config: pytest.Config, header: Header) -> TimelineObserver | None:
    """An observer for a replay, if a report shows timelines; replays with an observer take longer."""
    option = config.option
    wanted = option.xenkvm_report_timeline or any(path.endswith(".html") for path in option.xenkvm_report)
    return TimelineObserver(header) if wanted else None


def timeline_json(timeline: TimelineObserver, result: ReplayResult) -> dict[str, Any]:
    """A timeline, with what is near to what went wrong."""
    wrong = {divergence.place.index for divergence in result.divergences}
    wrong.update(finding.place.index for verdict in result.verdicts for finding in verdict.findings)
    return timeline.as_json(around=sorted(wrong))
