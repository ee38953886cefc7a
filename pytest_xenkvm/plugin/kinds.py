"""What there is an item for: each rule, or each trace where there are so many that rules would be too many.

The number that counts is the project's, not that of the run, so that node ids don't depend on which traces a
command names: `pytest`, `pytest traces/some` and `pytest --lf` agree. A node id finds its item either way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import islice
from typing import Final

import pytest

from pytest_xenkvm.plugin.items import ALL, REPLAY
from pytest_xenkvm.plugin.session import AUTO_ITEMS, PER_TRACE, settings
from pytest_xenkvm.rules.model import Rule

MANY: Final = 500
"""More traces than that are an item each, unless somebody says otherwise."""

_MOST_FILES: Final = 100_000
"""Files and folders that are looked at: rootdir may be anything, even "/"."""
_SUFFIX: Final = ".xkt"
_IS_PER_TRACE: Final = pytest.StashKey["dict[bool, bool]"]()


def names_of(config: pytest.Config, rules: tuple[Rule, ...], *, elsewhere: bool) -> list[str]:
    """The names of the items that a trace has unless an argument names some; `elsewhere`: outside rootdir."""
    if is_per_trace(config, elsewhere=elsewhere):
        return [ALL]
    return [REPLAY, *(rule.id for rule in rules)]


def is_per_trace(config: pytest.Config, *, elsewhere: bool) -> bool:
    """Whether a trace is one item; those outside rootdir are counted apart, as far as the run names them."""
    known = config.stash.setdefault(_IS_PER_TRACE, {})
    if elsewhere not in known:
        said = settings(config)
        if said.items != AUTO_ITEMS:
            known[elsewhere] = said.items == PER_TRACE
        elif elsewhere:
            known[elsewhere] = len(said.elsewhere) > MANY
        else:
            known[elsewhere] = len(said.by_option) > MANY or _has_many(config)
    return known[elsewhere]


def why_per_trace(config: pytest.Config, nodeids: Iterable[str]) -> str | None:
    """What to tell the user of these items if traces are one each without anybody having asked for that."""
    said = settings(config)
    if said.items != AUTO_ITEMS or any(trace.wanted for trace in said.elsewhere):
        return None
    wholes = (nodeid for nodeid in nodeids if nodeid.partition("[")[0].endswith(f"::{ALL}"))
    if any(ALL in names for names in said.by_argument.values()) or not any(wholes):
        return None
    return (
        f"xenkvm: an item for each trace, as there are more than {MANY} (--xenkvm-items=rule: for each rule)"
    )


def _has_many(config: pytest.Config) -> bool:
    """Whether rootdir has many traces, in folders that pytest looks into."""
    found = (name for name in islice(_files(config), _MOST_FILES) if name.endswith(_SUFFIX))
    return next(islice(found, MANY, None), None) is not None


def _files(config: pytest.Config) -> Iterator[str]:
    """The names of all files and folders, folder by folder in the order of their names."""
    patterns: list[str] = config.getini("norecursedirs")
    for _folder, folders, files in os.walk(config.rootpath):
        yield from folders
        folders[:] = sorted(
            name for name in folders if not any(fnmatch(name, pattern) for pattern in patterns)
        )
        yield from files
