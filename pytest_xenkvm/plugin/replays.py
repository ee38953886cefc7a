"""One replay of a trace for all its items."""

from __future__ import annotations

from types import TracebackType

import pytest
from attrs import define, field, frozen

from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.plugin.cached import Outcome, replay_once
from pytest_xenkvm.plugin.observing import Watched, run_observed
from pytest_xenkvm.plugin.progress import progress_of
from pytest_xenkvm.plugin.session import hooked_profiles, settings
from pytest_xenkvm.plugin.timelines import new_timeline, timeline_json
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.report.json_result import JsonObject
from pytest_xenkvm.report.timeline import TimelineObserver
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import Trace
from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.errors import VmmError
from pytest_xenkvm.vmm.load import BehaviourError

_NOT_THE_USERS = {__name__.partition(".")[0], "asyncio"}
"""Packages whose frames say nothing about a behaviour."""


@frozen
class Told:
    """Why a replay didn't come to its end, which another item has told already."""

    sentence: str


@define(eq=False, kw_only=True)
class Replays:
    """The replays of one trace: one for each parameter of the fixture `xenkvm_vmm`, done when first asked."""

    node: pytest.Collector
    """The trace's."""
    trace: Trace
    """What is replayed."""
    rules: tuple[Rule, ...]
    is_elsewhere: bool
    """Whether it was named outside of rootdir, so that its node id is no path."""

    @property
    def nodeid(self) -> str:
        """The trace's."""
        return self.node.nodeid

    @property
    def played_by(self) -> str:
        """What plays the guest, for reports: the engine, or "kvm"."""
        return settings(self.node.config).played_by

    _done: dict[str, ReplayResult | Told] = field(factory=dict, init=False)
    _timelines: dict[str, JsonObject] = field(factory=dict, init=False)
    _cached: set[str] = field(factory=set, init=False)

    def outcome(self, parameters: str, behaviour: VmmBehaviour | None) -> ReplayResult | str | Told:
        """The result, or one sentence why there is none; from the second time on that is `Told`.

        `behaviour` takes part if this is the first call for `parameters`. What it raises is raised once,
        with its own part of the traceback, and is then `Told`.
        """
        __tracebackhide__ = True
        if parameters in self._done:
            return self._done[parameters]
        config, said = self.node.config, settings(self.node.config)
        watched = Watched(config, self.node.ihook, self.trace)  # now that all conftest.py files are known
        options = ReplayOptions(
            profile=said.profile,
            profiles=hooked_profiles(config, watched.hook),
            engine=said.engine,
            host=said.host,
            behaviour=behaviour,
        )
        try:
            timeline = new_timeline(config, self.trace.header)
            if timeline is None:
                found = replay_once(watched, self.rules, options, lambda: self._replay(watched, options))
            else:  # no cache holds what a timeline shows
                found = Outcome(self._replay(watched, options, timeline))
                self._timelines[parameters] = timeline_json(timeline, found.result)
        except (TraceError, ReplayError, HostError, VmmError) as error:
            self._done[parameters] = Told(str(error).partition("\n")[0])  # without an adapter's stderr
            return str(error)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            whose = "a hook" if behaviour is None else "the VMM behaviour"
            self._done[parameters] = Told(f"{whose} raised {type(error).__name__}: {error}")
            raise error.with_traceback(_without_ours(error.__traceback__)) from None
        self._done[parameters] = found.result
        if found.is_cached:
            self._cached.add(parameters)
        return found.result

    def _replay(
        self, watched: Watched[Trace], options: ReplayOptions, timeline: TimelineObserver | None = None
    ) -> ReplayResult:
        __tracebackhide__ = True
        with progress_of(watched.config, self.trace) as progress:
            return run_observed(watched, self.rules, options, timeline, progress)

    def is_cached(self, parameters: str) -> bool:
        """Whether an earlier run, or another worker, did that replay."""
        return parameters in self._cached

    def take_timeline(self, parameters: str) -> JsonObject | None:
        """What the vCPUs did, if reports show that; for the first who asks."""
        return self._timelines.pop(parameters, None)


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of this package and asyncio; all of it if there are no others."""
    kept = []
    entry = traceback
    while entry is not None:
        if not _is_ours(entry):
            kept.append(entry)
        entry = entry.tb_next
    chain = None
    for entry in reversed(kept):
        chain = TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return chain or traceback


def _is_ours(entry: TracebackType) -> bool:
    module: str = entry.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in _NOT_THE_USERS


def behaviour_of_options(config: pytest.Config) -> VmmBehaviour | None:
    """A behaviour that `--xenkvm-vmm` or the ini file name; None if they name none."""
    __tracebackhide__ = True
    make = settings(config).make_vmm
    try:
        return None if make is None else make()
    except BehaviourError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def check_behaviour(behaviour: object) -> None:
    """Fail for a fixture `xenkvm_vmm` that returned something else."""
    missing = [name for name in ("configure", "on_hypercall") if not hasattr(behaviour, name)]
    if behaviour is not None and (missing or isinstance(behaviour, type)):
        hint = f": return {behaviour.__name__}()" if isinstance(behaviour, type) else ""
        pytest.fail(
            f"the fixture xenkvm_vmm returned {behaviour!r}, expected a VMM behaviour{hint}", pytrace=False
        )
