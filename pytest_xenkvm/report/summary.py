"""A report as a page of Markdown, for GitHub's job summaries and the like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from pytest_xenkvm.report.badge import LABEL
from pytest_xenkvm.report.tally import headline, label, many, outcome, rule_tallies, where

MAX_ROWS: Final = 100
"""Rows of a table; the rest is counted. GitHub takes 1 MiB in all."""
_MAX_CELL: Final = 500

_SYMBOLS: Final = {"held": "✅", "violated": "❌", "not-exercised": "⚪"}


def summary_markdown(report: Mapping[str, Any]) -> str:
    """The page: headline, what went wrong, then each rule in one line."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    total, replays = report["summary"], report["replays"]
    yield f"## {LABEL}: {_cell(headline(report))}"
    yield ""
    unseen = total["unjudged"]
    yield (
        f"Replayed {many(total['replays'], 'trace')}: {many(total['events'], 'event')}, "
        f"{many(total['hypercalls'], 'hypercall')}"
        + (f", {many(unseen, 'outcome')} not judged (not seen by the recording)." if unseen else ".")
    )
    yield from _table("Not judged", ("trace", "reason"), _errors(replays))
    yield from _table(
        "Divergences from the recording", ("trace", "kernel", "how many", "the first"), _diverged(replays)
    )
    yield from _table(
        "Violated rules", ("trace", "rule", "level", "how often", "the first"), _violated(replays)
    )
    yield from _rules(report)


def _errors(replays: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for replay in replays:
        for error in replay["errors"]:
            yield label(replay), error


def _diverged(replays: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for replay in replays:
        if replay["divergences_total"]:
            first = replay["divergences"][0] if replay["divergences"] else None
            shown = f"{where(first)}: {first['kind']} differs: {first['happened']}" if first else ""
            yield label(replay), replay["profile"] or "", f"{replay['divergences_total']:,}", shown


def _violated(replays: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """MUST rules before SHOULD rules."""
    for level in ("MUST", "SHOULD"):
        for replay in replays:
            for verdict in replay["verdicts"]:
                if (verdict["state"], verdict["level"]) == ("violated", level):
                    first = verdict["findings"][0] if verdict["findings"] else None
                    shown = f"{where(first)}: {first['message']}" if first else ""
                    yield label(replay), verdict["rule"], level, outcome(verdict), shown


def _table(title: str, head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Nothing if there are no rows."""
    shown = list(islice(rows, MAX_ROWS))
    if not shown:
        return
    yield ""
    yield f"### {title}"
    yield ""
    yield _row(head)
    yield _row(["---"] * len(head))
    for row in shown:
        yield _row(_cell(cell) for cell in row)
    rest = sum(1 for _row in rows)
    if rest:
        yield ""
        yield f"... and {rest:,} more."


def _rules(report: Mapping[str, Any]) -> Iterator[str]:
    tallies = rule_tallies(report["replays"])
    if not tallies:
        return
    titles = {rule["rule"]: rule["title"] for rule in report["rules"]}
    yield ""
    yield f"<details><summary>{many(len(tallies), 'rule')}, over all traces</summary>"
    yield ""
    yield _row(("", "rule", "level", "demands", "held in", "violated in", "not exercised in"))
    yield _row(["---"] * 7)
    for rule in report["rules"]:
        tally = tallies.get(rule["rule"])
        if tally is not None:
            counts = (f"{count:,}" for count in (tally.held, tally.violated, tally.not_exercised))
            named = (_cell(rule["rule"]), tally.level, _cell(titles[rule["rule"]]))
            yield _row((_SYMBOLS[tally.state], *named, *counts))
    yield ""
    yield "</details>"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that stays what it is in a table of Markdown, and in one line."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    if len(line) > _MAX_CELL:
        line = f"{line[:_MAX_CELL]}..."
    return re.sub(r"([\\`*_{}\[\]<>|#&~@])", r"\\\1", line)
