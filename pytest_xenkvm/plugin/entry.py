"""What pytest loads: options, hooks and fixtures; the work is done elsewhere and imported when needed.

pytest imports this module in every run, also where nobody uses it, so that it imports nothing but pytest.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_xenkvm.plugin import hookspecs, reporting
from pytest_xenkvm.plugin.fixtures import (
    xenkvm_guest,
    xenkvm_host,
    xenkvm_import,
    xenkvm_replay,
    xenkvm_trace,
    xenkvm_vmm,
)

if TYPE_CHECKING:
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from pytest_xenkvm.plugin.collect import TraceFile

__all__ = ["xenkvm_guest", "xenkvm_host", "xenkvm_import", "xenkvm_replay", "xenkvm_trace", "xenkvm_vmm"]

_USED: Final = pytest.StashKey[bool]()
_SAID_BY_WORKERS: Final = pytest.StashKey["str | None"]()

_FOUND_IN_FOLDERS: Final = ".xkt"
_NAMED_ONLY: Final = (".jsonl", ".jsonl.gz")

_MARKERS: Final = (
    "xenkvm(rule, family, level): on every item of a trace; the arguments on those that judge a rule.",
    "xenkvm_traces(*specs): run the test once for each trace: a file, folder or glob pattern, or @NAME.",
    "xenkvm_vmm(*behaviours, vmm=CLASS): run the test with each: objects, classes, or as for --xenkvm-vmm.",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini counterparts."""
    group = parser.getgroup("xenkvm", "KVM/Xen hypercall traces")
    group.addoption(
        "--xenkvm-trace",
        metavar="TRACE",
        action="append",
        default=[],
        help="replay and judge a trace: a file, folder, glob pattern or @NAME, bundled (repeatable)",
    )
    group.addoption(
        "--xenkvm-profile",
        metavar="NAME",
        help="kernel to replay on, such as linux-7.3; auto (the default): the one that recorded the trace",
    )
    group.addoption(
        "--xenkvm-host",
        metavar="NAME",
        help="what plays the kernel: emulated (the default), or kvm, the running kernel's own /dev/kvm",
    )
    group.addoption(
        "--xenkvm-engine",
        metavar="NAME",
        help="what plays the guest: model (the default), registers alone; unicorn, code on an emulated CPU",
    )
    group.addoption(
        "--xenkvm-rules",
        metavar="SELECTION",
        help="ids, families or patterns of the rules to judge by, comma-separated; !NAME excludes",
    )
    group.addoption(
        "--xenkvm-vmm",
        metavar="VMM",
        help="VMM behaviour to replay all traces with: module:Class, cmd:COMMAND LINE, or a name",
    )
    group.addoption(
        "--xenkvm-strict", action="store_true", help="fail for violated SHOULD rules too, instead of xfail"
    )
    group.addoption(
        "--xenkvm-items",
        metavar="KIND",
        help="rule: an item for each rule; trace: one a trace; auto (the default): rule up to 500 traces",
    )
    group.addoption(
        "--xenkvm-no-cache", action="store_true", help="replay also what an earlier run has replayed"
    )
    reporting.add_options(group)
    parser.addini("xenkvm_traces", "traces to replay, one a line, as for --xenkvm-trace", "linelist")
    parser.addini("xenkvm_profile", "as --xenkvm-profile", default="auto")
    parser.addini("xenkvm_host", "as --xenkvm-host", default="emulated")
    parser.addini("xenkvm_engine", "as --xenkvm-engine", default="model")
    parser.addini("xenkvm_rules", "as --xenkvm-rules", default="")
    parser.addini("xenkvm_items", "as --xenkvm-items", default="auto")
    parser.addini("xenkvm_vmm", "as --xenkvm-vmm", default="")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks of `hookspecs`."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and check what the options ask for."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if config.option.pyargs:
        from pytest_xenkvm.plugin.own_suite import find_suite  # noqa: PLC0415

        config.args = find_suite(config.args)
    config.stash[_USED] = _is_used(config)
    if config.stash[_USED]:
        from pytest_xenkvm.plugin.session import resolve  # noqa: PLC0415

        if hasattr(config, "workerinput"):
            from pytest_xenkvm.plugin.workers import take_traces  # noqa: PLC0415

            take_traces(config)

        resolve(config)
    reporting.register(config, used=config.stash[_USED])


