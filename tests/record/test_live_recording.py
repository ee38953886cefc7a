"""What the kernel tells becomes traces."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_tracefs import GUEST_PID, GUEST_VM, RECORDER_PID, TINY_GUEST, FakeKernel, Recording

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.record import vm as vm_module
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Hypercall, Ioctl, VcpuShape
from pytest_xenkvm.trace.files import open_trace

FORK = next(number for number, line in enumerate(TINY_GUEST) if "sched_process_fork" in line)
GUEST = TINY_GUEST[FORK + 1 :]
"""What is about the guest, its creation first."""
FIRST_CALL = next(number for number, line in enumerate(GUEST) if "hypercall_enter" in line)
OTHER_VM = [line.replace(GUEST_VM, "kvm=0xffff888000001000") for line in GUEST]


def hypercalls(path: Path) -> list[Hypercall]:
    """The hypercalls in a trace."""
    return [event for event in open_trace(path).events() if isinstance(event, Hypercall)]


def test_a_vm_is_recorded_from_its_creation(recorded: Recording, tmp_path: Path) -> None:
    """A VM that is created while the recording goes on becomes a trace of scope "full" with all results."""
    with recorded() as (recorder, tell):
        tell(TINY_GUEST)
        recorder.stop()
    trace = open_trace(tmp_path / "trace.xkt")
    assert trace.header.scope == "full"
    assert (trace.header.kernel, trace.header.max_vcpus) == ("7.3.0-rc7", 4096)
    assert trace.header.vm is not None
    assert trace.header.vm.vcpus == (VcpuShape(index=0, id=3),)
    assert [(slot.gpa, slot.size) for slot in trace.header.vm.memory] == [(0x1000, 0x1000)]
    config, version, *calls = trace.events()
    assert isinstance(config, Ioctl)
    assert (config.name, config.ret, config.inferred) == ("KVM_XEN_HVM_CONFIG", 0, False)
    assert isinstance(version, Ioctl)
    assert version.arg == {"type": 4, "xen_version": 0x40011}
    assert [(call.handled, call.rax) for call in calls if isinstance(call, Hypercall)] == [
        *[("kernel", 0x40011)] * 2,
        ("userspace", 2),
        *[("kernel", 0x40011)] * 2,
        ("userspace", 5),
    ]


def test_the_recording_replays(
    recorded: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording replays on its own, without a divergence."""
    with recorded() as (recorder, tell):
        tell(TINY_GUEST)
        recorder.stop()
    run(["replay", str(tmp_path / "trace.xkt")])
    assert "no divergence on linux-7.3" in capsys.readouterr().out


