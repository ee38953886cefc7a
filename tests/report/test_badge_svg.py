"""Badges."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from report_kit import RULES, diverged, failed, replay, report

from pytest_xenkvm.report.badge import badge_of
from pytest_xenkvm.report.text_width import text_width

UNIQUE, FORWARDS, ADVISED = RULES
SVG = "{http://www.w3.org/2000/svg}"
HELD = {UNIQUE: "held", FORWARDS: "held"}


@pytest.mark.parametrize(
    ("replays", "message", "colour", "rgb"),
    [
        ([], "no rule exercised", "lightgrey", "#9f9f9f"),
        (
            [replay(verdicts={UNIQUE: "not-exercised"})],
            "no rule exercised · linux-7.3",
            "lightgrey",
            "#9f9f9f",
        ),
        ([replay(verdicts=HELD)], "2/2 rules · linux-7.3", "brightgreen", "#4c1"),
        ([replay(verdicts={**HELD, ADVISED: "violated"})], "2/3 rules · linux-7.3", "yellow", "#dfb317"),
        ([replay(verdicts={**HELD, UNIQUE: "violated"})], "1/2 rules · linux-7.3", "red", "#e05d44"),
        (
            [replay(verdicts=HELD, **diverged(7)), replay("b.xkt", profile="linux-7.2")],
            "1 trace diverged · 2/2 rules · linux-7.2, linux-7.3",
            "red",
            "#e05d44",
        ),
        (
            [replay(verdicts=HELD), replay("b.xkt", **failed())],
            "1 error · 2/2 rules · linux-7.3",
            "red",
            "#e05d44",
        ),
        (
            [replay(verdicts=HELD, profile=f"linux-{number}") for number in (1, 2, 3)],
            "2/2 rules · 3 kernels",
            "brightgreen",
            "#4c1",
        ),
    ],
)
def test_what_a_badge_says(replays: list[Any], message: str, colour: str, rgb: str) -> None:
    """Text and colour follow from the verdicts; picture and endpoint say the same."""
    badge = badge_of(report(*replays))
    shown = json.loads(badge.endpoint())
    assert shown.pop("isError", False) is ("error" in message)
    assert shown == {"schemaVersion": 1, "label": "xen-kvm", "message": message, "color": colour}
    root = ET.fromstring(badge.svg())  # noqa: S314 - our own
    assert [text.text for text in root.iter(f"{SVG}text")][2:] == [message] * 2
    assert [rect.get("fill") for rect in root.iter(f"{SVG}rect")][2] == rgb
    assert badge.markdown("a b.svg") == f"![xen-kvm: {message}](a%20b.svg)"


def test_it_is_accessible() -> None:
    """Screen readers find an image with a name, and pointers a title."""
    root = ET.fromstring(badge_of(report(replay(verdicts=HELD))).svg())  # noqa: S314
    title = root.find(f"{SVG}title")
    assert title is not None
    assert root.get("role") == "img"
    assert root.get("aria-label") == title.text == "xen-kvm: 2/2 rules · linux-7.3"


def test_the_text_fits() -> None:
    """Each half is as wide as its text and a margin, the picture as wide as both, and texts lie inside."""
    root = ET.fromstring(badge_of(report(replay(verdicts=HELD))).svg())  # noqa: S314
    _clip, left, right, _shade = root.iter(f"{SVG}rect")
    assert float(root.get("width", 0)) == float(left.get("width", 0)) + float(right.get("width", 0))
    for half, text in zip((left, right), list(root.iter(f"{SVG}text"))[1::2], strict=True):
        width = float(text.get("textLength", 0))
        assert width == pytest.approx(text_width(text.text or "", 11), abs=0.5)
        assert float(text.get("x", 0)) == float(half.get("x", 0)) + 5
        assert float(half.get("width", 0)) == width + 10


@pytest.mark.parametrize(
    ("text", "units"), [("", 0), ("i", 569), ("W~", 2025 + 1716), (" ·", 651 * 2), ("漢\x00", 2048 * 2)]
)
def test_widths(text: str, units: int) -> None:
    """Widths are those of DejaVu Sans; an unknown character counts as wide as the widest."""
    assert text_width(text, 2048) == units


@pytest.mark.parametrize("name", ["<&\">'", "x" * 999, "a\x00b\ud800", "漢字"])
def test_any_name_is_drawn(name: str) -> None:
    """Whatever a profile is called, the SVG is well-formed and no wider than a page."""
    svg = badge_of(report(replay(verdicts=HELD, profile=name))).svg()
    assert float(ET.fromstring(svg).get("width", 0)) < 2000  # noqa: S314
