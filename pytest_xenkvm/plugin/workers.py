"""pytest-xdist's workers: which of them gets a trace, and where a distant one finds it."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final, final

import pytest
from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from pytest_xenkvm.plugin.arguments import split_nodeid

_INPUT: Final = "xenkvm_traces"


@final
class TraceGroups(LoadGroupScheduling):  # type: ignore[misc]
    """`--dist loadgroup` in which all items of one replay are a group, without a marker.

    xdist writes the group of a marker into node ids, which are then not those of a run without xdist (and
    xdist 3.8 under pytest 9.2 no longer manages to: pytest-dev/pytest-xdist issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        file, name = split_nodeid(nodeid)
        _, bracket, parameters = (name or "").partition("[")
        if name is None or "@" in name.rpartition("]")[2]:  # no item of a trace, or a marker names a group
            return str(super()._split_scope(nodeid))
        return file + bracket + parameters


def tell_traces(node: WorkerController) -> None:
    """Tell a worker that gets copies of folders what `--xenkvm-trace` names there."""
    spec = node.gateway.spec
    if spec.popen and not spec.chdir:
        return  # it is here
    given: list[str] = node.config.option.xenkvm_trace
    node.workerinput[_INPUT] = [_there(name, node.config, node.nodemanager.roots) for name in given]


def take_traces(config: pytest.Config) -> None:
    """In such a worker, go by what it was told."""
    given = config.option.xenkvm_trace
    config.option.xenkvm_trace = getattr(config, "workerinput", {}).get(_INPUT, given)


def _there(name: str, config: pytest.Config, roots: list[Path]) -> str:
    """What the worker finds a trace by; as it was if it is in no folder that is copied."""
    path = Path(os.path.abspath(config.invocation_params.dir / name))  # noqa: PTH100 - `resolve` follows links
    if path.exists() or glob.has_magic(name):
        for root in roots:
            if path.is_relative_to(root):
                return str(Path(root.name, path.relative_to(root)))
    return name
