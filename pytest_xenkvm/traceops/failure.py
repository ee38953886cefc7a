"""How a trace fails, found once, and whether a part of it still fails in that very way.

A part of a trace fails easily, and for another reason: without its set-up every hypercall is answered
otherwise. So what is looked for again is the failure of one event of the trace, with what was said about it:

- a *rule*: its first finding stands at the same event, about a thing of the same kind, in the same words but
  for numbers;
- a *divergence*: the first one stands at the same event, in the same outcome, which shows the same. If the
  trace doesn't diverge on the kernel that it was recorded on, the part must not do so either;
- an *error*: the VMM behaviour raises the same exception with the same words but for numbers.

An event that came out as recorded must do so in the part: if it begins to diverge, it lacks its set-up.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen

from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import Divergence, Place
from pytest_xenkvm.rules.model import Finding, Rule, State
from pytest_xenkvm.rules.profiles import AUTO, choose_profile
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, TraceSource, run_trace
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Event, Header, Mem
from pytest_xenkvm.trace.labels import event_label
from pytest_xenkvm.vmm.load import Maker

DIVERGENCE: Final = "divergence"
ERROR: Final = "error"

_NUMBER: Final = re.compile(r"0x[0-9a-f]+|\d+")
_MAX_WORDS: Final = 200


class NotFailing(Exception):
    """The trace doesn't fail as was said; `str()` is one sentence for the user."""


@frozen(kw_only=True)
class Setting:
    """What a trace is replayed with; `vmm` makes a fresh VMM behaviour for each replay."""

    options: ReplayOptions
    rules: tuple[Rule, ...] = ()
    vmm: Maker | None = None

    def replay(
        self, trace: TraceSource, until: int | None = None, profile: str | None = None
    ) -> ReplayResult:
        """Replay once more, on another profile if one is named; raises what `run_trace` and the VMM raise."""
        options = evolve(
            self.options,
            behaviour=None if self.vmm is None else self.vmm(),
            until=until,
            profile=profile or self.options.profile,
        )
        return run_trace(trace, self.rules, options)


@frozen
class Part:
    """Some of a trace's events, as a trace of its own."""

    name: str
    header: Header
    kept: Sequence[Event]

    def events(self) -> Iterator[Event]:
        """The events, in order."""
        return iter(self.kept)


@frozen(kw_only=True)
class Failure:
    """What fails, and where."""

    index: int | None
    """Of the event; None if it isn't an event's: the VMM's own set-up, the migration at the end, an error."""
    signature: tuple[str, ...]
    """What a replay must show again."""
    words: str
    """For people: `violates vcpu-id.unique`."""
    events: int | None = None
    """Of the whole trace, if it came to its end."""
    own_profile: str | None = None
    """The recorded kernel's profile, if the trace doesn't diverge there."""
    diverging: frozenset[int] = frozenset()
    """The events that diverge."""


def find_failure(trace: TraceSource, setting: Setting, failing: str) -> Failure:
    """Replay `trace` as a whole and return how it fails first.

    `failing`: DIVERGENCE, ERROR, or the id of the rule that is all of `setting.rules`. Raises NotFailing if
    it doesn't fail like that, and what the replay raises if that was not what was asked for.
    """
    try:
        result = setting.replay(trace)
    except (TraceError, OSError, ReplayError, HostError):
        raise
    except Exception as error:
        if failing != ERROR:
            raise
        return Failure(index=None, signature=_error(error), words=f"ends with {_one_line(error)}")
    if failing == ERROR:
        raise NotFailing("the replay comes to its end without an error")
    diverging = frozenset(divergence.place.index for divergence in result.divergences)
    if failing == DIVERGENCE:
        if not result.divergences:
            raise NotFailing(f"there is no divergence on {result.profile}")
        first = result.divergences[0]
        return Failure(
            index=first.place.index,
            signature=_divergence(first),
            words=f"diverges from the recording ({first.kind})",
            events=result.events,
            own_profile=_own_profile(trace, setting, result),
            diverging=diverging,
        )
    (verdict,) = result.verdicts
    if verdict.state is not State.VIOLATED:
        state = verdict.state.value.replace("-", " ")
        raise NotFailing(f"the rule {failing} is {state} on {result.profile}")
    finding = verdict.findings[0]
    return Failure(
        index=_event_index(finding.place),
        signature=_finding(failing, finding),
        words=f"violates {failing}",
        events=result.events,
        diverging=diverging,
    )


