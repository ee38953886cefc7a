"""The commands that failures print: each runs its item alone, from where pytest was started."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
from small_traces import REFUSED, write

Run = Callable[..., pytest.RunResult]

ODD = ("a::b.xkt", "c[1].xkt", "d[.xkt", "e f.xkt", "g::h/i.xkt", "j[2]/k.xkt", "l.xkt::m.xkt")


def commands(result: pytest.RunResult) -> list[list[str]]:
    """The arguments of the commands that a run printed."""
    return [shlex.split(line) for line in re.findall(r"run this again: pytest (.*)", result.stdout.str())]


def assert_each_fails_alone(run: Run, result: pytest.RunResult, failed: int) -> None:
    """Each command fails as its item did, prints itself again, and nothing else runs."""
    again = commands(result)
    assert len(again) == failed
    for command in again:
        alone = run(*command)
        alone.assert_outcomes(failed=1)
        assert commands(alone) == [command]


@pytest.fixture(params=["inside", "named inside", "elsewhere"])
def odd(
    project: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> str:
    """Traces with odd names, in a folder of the project or outside of it; the option that names it."""
    folder = project.path / "traces"
    if request.param == "elsewhere":
        folder = tmp_path_factory.mktemp("elsewhere")
    for name in ODD:
        write(folder / name, *REFUSED)
    return "--xenkvm-items=trace" if request.param == "inside" else f"--xenkvm-trace={folder}"


def test_odd_names_run_again(run_anyhow: Run, run: Run, odd: str) -> None:
    """Names with brackets, colons and blanks lead back to their trace, inside rootdir and outside."""
    assert_each_fails_alone(run, run_anyhow(odd, "--xenkvm-items=trace"), len(ODD))


@pytest.mark.parametrize("name", ODD)
def test_an_argument_may_name_it(
    project: pytest.Pytester, collect: Callable[..., list[str]], name: str
) -> None:
    """Such a trace is collected by its path, whole or an item of it, once; beside others, too."""
    path = write(project.path / "traces" / name, *REFUSED)
    write(project.path / "other.xkt", *REFUSED)
    nodeid = f"traces/{name}"
    assert len(collect(nodeid)) == 4
    assert collect(f"{nodeid}::replay") == [f"{nodeid}::replay"]
    found = collect(f"{path}::replay", "other.xkt::replay")
    assert sorted(found) == ["other.xkt::replay", f"{nodeid}::replay"]
    assert len(set(collect(f"{nodeid}::replay", nodeid))) == 4  # pytest 8.0 collects a file anew
    assert len(collect("traces", nodeid)) == 4
    assert len(collect("--xenkvm-trace=traces", nodeid)) == 4


def test_an_item_that_an_odd_name_lacks(project: pytest.Pytester, run: Run) -> None:
    """A wrong item of such a trace is told as of any other."""
    write(project.path / "a::b.xkt", *REFUSED)
    result = run("a::b.xkt::demo.none")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["not found: a::b.xkt::demo.none"])


@pytest.mark.parametrize(
    ("started", "named"),
    [
        (".", "--xenkvm-trace={}"),
        ("sub", "--xenkvm-trace={}"),
        ("sub", "{}"),
        ("traces", ""),
        ("..", "{}"),
        ("../beside", "{}/a.xkt"),
        ("../beside", "{}/c[1].xkt"),
    ],
)
def test_commands_work_where_pytest_was_started(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, started: str, named: str
) -> None:
    """A trace inside rootdir is named from the current folder, be it rootdir, above, below or beside it."""
    traces = project.path / "traces"
    for name in ("a.xkt", "c[1].xkt"):
        write(traces / name, *REFUSED)
    folder = project.path / started
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    arguments = [named.format(traces)] if named else []
    result = run(f"--rootdir={project.path}", "-c", project.path / "tox.ini", *arguments)
    assert_each_fails_alone(run, result, 1 if named.endswith(".xkt") else 2)


def test_relative_options_are_repeated(
    project: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    """`--rootdir` and `-c` are part of the command, since they decide about node ids and rules."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write(project.path / "traces" / "a.xkt", *REFUSED)
    (project.path / "tox.ini").unlink()
    (folder / "my.ini").write_text("[pytest]\nxenkvm_rules = demo.answered\n")
    monkeypatch.chdir(folder)
    result = run("-c", "my.ini", f"--rootdir={project.path}", project.path / "traces", "--xenkvm-items=trace")
    assert_each_fails_alone(run, result, 1)


@pytest.mark.parametrize("started", [".", "sub"])
def test_bundled_traces_run_again(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, started: str
) -> None:
    """A bundled trace goes by its name, without an option."""
    project.makeini("[pytest]\n")
    project.makeconftest("")
    folder = project.path / started
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    result = run("--xenkvm-trace=@linux-boot", "--xenkvm-vmm=broken-vcpu-id.set-before-timers")
    assert_each_fails_alone(run, result, len(commands(result)))
    assert all(command[-1].startswith("linux-boot.xkt::") for command in commands(result))
