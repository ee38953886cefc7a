"""The fixtures. Importing them is cheap; what they need is imported when they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_xenkvm.plugin.guest import Guests
    from pytest_xenkvm.plugin.imports import Imports
    from pytest_xenkvm.plugin.own_tests import Replayer, XenHost
    from pytest_xenkvm.trace.files import Trace
    from pytest_xenkvm.vmm.behaviour import VmmBehaviour


@pytest.fixture
def xenkvm_vmm(pytestconfig: pytest.Config) -> VmmBehaviour | None:
    """The VMM behaviour that traces are replayed with; None: what was recorded is replayed.

    Override it in a conftest.py to put your VMM to the test. It may take fixtures, have any scope and be
    parametrised. The default is a new object of the class that `--xenkvm-vmm` names, or None.
    """
    from pytest_xenkvm.plugin.replays import behaviour_of_options  # noqa: PLC0415

    return behaviour_of_options(pytestconfig)


@pytest.fixture
def xenkvm_trace(request: pytest.FixtureRequest) -> Trace:
    """The trace: in a test marked with `xenkvm_traces` one of those, in an item of a trace that trace."""
    from pytest_xenkvm.plugin.own_tests import trace_for  # noqa: PLC0415

    return trace_for(request)


@pytest.fixture
def xenkvm_replay(request: pytest.FixtureRequest) -> Replayer:
    """Replays traces in a test of your own: `xenkvm_replay("@linux-boot", vmm=MyVmm())`.

    In a test marked with `xenkvm_vmm`, that VMM takes part unless the test says otherwise.
    """
    from pytest_xenkvm.plugin.own_tests import Replayer  # noqa: PLC0415

    marked = request.node.get_closest_marker("xenkvm_vmm") is not None
    return Replayer(request, request.getfixturevalue("xenkvm_vmm") if marked else None)


@pytest.fixture
def xenkvm_host(request: pytest.FixtureRequest) -> XenHost:
    """The host of `--xenkvm-host`, to create VMs on in a test of your own."""
    from pytest_xenkvm.hosts.protocol import HostError  # noqa: PLC0415
    from pytest_xenkvm.plugin.own_tests import XenHost  # noqa: PLC0415

    try:
        return XenHost.of(request)
    except HostError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def xenkvm_guest(request: pytest.FixtureRequest, xenkvm_vmm: VmmBehaviour | None) -> Guests:
    """VMs that run guest code of yours: `xenkvm_guest(vmm=MyVmm())`, by default with `xenkvm_vmm`."""
    from pytest_xenkvm.cpu.errors import NoUnicorn  # noqa: PLC0415

    try:
        from pytest_xenkvm.plugin.guest import Guests  # noqa: PLC0415
    except NoUnicorn as error:
        pytest.fail(str(error), pytrace=False)
    return Guests(request, xenkvm_vmm)


@pytest.fixture
def xenkvm_import(request: pytest.FixtureRequest) -> Imports:
    """Turns recordings of real guests into traces: `xenkvm_replay(xenkvm_import("ftrace.txt"))`."""
    from pytest_xenkvm.plugin.imports import Imports  # noqa: PLC0415

    return Imports(request)
