"""Benchmarks: `tox -e bench`. They print what they measure and judge nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.figures import Figures
from benchmarks.synthetic import SOURCE, write_long_trace
from pytest_xenkvm.trace import find_traces

_FIGURES: Final = pytest.StashKey[Figures]()
SHORT: Final = 10
"""The short synthetic trace has a tenth of the long one's events."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the length of the synthetic trace."""
    parser.addoption(
        "--events", type=int, default=1_000_000, help="events of the synthetic trace (default: 1,000,000)"
    )
    parser.addoption(
        "--huge", action="store_true", help="replay a trace of 10,000,000 events too, which takes minutes"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the figures."""
    config.stash[_FIGURES] = Figures()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Put the figures beside pytest-benchmark's own."""
    output_json["xenkvm"] = config.stash[_FIGURES].as_json()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables."""
    terminalreporter.section("benchmarks")
    for line in config.stash[_FIGURES].lines():
        terminalreporter.line(line)


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Figures:
    """What this run has measured."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def lengths(pytestconfig: pytest.Config) -> tuple[int, int]:
    """Events of the short and of the long synthetic trace."""
    events: int = pytestconfig.option.events
    return events // SHORT, events


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory, lengths: tuple[int, int]) -> dict[int, Path]:
    """The synthetic traces by their length."""
    folder = tmp_path_factory.mktemp("synthetic")
    paths = {length: folder / f"{length}.xkt" for length in lengths}
    for length, path in paths.items():
        write_long_trace(path, length)
    return paths


@pytest.fixture(scope="session")
def boot() -> Path:
    """The recording of a real boot."""
    (path,) = find_traces(SOURCE)
    return path
