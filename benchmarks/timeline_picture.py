"""Makes docs/images/timeline.png: the timeline of @linux-boot in the HTML report, as a browser shows it.

    pip install 'pytest-xenkvm[browser]'
    python -m benchmarks.timeline_picture

Needs Chromium and its driver.
"""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "tests" / "browser"))
from browser_page import BrowserPage, start_browser, why_not

PICTURE: Final = Path(__file__).parents[1] / "docs" / "images" / "timeline.png"
WIDTH: Final = 1280
MARGIN: Final = 16
"""CSS pixels."""


def picture(browser: BrowserPage, page: Path) -> bytes:
    """The timeline's section as a PNG with two pixels for each of CSS."""
    browser.media(scheme="light")
    browser.size(WIDTH, 900)
    browser.driver.get(page.as_uri())
    browser.settle()
    box = browser.run(
        "const box = document.querySelector('#timeline').getBoundingClientRect();"
        "return { x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height };"
    )
    clip = {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": box["width"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
        "scale": 1,
    }
    shot = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    return b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])


def main() -> None:
    """Replay, report, open, take the picture."""
    if why_not():
        sys.exit(why_not())
    with TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--xenkvm-trace=@linux-boot",
        ]
        subprocess.run([*command, f"--xenkvm-report={page}"], cwd=folder, check=True)
        with start_browser(Path(folder) / "profile") as browser:
            PICTURE.write_bytes(picture(browser, page))


if __name__ == "__main__":
    main()
