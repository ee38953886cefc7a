"""How many items a trace has if nobody says it: one for each rule, or one where there are many traces."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, REFUSED, write

import pytest_xenkvm.plugin.kinds  # noqa: F401 - stays loaded, or each run in this process would load another

Run = Callable[..., pytest.RunResult]
Collect = Callable[..., list[str]]

FEW = """

def pytest_configure(config):
    from pytest_xenkvm.plugin import kinds
    patch = pytest.MonkeyPatch()
    patch.setattr(kinds, "MANY", 3)
    config.add_cleanup(patch.undo)
"""
"""More than three traces are many."""
TOLD = "xenkvm: an item for each trace, as there are more than 3 (--xenkvm-items=rule: for each rule)"
RULED = ["replay", "demo.answered", "demo.advised", "demo.msr"]


@pytest.fixture
def four(project: pytest.Pytester, traces: Path) -> Path:
    """The folder of four traces, which are many: two of them in folders of it."""
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + FEW)
    for name in ("a/one", "b/one", "zwei"):
        write(traces / f"{name}.xkt", *ANSWERED)
    return traces


def wholes(*names: str) -> list[str]:
    """The node ids of whole traces."""
    return [f"traces/{name}.xkt::all" for name in names]


def test_many_traces_are_an_item_each(four: Path, run_anyhow: Run) -> None:
    """The run says why, and how to have it otherwise; the outcomes are those of whole traces."""
    write(four / "zwei.xkt", *REFUSED)
    result = run_anyhow("--xenkvm-trace=traces")
    result.assert_outcomes(passed=3, failed=1)
    assert result.outlines.count(TOLD) == 1


def test_node_ids_alone_stay_alone(four: Path, run: Run) -> None:
    """`--collect-only -q`, which programs read, prints nothing else."""
    del four
    assert TOLD in run("--collect-only").outlines
    assert TOLD not in run("--collect-only", "-q").outlines


def test_what_was_asked_for_is_not_explained(four: Path, run_anyhow: Run) -> None:
    """Who chose the items, or named one, needn't be told."""
    del four
    for asked in ("--xenkvm-items=trace", "--xenkvm-items=rule", "traces/zwei.xkt::demo.answered"):
        assert TOLD not in run_anyhow(asked).outlines


def test_as_many_as_that_are_not_many(four: Path, collect: Collect) -> None:
    """With one trace less there is an item for each rule."""
    (four / "zwei.xkt").unlink()
    assert len(collect()) == 3 * len(RULED)


@pytest.mark.parametrize(
    "args", [("traces/a",), ("traces/zwei.xkt",), ("--xenkvm-trace=traces/b", "traces/a")]
)
def test_node_ids_do_not_depend_on_the_command(four: Path, collect: Collect, args: tuple[str, ...]) -> None:
    """The project's traces count, whichever of them a run names: `--lf` and `--deselect` know them again."""
    del four
    found = collect(*args)
    assert found
    assert set(found) <= set(wholes("a/one", "b/one", "good", "zwei"))


def test_the_last_failed_are_found_by_any_command(four: Path, run: Run) -> None:
    """What failed in a run of all is what `--lf` runs of a folder."""
    write(four / "a" / "one.xkt", *REFUSED)
    write(four / "a" / "two.xkt", *ANSWERED)
    run().assert_outcomes(passed=4, failed=1)
    run("traces/a", "--lf").assert_outcomes(failed=1)


def test_a_node_id_finds_its_item_either_way(four: Path, collect: Collect) -> None:
    """`::all`, `::replay` and the rules' ids are there when an argument names them."""
    rule, whole = "traces/zwei.xkt::demo.answered", "traces/zwei.xkt::all"
    assert collect(rule) == [rule]
    assert collect(whole) == [whole]
    assert collect("--xenkvm-items=rule", whole) == [whole]
    assert collect("--xenkvm-items=trace", rule, "traces/a") == [rule, "traces/a/one.xkt::all"]
    assert collect("--deselect", whole, "-k", "zwei") == []
    (four / "good.xkt").unlink()  # no longer many
    assert collect(whole) == [whole]
    assert collect(f"{four}/a/../zwei.xkt::all") == [whole]


def test_a_rule_that_is_not_selected_is_not_found(four: Path, run: Run) -> None:
    """An argument brings no rule back that `--xenkvm-rules` leaves out."""
    del four
    result = run("--xenkvm-rules=demo.msr", "traces/zwei.xkt::demo.answered")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*not found: */traces/zwei.xkt::demo.answered"])


def test_folders_that_pytest_passes_over_do_not_count(four: Path, collect: Collect) -> None:
    """Traces in `norecursedirs` make no project one of many traces."""
    (four / "a").rename(four / "build")
    assert len(collect()) == 3 * len(RULED)


def test_traces_elsewhere_count_apart(
    four: Path, tmp_path_factory: pytest.TempPathFactory, collect: Collect
) -> None:
    """Many traces outside rootdir are an item each beside few of the project, and the other way round."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "far.xkt", *ANSWERED)
    option = f"--xenkvm-trace={elsewhere}"
    assert collect(option) == [
        *wholes("a/one", "b/one", "good", "zwei"),
        *(f"far.xkt::{name}" for name in RULED),
    ]
    (four / "zwei.xkt").unlink()
    for number in range(3):
        write(elsewhere / f"{number}.xkt", *ANSWERED)
    found = collect(option)
    assert len(found) == 3 * len(RULED) + 4
    assert found[-4:] == [f"{name}.xkt::all" for name in (0, 1, 2, "far")]
    assert collect(option, "far.xkt::replay", "1.xkt") == [
        *(f"{number}.xkt::all" for number in range(3)),
        "far.xkt::replay",
    ]


def test_a_named_item_of_many_runs_alone(four: Path, run: Run) -> None:
    """The command that a failure shows runs that item, whatever else would be collected."""
    write(four / "zwei.xkt", *REFUSED)
    for kind, items in (("trace", 1), ("rule", 2)):
        result = run(f"--xenkvm-items={kind}", "--xenkvm-strict", "traces/zwei.xkt")
        commands = re.findall(r"run this again: pytest (.*)", result.stdout.str())
        assert len(commands) == items
        for command in commands:
            run(*command.split()).assert_outcomes(failed=1)
