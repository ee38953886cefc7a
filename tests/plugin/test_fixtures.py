"""Fixtures and the marker for users' own tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import DIVERGING, REFUSED, write

Run = Callable[..., pytest.RunResult]
Collect = Callable[..., list[str]]


def test_a_marked_test_runs_for_each_trace(
    project: pytest.Pytester, traces: Path, run_anyhow: Run, collect: Collect
) -> None:
    """`xenkvm_traces` runs a test for each trace that its patterns, beside the test file, find."""
    write(traces / "other.jsonl", *REFUSED)
    project.makepyfile(
        test_own="import pytest\n"
        "@pytest.mark.xenkvm_traces('@linux-boot', 'traces/*')\n"
        "def test_own(xenkvm_trace):\n    assert xenkvm_trace.header.vm is not None\n"
    )
    names = ["@linux-boot", "traces/good.xkt", "traces/other.jsonl"]
    assert collect("test_own.py") == [f"test_own.py::test_own[{name}]" for name in names]
    run_anyhow("test_own.py").assert_outcomes(passed=3)


def test_a_trace_that_is_not_there_is_an_error(project: pytest.Pytester, run: Run) -> None:
    """A marker that names no trace is a collection error of one sentence."""
    project.makepyfile(
        "import pytest\n@pytest.mark.xenkvm_traces('none.xkt')\ndef test_own(xenkvm_trace): pass"
    )
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*::test_own: *none.xkt: there is no such file or folder"])


def test_the_trace_needs_the_marker(project: pytest.Pytester, run: Run) -> None:
    """`xenkvm_trace` in a test without the marker says what is missing."""
    project.makepyfile("def test_own(xenkvm_trace): pass")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["xenkvm_trace needs a test marked with @pytest.mark.xenkvm_traces(...)"])


def test_a_test_may_replay_traces(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """`xenkvm_replay` hands over observations, divergences and verdicts of a path or a trace object."""
    write(traces / "bad.xkt", *DIVERGING)
    project.makepyfile(
        """
        import pytest
        from pathlib import Path
        from pytest_xenkvm.trace import TraceError, open_trace
        from pytest_xenkvm.vmm import Vmm

        def test_paths(xenkvm_replay):
            replayed = xenkvm_replay("traces/bad.xkt")
            assert [found.place.index for found in replayed.divergences] == [2]
            assert len(replayed.observations) == replayed.result.events == 4
            assert [verdict.rule.id for verdict in replayed.verdicts][0] == "demo.answered"

        def test_arguments(xenkvm_replay):
            trace = open_trace(Path(__file__).parent / "traces" / "good.xkt")
            replayed = xenkvm_replay(trace, profile="linux-6.12", rules="demo.msr", vmm=Vmm())
            assert replayed.result.profile == "linux-6.12"
            assert replayed.result.vmm == "Vmm"
            assert [verdict.rule.id for verdict in replayed.verdicts] == ["demo.msr"]
            assert xenkvm_replay(trace, rules=[]).verdicts == ()

        def test_errors(xenkvm_replay):
            with pytest.raises(TraceError, match="names 2 traces, expected one"):
                xenkvm_replay("traces")
        """
    )
    run("-k", "test_").assert_outcomes(passed=3)


def test_a_test_may_create_vms(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """`xenkvm_host` creates VMs on the kernel that the profile names, by default the newest."""
    project.makepyfile(
        """
        import os
        from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID

        def test_own(xenkvm_host):
            vm = xenkvm_host.create_vm(vcpus=2)
            vm.vcpus[1].set_vcpu_id(5)
            unset = 0 if os.environ["PROFILE"] == "linux-7.2" else XEN_VCPU_ID_INVALID
            assert [vcpu.get_vcpu_id() for vcpu in vm.vcpus] == [unset, 5]
        """
    )
    for profile in ("auto", "linux-7.2"):
        monkeypatch.setenv("PROFILE", profile)
        run(f"--xenkvm-profile={profile}").assert_outcomes(passed=1)


def test_a_vm_that_cant_be_is_told(project: pytest.Pytester, run: Run) -> None:
    """An argument that makes no VM is named, with what was found and what is expected."""
    project.makepyfile(
        """
        import pytest
        from pytest_xenkvm.trace.events import MemorySlot, VmShape

        WRONG = [
            ("vcpus", 0, "1 to 4096, the host's KVM_MAX_VCPUS"),
            ("vcpus", 4097, "1 to 4096"),
            ("vcpus", "2", "1 to"),
            ("vcpus", True, "1 to"),
            ("memory", 0, "bytes in whole pages of 4096, up to 1 TiB"),
            ("memory", -4096, "bytes"),
            ("memory", 4097, "bytes"),
            ("memory", 1 << 50, "bytes"),
            ("memory", "4M", "bytes"),
            ("irqchip", "apic", "none, split, full"),
            ("cpu_vendor", "arm", "amd, intel"),
            ("cpu_vendor", "", "amd"),
        ]

        @pytest.mark.parametrize("fixture", ["xenkvm_host", "xenkvm_guest"])
        @pytest.mark.parametrize(("name", "value", "expected"), WRONG)
        def test_argument(request, fixture, name, value, expected):
            create = request.getfixturevalue(fixture)
            create = getattr(create, "create_vm", create)
            with pytest.raises(ValueError) as caught:
                create(**{name: value})
            assert str(caught.value).startswith(f"{name} is {value!r}, expected {expected}")

        def test_shape(xenkvm_host):
            with pytest.raises(TypeError, match="shape is 5, expected a VmShape"):
                xenkvm_host.create_vm(shape=5)
            unaligned = VmShape(irqchip="none", memory=(MemorySlot(gpa=1, size=4096),), vcpus=())
            with pytest.raises(ValueError, match="shape can be no VM: .*expected whole pages"):
                xenkvm_host.create_vm(shape=unaligned)

        def test_most(xenkvm_host):
            vm = xenkvm_host.create_vm(vcpus=4096, memory=4096, irqchip="full", cpu_vendor="intel")
            assert len(vm.vcpus) == 4096
        """
    )
    run("-k", "test_").assert_outcomes(passed=26)
