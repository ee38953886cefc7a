"""strace of a VMM, alone and beside QEMU's log of the same run."""

from __future__ import annotations

import pytest
from ftrace_text import DATA, hypercalls, imported

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Ioctl, MemorySlot
from pytest_xenkvm.trace.importers import Imported, open_recording, with_answers
from pytest_xenkvm.trace.importers.model import NAMELESS

STRACE, QEMU_LOG = DATA / "strace.txt.gz", DATA / "strace_qemu.log.gz"
CREATED = [
    "7 1.000000 ioctl(3</dev/kvm>, KVM_CREATE_VM, 0) = 4<anon_inode:kvm-vm> <0.000100>",
    "7 2.000000 ioctl(4<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 9) = 5<anon_inode:kvm-vcpu:9> <0.000100>",
]
FORWARDED = "ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_XEN)"
ANSWERED = "xen_hypercall: cpu 0 cpl 0 input 17 a0 0x1 a1 0x2 a2 0x3 ret 0x4"


def strace(*lines: str) -> Imported:
    """These lines, imported."""
    return imported(lines, "strace")


def log(*lines: str) -> Imported:
    """QEMU's log of these lines."""
    return imported(lines, "qemu-log")


def test_a_real_boot() -> None:
    """Strace of QEMU gives the VM, KVM_MAX_VCPUS and which vCPU forwarded when."""
    trace = imported(open_recording(STRACE), "strace")
    vm = trace.header.vm
    assert vm is not None
    assert (trace.header.scope, trace.header.max_vcpus, vm.irqchip) == ("hypercalls", 4096, "split")
    assert [vcpu.id for vcpu in vm.vcpus] == [0, 1]
    assert vm.memory[0] == MemorySlot(gpa=0, size=192 << 20)
    assert len(trace.forwarded) == trace.report.unknown[NAMELESS] == 808
    assert {call.vcpu for call in trace.forwarded} == {0, 1}
    assert trace.events == [
        Ioctl(ts=63_470_000, name="KVM_CHECK_EXTENSION", arg={"cap": 38}, ret=511),
    ]
    assert trace.report.lines == trace.report.used + sum(trace.report.skipped.values())


def test_a_real_boot_with_qemus_log() -> None:
    """QEMU's log of the same run names every forwarded hypercall, at strace's times."""
    trace = imported(open_recording(STRACE), "strace")
    calls = imported(open_recording(QEMU_LOG), "qemu-log")
    joined = with_answers(trace, calls, path="qemu.log")
    made = hypercalls(joined)
    by_vcpu = [[call for call in made if call.vcpu == vcpu] for vcpu in (0, 1)]
    logged = [[call for call in hypercalls(calls) if call.vcpu == vcpu] for vcpu in (0, 1)]
    assert [[(call.nr, call.args, call.rax) for call in calls] for calls in by_vcpu] == [
        [(call.nr, call.args, call.rax) for call in calls] for calls in logged
    ]
    times = [call.ts or 0 for call in made]
    assert times == sorted(times)
    assert times[0] > 4_000_000_000
    assert {tuple(call.extra["unseen_args"]) for call in made} == {(3, 4, 5)}
    assert NAMELESS not in joined.report.unknown
    assert joined.report.events["hypercall"] == 808


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "7 ",
        "[pid     7] ",
        "7     1795342252.584066 ",
        "12:00:01.000001 ",
        "7 12:00:01 ",
        "     0.000123 ",
    ],
    ids=["bare", "-f -o", "-f", "-f -o -ttt", "-tt", "-f -o -t", "-r"],
)
def test_the_columns_of_straces_options(prefix: str) -> None:
    """Threads and times are understood however they are printed, and times that are not absolute are none."""
    trace = strace(*CREATED, prefix + FORWARDED)
    (call,) = trace.forwarded
    assert call.vcpu == 0
    assert (call.ts is None) == (prefix in ("", "7 ", "[pid     7] ", "     0.000123 "))


