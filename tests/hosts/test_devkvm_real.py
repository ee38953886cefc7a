"""The host kvm on a real /dev/kvm with Xen support: goldens of the running kernel, and what they lack.

Where there is none the tests are skipped; `xenkvm lab run` has one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner
from same_outcomes import comparable

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr
from pytest_xenkvm.cli.replay import replay
from pytest_xenkvm.core.profile import profile_for_release
from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.devkvm.vm import DevKvmVm
from pytest_xenkvm.hosts.protocol import GuestCall, HostError
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import Tally
from pytest_xenkvm.replay.rerecord import rerecord
from pytest_xenkvm.rules.hosts import KVM
from pytest_xenkvm.rules.run import ReplayOptions, observe_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import Event, Hypercall, MemorySlot, VcpuShape, VmShape, timed
from pytest_xenkvm.trace.files import Trace, find_traces

PROFILE = profile_for_release(os.uname().release)
FOLDER = Path(__file__).parents[2] / "traces" / "golden" / PROFILE.name
GOLDENS = sorted(path for kind in ("directed", "random") for path in (FOLDER / kind).glob("*.jsonl.gz"))
SHAPE = VmShape(irqchip="full", memory=(MemorySlot(gpa=0, size=4 << 20),), vcpus=(VcpuShape(index=0, id=0),))
MSR = 0x4000_0000
XEN_VERSION, SCHED_OP, POLL = 17, 29, 3
VERSION = 0x4_0012
BOOT_EVENTS = 1500
ATTEMPTS = 3
"""A vCPU that the host's scheduler preempts shows as runnable where the recording says running."""


class Nobody:
    """Wants to see what diverges, and nothing else."""

    def wants(self, _event: Event) -> bool:
        """No."""
        return False

    def wants_call(self, _event: Hypercall) -> bool:
        """No."""
        return False

    def recall(self, _event: Hypercall) -> None:
        """As nobody wants calls, one with an interrupt too many is shown."""

    def repeats(self, _event: Hypercall) -> None:
        """Nothing is counted."""


NOBODY = Nobody()


def host_or_none() -> DevKvmHost | str:
    """The host, or why there is none."""
    try:
        return DevKvmHost.open()
    except HostError as error:
        return str(error)


HOST = host_or_none()
pytestmark = pytest.mark.skipif(isinstance(HOST, str), reason=str(HOST))


@pytest.fixture
def host() -> DevKvmHost:
    """The running kernel."""
    assert not isinstance(HOST, str)
    return HOST


@pytest.fixture
def vm(host: DevKvmHost) -> DevKvmVm:
    """A VM that hands its hypercalls to Xen's code."""
    made = host.create_vm(SHAPE, cpu_vendor=host.cpu_vendor)
    config = bytearray(ioctls.HVM_CONFIG.pack(0x22, MSR, 0, 0, 0, 0))
    assert made.ioctl(ioctls.KVM_XEN_HVM_CONFIG, config) == 0
    attribute = bytearray(ioctls.ATTR_SIZE)
    ioctls.ATTR_HEADER.pack_into(attribute, 0, HvmAttr.XEN_VERSION)
    attribute[8:12] = VERSION.to_bytes(4, "little")
    assert made.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, attribute) == 0
    return made


def suitable(path: Path, host: DevKvmHost) -> Trace:
    """A golden, if this host can do what its kernel did."""
    trace = open_trace(path)
    if (trace.header.cpu_vendor, trace.header.max_vcpus) != (host.cpu_vendor, host.limits.max_vcpus):
        pytest.skip(f"recorded with {trace.header.cpu_vendor}, KVM_MAX_VCPUS {trace.header.max_vcpus}")
    return trace


@pytest.mark.parametrize(
    "path", GOLDENS, ids=lambda path: f"{path.parent.name}/{path.name.partition('.')[0]}"
)
def test_a_golden_of_this_kernel_replays_without_divergence(path: Path, host: DevKvmHost) -> None:
    """The kernel does again all that was recorded on its like."""
    trace = suitable(path, host)
    for attempt in range(ATTEMPTS):
        tally = Tally()
        seen = list(kernel_replay(host, trace.header, timed(trace.events()), NOBODY, tally))
        assert tally.events
        found = [divergence for observation in seen for divergence in observation.divergences]
        if not found:
            return
        assert attempt < ATTEMPTS - 1, found


@pytest.mark.parametrize("name", ["directed/upcall-vector", "directed/singleshot-id", "random/seed-5"])
def test_a_rerecorded_golden_is_the_golden(name: str, host: DevKvmHost) -> None:
    """The product's own recording of a scenario equals the shared one in every outcome."""
    trace = suitable(FOLDER / f"{name}.jsonl.gz", host)
    expected = [comparable(event) for event in trace.events()]
    for attempt in range(ATTEMPTS):
        header, events = rerecord(
            host, trace.header, trace.events(), kernel=host.release, recorder="kvm-host"
        )
        if [comparable(event) for event in events] == expected:
            break
        assert attempt < ATTEMPTS - 1
    assert (header.kernel, header.recorder, header.scope) == (os.uname().release, "kvm-host", "full")


