"""`--xenkvm-host`: what plays the kernel. A machine with a stand-in for KVM is enough to see who is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import field, frozen
from small_traces import ANSWERED, DIVERGING, write

from pytest_xenkvm.core.profile import LINUX_7_3, HostLimits
from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import HostError, HostVm
from pytest_xenkvm.trace.events import VmShape

Run = Callable[..., pytest.RunResult]
ON_KVM = "--xenkvm-host=kvm"


@frozen
class StandIn:
    """In place of the running kernel: the core."""

    created: list[str] = field(factory=list)
    release: str = "7.3-test"
    cpu_vendor: str = "amd"
    limits: HostLimits = field(factory=HostLimits)

    @property
    def name(self) -> str:
        """As `DevKvmHost` has it."""
        return f"kvm {self.release}"

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> HostVm:
        """Remember who asked."""
        self.created.append(cpu_vendor)
        return EmulatedHost(profile=LINUX_7_3).create_vm(shape, cpu_vendor=cpu_vendor)


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """What `/dev/kvm` leads to."""
    stand_in = StandIn()
    monkeypatch.setattr(DevKvmHost, "open", lambda: stand_in)
    return stand_in


@pytest.mark.parametrize("args", [(ON_KVM,), ("-o", "xenkvm_host=kvm")])
def test_items_replay_on_the_host(traces: Path, run: Run, kvm: StandIn, args: tuple[str, ...]) -> None:
    """By option or ini file, a trace's items are judged on /dev/kvm, with the header naming its kernel."""
    result = run(*args, traces)
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines([f"xenkvm: host kvm, kernel {os.uname().release}, profile auto, *"])
    assert set(kvm.created) == {"amd"}


def test_the_option_outweighs_the_ini_file(traces: Path, run: Run, kvm: StandIn) -> None:
    """`--xenkvm-host=emulated` holds whatever the ini file says."""
    run("-o", "xenkvm_host=kvm", "--xenkvm-host=emulated", traces)
    assert kvm.created == []


def test_a_running_kernel_is_asked_each_time(project: pytest.Pytester, run: Run, kvm: StandIn) -> None:
    """No result of the host kvm comes from the cache, nor one of the emulated host in its place."""
    project.makeini("[pytest]\n")
    (project.path / "conftest.py").unlink()
    write(project.path / "small.xkt", *ANSWERED)
    for args in ((), (ON_KVM,), (ON_KVM,)):
        run(*args)
    assert len(kvm.created) >= 2
    made = len(kvm.created)
    run()
    assert len(kvm.created) == made


def test_what_is_missing_fails_the_items_once(
    traces: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without such a /dev/kvm the replay fails with the sentence, without a traceback."""

    def nothing() -> None:
        raise HostError("there is no /dev/kvm: try another machine")

    monkeypatch.setattr(DevKvmHost, "open", nothing)
    result = run(ON_KVM, traces)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["there is no /dev/kvm: try another machine"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--xenkvm-host=xen"], "there is no host 'xen'; there are emulated, kvm"),
        ([ON_KVM, "--xenkvm-engine=unicorn"], "the engine unicorn emulates a CPU, and on the host kvm *"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run_anyhow: Run, args: list[str], sentence: str) -> None:
    """Unknown hosts, and an engine besides the real CPU, end the run before it begins."""
    result = run_anyhow(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {sentence}"])


def test_own_tests_get_the_host(project: pytest.Pytester, run: Run, kvm: StandIn) -> None:
    """`xenkvm_host` and `xenkvm_replay` are on the host of the options, and say so."""
    write(project.path / "good.xkt", *ANSWERED)
    project.makepyfile(
        """
        from pytest_xenkvm.plugin.shapes import plain_shape

        def test_host(xenkvm_host):
            assert (xenkvm_host.is_real, xenkvm_host.cpu_vendor) == (True, "amd")
            assert xenkvm_host.host.name == "kvm 7.3-test"
            assert xenkvm_host.create_vm(vcpus=2).vcpus[1].index == 1
            shape = plain_shape(vcpus=1, memory=1 << 20, irqchip="none", max_vcpus=9)
            assert xenkvm_host.create(shape).read_memory(0, 4) == bytes(4)
            assert len(xenkvm_host.create_vm(shape=shape).vcpus) == 1

        def test_replay(xenkvm_replay):
            assert xenkvm_replay("good.xkt", rules=[]).result.profile == "kvm 7.3-test"
        """
    )
    run("-k", "host or replay", ON_KVM, "test_own_tests_get_the_host.py").assert_outcomes(passed=2)
    assert len(kvm.created) == 4


def test_no_host_for_a_test_of_ones_own(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that asks for `xenkvm_host` where there is none fails with the sentence, without a traceback."""

    def nothing() -> None:
        raise HostError("there is no /dev/kvm: try another machine")

    monkeypatch.setattr(DevKvmHost, "open", nothing)
    project.makepyfile("def test_vm(xenkvm_host): pass")
    result = run(ON_KVM, "-k", "test_vm")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["there is no /dev/kvm: try another machine"])
    result.stdout.no_fnmatch_line("*own_tests.py*")


@pytest.mark.usefixtures("kvm")
def test_guest_programs_are_refused(project: pytest.Pytester, run: Run) -> None:
    """`xenkvm_guest` runs code on Unicorn: on another host that would be something else than asked for."""
    project.makepyfile("def test_guest(xenkvm_guest): xenkvm_guest()")
    result = run(ON_KVM, "-k", "test_guest")
    result.stdout.fnmatch_lines(["*HostError: xenkvm_guest runs guest code on the emulated host only: *"])


@pytest.mark.usefixtures("kvm")
def test_the_commands_of_a_failure_name_the_host(traces: Path, run: Run) -> None:
    """What reruns a failed item, and what shows how it came to it, goes by the same host."""
    write(traces / "good.xkt", *DIVERGING)
    result = run(ON_KVM, "-k", "replay")
    show = "xenkvm replay traces/good.xkt --host=kvm --until 3"
    result.stdout.fnmatch_lines(
        [f"see how it came to the first: {show}", f"*pytest {ON_KVM} traces/good.xkt::*"]
    )
