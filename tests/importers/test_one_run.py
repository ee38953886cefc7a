"""One run that five recorders saw at the same time: real text of each, and the same trace from all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import evolve
from ftrace_text import DATA, KERNEL, hypercalls

from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace.events import Event, Hypercall
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.trace.importers import (
    IMPORTERS,
    Given,
    Imported,
    detect,
    open_recording,
)

ONE_RUN: Final = DATA / "one_run"
FILES: Final = {
    "ftrace-kprobes": "ftrace.txt.gz",
    "trace-cmd": "trace-cmd.txt.gz",
    "perf": "perf.txt.gz",
    "bpftrace": "bpftrace.txt.gz",
    "strace": "strace.txt.gz",
}
FULL: Final = ("ftrace-kprobes", "trace-cmd", "perf")
"""Those that had the kprobe events, too."""


def read(name: str, file: str | None = None, **given: Any) -> Imported:
    """The run as this recorder saw it."""
    path = ONE_RUN / (file or FILES[name])
    return IMPORTERS[name].run(
        open_recording(path), path=str(path), given=Given(**{"kernel": KERNEL, **given})
    )


def timeless(event: Event) -> Event:
    """The event without what depends on when the recorder looked."""
    event = evolve(event, ts=None)
    if isinstance(event, Hypercall) and event.behind:
        event = evolve(event, behind=tuple(evolve(item, now_plus_at=()) for item in event.behind))
    if isinstance(event, Hypercall):
        event = evolve(event, extra={key: value for key, value in event.extra.items() if key != "delta_ns"})
    return event


@pytest.mark.parametrize("name", FILES)
def test_each_is_detected(name: str) -> None:
    """A real recording is recognised by its content."""
    path = ONE_RUN / FILES[name]
    assert detect(open_recording(path), path=str(path)) == name


@pytest.mark.parametrize("name", FULL[1:])
def test_all_recorders_give_the_same_trace(name: str) -> None:
    """trace-cmd and perf, which print no functions' names, give event by event what ftrace gives."""
    ours, theirs = read(name), read("ftrace-kprobes")
    assert [timeless(event) for event in ours.events] == [timeless(event) for event in theirs.events]
    assert len(hypercalls(ours)) == 21
    assert ours.header.vm == theirs.header.vm
    assert (ours.header.scope, ours.header.recorder, ours.header.max_vcpus) == ("full", name, 4096)


def test_times_differ_by_little() -> None:
    """The recorders' times of one event are within a few milliseconds of each other, whatever their start."""
    runs = [hypercalls(read(name)) for name in FULL]
    for calls in zip(*runs, strict=True):
        times = [(call.ts or 0) - (run[0].ts or 0) for call, run in zip(calls, runs, strict=True)]
        assert max(times) - min(times) < 5_000_000


def test_estimated_timeouts_agree() -> None:
    """Timeouts relative to the guest's clock are the same within a millisecond, flags or no flags."""
    for calls in zip(*(hypercalls(read(name)) for name in FULL), strict=True):
        deltas = [
            call.behind[0].now_plus_at[0][1] for call in calls if call.behind and call.behind[0].now_plus_at
        ]
        if deltas:
            assert len(deltas) == len(FULL)
            assert max(deltas) - min(deltas) < 1_000_000


@pytest.mark.parametrize("name", FULL)
def test_a_thread_that_runs_many_vcpus(name: str) -> None:
    """Where results of KVM_CREATE_VCPU are recorded, a call's vCPU is that of the descriptor it ran on."""
    trace = read(name)
    assert trace.header.vm is not None
    assert [(vcpu.index, vcpu.id) for vcpu in trace.header.vm.vcpus] == [(0, 7), (1, 2), (2, 1)]
    assert {call.vcpu for call in hypercalls(trace)} == {0, 1, 2}
    assert not any("thread" in what for what in trace.report.unknown)


def test_bpftrace_sees_the_same_calls() -> None:
    """The shipped script's lines have every register, and tell which calls were forwarded."""
    seen, full = hypercalls(read("bpftrace")), hypercalls(read("ftrace-kprobes"))
    assert [(call.nr, call.args, call.cpl) for call in seen] == [
        (call.nr, call.args, call.cpl) for call in full
    ]
    assert [call.handled == "userspace" for call in seen] == [call.handled == "userspace" for call in full]
    assert sum(call.handled == "userspace" for call in seen) == 7
    assert read("bpftrace").header.recorder == "bpftrace"


def test_strace_sees_the_same_exits() -> None:
    """Strace tells which vCPU forwarded a hypercall, in the same order, and the VM as it was created."""
    trace, full = read("strace"), read("ftrace-kprobes")
    forwarded = [call.vcpu for call in hypercalls(full) if call.handled == "userspace"]
    assert [call.vcpu for call in trace.forwarded] == forwarded
    assert all(call.ts for call in trace.forwarded)
    assert trace.header.vm is not None
    assert full.header.vm is not None
    assert trace.header.vm.vcpus == full.header.vm.vcpus
    assert trace.header.vm.irqchip == full.header.vm.irqchip == "split"
    assert [(slot.gpa, slot.size) for slot in trace.header.vm.memory] == [(0, 4 << 20), (1 << 28, 1 << 18)]


@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not installed")
def test_trace_dat_reads_like_its_text() -> None:
    """A trace.dat gives what trace-cmd's text of it gives, and the host's kernel besides."""
    text, data = read("trace-cmd"), read("trace-cmd", "trace.dat", kernel=None)
    assert data.events == text.events
    assert data.header == text.header


@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="trace-cmd is not installed")
def test_buffers_of_instances() -> None:
    """A trace.dat with the hypercalls in one buffer and the exits in an instance's is one recording."""
    path = DATA / "buffers.dat"
    trace = IMPORTERS["trace-cmd"].run(open_recording(path), path=str(path))
    seen = hypercalls(trace)
    assert [(call.nr, call.cpl) for call in seen] == [
        (call.nr, call.cpl) for call in hypercalls(read("perf"))
    ]
    assert sum(call.handled == "userspace" for call in seen) == 7
    assert trace.header.kernel == KERNEL


def test_perfs_header_tells_the_host() -> None:
    """`perf script --header` names kernel and CPU vendor, so that neither need be given."""
    header = read("perf", kernel=None).header
    assert (header.kernel, header.cpu_vendor) == (KERNEL, "amd")
    assert not any("cpu_vendor" in what for what in read("perf").report.unknown)


@pytest.mark.parametrize("name", FULL)
def test_the_run_replays_without_divergence(name: str, tmp_path: Path) -> None:
    """What was imported replays on the emulated core like on the host that was recorded."""
    trace = read(name)
    write_trace(tmp_path / "run.xkt", trace.header, trace.events)
    result = run_trace(open_trace(tmp_path / "run.xkt"), (), ReplayOptions())
    assert (result.divergence_count, result.events, result.hypercalls) == (0, len(trace.events), 21)
