"""Which traces become items, and under which node ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_traces import ANSWERED, write

from pytest_xenkvm.plugin.collect import TraceFile

Collect = Callable[..., list[str]]
Run = Callable[..., pytest.RunResult]

ITEMS = ("replay", "demo.answered", "demo.advised", "demo.msr")


def items(trace: str) -> list[str]:
    """The node ids of a trace's items."""
    return [f"{trace}::{item}" for item in ITEMS]


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside of the project."""
    return tmp_path_factory.mktemp("elsewhere")


def test_xkt_files_are_found_in_folders(traces: Path, collect: Collect) -> None:
    """A `.xkt` file below a test folder has an item for its replay and one for each selected rule."""
    assert collect(traces) == items("traces/good.xkt")


def test_json_lines_are_collected_only_by_name(traces: Path, collect: Collect) -> None:
    """A `.jsonl` file in a test folder is left alone unless an option or an argument names it."""
    named = write(traces / "named.jsonl", *ANSWERED)
    packed = write(traces / "packed.jsonl.gz", *ANSWERED)
    assert collect() == items("traces/good.xkt")
    assert collect(f"--xenkvm-trace={named}") == items("traces/good.xkt") + items("traces/named.jsonl")
    assert collect(f"{packed}::replay") == ["traces/packed.jsonl.gz::replay"]


@pytest.mark.parametrize("spec", ["traces", "traces/*.xkt", "traces/good.xkt"])
def test_an_option_names_files_folders_and_patterns(
    project: pytest.Pytester, traces: Path, collect: Collect, spec: str
) -> None:
    """`--xenkvm-trace` takes a file, a folder or a pattern, relative to the working directory."""
    del traces
    project.mkdir("tests").joinpath("test_own.py").write_text("def test_own(): pass")
    assert sorted(collect("tests", f"--xenkvm-trace={spec}")) == sorted(
        ["tests/test_own.py::test_own", *items("traces/good.xkt")]
    )


def test_a_trace_named_twice_is_collected_once(traces: Path, collect: Collect) -> None:
    """A trace that options name twice and a folder holds has its items once."""
    option = f"--xenkvm-trace={traces / 'good.xkt'}"
    assert collect(option, f"--xenkvm-trace={traces}") == items("traces/good.xkt")


def test_a_named_trace_is_collected_from_ignored_folders(project: pytest.Pytester, collect: Collect) -> None:
    """`norecursedirs` doesn't hide a trace that an option names."""
    write(project.path / "build" / "a.xkt", *ANSWERED)
    assert collect() == []
    assert collect("--xenkvm-trace=build/a.xkt") == items("build/a.xkt")


def test_the_ini_file_counts_like_testpaths(
    project: pytest.Pytester, traces: Path, elsewhere: Path, collect: Collect
) -> None:
    """Traces of the ini file, relative to it, are collected if the command line names no paths."""
    outside = write(elsewhere / "outside.xkt", *ANSWERED)
    project.makeini(
        f"[pytest]\nxenkvm_rules = demo\ntestpaths = tests\nxenkvm_traces =\n  traces/*.xkt\n  {outside}\n"
    )
    test = project.mkdir("tests") / "test_own.py"
    test.write_text("def test_own(): pass")
    own = "tests/test_own.py::test_own"
    assert collect() == [own, *items("traces/good.xkt"), *items("outside.xkt")]
    assert collect(test) == [own]
    assert collect("outside.xkt::replay") == ["outside.xkt::replay"]
    assert collect(traces / "good.xkt") == items("traces/good.xkt")


def test_a_trace_elsewhere_goes_by_its_name(elsewhere: Path, collect: Collect) -> None:
    """Outside of rootdir a trace is named by its file name, and each item can be run by its node id."""
    option = f"--xenkvm-trace={write(elsewhere / 'boot.xkt', *ANSWERED)}"
    assert collect(option) == items("boot.xkt")
    assert collect(option, "boot.xkt::demo.answered") == ["boot.xkt::demo.answered"]
    assert collect(option, "boot.xkt::replay", "boot.xkt") == items("boot.xkt")


def test_names_do_not_collide(project: pytest.Pytester, elsewhere: Path, collect: Collect) -> None:
    """Traces of the same name are told apart by their folders."""
    write(project.path / "boot.xkt", *ANSWERED)
    for folder in "ab":
        write(elsewhere / folder / "boot.xkt", *ANSWERED)
    option = f"--xenkvm-trace={elsewhere}"
    assert collect(option) == [*items("boot.xkt"), *items("a/boot.xkt"), *items("b/boot.xkt")]
    assert collect(option, "b/boot.xkt::replay") == [*items("a/boot.xkt"), "b/boot.xkt::replay"]


