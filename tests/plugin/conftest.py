"""Runs of pytest with the plugin: in this process where possible, else as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from guest_tests import ANSWERING
from small_traces import ANSWERED, RULES, write

import pytest_xenkvm

Run = Callable[..., pytest.RunResult]
_LOADED_ALREADY: Final = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
"""pytest before 9 says so of the plugin, since it is this process's own."""


def pytest_configure(config: pytest.Config) -> None:
    """Load pytester here rather than by `pytest_plugins`, which only the topmost conftest.py may set."""
    config.pluginmanager.import_plugin("pytester")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project that judges by three rules of its own; only this plugin and xdist are loaded."""
    monkeypatch.setenv("PYTHONPATH", str(Path(pytest_xenkvm.__file__).parents[1]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):  # on CI pytest's summary holds whole failures
        monkeypatch.delenv(name, raising=False)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):  # the plugin writes to them
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config\nxenkvm_rules = demo\n")
    pytester.makeconftest(RULES)
    pytester.syspathinsert()
    return pytester


@pytest.fixture
def traces(project: pytest.Pytester) -> Path:
    """The project's folder `traces`, which holds `good.xkt`."""
    return write(project.path / "traces" / "good.xkt", *ANSWERED).parent


def _plugins(*names: str) -> list[str]:
    return [argument for name in names for argument in ("-p", name)]


@pytest.fixture
def run(project: pytest.Pytester) -> Run:
    """Run pytest in this process."""

    def run_(*args: str | Path) -> pytest.RunResult:
        return project.runpytest_inprocess(*_plugins("pytest_xenkvm.plugin.entry"), *_LOADED_ALREADY, *args)

    return run_


@pytest.fixture(params=["plain", "-n0", "-n2"])
def run_anyhow(project: pytest.Pytester, request: pytest.FixtureRequest) -> Run:
    """Run pytest plainly, with xdist switched off, and with two workers."""
    if request.param == "plain":
        made: Run = request.getfixturevalue("run")
        return made
    plugins = _plugins("pytest_xenkvm.plugin.entry", "xdist.plugin", "xdist.looponfail")
    how = project.runpytest_inprocess if request.param == "-n0" else project.runpytest_subprocess

    def run_(*args: str | Path) -> pytest.RunResult:
        return how(*plugins, request.param, *args)

    return run_


def _ids(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line]


@pytest.fixture
def collect(run: Run) -> Callable[..., list[str]]:
    """The node ids that a run with these arguments collects."""

    def collect_(*args: str | Path) -> list[str]:
        return _ids(run("--collect-only", "-q", *args))

    return collect_


@pytest.fixture
def passes(project: pytest.Pytester, run: Run) -> Callable[..., None]:
    """Asserts that the tests in a text, which begins with `ANSWERING`, pass."""

    def passes_(tests: str, *args: str, passed: int = 1) -> None:
        (project.path / "test_own.py").write_text(ANSWERING + tests)
        run("test_own.py", *args).assert_outcomes(passed=passed)

    return passes_
