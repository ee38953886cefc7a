"""A report as one HTML file that needs nothing else: no network, no other file, no server.

The page's sources are in `page/`; they and the report are put into one file as they are. The report travels
as JSON in a script element that no browser runs; the page's own script puts what it says there as text.
A content security policy admits that one script and style sheet, by their hashes, and nothing from elsewhere.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, Final

from pytest_xenkvm.trace.decode_values import anything, hexadecimal, result, text

STYLES: Final = ("page.css", "timeline.css")
SCRIPTS: Final = (
    "dom.js",
    "verdicts.js",
    "overview.js",
    "marks.js",
    "chart.js",
    "marktable.js",
    "timeline.js",
    "main.js",
)
"""The parts of the page's script, in the order in which they are put together."""

_MAX_NAMED: Final = 3
"""Traces that the page's title names."""

_ESCAPES: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""In JSON these only occur inside strings, where an escape means the same."""


def html_report(report: Mapping[str, Any]) -> str:
    """The page for a report (docs/reference/report-format.md); the same text for the same report.

    Show it from anywhere, from disk too. `report` is trusted to be of that shape; what it quotes from traces
    is not trusted.
    """
    style = "".join(_source(name) for name in STYLES)
    script = "\n".join(['"use strict";', "{", *(_source(name) for name in SCRIPTS), "}"])
    parts = {
        "title": escape(_title(report)),
        "style-hash": _hash(style),
        "script-hash": _hash(script),
        "style": style,
        "script": script,
        "report": json_in_script(_readable(report)),
    }
    page = _source("page.html")
    pieces = page.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def _readable(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with both sides of divergences in words: scripts have no integers of 64 bits."""
    replays = [
        {**replay, "divergences": [_in_words(divergence) for divergence in replay["divergences"]]}
        for replay in report["replays"]
    ]
    return {**report, "replays": replays}


def _in_words(divergence: Mapping[str, Any]) -> dict[str, Any]:
    is_result = divergence["kind"] in {"ret", "run_ret"}
    sides = {
        side: result(divergence[side])
        if is_result and type(divergence[side]) is int
        else _value(divergence[side])
        for side in ("expected", "observed")
    }
    return {**divergence, **sides}


def _value(value: Any) -> str:
    if value is None or value == "":
        return "nothing"
    return text(value) if isinstance(value, str) else anything(value, hexadecimal)


def json_in_script(value: object) -> str:
    """JSON that can stand in a script element, whatever its strings say: `</script>`, `<!--`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _title(report: Mapping[str, Any]) -> str:
    traces = list(dict.fromkeys(str(replay["trace"]) for replay in report["replays"]))
    if len(traces) > _MAX_NAMED:
        return f"{len(traces):,} traces"
    return ", ".join(traces) or "no traces"


def _source(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
