"""What the whole run came to: header, block at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import REFUSED, UNSEEN, write

Run = Callable[..., pytest.RunResult]


def test_the_end_sums_up(traces: Path, run_anyhow: Run) -> None:
    """Events count once a trace, rules once a trace and rule, whoever replays them how often."""
    write(traces / "refused.xkt", *REFUSED)
    write(traces / "unseen.xkt", *UNSEEN)
    result = run_anyhow()
    result.stdout.fnmatch_lines(
        [
            "*= xenkvm =*",
            "replayed 3 traces: 11 events, 5 hypercalls, 1 outcome not judged (not seen by the recording)",
            "rules: 4 held, 2 violated, 3 not exercised",
        ]
    )


def test_nothing_is_said_where_nothing_was_replayed(project: pytest.Pytester, run: Run) -> None:
    """Without traces the plugin writes neither header nor block."""
    project.makeini("[pytest]\n")
    project.makepyfile("def test_own(): pass")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*xenkvm*")


def test_the_header_names_profile_and_traces(traces: Path, run: Run) -> None:
    """The header says on what is replayed, by which rules, and which traces options name."""
    for name in "abcd":
        write(traces / f"{name}.xkt", *REFUSED)
    result = run("--xenkvm-trace=traces", "--xenkvm-profile=linux-7.2")
    result.stdout.fnmatch_lines(
        ["xenkvm: profile linux-7.2, engine model, rules demo, traces traces/a.xkt, * and 2 more"]
    )
