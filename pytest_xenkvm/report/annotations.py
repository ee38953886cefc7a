"""A report as GitHub's workflow commands: what they say is shown beside the files of a pull request.

The syntax is that of `@actions/core`: `::error file=...,line=...,title=...::message`, where a message writes
%, CR and LF as percent codes, and a property `:` and `,` besides. GitHub shows 10 errors and 10 warnings of a
step, so no more are written of each, and how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from pytest_xenkvm.report.tally import label, many, where

MAX_SHOWN: Final = 10

FileOf = Callable[[Mapping[str, Any]], str | None]
"""The path of a replay's trace, relative to the checkout; None if it is not in there."""


def workflow_commands(report: Mapping[str, Any], file_of: FileOf) -> Iterator[str]:
    """The commands, one a line: errors first, then warnings, which are violations of SHOULD rules."""
    for command, found in (("error", _errors(report)), ("warning", _violated(report, "SHOULD"))):
        for replay, title, message, line in islice(found, MAX_SHOWN):
            file = file_of(replay)
            place = {} if file is None else {"file": file, "line": str(line)}
            yield _command(command, {**place, "title": title}, message)
        rest = sum(1 for _more in found)
        if rest:
            title = f"xenkvm: {many(rest, f'more {command}')}"
            yield _command("notice", {"title": title}, "GitHub shows the first ones only; see the report.")


_Found = Iterator[tuple[Mapping[str, Any], str, str, int]]
"""Replay, title, message and line."""


def _errors(report: Mapping[str, Any]) -> _Found:
    """What could not be judged, replays that diverged, violated MUST rules."""
    for replay in report["replays"]:
        for error in replay["errors"]:
            yield replay, f"{label(replay)}: not judged", error, 1
    for replay in report["replays"]:
        for first in replay["divergences"][:1]:
            title = f"{label(replay)}: {many(replay['divergences_total'], 'divergence')} from the recording"
            lines = [f"{where(first)}: {first['kind']} differs"]
            lines += [f"recorded: {first['recorded']}", f"observed: {first['happened']}"]
            yield replay, title, "\n".join(lines), first["line"]
    yield from _violated(report, "MUST")


def _violated(report: Mapping[str, Any], level: str) -> _Found:
    rules = {rule["rule"]: rule for rule in report["rules"]}
    for replay in report["replays"]:
        for verdict in replay["verdicts"]:
            if (verdict["state"], verdict["level"]) == ("violated", level):
                rule = rules[verdict["rule"]]
                first = verdict["findings"][0] if verdict["findings"] else None
                shown = f"{where(first)}: {first['words']}\n{first['message']}\n" if first else ""
                message = f"{rule['title']}\n{shown}source: {rule['citation']}"
                yield (
                    replay,
                    f"{rule['rule']} ({level}) in {label(replay)}",
                    message,
                    first["line"] if first else 1,
                )


def _command(name: str, properties: Mapping[str, str], message: str) -> str:
    said = ",".join(f"{key}={_escaped(value, properties=True)}" for key, value in properties.items())
    return f"::{name} {said}::{_escaped(message)}"


def _escaped(text: str, *, properties: bool = False) -> str:
    for character in "%\r\n:," if properties else "%\r\n":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