def test_odd_names_are_collected(traces: Path, collect: Collect) -> None:
    """A named file with brackets, which pytest takes for parameters in an argument, is collected."""
    (traces / "good.xkt").rename(traces / "good[1].xkt")
    option = f"--xenkvm-trace={traces / 'good[1].xkt'}"
    assert collect(option, "--ignore=traces") == items("traces/good[1].xkt")


def test_a_bundled_trace_needs_no_option(collect: Collect) -> None:
    """A bundled trace is collected as `@NAME` by the option, and as `NAME.xkt` by an argument."""
    assert collect("--xenkvm-trace=@linux-boot") == items("linux-boot.xkt")
    assert collect("--xenkvm-trace", "linux-boot.xkt") == items("linux-boot.xkt")
    assert collect("linux-boot.xkt::replay") == ["linux-boot.xkt::replay"]


def test_an_item_that_is_not_there_is_an_error(run: Run) -> None:
    """A node id that names no item of a trace elsewhere is an error that repeats it."""
    result = run("linux-boot.xkt::demo.anything")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["not found: linux-boot.xkt::demo.anything"])


def test_only_the_traces_run_in_an_empty_folder(
    project: pytest.Pytester, elsewhere: Path, run_anyhow: Run
) -> None:
    """Where there are no tests, the named trace is all that runs, and that is a success."""
    option = f"--xenkvm-trace={write(elsewhere / 'boot.xkt', *ANSWERED)}"
    result = run_anyhow(option, "--rootdir", project.path)
    result.assert_outcomes(passed=3, skipped=1)
    assert result.ret == pytest.ExitCode.OK


def test_traces_that_no_argument_leads_to(
    project: pytest.Pytester, traces: Path, run: Run, collect: Collect
) -> None:
    """Named by an option beside other arguments, a trace has the conftest.py of its folder."""
    traces.joinpath("conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef xenkvm_vmm(request): print('in', request.node.nodeid)\n"
    )
    traces.joinpath("test_there.py").write_text("def test_there(xenkvm_vmm): pass")
    write(traces / "inner" / "b.xkt", *ANSWERED)
    tests = project.mkdir("tests")
    tests.joinpath("test_own.py").write_text("def test_own(): pass")
    own = "tests/test_own.py::test_own"
    option = "--xenkvm-trace=traces"
    assert collect(option, tests) == [own, *items("traces/good.xkt"), *items("traces/inner/b.xkt")]
    result = run(option, tests, "traces/test_there.py", "-s")
    result.assert_outcomes(passed=8, skipped=2)
    assert result.stdout.str().count("in traces/") == 9


def test_one_of_many_is_not_looked_for_among_all(
    project: pytest.Pytester, traces: Path, monkeypatch: pytest.MonkeyPatch, collect: Collect
) -> None:
    """Traces beside the arguments take time in proportion to their number: none is made a node twice."""
    made = []
    real = TraceFile.__init__

    def init(node: TraceFile, **more: Any) -> None:
        made.append(node)
        real(node, **more)

    monkeypatch.setattr(TraceFile, "__init__", init)
    for number in range(20):
        write(traces / f"{number:02}.xkt", *ANSWERED)
    tests = project.mkdir("tests")
    assert len(collect("--xenkvm-trace=traces", "--xenkvm-items=trace", tests)) == 21
    assert len(made) == 21


def test_a_folder_keeps_its_fixtures(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, elsewhere: Path, run: Run
) -> None:
    """Traces elsewhere live below the current folder; tests there still have its conftest.py."""
    write(elsewhere / "far.xkt", *ANSWERED)
    inner = project.mkdir("tests") / "inner"
    inner.mkdir()
    (inner / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef own(): return 5\n")
    (inner / "test_inner.py").write_text("def test_inner(own): assert own == 5\n")
    monkeypatch.chdir(inner)
    run("..", f"--xenkvm-trace={elsewhere}").assert_outcomes(passed=4, skipped=1)


def test_a_conftest_that_fails_is_told(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """A broken conftest.py beside traces that no argument leads to is an error of collection."""
    (traces / "conftest.py").write_text("import no_such_module\n")
    project.mkdir("tests").joinpath("test_own.py").write_text("def test_own(): pass")
    result = run("--xenkvm-trace=traces", "tests")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*No module named 'no_such_module'*"])
