"""Pages in Chromium. Without the extra `browser`, Chromium and its driver, all tests here are skipped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "report"))
from browser_page import BrowserPage, start_browser, why_not
from page_reports import Forgetful, Report, merged, replay_report

BOUNDS = "traces/golden/linux-6.12/directed/vcpu-id-bounds.jsonl.gz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of this folder where there is no browser."""
    reason = why_not()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserPage]:
    """One browser for all tests."""
    with start_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def browser(chromium: BrowserPage, tmp_path: Path) -> BrowserPage:
    """The browser, with nothing of an earlier test about it."""
    chromium.reset(tmp_path)
    return chromium


@pytest.fixture(scope="session")
def boot() -> Report:
    """The report of @linux-boot with a VMM that forgets an ID: one rule is violated once."""
    return replay_report("@linux-boot", vmm=Forgetful())


@pytest.fixture(scope="session")
def recorded() -> Report:
    """The report of @linux-boot as recorded, all 35,143 events of it."""
    return replay_report("@linux-boot")


@pytest.fixture(scope="session")
def several(boot: Report) -> Report:
    """A report of two replays, one of which differs from its recording."""
    golden = Path(__file__).parents[2] / BOUNDS
    return merged(boot, replay_report(str(golden), profile="linux-7.3"))
