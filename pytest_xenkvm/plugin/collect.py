"""Traces as collectors: an item `replay` and one for each rule that is selected, or one for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from pytest_xenkvm.plugin.items import ReplayItem, RuleItem, TraceItem, WholeItem, takes
from pytest_xenkvm.plugin.observing import Watched
from pytest_xenkvm.plugin.replays import Replays
from pytest_xenkvm.plugin.session import PER_TRACE, TraceElsewhere, hooked_rules, settings
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import open_trace

_PARENT: Final = pytest.StashKey[pytest.Collector]()
"""Whose children are the traces that lie in none of pytest's folders."""
_COLLECTED: Final = pytest.StashKey["set[Path]"]()
"""The traces that pytest found in its folders."""
_RULES: Final = pytest.StashKey["dict[tuple[int, ...], tuple[Rule, ...]]"]()
"""The selected rules, by the implementations of the hook that adds some."""


def is_named(path: Path, config: pytest.Config) -> bool:
    """Whether an option, the ini file or an argument names this trace."""
    return settings(config).is_named(path)


def trace_in_folder(path: Path, parent: pytest.Collector) -> TraceFile:
    """The collector of a trace that pytest found in one of its folders."""
    parent.session.stash.setdefault(_COLLECTED, set()).add(path)
    name, nodeid = path.name, _relative(path, parent.config.rootpath)
    collector: TraceFile = TraceFile.from_parent(parent, name=name, path=path, nodeid=nodeid, trace_path=path)
    return collector


def traces_elsewhere(
    session: pytest.Session, collected: Iterable[pytest.Item | pytest.Collector]
) -> Iterator[TraceFile]:
    """The collectors of the traces that options name outside of rootdir.

    They live below the invocation folder, so that its conftest.py counts for them.
    """
    session.stash[_PARENT] = _invocation_folder(session, collected)
    for trace in settings(session.config).elsewhere:
        yield _elsewhere(session, trace)


def traces_passed_over(session: pytest.Session) -> Iterator[TraceFile]:
    """The collectors of the traces that are named but lie where pytest doesn't look (`norecursedirs`)."""
    collected = session.stash.get(_COLLECTED, set())
    for path in settings(session.config).by_option:
        if path not in collected:
            nodeid = _relative(path, session.config.rootpath)
            yield _elsewhere(session, TraceElsewhere(path=path, nodeid=nodeid))


def _elsewhere(session: pytest.Session, trace: TraceElsewhere) -> TraceFile:
    collector: TraceFile = TraceFile.from_parent(
        session.stash[_PARENT],
        name=trace.nodeid,
        path=session.config.invocation_params.dir,  # where pytest looks for the hooks of conftest.py files
        nodeid=trace.nodeid,
        trace_path=trace.path,
        wanted=trace.wanted,
    )
    return collector


class TraceFile(pytest.Collector):
    """Collects the items of one trace. Not a `pytest.File`: `--lf` goes by the path of those."""

    def __init__(self, *, trace_path: Path, wanted: frozenset[str] = frozenset(), **node: Any) -> None:
        super().__init__(**node)
        self.trace_path = trace_path
        self.wanted = wanted

    def collect(self) -> Iterator[TraceItem]:
        """Open the trace; the items that judge its replay."""
        said = settings(self.config)
        try:
            trace = open_trace(self.trace_path)
            rules = self._rules(said.rules)
        except (TraceError, RuleError) as error:
            raise self.CollectError(str(error)) from error
        replays = Replays(
            watched=Watched(self.config, self.ihook, trace),
            rules=rules,
            profile=said.profile,
            engine=said.engine,
            host=said.host,
            nodeid=self.nodeid,
        )
        expansion = Replay.from_parent(self, name=self.name, path=self.path, nodeid=self.nodeid)
        items = expansion.items(replays, rules)
        return self._only_wanted(items) if self.wanted else items

    def _only_wanted(self, items: Iterable[TraceItem]) -> Iterator[TraceItem]:
        items = list(items)
        unknown = self.wanted.difference(*((item.name, item.originalname) for item in items))
        if unknown:
            raise self.CollectError(f"not found: {self.nodeid}::{min(unknown)}")
        for item in items:
            if not self.wanted.isdisjoint({item.name, item.originalname}):
                yield item

    def _rules(self, selection: str) -> tuple[Rule, ...]:
        """The rules that judge this trace, asked for once for all traces that the same hooks count for."""
        implementations = self.ihook.pytest_xenkvm_rules.get_hookimpls()
        asked = tuple(id(implementation.function) for implementation in implementations)
        known = self.session.stash.setdefault(_RULES, {})
        if asked not in known:
            known[asked] = select_rules(all_rules(hooked_rules(self.config, self.ihook)), selection)
        return known[asked]


class Replay(pytest.Module):
    """Makes items that take fixtures as test functions do, once for each parameter of a fixture.

    It is a module so that fixtures may have module scope, and holds a function `replay`, because pytest
    expands parametrised fixtures for the functions of modules alone. All items take the same fixtures: what
    pytest finds out about the first holds for all.
    """

    def __init__(self, **node: Any) -> None:
        super().__init__(**node)
        self.obj = ModuleType("xenkvm_trace")

    def items(self, replays: Replays, rules: Iterable[Rule]) -> Iterator[TraceItem]:
        """The items of all rules, or the one that stands for them."""
        self.obj.replay = takes
        expanded = list(self._genfunctions("replay", takes))
        if settings(self.config).items == PER_TRACE:
            for function in expanded:
                yield WholeItem.like(function, "all", replays)
            return
        for function in expanded:
            yield ReplayItem.like(function, "replay", replays)
        for rule in rules:
            for function in expanded:
                yield RuleItem.like(function, rule.id, replays, rule=rule)


def _relative(path: Path, rootdir: Path) -> str:
    return Path(os.path.relpath(path, rootdir)).as_posix()


def _invocation_folder(
    session: pytest.Session, collected: Iterable[pytest.Item | pytest.Collector]
) -> pytest.Collector:
    """The node of the folder that pytest was started in; the session if that is no folder of rootdir."""
    folder, rootdir = session.config.invocation_params.dir, session.config.rootpath
    for node in collected:
        for ancestor in node.listchain():
            if isinstance(ancestor, pytest.Directory) and ancestor.path == folder:
                return ancestor
    parent: pytest.Collector = session
    if rootdir in folder.parents:
        for path in (*reversed(folder.parents), folder):
            if path.is_relative_to(rootdir):
                parent = parent.ihook.pytest_collect_directory(path=path, parent=parent)
                parent.ihook.pytest_make_collect_report(collector=parent)  # makes its conftest.py count
    return parent
