"""pytest's nodes of folders, for traces that no argument leads to: their conftest.py files count there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

_MADE: Final = pytest.StashKey["dict[Path, pytest.Collector]"]()
"""The nodes that were made here: `made` has pytest take them when it comes to the same folder."""


def made(session: pytest.Session, path: Path) -> pytest.Collector | None:
    """The node of a folder, if one was made here.

    There must not be two of a folder: the fixtures of its conftest.py belong to the first.
    """
    return session.stash.get(_MADE, {}).get(path)


class Folders:
    """The nodes of folders in rootdir: those that pytest has made, others as they are asked for."""

    def __init__(self, session: pytest.Session, collected: Iterable[pytest.Item | pytest.Collector]) -> None:
        self._session = session
        self._known: Final[dict[Path, pytest.Collector | None]] = {}
        for node in collected:
            for ancestor in node.listchain():
                if isinstance(ancestor, pytest.Directory):
                    self._known.setdefault(ancestor.path, ancestor)

    def of(self, path: Path) -> pytest.Collector | None:
        """The node of a folder, the session if that is not in rootdir; None if its conftest.py failed."""
        if not path.is_relative_to(self._session.config.rootpath):
            return self._session
        if path not in self._known:
            parent = self.of(path.parent)
            self._known[path] = None if parent is None else self._make(path, parent)
        return self._known[path]

    def _make(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        node: pytest.Collector = parent.ihook.pytest_collect_directory(path=path, parent=parent)
        vars(node)["collect"] = tuple  # nobody asks for all that is in there
        report = node.ihook.pytest_make_collect_report(collector=node)  # makes its conftest.py count
        del vars(node)["collect"]
        if report.failed:
            node.ihook.pytest_collectreport(report=report)
            return None
        self._session.stash.setdefault(_MADE, {})[path] = node
        return node
