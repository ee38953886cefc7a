"""The Python environment that runs this: which files of the host it is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import frozen

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_files import GuestFiles

_NEVER: Final = frozenset(
    {
        *(".git", ".hg", ".svn", ".tox", ".nox", "node_modules"),
        *(".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"),
    }
)
"""Folders that a checkout has beside its sources."""
_NOT_RUN: Final = ("mypy", "pip", "pre-commit", "ruff", "selenium", "sphinx", "virtualenv")
"""Distributions that check, install and document: large, and of no use without a network or a checkout."""
_NOT_OF_STDLIB: Final = frozenset(
    {"ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter", "turtledemo"}
)
"""Of the standard library; site-packages is brought when it is on `sys.path`."""
_NOT_LOADED: Final = (".a", ".opt-1.pyc", ".opt-2.pyc")
"""Static libraries, and code for `python -O`, which is compiled again if need be."""


@frozen
class Environment:
    """A Python environment on the host's disk."""

    interpreters: tuple[Path, ...]
    """As it was started, and what it really is: the last one."""
    standard_library: tuple[Path, ...]
    trees: tuple[Path, ...]
    """The virtual environment, the folders of `sys.path`, and the projects that are installed editable."""
    scripts: Path

    @classmethod
    def current(cls) -> Environment:
        """The one that runs this."""
        paths = sysconfig.get_paths()
        dynamic = sysconfig.get_config_var("DESTSHARED")
        standard = [Path(paths["stdlib"]), *([Path(dynamic)] if dynamic else [])]
        trees = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
        trees += [*_search_path(), *_editable_projects()]
        return cls(
            (Path(sys.executable), Path(sys.executable).resolve()),
            tuple(tree for tree in standard if tree.exists()),
            tuple(tree for tree in dict.fromkeys(trees) if tree.exists() and tree not in standard),
            Path(paths["scripts"]),
        )

    def add_to(self, files: GuestFiles, without: Sequence[str] = ()) -> None:
        """Add its files, but for what no command needs and the distributions (by name) `without`.

        Raises LabError if one of those isn't installed.
        """
        for interpreter in self.interpreters:
            files.add(interpreter)
        left_out = _files_of(without)

        def skip_in_library(_folder: str, name: str) -> bool:
            return name in _NOT_OF_STDLIB or name.startswith("config-") or name.endswith(_NOT_LOADED)

        def skip(folder: str, name: str) -> bool:
            path = f"{folder}/{name}"
            if name in _NEVER or name.endswith(_NOT_LOADED) or path in left_out:
                return True
            return path != sys.prefix and Path(path, "pyvenv.cfg").exists()

        for tree in self.standard_library:
            files.add_tree(tree, skip_in_library)
        for tree in self.trees:
            files.add_tree(tree, skip)


def _search_path() -> list[Path]:
    """`sys.path` as any program of this environment sees it: without the folder of the script that runs."""
    shown = subprocess.run(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(entry) for entry in json.loads(shown.stdout) if entry]


def _editable_projects() -> list[Path]:
    """Folders of the projects that are installed editable: an import hook may find them, not `sys.path`."""
    found = []
    for distribution in distributions():
        text = distribution.read_text("direct_url.json")
        if text is None:
            continue
        origin = json.loads(text)
        if origin.get("dir_info", {}).get("editable"):
            found.append(Path(unquote(urlsplit(origin["url"]).path)))
    return found


def _files_of(names: Sequence[str]) -> frozenset[str]:
    """The files of the named distributions, which must be installed, and of those that are never brought."""
    missing = {_normal(name): name for name in names}
    wanted = {*missing, *_NOT_RUN}
    found: set[str] = set()
    for distribution in distributions():
        name = _normal(distribution.name)
        missing.pop(name, None)
        if name in wanted:
            files = distribution.files or ()
            found |= {os.path.normpath(str(distribution.locate_file(file))) for file in files}
    if missing:
        raise LabError(f"--without {', '.join(missing.values())}: no such distribution is installed here")
    return frozenset(found)


def _normal(name: str) -> str:
    """As PEP 503 compares names."""
    return name.lower().replace("_", "-").replace(".", "-")
