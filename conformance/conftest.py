"""What makes a test function a probe: its VMs, its demand, and the rules that judge what it did.

A probe's docstring is its demand, the marker `source` says where that comes from, and `xenkvm(rule=...)`
names a rule that covers it. Rules judge the probe's history too: a probe passes only if they agree.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import pytest

from .kit.demands import Probe
from .kit.hosts import Builder

if TYPE_CHECKING:
    from pytest_xenkvm.plugin.own_tests import XenHost

_BUILDER: Final = pytest.StashKey[Builder]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of this suite."""
    config.addinivalue_line("markers", "source(text): where a probe's demand comes from")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-k RULE` find a rule's probes."""
    item.extra_keyword_matches.update(_rules(item))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say once, before pytest-xdist starts workers for probes, that there is no such host here."""
    if session.config.pluginmanager.has_plugin("dsession"):
        _check_host(session)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say once, not for each probe, that there is no such host here.

    Not in a worker of pytest-xdist, which would break off with a traceback: there each probe says it if this
    file was found too late, because no argument named the suite.
    """
    probes = any("new_vm" in getattr(item, "fixturenames", ()) for item in session.items)
    if probes and not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        _check_host(session)


def _check_host(session: pytest.Session) -> None:
    """Raise UsageError if there is no such host here."""
    from pytest_xenkvm.hosts.protocol import HostError  # noqa: PLC0415 - a conftest must be cheap
    from pytest_xenkvm.plugin.session import host_choice  # noqa: PLC0415
    from pytest_xenkvm.trace.events import Header  # noqa: PLC0415

    try:
        host_choice(session.config, session.ihook).host_for(Header())
    except HostError as error:
        raise pytest.UsageError(str(error)) from error


def _rules(item: pytest.Item) -> tuple[str, ...]:
    named = (mark.kwargs.get("rule") for mark in item.iter_markers("xenkvm"))
    return tuple(dict.fromkeys(rule for rule in named if rule))


@pytest.fixture
def new_vm(request: pytest.FixtureRequest, xenkvm_host: XenHost) -> Builder:
    """Creates VMs that nothing was done to: `new_vm(vcpus=2)`, `new_vm.ready()` sets up the usual things."""
    node = request.node
    source = node.get_closest_marker("source")
    probe = Probe(
        title=" ".join((node.function.__doc__ or "").split()),
        source=source.args[0] if source else "docs: the host ABI",
        rules=_rules(node),
    )
    builder = node.stash[_BUILDER] = Builder(probe=probe, xen_host=xenkvm_host)
    return builder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Have the rules that a probe names judge what it did; they must agree with the probe."""
    yield
    builder = item.stash.get(_BUILDER, None)
    if builder is not None and builder.probe.rules:
        words = builder.disagreement()
        if words:
            pytest.fail(words, pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Leave nothing of a probe's VMs on the host: what other VMs do shows in some demands."""
    builder = item.stash.get(_BUILDER, None)
    if builder is not None:
        builder.close()
        del item.stash[_BUILDER]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what a probe came to into pytest's report, for badge and reports."""
    report = yield
    builder = item.stash.get(_BUILDER, None)
    if builder is not None and call.when == "call" and not report.skipped:
        report.xenkvm_part = builder.part(item, call)  # type: ignore[attr-defined]
    return report
