"""pytest's nodes of folders, for traces that no argument leads to: their conftest.py files count there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest


class Folders:
    """The nodes of folders in rootdir: those that pytest has made, others as they are asked for.

    There must not be two of a folder: the fixtures of its conftest.py belong to the first.
    """

    def __init__(self, session: pytest.Session, collected: Iterable[pytest.Item | pytest.Collector]) -> None:
        self._session = session
        self._known: Final[dict[Path, pytest.Collector]] = {}
        for node in collected:
            for ancestor in node.listchain():
                if isinstance(ancestor, pytest.Directory):
                    self._known.setdefault(ancestor.path, ancestor)

    def of(self, path: Path) -> pytest.Collector:
        """The node of a folder; the session if that is not in rootdir."""
        if path in self._known:
            return self._known[path]
        if not path.is_relative_to(self._session.config.rootpath):
            return self._session
        parent = self.of(path.parent)
        node: pytest.Collector = parent.ihook.pytest_collect_directory(path=path, parent=parent)
        vars(node)["collect"] = tuple  # nobody asks for all that is in there
        node.ihook.pytest_make_collect_report(collector=node)  # makes its conftest.py count
        self._known[path] = node
        return node
