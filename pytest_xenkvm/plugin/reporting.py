"""Badge and reports: their options, and hooks that lead to `results` and `outputs`.

pytest loads this module in every run, so that it imports nothing but pytest. What items have to tell travels
in their reports, so that it makes no difference which of pytest-xdist's processes ran them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, cast

import pytest

if TYPE_CHECKING:
    from pytest_xenkvm.plugin.collect import TraceFile
    from pytest_xenkvm.plugin.items import TraceItem

_PART: Final = "xenkvm_part"
"""The attribute of a test's or collector's report that holds a part of ours, as JSON, until it is taken."""
_PHASES: Final = {"setup", "call", "teardown"}
"""Other reports are made by pytest-xdist, of processes that crashed."""

_FILES: Final = ("xenkvm_badge", "xenkvm_badge_json", "xenkvm_report", "xenkvm_summary")


def add_options(group: pytest.OptionGroup) -> None:
    """Add the options that say what is to be written."""
    group.addoption("--xenkvm-badge", metavar="FILE", help="write a badge (SVG) that counts the rules held")
    group.addoption(
        "--xenkvm-badge-json", metavar="FILE", help="write the badge as an endpoint of shields.io reads it"
    )
    group.addoption(
        "--xenkvm-report",
        metavar="FILE",
        action="append",
        default=[],
        help="write all results to a .json or .html file (repeatable)",
    )
    group.addoption(
        "--xenkvm-report-timeline",
        action="store_true",
        help="put what the vCPUs did into the .json report too",
    )
    group.addoption(
        "--xenkvm-summary",
        metavar="FILE",
        help="write a summary in Markdown; GitHub's job summary gets it without this option",
    )
    group.addoption(
        "--xenkvm-annotations",
        choices=("auto", "on", "off"),
        default="auto",
        help="print what went wrong as GitHub's workflow commands; auto (the default): on GitHub",
    )


def asks_for_files(config: pytest.Config) -> bool:
    """Whether an option names a file to write."""
    return any(getattr(config.option, name) for name in _FILES)


def register(config: pytest.Config, *, used: bool) -> None:
    """Look after the results of this run; raises UsageError for files that can't be written."""
    if used and asks_for_files(config):
        from pytest_xenkvm.plugin.outputs import check  # noqa: PLC0415

        check(config)
    config.pluginmanager.register(_Reporting(config), "xenkvm-reporting")


class _Reporting:
    """Hooks that need the run's configuration."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._has_results = asks_for_files(config)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put what an item of a trace has to tell into its report."""
        report = yield
        if hasattr(item, "replays"):
            from pytest_xenkvm.plugin.results import part_of_item  # noqa: PLC0415

            setattr(report, _PART, part_of_item(cast("TraceItem", item), call))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Tell of a trace that can't be read."""
        report = yield
        if report.failed and hasattr(collector, "trace_path"):
            from pytest_xenkvm.plugin.results import part_of_unreadable  # noqa: PLC0415

            setattr(report, _PART, part_of_unreadable(cast("TraceFile", collector), report))
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what an item told; before JUnit's file gets to see it."""
        if self._is_worker or not (hasattr(report, _PART) or report.when not in _PHASES):
            return
        from pytest_xenkvm.plugin.results import move_properties, part_of_crash, take  # noqa: PLC0415

        if hasattr(report, _PART):
            self._has_results |= take(self._config, report.__dict__.pop(_PART))
            move_properties(self._config, report)
        else:
            self._has_results |= take(self._config, part_of_crash(self._config, report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Collect what a collector told."""
        if not self._is_worker and hasattr(report, _PART):
            from pytest_xenkvm.plugin.results import take  # noqa: PLC0415

            self._has_results |= take(self._config, report.__dict__.pop(_PART))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files."""
        if not self._is_worker and self._has_results:
            from pytest_xenkvm.plugin.outputs import write  # noqa: PLC0415

            write(session)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was written, below what the replays came to."""
        if self._has_results:
            from pytest_xenkvm.plugin.outputs import tell  # noqa: PLC0415

            tell(terminalreporter)
