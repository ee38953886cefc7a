"""Replays that hooks observe. Where nobody implements a hook, nothing is done for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import pytest
from attrs import define, field, frozen

from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.vmm import is_done_again
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, TraceSource, run_trace
from pytest_xenkvm.trace.events import Event, Header

_Trace = TypeVar("_Trace", bound=TraceSource)


@frozen
class Watched(Generic[_Trace]):
    """A trace, and the hooks that observe its replays as far as `hook` (a relay) reaches them."""

    config: pytest.Config
    hook: Any
    trace: _Trace

    def caller(self, name: str) -> Callable[..., object] | None:
        """What calls the hook with that name; None if nobody implements it."""
        hook = getattr(self.hook, name)
        return hook if hook.get_hookimpls() else None

    def call(self, name: str, **details: object) -> None:
        """Call the hook, if anybody implements it."""
        hook = self.caller(name)
        if hook is not None:
            hook(config=self.config, trace=self.trace, **details)


def run_observed(
    watched: Watched[Any],
    rules: Iterable[Rule],
    options: ReplayOptions,
    observer: Callable[[Observation], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ReplayResult:
    """As `run_trace`, and call the hooks; `observer` is told of each observation before they are."""
    trace = watched.trace
    profile = options.expected_profile(trace.header).name
    watched.call("pytest_xenkvm_before_replay", profile=profile, engine=options.engine, vmm=options.behaviour)
    observers = [] if observer is None else [observer]
    after_event = watched.caller("pytest_xenkvm_after_event")
    if after_event is not None:
        observers.append(lambda seen: watched.call("pytest_xenkvm_after_event", observation=seen))
    if watched.caller("pytest_xenkvm_divergence") is not None:
        observers.append(lambda seen: _tell_divergences(watched, seen))
    source: TraceSource = trace
    if watched.caller("pytest_xenkvm_before_event") is not None:
        source = announced = _Announced(watched, is_vmm_replay=options.behaviour is not None)
        observers.append(announced.observe)
    result = run_trace(source, rules, options, _all_of(observers), progress)
    for verdict in result.verdicts:
        watched.call("pytest_xenkvm_verdict", verdict=verdict)
    return result


def _tell_divergences(watched: Watched[Any], observation: Observation) -> None:
    for divergence in observation.divergences:
        watched.call("pytest_xenkvm_divergence", divergence=divergence)


def _all_of(observers: list[Callable[[Observation], None]]) -> Callable[[Observation], None] | None:
    if len(observers) < 2:  # noqa: PLR2004 - nothing to join
        return observers[0] if observers else None

    def observe(observation: Observation) -> None:
        for observer in observers:
            observer(observation)

    return observe


@define(eq=False)
class _Announced:
    """A trace that calls `pytest_xenkvm_before_event` before an event is done.

    A replay may read events ahead of doing them. So an event is announced when it is read, if those before
    it are done, else as soon as they are.
    """

    watched: Watched[Any]
    is_vmm_replay: bool
    _ahead: deque[tuple[int, Event]] = field(factory=deque, init=False)
    """Events that were read and not announced."""
    _under_way: bool = field(default=False, init=False)
    """An event was announced and is not done."""
    _readings: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """The trace's."""
        name: str = self.watched.trace.name
        return name

    @property
    def header(self) -> Header:
        """The trace's."""
        header: Header = self.watched.trace.header
        return header

    def events(self) -> Iterator[Event]:
        """The trace's; a VMM replay that doesn't know the VM's shape counts vCPUs first."""
        self._readings += 1
        events: Iterator[Event] = self.watched.trace.events()
        if self.is_vmm_replay and self.header.vm is None and self._readings == 1:
            return events
        return self._announce(events)

    def observe(self, observation: Observation) -> None:
        """An event is done: the next one may begin."""
        if not observation.by_vmm:
            self._under_way = False
            self._begin()

    def _announce(self, events: Iterator[Event]) -> Iterator[Event]:
        for index, event in enumerate(events):
            if is_done_again(event) or not self.is_vmm_replay:
                self._ahead.append((index, event))
                self._begin()
            yield event

    def _begin(self) -> None:
        if self._ahead and not self._under_way:
            index, event = self._ahead.popleft()
            self._under_way = True
            self.watched.call("pytest_xenkvm_before_event", place=Place(index), event=event)
