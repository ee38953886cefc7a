"""The items of a trace may be spread over workers, or kept together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_traces import ANSWERED, write

PLUGINS = ["-p", "pytest_xenkvm.plugin.entry", "-p", "xdist.plugin", "-p", "xdist.looponfail"]


def test_loadfile_keeps_a_trace_on_one_worker(project: pytest.Pytester, traces: Path) -> None:
    """With `--dist loadfile` all items of a trace run on one worker, which replays it once."""
    for name in "abc":
        write(traces / f"{name}.xkt", *ANSWERED)
    result = project.runpytest_subprocess(*PLUGINS, "-n2", "--dist=loadfile", "-v")
    result.assert_outcomes(passed=12, skipped=4)
    ran = re.findall(r"^\[(gw\d)\].* (?:PASSED|SKIPPED) (\S+)::", result.stdout.str(), re.MULTILINE)
    assert len(ran) == 16
    assert len(set(ran)) == 4


@pytest.mark.parametrize("there", [True, False])
def test_a_trace_is_a_group(project: pytest.Pytester, traces: Path, *, there: bool) -> None:
    """Where xdist is loaded each item is marked as of its trace's group, for `--dist loadgroup`."""
    del traces
    project.makepyfile(
        plugin="def pytest_collection_modifyitems(items):\n"
        "    print({mark.args for item in items for mark in item.iter_markers('xdist_group')})"
    )
    result = project.runpytest_inprocess(*(PLUGINS if there else PLUGINS[:2]), "-p", "plugin", "-s")
    result.stdout.fnmatch_lines(["*{('traces/good.xkt',)}*" if there else "*set()*"])
