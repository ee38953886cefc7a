"""What pytest's arguments say about traces. pytest itself would misread some of them.

pytest cuts an argument at its first "::", and refuses a file with "[" in its name. So arguments that name
such a trace are taken away from it, as are those that name a trace outside of rootdir by its node id.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field

from pytest_xenkvm.trace.files import bundled_traces

_SUFFIXES: Final = (".xkt", ".jsonl", ".jsonl.gz")
_NODE_ID: Final = re.compile(r"(?s)(.*?\.(?:xkt|jsonl|jsonl\.gz))(?:::(.*))?")


@define
class Arguments:
    """The traces that arguments name, and which of their items; no items for all of them."""

    elsewhere: dict[Path, frozenset[str]] = field(factory=dict)
    """Those outside of rootdir."""
    unsayable: dict[Path, frozenset[str]] = field(factory=dict)
    """Those whose names pytest would misread."""
    named: dict[Path, frozenset[str]] = field(factory=dict)
    """All that pytest was left: folders and files, with names of items without their parameters."""


def take_arguments(config: pytest.Config, known: dict[Path, str]) -> Arguments:
    """Take the arguments that pytest wouldn't understand out of `config.args`.

    `known` has the node ids of traces outside of rootdir; a bundled trace needn't be there before.
    """
    found = Arguments()
    by_nodeid = {nodeid: path for path, nodeid in known.items()}
    kept = []
    for argument in config.args:
        file, name = _first(argument, lambda file: _path(config, file).exists())
        path = _path(config, file)
        if not path.exists():
            file, name = _first(argument, lambda file: file in by_nodeid or bundled_file(file) is not None)
            elsewhere = by_nodeid.get(file) or bundled_file(file)
            if elsewhere is not None:
                known.setdefault(elsewhere, file)
                _add(found.elsewhere, elsewhere, name)
                continue
        if ("::" in file or "[" in file) and file.endswith(_SUFFIXES) and path.is_file():
            _add(found.unsayable, path, name)
            continue
        kept.append(argument)
        known_names = found.named.get(path, frozenset())
        found.named[path] = known_names | (frozenset() if name is None else {name.partition("[")[0]})
    config.args[:] = kept
    return found


def split_nodeid(nodeid: str) -> tuple[str, str | None]:
    """A node id as trace, whose own name may have "::", and name of the item; None if it names none."""
    match = _NODE_ID.fullmatch(nodeid)
    return (match[1], match[2]) if match else (nodeid, None)


def _add(wanted: dict[Path, frozenset[str]], path: Path, name: str | None) -> None:
    """Want an item, or all of them, which stays so."""
    if name is None or wanted.get(path) == frozenset():
        wanted[path] = frozenset()
    else:
        wanted[path] = wanted.get(path, frozenset()) | {name}


def _first(argument: str, is_it: Callable[[str], bool]) -> tuple[str, str | None]:
    """The longest part that is what is looked for, and what follows it; else as pytest cuts it."""
    file, name = argument, None
    while not is_it(file) and "::" in file:
        file, _, last = file.rpartition("::")
        name = last if name is None else f"{last}::{name}"
    return file, name


def _path(config: pytest.Config, file: str) -> Path:
    return Path(os.path.abspath(config.invocation_params.dir / file))  # noqa: PTH100 - as pytest does


def bundled_file(name: str) -> Path | None:
    """The bundled trace of that file name."""
    return next((path for path in bundled_files() if path.name == name), None)


@cache
def bundled_files() -> frozenset[Path]:
    """The bundled traces, looked for once: there may be thousands of other traces to compare with."""
    return frozenset(bundled_traces().values())
