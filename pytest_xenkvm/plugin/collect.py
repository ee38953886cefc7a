"""Traces as collectors: an item `replay` and one for each rule that is selected, or one for all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_xenkvm.plugin.expanding import Replay
from pytest_xenkvm.plugin.folders import Folders
from pytest_xenkvm.plugin.items import ALL, REPLAY, TraceItem
from pytest_xenkvm.plugin.kinds import names_of
from pytest_xenkvm.plugin.replays import Replays
from pytest_xenkvm.plugin.session import TraceElsewhere, hooked_rules, settings
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.files import open_trace

_PARENT: Final = pytest.StashKey[pytest.Collector]()
"""Whose children are the traces that lie in none of pytest's folders."""
_COLLECTED: Final = pytest.StashKey["dict[Path, tuple[str, set[Path]]]"]()
"""Folders of pytest's: what node ids begin with there, and the traces that it found."""
_RULES: Final = pytest.StashKey["dict[tuple[int, ...], tuple[Rule, ...]]"]()
"""The selected rules, by the implementations of the hook that adds some."""
_RULES_THERE: Final = pytest.StashKey["dict[pytest.Collector | None, tuple[Rule, ...]]"]()
"""The same, by the parent of traces."""


def is_named(path: Path, config: pytest.Config) -> bool:
    """Whether an option, the ini file or an argument names this trace."""
    return settings(config).is_named(path)


def trace_in_folder(path: Path, parent: pytest.Collector, wanted: frozenset[str] = frozenset()) -> TraceFile:
    """The collector of a trace in the folder that `parent` is of; `wanted` are its items, empty for all."""
    collected = parent.session.stash.setdefault(_COLLECTED, {})
    folder = path.parent
    if folder not in collected:
        collected[folder] = (_relative(folder / "_", parent.config.rootpath).removesuffix("_"), set())
    prefix, paths = collected[folder]
    paths.add(path)
    collector: TraceFile = TraceFile.from_parent(
        parent, name=path.name, path=path, nodeid=f"{prefix}{path.name}", trace_path=path, wanted=wanted
    )
    return collector


def traces_elsewhere(
    session: pytest.Session, collected: Iterable[pytest.Item | pytest.Collector]
) -> Iterator[TraceFile]:
    """The collectors of the traces that options name where no argument leads pytest.

    Those outside of rootdir live below the invocation folder, so that its conftest.py counts for them.
    """
    said, folders = settings(session.config), Folders(session, collected)
    for path, wanted in said.off_arguments.items():
        parent = folders.of(path.parent)
        if parent is not None:
            yield trace_in_folder(path, parent, wanted)
    session.stash[_PARENT] = folders.of(session.config.invocation_params.dir) or session
    for trace in said.elsewhere:
        yield _elsewhere(session, trace, is_elsewhere=True)


def traces_passed_over(session: pytest.Session) -> Iterator[TraceFile]:
    """The collectors of the traces that are named but lie where pytest doesn't look (`norecursedirs`)."""
    collected = session.stash.get(_COLLECTED, {})
    for path in settings(session.config).by_option:
        if path.parent not in collected or path not in collected[path.parent][1]:
            nodeid = _relative(path, session.config.rootpath)
            yield _elsewhere(session, TraceElsewhere(path=path, nodeid=nodeid))


def _elsewhere(session: pytest.Session, trace: TraceElsewhere, **more: Any) -> TraceFile:
    collector: TraceFile = TraceFile.from_parent(
        session.stash[_PARENT],
        name=trace.nodeid,
        path=session.config.invocation_params.dir,  # where pytest looks for the hooks of conftest.py files
        nodeid=trace.nodeid,
        trace_path=trace.path,
        wanted=trace.wanted,
        **more,
    )
    return collector


class TraceFile(pytest.Collector):
    """Collects the items of one trace. Not a `pytest.File`: `--lf` goes by the path of those."""

    def __init__(
        self,
        *,
        trace_path: Path,
        is_elsewhere: bool = False,
        wanted: frozenset[str] = frozenset(),
        **node: Any,
    ) -> None:
        super().__init__(**node)
        self.trace_path = trace_path
        self.is_elsewhere = is_elsewhere
        self.wanted = wanted

    def collect(self) -> Iterator[TraceItem]:
        """Open the trace; the items that judge its replay."""
        try:
            trace = open_trace(self.trace_path)
            rules = self._rules()
        except (TraceError, RuleError) as error:
            raise self.CollectError(str(error)) from error
        replays = Replays(node=self, trace=trace, rules=rules, is_elsewhere=self.is_elsewhere)
        expansion = Replay.from_parent(self, name=self.name, path=self.path, nodeid=self.nodeid)
        items = expansion.items(replays, self._names(rules))
        return self._only_wanted(items) if self.wanted else items

    def _names(self, rules: tuple[Rule, ...]) -> list[str]:
        """The names of the items: one that an argument names is there, whatever there is an item for."""
        names = names_of(self.config, rules, elsewhere=self.is_elsewhere)
        asked = self.wanted or settings(self.config).by_argument.get(self.trace_path)
        if not asked:
            return names
        more = {name.partition("[")[0] for name in asked}.difference(names)
        return [*names, *(name for name in (ALL, REPLAY, *(rule.id for rule in rules)) if name in more)]

    def _only_wanted(self, items: Iterable[TraceItem]) -> Iterator[TraceItem]:
        items = list(items)
        unknown = self.wanted.difference(*((item.name, item.originalname) for item in items))
        if unknown:
            raise self.CollectError(f"not found: {self.nodeid}::{min(unknown)}")
        for item in items:
            if not self.wanted.isdisjoint({item.name, item.originalname}):
                yield item

    def _rules(self) -> tuple[Rule, ...]:
        """The rules that judge this trace, asked for once for all traces that the same hooks count for."""
        by_folder = self.session.stash.setdefault(_RULES_THERE, {})
        if self.parent not in by_folder:
            implementations = self.ihook.pytest_xenkvm_rules.get_hookimpls()
            asked = tuple(id(implementation.function) for implementation in implementations)
            known = self.session.stash.setdefault(_RULES, {})
            if asked not in known:
                rules = all_rules(hooked_rules(self.config, self.ihook))
                known[asked] = select_rules(rules, settings(self.config).rules)
            by_folder[self.parent] = known[asked]
        return by_folder[self.parent]


def _relative(path: Path, rootdir: Path) -> str:
    return Path(os.path.relpath(path, rootdir)).as_posix()
