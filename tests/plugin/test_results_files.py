"""The files that a run writes, and what it says about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import REFUSED, write

Run = Callable[..., pytest.RunResult]


def test_the_end_says_what_was_written(traces: Path, run_anyhow: Run) -> None:
    """The files are named below what the replays came to, with the Markdown that shows the badge."""
    del traces
    result = run_anyhow("--xenkvm-badge=out/b.svg", "--xenkvm-report=out/r.json")
    result.stdout.fnmatch_lines(
        [
            "rules: 2 held, 0 violated, 1 not exercised",
            "wrote out/b.svg",
            "  !?xen-kvm: 2/2 rules · linux-7.3?(out/b.svg)",
            "wrote out/r.json",
        ],
        consecutive=True,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--xenkvm-badge=folder"], "--xenkvm-badge: */folder: is a directory, expected a file to write"),
        (["--xenkvm-badge=/dev/null"], "--xenkvm-badge: /dev/null: is no regular file*"),
        (
            ["--xenkvm-report=conftest.py/r.json"],
            "--xenkvm-report: *: cannot be written: */conftest.py is no *",
        ),
        (["--xenkvm-report=r.txt"], "--xenkvm-report: */r.txt: ends in .txt, expected .json or .html"),
        (["--xenkvm-report=r"], "--xenkvm-report: */r: ends in no suffix, expected .json or .html"),
        (
            ["--xenkvm-report=r.json", "--xenkvm-summary=folder/../r.json"],
            "--xenkvm-summary: */r.json: is also what --xenkvm-report names*",
        ),
    ],
)
def test_what_cannot_be_written_is_a_usage_error(
    project: pytest.Pytester, traces: Path, run_anyhow: Run, arguments: list[str], sentence: str
) -> None:
    """A file that can't be written is told before anything runs, in one sentence."""
    del traces
    (project.path / "folder").mkdir()
    result = run_anyhow(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])


def test_what_fails_in_the_end_is_told(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """A file that can't be written after all is told at the end, with exit code 4; the others are written."""
    del traces
    conftest = project.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\ndef pytest_sessionfinish():\n    import os; os.mkdir('b.svg')\n"
    )
    result = run("--xenkvm-badge=b.svg", "--xenkvm-summary=s.md")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--xenkvm-badge: */b.svg: cannot be written: Is a directory", "wrote s.md"])
    assert sorted(path.name for path in project.path.glob("*b.svg*")) == ["b.svg"]


def test_nothing_ran_is_grey(project: pytest.Pytester, run: Run) -> None:
    """Where no trace was replayed the badge is grey and says so."""
    project.makepyfile("def test_own(): pass")
    run("--xenkvm-badge-json=b.json", "--xenkvm-report=r.json").assert_outcomes(passed=1)
    shown = json.loads((project.path / "b.json").read_bytes())
    assert (shown["message"], shown["color"]) == ("no rule exercised", "lightgrey")
    assert json.loads((project.path / "r.json").read_bytes())["summary"]["verdict"] == "nothing"


@pytest.mark.parametrize("ended", ["--collect-only", "interrupted"])
def test_an_unfinished_run_writes_nothing(
    project: pytest.Pytester, traces: Path, run: Run, ended: str
) -> None:
    """A run that only collects, or is interrupted, leaves earlier files alone."""
    del traces
    old = project.path / "b.svg"
    old.write_text("old")
    if ended == "interrupted":
        project.makepyfile(test_z="def test_own(): raise KeyboardInterrupt")
        result = project.runpytest_subprocess(
            "-p", "pytest_xenkvm.plugin.entry", "--xenkvm-badge=b.svg", "traces", "test_z.py"
        )
        result.stdout.fnmatch_lines(["the run was not finished: no report is written"])
    else:
        run("--xenkvm-badge=b.svg", ended)
    assert old.read_text() == "old"


def test_github_gets_summary_and_annotations(
    project: pytest.Pytester, traces: Path, run_anyhow: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GitHub the job's summary is appended to, and commands annotate files from the checkout on."""
    write(traces / "good.xkt", *REFUSED)
    page = project.path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    result = run_anyhow()
    where = f"file={project.path.name}/traces/good.xkt,line=5"
    commands = [line for line in result.outlines if line.startswith("::")]
    assert [command.partition("::Calls are answered.")[0] for command in commands] == [
        f"::error {where},title=demo.answered (MUST) in traces/good.xkt",
        f"::warning {where},title=demo.advised (SHOULD) in traces/good.xkt",
    ]
    assert page.read_text().startswith("before\n## xen-kvm: 0/2 rules · linux-7.3\n")
    assert page.read_text().count("##") == 2


@pytest.mark.parametrize(("option", "commands"), [("auto", 0), ("on", 2), ("off", 0)])
def test_annotations_are_optional(traces: Path, run: Run, option: str, commands: int) -> None:
    """Elsewhere commands are printed only if they are asked for."""
    write(traces / "good.xkt", *REFUSED)
    result = run(f"--xenkvm-annotations={option}")
    assert sum(line.startswith("::") for line in result.outlines) == commands


def test_a_timeline_is_asked_for(traces: Path, run_anyhow: Run) -> None:
    """With `--xenkvm-report-timeline` each replay has what the observer of `report/timeline.py` made."""
    pytest.importorskip("pytest_xenkvm.report.timeline")
    write(traces / "good.xkt", *REFUSED)
    run_anyhow("--xenkvm-report=r.json")
    (plain,) = json.loads(Path("r.json").read_bytes())["replays"]
    run_anyhow("--xenkvm-report=r.json", "--xenkvm-report-timeline")
    (drawn,) = json.loads(Path("r.json").read_bytes())["replays"]
    assert isinstance(drawn.pop("timeline"), dict)
    assert drawn == plain