def test_a_real_guests_boot_replays_without_divergence(host: DevKvmHost) -> None:
    """Pointers of a guest whose page tables no recording has lead to what the recording shows behind them."""
    boots = {"linux-6.12": "@linux-boot", "linux-7.2": "@linux-boot-7.2", "linux-7.3": "@linux-boot-7.3"}
    (path,) = find_traces(boots[PROFILE.name])
    trace = suitable(path, host)
    seen = list(observe_trace(trace, ReplayOptions(host=KVM, until=BOOT_EVENTS)))
    calls = [one.event for one in seen if isinstance(one.event, Hypercall)]
    assert any(call.behind and call.handled == "kernel" for call in calls)
    assert not [observation.divergences for observation in seen if observation.divergences]


@pytest.mark.parametrize("longmode", [True, False])
@pytest.mark.parametrize("cpl", range(4))
def test_calls_come_from_every_mode(vm: DevKvmVm, cpl: int, *, longmode: bool) -> None:
    """In kernel mode the kernel answers; above it the call is forwarded with the guest's mode and level."""
    outcome = vm.hypercall(0, GuestCall(nr=XEN_VERSION, args=(0,) * 6, longmode=longmode, cpl=cpl))
    if cpl == 0:
        assert (outcome.rax, outcome.exit) == (VERSION, None)
        return
    assert outcome.exit is not None
    assert (outcome.exit.cpl, outcome.exit.longmode, outcome.exit.input) == (cpl, longmode, XEN_VERSION)
    assert vm.complete(0, 2**64 - 38) == (2**64 - 38 if longmode else 2**32 - 38)


def test_a_poll_that_nothing_wakes_is_ended(vm: DevKvmVm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that would block for ever is a HostError, not a test that hangs; the VM stays usable."""
    monkeypatch.setattr("pytest_xenkvm.hosts.devkvm.vm._UNKNOWN_BLOCK_S", 0.3)
    attribute = bytearray(ioctls.ATTR_SIZE)
    ioctls.ATTR_HEADER.pack_into(attribute, 0, HvmAttr.SHARED_INFO)
    attribute[8:16] = (2).to_bytes(8, "little")
    assert vm.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, attribute) == 0
    vm.write_memory(0x5000, (0x6000).to_bytes(8, "little") + (1).to_bytes(4, "little") + bytes(12))
    vm.write_memory(0x6000, (7).to_bytes(4, "little"))
    poll = GuestCall(nr=SCHED_OP, args=(POLL, 0x5000, 0, 0, 0, 0), longmode=True, cpl=0)
    with pytest.raises(HostError, match=r"hypercall 29 of vCPU 0 didn't come back within 0\.3 s"):
        vm.hypercall(0, poll)
    version = GuestCall(nr=XEN_VERSION, args=(0,) * 6, longmode=True, cpl=0)
    assert vm.hypercall(0, version).rax == VERSION


def test_what_a_recording_shows_is_what_the_kernel_reads(vm: DevKvmVm) -> None:
    """Bytes behind an argument of a real guest, whose page tables nobody has, reach the kernel."""
    call = GuestCall(
        nr=32, args=(4, 0xFFFF_8881_2345_6FFE, 0, 0, 0, 0), longmode=True, cpl=0, unseen_memory=True
    )
    assert vm.hypercall(0, call).rax is None
    call.behind = [(1, (9).to_bytes(4, "little"))]
    exit_ = vm.hypercall(0, call).exit
    assert exit_ is not None
    assert vm.read_virtual(0, 0xFFFF_8881_2345_6FFE, 4) == (9).to_bytes(4, "little")
    vm.complete(0, 0)


def test_a_vcpu_beyond_the_kernels_limit_is_refused(host: DevKvmHost) -> None:
    """KVM_CREATE_VCPU's refusal is told with the vCPU's id."""
    shape = evolve(SHAPE, vcpus=(VcpuShape(index=0, id=1 << 20),))
    with pytest.raises(HostError, match="the vCPU with id 1048576, one of 1, can't be created"):
        host.create_vm(shape, cpu_vendor=host.cpu_vendor)


def test_the_command_replays_on_the_running_kernel() -> None:
    """`xenkvm replay --host kvm` says on which kernel it replayed."""
    result = CliRunner().invoke(replay, [str(FOLDER / "directed" / "cpl3.jsonl.gz"), "--host", "kvm"])
    assert result.exit_code == 0, result.output
    assert f"host kvm {os.uname().release}" in result.output
