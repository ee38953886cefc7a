"""What a browser takes to show the HTML report of @linux-boot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from benchmarks.figures import Figures, PageFigures

_TESTS: Final = Path(__file__).parents[1] / "tests"
ROUNDS: Final = 5


def test_page(figures: Figures, tmp_path: Path) -> None:
    """The page's own measurements, the best of a few rounds."""
    sys.path += [str(_TESTS / "browser"), str(_TESTS / "report")]
    from browser_page import CANVAS, start_browser, why_not  # noqa: PLC0415 - found from here on only
    from page_reports import replay_report  # noqa: PLC0415

    if why_not():
        pytest.skip(why_not())
    report = replay_report("@linux-boot")
    ready, drawn, filtered = [], [], []
    with start_browser(tmp_path / "profile") as browser:
        browser.reset(tmp_path)
        for _ in range(ROUNDS):
            browser.open(report)
            browser.keys(CANVAS, "0")
            drawn.append(float(browser.run(f"return document.querySelector('{CANVAS}').dataset.drawMs")))
            browser.keys("#timeline-of input[type=search]", "port")
            timings = browser.run("return {...document.querySelector('#timeline-of').dataset}")
            ready.append(float(timings["readyMs"]))
            filtered.append(float(timings["filterMs"]))
    figures.page = PageFigures(
        events=report["summary"]["events"],
        size=(tmp_path / "report.html").stat().st_size,
        ready_ms=min(ready),
        draw_ms=min(drawn),
        filter_ms=min(filtered),
    )
