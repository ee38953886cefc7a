"""The markers `xenkvm_traces` and `xenkvm_vmm`: one test, many traces, many VMMs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_xenkvm.plugin.session import hooked_vmms, spelling, traces_of
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.vmm.behaviour import behaviour_name
from pytest_xenkvm.vmm.load import BehaviourError, behaviour_maker, load_behaviour


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


def parametrize_vmm(metafunc: pytest.Metafunc) -> None:
    """Run a marked test with each behaviour in place of the fixture `xenkvm_vmm`; raises CollectError.

    A mark of pytest's own does it: it wins over any fixture of that name, parametrised or not. A single class
    must be given by keyword, or pytest takes the marker for a decorator of that class.
    """
    test, names = metafunc.definition, metafunc.fixturenames
    if "xenkvm_vmm" not in names and "xenkvm_replay" not in names:
        return
    marker = next(test.iter_markers("xenkvm_vmm"))
    named = [*marker.args, *marker.kwargs.values()]
    if not named or marker.kwargs.keys() - {"vmm"}:
        message = (
            f"the marker xenkvm_vmm has {marker.kwargs or 'nothing'}, expected VMM behaviours or vmm=..."
        )
        raise pytest.Collector.CollectError(f"{test.nodeid}: {message}")
    others = hooked_vmms(metafunc.config, test.ihook)
    try:
        behaviours = [
            load_behaviour(given, others) if isinstance(given, str) else behaviour_maker(given, str(given))()
            for given in named
        ]
    except BehaviourError as error:
        raise pytest.Collector.CollectError(f"{test.nodeid}: {error}") from error
    if "xenkvm_vmm" not in names:
        names.append("xenkvm_vmm")
    ids = [behaviour_name(behaviour) for behaviour in behaviours]
    test.add_marker(pytest.mark.parametrize("xenkvm_vmm", behaviours, ids=ids))


def _id(path: Path, folder: Path) -> str:
    return (
        path.relative_to(folder).as_posix()
        if path.is_relative_to(folder)
        else Path(spelling(path, folder)).name
    )