def _is_used(config: pytest.Config) -> bool:
    """Whether the command line or the ini file says anything about traces."""
    option = config.option
    if option.help or option.version:
        return False
    return bool(
        option.xenkvm_trace
        or option.xenkvm_profile
        or option.xenkvm_host
        or option.xenkvm_engine
        or option.xenkvm_rules
        or option.xenkvm_vmm
        or option.xenkvm_items
        or config.getini("xenkvm_traces")
        or config.getini("xenkvm_profile") != "auto"
        or config.getini("xenkvm_host") != "emulated"
        or config.getini("xenkvm_engine") != "model"
        or config.getini("xenkvm_rules")
        or config.getini("xenkvm_vmm")
        or config.getini("xenkvm_items") != "auto"
        or reporting.asks_for_files(config)
        or any(map(_names_trace, config.args))
    )


def _is_trace(name: str) -> bool:
    return name.endswith((_FOUND_IN_FOLDERS, *_NAMED_ONLY))


def _names_trace(nodeid: str) -> bool:
    return _is_trace(nodeid) or any(f"{suffix}::" in nodeid for suffix in (_FOUND_IN_FOLDERS, *_NAMED_ONLY))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which traces are replayed, and on what."""
    if not config.stash[_USED]:
        return None
    from pytest_xenkvm.plugin.session import header  # noqa: PLC0415

    return header(config)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Say why there is an item for each trace, if nobody asked for that."""
    if config.option.collectonly and config.option.verbose < 0:
        return None  # programs read that output
    nodeids = [item.nodeid for item in items if hasattr(item, "replays")]
    return _why_per_trace(config, nodeids) if nodeids else None


def _why_per_trace(config: pytest.Config, nodeids: list[str]) -> str | None:
    from pytest_xenkvm.plugin.kinds import why_per_trace  # noqa: PLC0415

    return why_per_trace(config, nodeids)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> TraceFile | None:
    """Collect `.xkt` files, and other traces if they are named."""
    if not _is_trace(file_path.name):
        return None
    from pytest_xenkvm.plugin.collect import is_named, trace_in_folder  # noqa: PLC0415

    if not file_path.name.endswith(_FOUND_IN_FOLDERS) and not is_named(file_path, parent.config):
        return None
    return trace_in_folder(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Let pytest go on with the node of a folder that was made for a trace."""
    if not parent.config.stash[_USED]:
        return None
    from pytest_xenkvm.plugin.folders import made  # noqa: PLC0415

    return made(parent.session, path)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add to the session the traces that lie in none of its folders."""
    report = yield
    if isinstance(collector, pytest.Session) and collector.config.stash[_USED]:
        from pytest_xenkvm.plugin.collect import traces_elsewhere  # noqa: PLC0415

        report.result = [*report.result, *traces_elsewhere(collector, report.result)]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the traces that options name in folders that pytest doesn't look into."""
    if session.config.stash[_USED]:
        from pytest_xenkvm.plugin.collect import traces_passed_over  # noqa: PLC0415

        for trace in traces_passed_over(session):
            items.extend(session.genitems(trace))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked with `xenkvm_traces` once for each of them."""
    if "xenkvm_trace" in metafunc.fixturenames:
        from pytest_xenkvm.plugin.marked import parametrize  # noqa: PLC0415

        parametrize(metafunc)


@pytest.hookimpl(specname="pytest_generate_tests", tryfirst=True)
def pytest_generate_tests_of_vmms(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked with `xenkvm_vmm` once with each of those; before fixtures are expanded."""
    if metafunc.definition.get_closest_marker("xenkvm_vmm"):
        from pytest_xenkvm.plugin.marked import parametrize_vmm  # noqa: PLC0415

        parametrize_vmm(metafunc)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a report tell the terminal, not those who read its properties, where its result is from."""
    report = yield
    if getattr(item, "xenkvm_cached", False):
        report.xenkvm_cached = True  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadGroupScheduling | None:
    """With `--dist loadgroup`, give all items of a trace to one worker."""
    if config.option.dist != "loadgroup":
        return None
    from pytest_xenkvm.plugin.workers import TraceGroups  # noqa: PLC0415

    return TraceGroups(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: WorkerController, ids: list[str]) -> None:
    """Remember for the end what a worker can't say."""
    nodeids = [nodeid for nodeid in ids if _names_trace(nodeid)]
    if nodeids:
        node.config.stash[_SAID_BY_WORKERS] = _why_per_trace(node.config, nodeids)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker in another folder or on another machine what is where."""
    from pytest_xenkvm.plugin.ways import tell_way  # noqa: PLC0415

    tell_way(node.config, node.workerinput)
    if node.config.option.xenkvm_trace:
        from pytest_xenkvm.plugin.workers import tell_traces  # noqa: PLC0415

        tell_traces(node)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the replays came to."""
    from pytest_xenkvm.plugin.terminal import write_summary  # noqa: PLC0415

    write_summary(terminalreporter)
    said = terminalreporter.config.stash.get(_SAID_BY_WORKERS, None)
    if said is not None:
        terminalreporter.line(said)
