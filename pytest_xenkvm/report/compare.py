"""What changed between two reports: what broke, what got fixed, what is not judged any more.

Something broke if it is wrong in the new report and was not wrong in the old one, or was less so: a rule's
violations, a replay's divergences, the reasons why something could not be judged. It makes no difference
whether the old report says that all was well or says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.report.results import JsonObject, Report, worst
from pytest_xenkvm.report.tally import label, many, outcome, where

_How = tuple[str, str, str]
"""Profile, engine and VMM of a replay."""

_ERRORS: Final = "errors"
_NOT_JUDGED: Final = "not judged"


@frozen(kw_only=True)
class Change:
    """Something that came out otherwise."""

    trace: str
    """With the parameters."""
    what: str
    """A rule with its level, `replay` for the comparison with the recording, or `errors`."""
    before: str
    after: str
    detail: str = ""
    """The first thing that shows it."""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.trace}: {self.what}: {self.after} (before: {self.before})"
        if self.detail:
            yield f"  {self.detail}"


@define
class Comparison:
    """All changes, in the order of the new report."""

    broke: list[Change] = Factory(list)
    fixed: list[Change] = Factory(list)
    lost: list[Change] = Factory(list)
    """Was judged before, and is not any more."""
    still_wrong: int = 0
    """What was at least as wrong before."""

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        for title, changes in (
            ("broke", self.broke),
            ("fixed", self.fixed),
            ("not judged any more", self.lost),
        ):
            for change in changes:
                first, *more = change.lines()
                yield f"{title}: {first}"
                yield from more
        yield (
            f"{len(self.broke)} broke, {len(self.fixed)} fixed, {len(self.lost)} not judged any more, "
            f"{self.still_wrong} still wrong"
        )


@frozen
class _Finding:
    """One thing that replays are judged by."""

    what: str
    wrong: int
    """How wrong it is; 0: all is well."""
    judged: bool
    words: str
    detail: str = ""


def compare(new: Report, old: Report) -> Comparison:
    """What changed from `old` to `new`."""
    found = Comparison()
    for trace, now, before in _pairs(_by_trace(new), _by_trace(old)):
        after, earlier = _findings(now), _findings(before)
        if earlier and not any(replay["events"] is not None for replay in now):
            found.lost.append(Change(trace=trace, what="replay", before="replayed", after="not replayed"))
            earlier = {key: finding for key, finding in earlier.items() if key in after}
        for key in dict.fromkeys((*after, *earlier)):
            _judge(found, trace, after.get(key), earlier.get(key))
    return found


def _judge(found: Comparison, trace: str, after: _Finding | None, before: _Finding | None) -> None:
    known = after or before
    assert known is not None  # noqa: S101 - one of the reports has it
    wrong, was_wrong = (side.wrong if side else 0 for side in (after, before))
    change = Change(
        trace=trace,
        what=known.what,
        before=before.words if before else _NOT_JUDGED,
        after=after.words if after else _NOT_JUDGED,
        detail=after.detail if after else "",
    )
    judged = after is not None and after.judged
    if wrong > was_wrong:
        found.broke.append(change)
    elif wrong:
        found.still_wrong += 1
    elif was_wrong and judged:
        found.fixed.append(change)
    elif before is not None and before.judged and not judged and known.what != _ERRORS:
        found.lost.append(change)


def _findings(replays: Iterable[JsonObject]) -> dict[str, _Finding]:
    """All that replays of one trace, done in the same way, were judged by."""
    replays = list(replays)
    found = {}
    if replays:
        found[_ERRORS] = _errors(replays)
    compared = [replay for replay in replays if replay["divergences_total"] is not None]
    if compared:
        found["replay"] = _divergences(max(compared, key=lambda replay: int(replay["divergences_total"])))
    verdicts: dict[str, JsonObject] = {}
    for replay in replays:
        for verdict in replay["verdicts"]:
            verdicts[verdict["rule"]] = worst(verdicts.get(verdict["rule"], verdict), verdict)
    return found | {f"rule {rule}": _verdict(verdict) for rule, verdict in verdicts.items()}


def _errors(replays: Sequence[JsonObject]) -> _Finding:
    errors = sorted({error for replay in replays for error in replay["errors"]})
    return _Finding(_ERRORS, len(errors), True, many(len(errors), "error"), errors[0] if errors else "")  # noqa: FBT003


def _divergences(replay: JsonObject) -> _Finding:
    total, first = replay["divergences_total"], replay["divergences"][:1]
    detail = f"{where(first[0])}: {first[0]['kind']} differs: {first[0]['happened']}" if first else ""
    return _Finding("replay", total, True, many(total, "divergence"), detail)  # noqa: FBT003


def _verdict(verdict: JsonObject) -> _Finding:
    first = verdict["findings"][:1]
    return _Finding(
        f"{verdict['rule']} ({verdict['level']})",
        verdict["violations"],
        verdict["state"] != "not-exercised",
        outcome(verdict),
        f"{where(first[0])}: {first[0]['message']}" if first else "",
    )


# ---- which replays of two reports belong together


def _by_trace(report: Report) -> dict[str, dict[_How, list[JsonObject]]]:
    found: dict[str, dict[_How, list[JsonObject]]] = {}
    for replay in report["replays"]:
        how = (replay["profile"] or "", replay["engine"], replay["vmm"] or "")
        found.setdefault(label(replay), {}).setdefault(how, []).append(replay)
    return found


def _pairs(
    new: Mapping[str, Mapping[_How, list[JsonObject]]], old: Mapping[str, Mapping[_How, list[JsonObject]]]
) -> Iterator[tuple[str, list[JsonObject], list[JsonObject]]]:
    """Trace, its new replays, its old ones.

    Those that were done in the same way go together. Where a trace then has one left on either side, these
    do: another kernel, engine or VMM is what the user wants to compare.
    """
    for trace in dict.fromkeys((*new, *old)):
        mine, theirs = dict(new.get(trace, {})), dict(old.get(trace, {}))
        for how in [how for how in mine if how in theirs]:
            yield trace, mine.pop(how), theirs.pop(how)
        if len(mine) == len(theirs) == 1:
            yield trace, mine.popitem()[1], theirs.popitem()[1]
        for replays in mine.values():
            yield trace, replays, []
        for replays in theirs.values():
            yield trace, [], replays
