"""Profiles and importers from conftest.py files and plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from small_traces import RULES

Run = Callable[..., pytest.RunResult]

PROFILE: Final = """
from attrs import evolve
from pytest_xenkvm.core.profile import LINUX_7_3

def pytest_xenkvm_profiles(config):
    return [evolve(LINUX_7_3, name="linux-7.3-vendor", unset_vcpu_id=5)]
"""
IMPORTER: Final = """
from collections import Counter
from pytest_xenkvm.trace.events import Header, Wait
from pytest_xenkvm.trace.importers import Given, Imported, ImportReport, NamedImporter

def read(lines, *, path, given=Given()):
    events = [Wait(ns=int(line)) for line in lines if line.isdigit()]
    return Imported(header=Header(kernel=given.kernel), events=events, report=ImportReport(lines=len(events)))

def pytest_xenkvm_importers(config):
    return {"waits": NamedImporter(read, "numbers", recognises=lambda line: line == "# waits")}
"""


def test_a_profile_of_a_conftest(project: pytest.Pytester, traces: Path, run_anyhow: Run) -> None:
    """Options, fixtures and tests may name it."""
    del traces
    project.makeconftest(RULES + PROFILE)
    project.makepyfile(
        test_own="""
        def test_own(xenkvm_host, xenkvm_guest, xenkvm_replay):
            assert xenkvm_host.create_vm().vcpus[0].get_vcpu_id() == 5
            assert xenkvm_guest().vm.vcpus[0].get_vcpu_id() == 5
            assert xenkvm_guest(profile="linux-7.3").vm.vcpus[0].get_vcpu_id() == 0xFFFFFFFF
            assert xenkvm_replay("traces/good.xkt").result.profile == "linux-7.3-vendor"
        """
    )
    result = run_anyhow("--xenkvm-profile=linux-7.3-vendor", "-k", "test_own or replay", "--junitxml=out.xml")
    result.assert_outcomes(passed=2)
    assert 'xenkvm_profile:traces/good.xkt::replay" value="linux-7.3-vendor"' in Path("out.xml").read_text()


def test_a_profiles_name_must_be_new(project: pytest.Pytester, run: Run) -> None:
    """A profile with the name of another one is a usage error of one sentence."""
    project.makeconftest(PROFILE.replace("linux-7.3-vendor", "linux-7.2"))
    result = run("--xenkvm-profile=linux-7.2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: two profiles have the name 'linux-7.2': names must be unique"])


def test_recordings_are_imported(project: pytest.Pytester, run: Run) -> None:
    """`xenkvm_import` finds a hook's importer by the content or by name, and the trace can be replayed."""
    project.makeconftest(IMPORTER)
    project.makeini("[pytest]\n")
    (project.path / "recording.txt").write_text("# waits\n5\n7\n")
    (project.path / "unknown.txt").write_text("5\n")
    (project.path / "wrong.txt").write_text("{}\n")
    project.makepyfile(
        """
        import pytest
        from pytest_xenkvm.trace.errors import Malformed
        from pytest_xenkvm.trace.importers import Given, ImporterError
        from pytest_xenkvm.vmm import Vmm

        def test_own(xenkvm_import, xenkvm_replay):
            trace = xenkvm_import("recording.txt", given=Given(kernel="6.12.1"))
            assert trace.report.lines == 2
            replayed = xenkvm_replay(trace, vmm=Vmm(), rules=[])
            assert (replayed.result.trace, replayed.result.profile) == ("recording.txt", "linux-6.12")
            assert [seen.event.ns for seen in replayed.observations if not seen.by_vmm] == [5, 7]
            assert len(list(xenkvm_import("unknown.txt", source="waits").events())) == 1
            with pytest.raises(Malformed, match="no known recording; expected one of .*, waits"):
                xenkvm_import("wrong.txt")
            with pytest.raises(ImporterError, match="no importer 'none'; there are .*, ftrace, .*, waits"):
                xenkvm_import("recording.txt", source="none")
        """
    )
    run().assert_outcomes(passed=1)


def test_an_importers_name_must_be_new(project: pytest.Pytester, run: Run) -> None:
    """An importer with the name of another one, or something else, is one sentence."""
    project.makeini("[pytest]\n")
    project.makepyfile("def test_own(xenkvm_import):\n    xenkvm_import('any.txt')\n")
    project.makeconftest(IMPORTER.replace('"waits"', '"ftrace"'))
    run().stdout.fnmatch_lines(["E *ImporterError: two importers have the name 'ftrace': *"])
    project.makeconftest("def pytest_xenkvm_importers(config): return {'mine': print}\n")
    run().stdout.fnmatch_lines(["E *ImporterError: the importer 'mine' is <built-in*>, expected a *"])
