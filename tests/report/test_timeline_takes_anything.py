"""Whatever a trace holds, a timeline takes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "trace"))
import strategies as traces

from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.report.timeline import TimelineObserver
from pytest_xenkvm.trace.events import Event, Header


@given(header=traces.headers(), events=st.lists(traces.events(4), max_size=20), by_vmm=st.booleans())
def test_a_timeline_takes_any_events(header: Header, events: list[Event], by_vmm: bool) -> None:  # noqa: FBT001
    """Any events make a timeline that is JSON, with no mark earlier than those before."""
    observer = TimelineObserver(header)
    for index, event in enumerate(events):
        observer(Observation(place=Place(index), event=event, by_vmm=by_vmm))
    timeline = observer.as_json(around=[0])
    assert json.loads(json.dumps(timeline)) == timeline
    assert all(step >= 0 for step in timeline["t"][1:])
    assert len(timeline["row"]) >= len(events)
