"""A report as a badge: an SVG in the flat style, and what shields.io's endpoint badges read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from attrs import frozen

from pytest_xenkvm.report.tally import ADVISED, ERROR, FAILED, HELD, NOTHING, headline
from pytest_xenkvm.report.text_width import text_width

LABEL: Final = "xen-kvm"

_LABEL_COLOUR: Final = "#555"
_COLOURS: Final = {
    ERROR: ("red", "#e05d44"),
    FAILED: ("red", "#e05d44"),
    ADVISED: ("yellow", "#dfb317"),
    HELD: ("brightgreen", "#4c1"),
    NOTHING: ("lightgrey", "#9f9f9f"),
}
"""By verdict: shields.io's name of a colour, and the colour."""

_FONT: Final = 11
_HEIGHT: Final = 20
_MARGIN: Final = 5
"""Pixels on either side of a text."""
_BASELINE: Final = 14
_MAX_TEXT: Final = 120
"""Characters of a badge's message: profiles may have any name."""


@frozen(kw_only=True)
class Badge:
    """What a badge says. The colour follows from a report's verdict; it is green only if rules held."""

    message: str
    colour: str
    """As shields.io calls it."""
    rgb: str
    is_error: bool

    @property
    def text(self) -> str:
        """All of it in one line, for those who don't see the picture."""
        return f"{LABEL}: {self.message}"

    def svg(self) -> bytes:
        """The picture: 20 pixels high, as wide as its text."""
        left, right = _wide(LABEL), _wide(self.message)
        width, title = left + right, _printable(self.text)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" role="img" '
            f"aria-label={quoteattr(title)}>\n"
            f"<title>{escape(title)}</title>\n"
            '<linearGradient id="s" x2="0" y2="100%">'
            '<stop offset="0" stop-color="#bbb" stop-opacity=".1"/><stop offset="1" stop-opacity=".1"/>'
            "</linearGradient>\n"
            f'<clipPath id="r"><rect width="{width}" height="{_HEIGHT}" rx="3" fill="#fff"/></clipPath>\n'
            '<g clip-path="url(#r)">'
            f'<rect width="{left}" height="{_HEIGHT}" fill="{_LABEL_COLOUR}"/>'
            f'<rect x="{left}" width="{right}" height="{_HEIGHT}" fill="{self.rgb}"/>'
            f'<rect width="{width}" height="{_HEIGHT}" fill="url(#s)"/></g>\n'
            f'<g fill="#fff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="{_FONT}">\n'
            f"{_text(LABEL, 0)}{_text(self.message, left)}"
            "</g>\n</svg>\n"
        ).encode()

    def endpoint(self) -> bytes:
        """The JSON that shields.io reads from `https://img.shields.io/endpoint?url=...`."""
        shown = {"schemaVersion": 1, "label": LABEL, "message": self.message, "color": self.colour}
        if self.is_error:
            shown["isError"] = True
        return f"{json.dumps(shown, indent=1)}\n".encode()

    def markdown(self, path: str) -> str:
        """What shows the picture at `path` in a README."""
        quoted = path.replace(" ", "%20").replace("(", "%28").replace(")", "%29")
        return f"![{self.text}]({quoted})"


def badge_of(report: Mapping[str, Any]) -> Badge:
    """The badge of a report."""
    verdict = report["summary"]["verdict"]
    colour, rgb = _COLOURS[verdict]
    message = headline(report)
    if len(message) > _MAX_TEXT:
        message = f"{message[:_MAX_TEXT]}..."
    return Badge(message=message, colour=colour, rgb=rgb, is_error=verdict == ERROR)


def _wide(text: str) -> int:
    """Pixels that a half of the badge takes."""
    return round(text_width(text, _FONT)) + 2 * _MARGIN


def _text(text: str, left: int) -> str:
    """A text from `left` on, with its shadow; `textLength` makes other fonts fit."""
    shown, length = escape(_printable(text)), round(text_width(text, _FONT))
    attributes = f'x="{left + _MARGIN}" textLength="{length}" lengthAdjust="spacingAndGlyphs"'
    return (
        f'<text aria-hidden="true" y="{_BASELINE + 1}" fill="#010101" fill-opacity=".3" {attributes}>'
        f'{shown}</text><text y="{_BASELINE}" {attributes}>{shown}</text>\n'
    )


def _printable(text: str) -> str:
    """XML admits no control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)
