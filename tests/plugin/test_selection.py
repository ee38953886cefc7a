"""pytest's own ways of selecting tests work on the items of traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import REFUSED, write

Collect = Callable[..., list[str]]
Run = Callable[..., pytest.RunResult]


@pytest.mark.parametrize(
    ("args", "left"),
    [
        (("-k", "replay or msr"), ["replay", "demo.msr"]),
        (("-k", "demo.answered"), ["demo.answered"]),
        (("-m", "xenkvm"), ["replay", "demo.answered", "demo.advised", "demo.msr"]),
        (("-m", "not xenkvm"), []),
        (("--deselect", "traces/good.xkt::demo"), ["replay"]),
        (("--xenkvm-rules", "demo.m*"), ["replay", "demo.msr"]),
        (("--xenkvm-rules", "!demo.msr,demo"), ["replay", "demo.answered", "demo.advised"]),
    ],
)
def test_items_are_selected(traces: Path, collect: Collect, args: tuple[str, ...], left: list[str]) -> None:
    """`-k`, `-m`, `--deselect` and `--xenkvm-rules` leave the items that they name."""
    assert collect(traces, *args) == [f"traces/good.xkt::{item}" for item in left]


def test_the_marker_tells_level_and_family(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """The marker of a rule's item holds the rule, its family and its level."""
    project.makepyfile(
        plugin="def pytest_collection_modifyitems(items):\n"
        "    print([item.get_closest_marker('xenkvm').kwargs for item in items][:2])"
    )
    result = run("-p", "plugin", "-s", traces)
    result.stdout.fnmatch_lines(["*{}, {'rule': 'demo.answered', 'family': 'demo', 'level': 'MUST'}*"])


@pytest.mark.parametrize("bundled", [False, True], ids=["inside", "elsewhere"])
def test_last_failed_runs_what_failed(
    project: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    *,
    bundled: bool,
) -> None:
    """`--lf` runs the failed items of a trace alone, also of one outside of rootdir and beside tests."""
    folder = tmp_path_factory.mktemp("elsewhere") if bundled else project.path
    option = f"--xenkvm-trace={write(folder / 'boot.xkt', *REFUSED)}"
    project.makepyfile("def test_bad(): assert 0\ndef test_good(): pass")
    monkeypatch.chdir(project.mkdir("here"))
    run(option, "..").assert_outcomes(passed=2, failed=2, xfailed=1, skipped=1)
    run(option, "..", "--lf").assert_outcomes(failed=2)


def test_the_first_failure_may_end_the_run(traces: Path, run: Run) -> None:
    """`-x` stops after the first failed item."""
    write(traces / "good.xkt", *REFUSED)
    run("-x").assert_outcomes(passed=1, failed=1)
