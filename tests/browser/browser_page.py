"""A page in Chromium, driven with Selenium, and what it told its log and the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from attrs import define

from pytest_xenkvm.report.html import html_report

OPTIONS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)
CANVAS: Final = ".stage canvas:not(.overview)"


def why_not() -> str:
    """What is missing for tests in a browser; empty if nothing is."""
    if find_spec("selenium") is None:
        return "Selenium is not installed (pip install 'pytest-xenkvm[browser]')"
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on this machine" if missing else ""


@define
class BrowserPage:
    """The page that is open. `driver` is Selenium's."""

    driver: Any
    folder: Path = Path()

    def reset(self, folder: Path) -> None:
        """Forget the page, what was logged, and what was emulated; pages come into `folder`."""
        self.folder = folder
        self.driver.get("about:blank")
        self.size(1280, 900)
        self.media()
        self.console()
        self.requests()

    def size(self, width: int, height: int) -> None:
        """The size of the window, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, media: str = "", scheme: str = "light") -> None:
        """Screen or "print", light or "dark"; without motion: nothing moves under the mouse."""
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def open(self, report: Mapping[str, Any], fragment: str = "") -> None:
        """Open the page of a report from disk."""
        path = self.folder / "report.html"
        path.write_text(html_report(report), encoding="utf-8")
        self.driver.get(path.as_uri() + fragment)
        assert self.run("return document.documentElement.dataset.ready") == "true", self.console()

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def settle(self) -> None:
        """Wait until what was asked for is drawn: two frames."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def one(self, selector: str) -> Any:
        """The first element that a CSS selector selects."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        """All that it selects and that can be seen."""
        return [
            found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()
        ]

    def text(self, selector: str) -> str:
        """The text of an element, whether or not it can be seen."""
        text: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return text

    def keys(self, selector: str, *keys: str) -> None:
        """Press keys in an element, and wait for what comes of it."""
        for key in keys:
            self.one(selector).send_keys(key)
        self.settle()

    def click(self, selector: str) -> None:
        """Click an element, wherever it is."""
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def follow(self, words: str) -> None:
        """Follow a link by its words."""
        self.driver.find_element("link text", words).click()
        self.settle()

    def choose(self, label: str, value: str) -> None:
        """Choose in the select with that accessible name."""
        self.run(
            "const select = document.querySelector(`select[aria-label='${arguments[0]}']`);"
            "select.value = arguments[1]; select.dispatchEvent(new Event('change'))",
            label,
            value,
        )
        self.settle()

    def console(self) -> list[str]:
        """What the page's scripts and the browser complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of what assistive technology finds in the page."""
        tree = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree
            if not node["ignored"]
        ]


@contextmanager
def start_browser(profile: Path) -> Iterator[BrowserPage]:
    """A headless Chromium with a new profile, as the context."""
    from selenium import webdriver  # noqa: PLC0415 - not everybody has it
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield BrowserPage(driver)
    finally:
        driver.quit()