def test_a_call_cut_in_two() -> None:
    """A call that another thread's interrupts is joined again, with the time at which it returned."""
    begin = "7 1795342250.000000 ioctl(5<anon_inode:kvm-vcpu:9>, KVM_RUN <unfinished ...>"
    other = "8 1795342251.000000 ioctl(3</dev/kvm>, KVM_GET_API_VERSION, 0) = 12 <0.000100>"
    end = "7 1795342252.000000 <... ioctl resumed>, 0) = 0 (KVM_EXIT_XEN) <2.000000>"
    trace = strace(*CREATED, begin, other, end)
    (call,) = trace.forwarded
    assert call.ts == 999_900_000  # after the other call returned, which is the first with a time
    assert trace.report.skipped["first halves of calls"] == 1


def test_other_exits_and_failures() -> None:
    """Other exits, failed calls and vCPUs that nobody saw created give nothing, and are counted."""
    trace = strace(
        *CREATED,
        "ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_IO)",
        "ioctl(5, KVM_RUN, 0) = -1 EINTR (Interrupted system call)",
        "ioctl(6, KVM_RUN, 0) = 0 (KVM_EXIT_XEN)",
        "ioctl(4, KVM_CREATE_VCPU, 10) = -1 EEXIST (File exists)",
        "ioctl(4, KVM_XEN_HVM_SET_ATTR, 0x7ffd0000) = -1 EINVAL (Invalid argument)",
        "ioctl(5, KVM_RUN",
        "+++ exited with 0 +++",
    )
    assert trace.forwarded == ()
    assert trace.header.vm is not None
    assert len(trace.header.vm.vcpus) == 1
    assert trace.report.skipped["runs of a vCPU without a KVM_EXIT_XEN"] == 2
    assert trace.report.skipped["KVM_EXIT_XEN of a vCPU whose creation was not recorded"] == 1
    assert trace.report.skipped["ioctls of KVM's that strace doesn't show whole"] == 1
    assert trace.report.unknown["argument of KVM_XEN_HVM_SET_ATTR, whose result was an error (left out)"] == 1


def region(slot: int, gpa: int, size: int) -> str:
    """Memory that was mapped."""
    shown = f"{{slot={slot}, flags=0, guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr=0x7f0000}}"
    return f"ioctl(4, KVM_SET_USER_MEMORY_REGION, {shown}) = 0 <0.000100>"


def test_memory_is_all_that_was_ever_mapped() -> None:
    """Slots that overlap or touch become one; what is taken away was there; another address space isn't."""
    trace = strace(
        *CREATED,
        region(0, 0, 8192),
        region(0, 0, 0),
        region(1, 0x1000, 4096 * 3),
        region(2, 0x10000, 4096),
        region(65536, 0x80000, 4096),
    )
    assert trace.header.vm is not None
    assert trace.header.vm.memory == (MemorySlot(gpa=0, size=0x4000), MemorySlot(gpa=0x10000, size=0x1000))


def test_without_the_vms_creation() -> None:
    """Of a VM that was there before the recording, the shape is not known."""
    trace = strace("ioctl(4, KVM_GET_CLOCK, 0x7ff) = 0")
    assert trace.header.vm is None
    assert "not known" in trace.header.notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ioctl(3, KVM_CREATE_VM, 0) = 8", "line 3: a second VM"),
        ("ioctl(4, KVM_CREATE_VCPU, 9) = 8", "line 3: vCPU 1 of id 9 is created"),
        (region(0, 1, 1), "line 3: memory of 0x1 bytes at 0x1 was accepted"),
    ],
)
def test_impossible_vms_are_refused(line: str, message: str) -> None:
    """Two VMs, or a vCPU or memory that KVM would not have accepted, stop the import with the line."""
    with pytest.raises(Malformed, match=message):
        strace(*CREATED, line)


def test_a_log_that_is_shorter() -> None:
    """Forwarded hypercalls after the end of QEMU's log stay without a name, and are counted."""
    trace = with_answers(strace(*CREATED, FORWARDED, FORWARDED), log(ANSWERED), path="qemu.log")
    assert [call.nr for call in hypercalls(trace)] == [17]
    assert trace.report.unknown[NAMELESS] == 1


def test_a_log_that_is_longer() -> None:
    """QEMU's log of another run, with more hypercalls, is refused."""
    with pytest.raises(Malformed, match="1 more hypercalls than the recording forwarded"):
        with_answers(strace(*CREATED, FORWARDED), log(ANSWERED, ANSWERED), path="qemu.log")