def test_the_file_can_be_read_while_it_grows(
    recorded: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened some time ago can be read before the recording is over, or if it is killed."""
    monkeypatch.setattr(vm_module, "_WINDOW_NS", 0)
    with recorded() as (recorder, tell):
        tell(TINY_GUEST[: FORK + 1])
        tell(GUEST[:-8])
        (vm,) = recorder.sorter.recordings
        vm.settle(recorder.stream.reached)
        vm.flush()
        growing = open_trace(tmp_path / "trace.xkt")
        assert growing.header.extra == {"unfinished": True}
        assert growing.counts() is None
        assert len(list(growing.events())) == vm.written > 4
        recorder.stop()
    assert open_trace(tmp_path / "trace.xkt").header.extra == {}


def test_losses_are_told(recorded: Recording, tmp_path: Path) -> None:
    """Events that the kernel lost are in the trace, where they are missing, and it isn't "full" any more."""
    with recorded() as (recorder, tell):
        tell([*TINY_GUEST[: FORK + 1], *GUEST[:FIRST_CALL], "CPU:0 [LOST 7 EVENTS]", *GUEST[FIRST_CALL:]])
        recorder.stop()
        assert recorder.sorter.lost == 7
    trace = open_trace(tmp_path / "trace.xkt")
    assert trace.header.scope == "hypercalls"
    assert "7 events of the kernel's trace were lost" in trace.header.notes
    assert [event.extra["lost_before"] for event in trace.events() if event.extra] == [7]


def test_losses_without_a_note_are_told(recorded: Recording, kernel: FakeKernel, tmp_path: Path) -> None:
    """Losses that only the kernel's statistics show, or probes passed unnoticed, are told, too."""
    with recorded() as (recorder, tell):
        tell(TINY_GUEST[:-3])
        kernel.stats("xenkvm_1_2", overrun=3)
        (kernel.root / "kprobe_profile").write_text("  hypercall_ret  10  2\n  of_somebody_else  1  1\n")
        recorder.stop()
        assert recorder.sorter.lost == 5
        assert recorder.missed == {"hypercall_ret": 2}
    assert open_trace(tmp_path / "trace.xkt").header.scope == "hypercalls"


def test_a_vm_that_was_there_before(recorded: Recording, tmp_path: Path) -> None:
    """Of a VM whose creation was not seen, hypercalls are recorded; the trace says why there is no more."""
    with recorded() as (recorder, tell):
        tell(GUEST[FIRST_CALL:])
        recorder.stop()
    header = open_trace(tmp_path / "trace.xkt").header
    assert (header.scope, header.vm) == ("hypercalls", None)
    assert "the VM was there before the recording began" in header.notes
    assert len(hypercalls(tmp_path / "trace.xkt")) == 6


def test_only_the_family_is_recorded(recorded: Recording, tmp_path: Path) -> None:
    """VMs of processes that neither are nor descend from the one that is watched are left alone."""
    with recorded(members=[RECORDER_PID]) as (recorder, tell):
        strangers = [line.replace(f"-{GUEST_PID} ", "-4000 ") for line in OTHER_VM]
        tell([*strangers[:-2], *TINY_GUEST[FORK:]])
        recorder.stop()
        assert len(recorder.sorter.all) == 1
    assert not (tmp_path / "trace-2.xkt").exists()


def test_every_vm_has_its_file(recorded: Recording, tmp_path: Path) -> None:
    """Two VMs at the same time, on one thread even, become two traces."""
    mixed = [line for pair in zip(GUEST, OTHER_VM, strict=True) for line in pair if "sched" not in line]
    with recorded(everybody=True) as (recorder, tell):
        tell(line for line in mixed if "kvm=" in line)
        recorder.stop()
    first, second = (list(open_trace(tmp_path / name).events()) for name in ("trace.xkt", "trace-2.xkt"))
    assert len(first) == len(second) == 2
    assert not (tmp_path / "trace-3.xkt").exists()


def test_the_limit_is_kept(recorded: Recording, tmp_path: Path) -> None:
    """No more events are written than were asked for."""
    with recorded(limit=3) as (recorder, tell):
        tell(TINY_GUEST)
        recorder.stop()
        assert recorder.sorter.written == 3
    assert len(list(open_trace(tmp_path / "trace.xkt").events())) == 3


def test_a_file_is_not_overwritten(recorded: Recording, tmp_path: Path) -> None:
    """A file that appeared meanwhile is left alone, and tracefs is cleaned up all the same."""
    (tmp_path / "trace.xkt").write_text("mine")
    with pytest.raises(TraceError, match=r"trace\.xkt: cannot be written"), recorded() as (_recorder, tell):
        tell(TINY_GUEST)
    assert (tmp_path / "trace.xkt").read_text() == "mine"


def test_a_wrong_answer_is_noticed(recorded: Recording, tmp_path: Path) -> None:
    """If the kernel seems to answer XENVER_version with a version that was not set, no result is trusted."""
    with recorded() as (recorder, tell):
        tell(line.replace("handled=1 rax=0x40011", "handled=1 rax=0x11") for line in TINY_GUEST)
        recorder.stop()
    header = open_trace(tmp_path / "trace.xkt").header
    assert header.scope == "hypercalls"
    assert "XENVER_version was seen to return 0x11, not 0x40011 as set" in header.notes


def test_without_probes_hypercalls_are_recorded(
    recorded: Recording, kernel: FakeKernel, tmp_path: Path
) -> None:
    """On a kernel that refuses a probe, the tracepoints alone give a trace of scope "hypercalls"."""
    kernel.refuses.add("start_timer")
    with recorded() as (recorder, tell):
        assert "refused 1 of the kprobe events, the first being start_timer" in recorder.doubts
        assert kernel.probes == []
        tell(line for line in TINY_GUEST if "kvm=" not in line)
        recorder.stop()
    trace = open_trace(tmp_path / "trace.xkt")
    assert (trace.header.scope, trace.header.vm) == ("hypercalls", None)
    assert [call.handled for call in hypercalls(tmp_path / "trace.xkt")] == [
        *[None] * 2,
        "userspace",
        *[None] * 2,
        "userspace",
    ]


def test_events_are_put_in_order(recorded: Recording, tmp_path: Path) -> None:
    """Lines that come a little late, as those of another CPU do, take their place in time."""
    swapped = [*TINY_GUEST]
    swapped[FORK + 6], swapped[FORK + 7] = swapped[FORK + 7], swapped[FORK + 6]
    with recorded() as (recorder, tell):
        tell(["\n".join(swapped)])
        recorder.stop()
    assert open_trace(tmp_path / "trace.xkt").header.scope == "full"
    assert len(hypercalls(tmp_path / "trace.xkt")) == 6


def test_strange_lines_are_survived(recorded: Recording, tmp_path: Path) -> None:
    """Lines that are no event, or far too long, are counted and skipped."""
    with recorded() as (recorder, tell):
        tell(["nonsense", "x" * 9000, *TINY_GUEST])
        recorder.stop()
        assert recorder.stream.strange == 2
    assert open_trace(tmp_path / "trace.xkt").header.scope == "full"
