"""The report as one HTML file: what can be said of it without a browser; tests/browser has the rest."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest
from page_reports import NASTY, nasty_report, replay_json, report_of

from pytest_xenkvm.report.html import html_report


class Page(HTMLParser):
    """The elements of a page, and what its scripts and styles hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[str] = []
        self.open = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        self.contents.append("")
        self.open = True

    def handle_data(self, data: str) -> None:
        """Note what is in it."""
        if self.open:
            self.contents[-1] += data

    def handle_endtag(self, _tag: str) -> None:
        """What follows isn't in it."""
        self.open = False

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and contents of the elements with a tag."""
        pairs = zip(self.elements, self.contents, strict=True)
        return [(attributes, content) for (name, attributes), content in pairs if name == tag]

    def report(self) -> Any:
        """The report in the page."""
        (content,) = (text for attributes, text in self.all("script") if attributes.get("id") == "report")
        return json.loads(content)


@pytest.fixture
def page() -> Page:
    """A page whose report is full of HTML."""
    return Page(html_report(nasty_report()))


def test_a_report_makes_the_same_page_again() -> None:
    """The same report gives the same bytes."""
    assert html_report(nasty_report()) == html_report(nasty_report())


def test_nothing_in_a_report_ends_its_script(page: Page) -> None:
    """Whatever strings say, the page has its two scripts, and the data comes out as it went in."""
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert page.report()["replays"][0]["trace"] == NASTY


def test_the_title_names_traces() -> None:
    """The title names a few traces, counts many, and is text."""
    named = (html_report(report_of(*(replay_json(f"{n}.xkt") for n in range(count)))) for count in (0, 2, 4))
    titles = [Page(text).all("title")[0][1] for text in named]
    assert [title.partition(": ")[2] for title in titles] == ["no traces", "0.xkt, 1.xkt", "4 traces"]
    assert NASTY.replace("\u2028", "\n").split()[0] in Page(html_report(nasty_report())).all("title")[0][1]


def test_the_policy_admits_only_the_pages_own_script_and_style(page: Page) -> None:
    """The content security policy names the hashes of the one script and the one style sheet, and no host."""
    (policy,) = (
        str(attributes["content"]) for attributes, _ in page.all("meta") if "http-equiv" in attributes
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    def admitted(content: str) -> str:
        return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"

    (style,) = (content for _, content in page.all("style"))
    (script,) = (content for attributes, content in page.all("script") if "type" not in attributes)
    assert directives == {
        "default-src": "'none'",
        "script-src": admitted(script),
        "style-src": admitted(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_page_needs_nothing_else(page: Page) -> None:
    """No element points out of the page, and no style or script names an address."""
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action"}
    ]
    assert all(address and address.startswith(("#", "data:,")) for address in addresses)
    sources = [content for tag in ("style", "script") for _, content in page.all(tag)][:1]
    sources += [content for attributes, content in page.all("script") if "type" not in attributes]
    assert not [
        source for source in sources if re.search(r"https?:|@import|url\(|\bfetch\b|innerHTML", source)
    ]


def test_both_sides_of_a_divergence_are_in_words(page: Page) -> None:
    """64-bit numbers, which a script can't hold, are written out; bytes stay, and none are "nothing"."""
    divergence = nasty_report()["replays"][0]["divergences"][0]
    assert page.report()["replays"][0]["divergences"][0]["observed"] == "0xffffffffffffffda"
    for kind, value, words in (
        ("ret", -22, "-EINVAL (-22)"),
        ("mem", "", "nothing"),
        ("irq", None, "nothing"),
    ):
        changed = {**divergence, "kind": kind, "expected": value}
        report = report_of(replay_json("a.xkt", divergences=[changed], divergences_total=1))
        shown = Page(html_report(report)).report()["replays"][0]["divergences"][0]["expected"]
        assert shown == words
