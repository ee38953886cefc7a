"""The files that options ask for, and what is printed on GitHub; by the process that has all results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field

from pytest_xenkvm.plugin.results import results
from pytest_xenkvm.report.annotations import workflow_commands
from pytest_xenkvm.report.badge import badge_of
from pytest_xenkvm.report.reading import ReportError
from pytest_xenkvm.report.results import JsonObject
from pytest_xenkvm.report.summary import summary_markdown
from pytest_xenkvm.report.writing import is_html, rendered, write_whole
from pytest_xenkvm.trace.errors import TraceError

_UNFINISHED: Final = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


@define
class _Told:
    """What is said at the end of the run."""

    lines: list[str] = field(factory=list)
    commands: list[str] = field(factory=list)


_TOLD: Final = pytest.StashKey[_Told]()


def check(config: pytest.Config) -> None:
    """Raise UsageError for a file that can't be written, or is named twice."""
    if hasattr(config, "workerinput"):
        return
    named: dict[Path, str] = {}
    for option, path in _files(config):
        try:
            if option == "--xenkvm-report":
                is_html(path)
        except ReportError as error:
            raise pytest.UsageError(f"{option}: {error}") from error
        reason = _why_not(path)
        if path in named:
            reason = f"is also what {named[path]} names, expected a file for each"
        if reason:
            raise pytest.UsageError(f"{option}: {path}: {reason}")
        named[path] = option


def _files(config: pytest.Config) -> Iterator[tuple[str, Path]]:
    option, folder = config.option, config.invocation_params.dir
    named = {
        "--xenkvm-badge": [option.xenkvm_badge],
        "--xenkvm-badge-json": [option.xenkvm_badge_json],
        "--xenkvm-report": option.xenkvm_report,
        "--xenkvm-summary": [option.xenkvm_summary],
    }
    for name, paths in named.items():
        for path in paths:
            if path is not None:
                yield name, Path(os.path.abspath(folder / path))  # noqa: PTH100 - links stay what they are


def _why_not(path: Path) -> str:
    """Why a file can't be written there; empty if it can, as far as can be known before it is."""
    if path.exists() and not path.is_file():
        return f"is {'a directory' if path.is_dir() else 'no regular file'}, expected a file to write"
    folder = next(folder for folder in path.parents if folder.exists())
    if not folder.is_dir():
        return f"cannot be written: {folder} is no directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be written: no permission to write in {folder}"
    return ""


def write(session: pytest.Session) -> None:
    """Write the files; what can't be written is told at the end, and the exit code is 4."""
    config = session.config
    if config.option.collectonly:
        return
    told = config.stash[_TOLD] = _Told()
    report = results(config).report()
    if session.exitstatus in _UNFINISHED and not report["summary"]["errors"]:
        if list(_files(config)):
            told.lines.append("the run was not finished: no report is written")
        return
    for option, path in _files(config):
        try:
            write_whole(path, _content(config, option, path, report))
        except TraceError as error:
            told.lines.append(f"{option}: {error}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        else:
            shown = os.path.relpath(path, config.invocation_params.dir)
            told.lines.append(f"wrote {shown}")
            if option == "--xenkvm-badge":
                told.lines.append(f"  {badge_of(report).markdown(shown)}")
    if report["replays"]:
        _tell_github(config, report, told)


def _content(config: pytest.Config, option: str, path: Path, report: JsonObject) -> bytes:
    match option:
        case "--xenkvm-badge":
            return badge_of(report).svg()
        case "--xenkvm-badge-json":
            return badge_of(report).endpoint()
        case "--xenkvm-summary":
            return summary_markdown(report).encode(errors="replace")
    if is_html(path) or config.option.xenkvm_report_timeline:
        return rendered(report, path)
    replays = [{name: replay[name] for name in replay if name != "timeline"} for replay in report["replays"]]
    return rendered({**report, "replays": replays}, path)


def _tell_github(config: pytest.Config, report: JsonObject, told: _Told) -> None:
    """Append to the job's summary, and note the commands that annotate a pull request's files."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        try:
            with Path(page).open("a", encoding="utf-8", errors="replace") as file:
                file.write(summary_markdown(report))
        except OSError as error:
            told.lines.append(f"GITHUB_STEP_SUMMARY: {page}: {error.strerror}")
    wanted = config.option.xenkvm_annotations
    if wanted == "on" or (wanted == "auto" and os.environ.get("GITHUB_ACTIONS") == "true"):
        checkout = Path(os.environ.get("GITHUB_WORKSPACE") or config.rootpath)
        told.commands += workflow_commands(report, lambda replay: _in(checkout, config.rootpath, replay))


def _in(checkout: Path, rootdir: Path, replay: Mapping[str, Any]) -> str | None:
    """The path of a trace from the checkout on; None if it isn't in there."""
    path = rootdir / replay["path"]
    inside = not replay["path"].startswith("@") and path.is_relative_to(checkout)
    return path.relative_to(checkout).as_posix() if inside else None


def tell(terminal: pytest.TerminalReporter) -> None:
    """Say what was written, and print the workflow commands, which begin a line each."""
    told = terminal.config.stash.get(_TOLD, _Told())
    for line in told.lines:
        terminal.line(line)
    for command in told.commands:
        terminal.line(command)
