"""The items of a trace. What pytest finds out for one, it has found out for all traces of its folder.

Which fixtures an item takes, and with which parameters, follows from the conftest.py files and plugins that
count for the folder. So pytest is asked once a folder, which takes it longer than all else that is done for a
trace. It is asked for each trace where somebody may tell one from another: by a marker of its own, or by
implementing `pytest_generate_tests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Final

import pytest

from pytest_xenkvm.plugin.items import (
    ALL,
    REPLAY,
    Expansion,
    ReplayItem,
    RuleItem,
    TraceItem,
    WholeItem,
    takes,
)
from pytest_xenkvm.plugin.replays import Replays
from pytest_xenkvm.rules.model import Rule

_KNOWN: Final = ("_pytest", "pytest_xenkvm")
"""Packages whose implementations of `pytest_generate_tests` go by fixtures alone."""
_EXPANSIONS: Final = pytest.StashKey["dict[pytest.Collector | None, tuple[Expansion, ...]]"]()
"""By the parent of traces."""


_MODULE: Final = ModuleType("xenkvm_trace")
_MODULE.__dict__["replay"] = takes


class Replay(pytest.Module):
    """Makes items that take fixtures as test functions do, once for each parameter of a fixture.

    It is a module so that fixtures may have module scope, and holds a function `replay`, because pytest
    expands parametrised fixtures for the functions of modules alone.
    """

    def __init__(self, **node: Any) -> None:
        super().__init__(**node)
        self.obj = _MODULE

    def items(self, replays: Replays, names: Iterable[str]) -> Iterator[TraceItem]:
        """The items of these names, each of which is ALL, REPLAY or the id of a rule of `replays`."""
        expansions = self._expansions()
        # The trace's own list: a hook may add a fixture to an item.
        fixturenames = [fixture for each in expansions[:1] for fixture in each.fixtureinfo.names_closure]
        rules: dict[str, Rule] = {}
        for name in names:
            for expansion in expansions:
                if name == ALL:
                    item: TraceItem = WholeItem.like(expansion, self, name, replays)
                elif name == REPLAY:
                    item = ReplayItem.like(expansion, self, name, replays)
                else:
                    rules = rules or {rule.id: rule for rule in replays.rules}
                    item = RuleItem.like(expansion, self, name, replays, rule=rules[name])
                item.fixturenames = fixturenames
                yield item

    def _expansions(self) -> tuple[Expansion, ...]:
        """Those of its folder, which share what pytest knows of fixtures there, as a function's always do."""
        trace: Any = self.parent
        known = self.session.stash.setdefault(_EXPANSIONS, {})
        expansions = None if trace.own_markers else known.get(trace.parent)
        if expansions is None:
            expansions = tuple(self._expand())
            if not trace.own_markers and _goes_by_fixtures_alone(self):
                known[trace.parent] = expansions
        return expansions

    def _expand(self) -> Iterator[Expansion]:
        for function in self._genfunctions(REPLAY, takes):
            yield Expansion(
                function.name.removeprefix(function.originalname),
                getattr(function, "callspec", None),
                function._fixtureinfo,  # noqa: SLF001 - what pytest itself hands to an expanded function
            )


def _goes_by_fixtures_alone(node: pytest.Collector) -> bool:
    """Whether nobody but pytest and this plugin expands functions there."""
    return all(
        getattr(implementation.function, "__module__", "").partition(".")[0] in _KNOWN
        for implementation in node.ihook.pytest_generate_tests.get_hookimpls()
    )
