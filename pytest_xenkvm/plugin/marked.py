"""The marker `xenkvm_traces`: one test, many traces."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_xenkvm.plugin.session import spelling, traces_of
from pytest_xenkvm.trace.errors import TraceError


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each trace; raises CollectError if there is none."""
    marker = metafunc.definition.get_closest_marker("xenkvm_traces")
    if marker is None:
        return
    folder = metafunc.definition.path.parent
    try:
        paths = [path for spec in marker.args for path in traces_of(str(spec), folder)]
    except TraceError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from error
    metafunc.parametrize("xenkvm_trace", paths, indirect=True, ids=[_id(path, folder) for path in paths])


def _id(path: Path, folder: Path) -> str:
    return (
        path.relative_to(folder).as_posix()
        if path.is_relative_to(folder)
        else Path(spelling(path, folder)).name
    )