def _own_profile(trace: TraceSource, setting: Setting, result: ReplayResult) -> str | None:
    own = choose_profile(AUTO, trace.header).name
    if own == result.profile:
        return None
    until = result.divergences[0].place.index + 1
    return None if setting.replay(trace, until, own).divergence_count else own


@define
class Judgement:
    """Whether parts of a trace still fail in the same way; `replays` counts how often one was replayed."""

    header: Header
    setting: Setting
    failure: Failure
    replays: int = field(default=0, init=False)

    def beginning_fails(self, trace: TraceSource, until: int) -> bool:
        """Whether the events of `trace` before index `until` fail so."""
        return self._fails(trace, self.failure.index, until, range(until))

    def part_fails(self, events: Mapping[int, Event], kept: Sequence[int]) -> bool:
        """Whether the events with the indices `kept`, in order, fail so."""
        place = None
        if self.failure.index is not None:
            place = bisect_left(kept, self.failure.index)
            if place == len(kept) or kept[place] != self.failure.index:
                return False
        return self._fails(Part("part", self.header, [events[index] for index in kept]), place, None, kept)

    def _fails(self, trace: TraceSource, place: int | None, until: int | None, kept: Sequence[int]) -> bool:
        self.replays += 1
        try:
            result = self.setting.replay(trace, until)
        except Exception as error:  # noqa: BLE001 - a VMM may raise anything when calls are missing
            return self.failure.signature == _error(error)
        if any(kept[found.place.index] not in self.failure.diverging for found in result.divergences):
            return False
        if not self._shows_it(result, place):
            return False
        own = self.failure.own_profile
        return own is None or not self.setting.replay(trace, until, own).divergence_count

    def _shows_it(self, result: ReplayResult, place: int | None) -> bool:
        kind = self.failure.signature[0]
        if kind == ERROR:
            return False
        if kind == DIVERGENCE:
            found = result.divergences[:1]
            return bool(found) and (found[0].place.index, _divergence(found[0])) == (
                place,
                self.failure.signature,
            )
        findings = result.verdicts[0].findings[:1]
        return bool(findings) and (_event_index(findings[0].place), _finding(kind, findings[0])) == (
            place,
            self.failure.signature,
        )


def _event_index(place: Place) -> int | None:
    return None if place.after or place.index < 0 else place.index


def _finding(rule: str, finding: Finding) -> tuple[str, ...]:
    return rule, event_label(finding.event), str(finding.place.after), _NUMBER.sub("#", finding.message)


def _divergence(found: Divergence) -> tuple[str, ...]:
    observed = found.observed
    if found.kind == "out":
        observed = _determined(observed, found.expected)
    elif isinstance(found.recorded, Mem) and found.recorded.mask and isinstance(observed, str):
        seen = bytes.fromhex(observed)
        observed = bytes(byte & bits for byte, bits in zip(seen, found.recorded.mask, strict=False)).hex()
    return DIVERGENCE, found.kind, repr(observed)


def _determined(observed: Any, expected: Any) -> Any:
    """Of what a GET wrote back, the members that were recorded."""
    if isinstance(observed, Mapping) and isinstance(expected, Mapping):
        return {key: _determined(observed.get(key), value) for key, value in expected.items()}
    return observed


def _error(error: Exception) -> tuple[str, ...]:
    return ERROR, type(error).__name__, _NUMBER.sub("#", _one_line(error))


def _one_line(error: Exception) -> str:
    words = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {words}"[:_MAX_WORDS]
