"""What the recorder makes in tracefs, and that nothing of it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_tracefs import TINY_GUEST, FakeKernel, Recording, pretend

from pytest_xenkvm.record import trial
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.host import HYPERCALL, check_events
from pytest_xenkvm.record.leftovers import find_leftovers, own_name, remove_leftovers
from pytest_xenkvm.record.probes import PROBES, define_probes
from pytest_xenkvm.record.stream import Lost, TraceStream
from pytest_xenkvm.record.tracefs import Instance, find_tracefs
from pytest_xenkvm.trace.importers.ftrace_lines import parse_line
from pytest_xenkvm.trace.importers.lines import TraceLine

DEAD = "xenkvm_4000000_17"
"""A process of that number can't be: it is beyond PID_MAX_LIMIT."""


def trial_lines() -> list[TraceLine]:
    """What the probes showed of the recorder's own VM."""
    lines = [parse_line(line, "sample", 0) for line in TINY_GUEST]
    return [line for line in lines if line is not None and line.pid == 93 and "kvm=" in line.fields]


def test_tracefs_is_left_as_it_was(recorded: Recording, kernel: FakeKernel) -> None:
    """After a recording neither probes nor an instance are left, and other people's probes still are."""
    kernel.write(kernel.root / "dynamic_events", "p:mine/x do_exit ")
    with recorded() as (recorder, tell):
        assert len(kernel.probes) == len(PROBES) + 1
        assert kernel.tracefs.instances() == ["xenkvm_1_2"]
        tell(TINY_GUEST)
        recorder.stop()
    assert kernel.probes == ["p:mine/x do_exit "]
    assert kernel.tracefs.instances() == []


def test_tracefs_is_left_as_it_was_after_a_failure(recorded: Recording, kernel: FakeKernel) -> None:
    """An exception in the middle leaves nothing behind either."""
    with pytest.raises(ZeroDivisionError), recorded():
        raise ZeroDivisionError
    assert (kernel.probes, kernel.tracefs.instances()) == ([], [])


def test_only_ones_own_instance_is_switched(recorded: Recording, kernel: FakeKernel) -> None:
    """Nothing is written to but the definitions of events and the recording's own instance."""
    with recorded() as (recorder, _tell):
        recorder.stop()
    touched = {name for name, _text in kernel.written if not name.startswith("instances/xenkvm_1_2/")}
    assert touched == {"dynamic_events"}


def test_vcpus_go_by_either_name(kernel: FakeKernel) -> None:
    """Functions that call the vCPU `v` are probed by that name, functions in interrupts by fprobes."""
    refused = kernel.root / "dynamic_events"
    kernel.vcpu_names["inject_vcpu_vector"] = "v"
    assert define_probes(kernel.tracefs, "g") == []
    by_name = {line.split()[0].partition("/")[2]: line for line in refused.read_text().splitlines()}
    assert "kvm=v->kvm:x64" in by_name["inject_vcpu_vector"]
    assert "kvm=vcpu->kvm:x64" in by_name["hypercall_enter"]
    assert by_name["set_evtchn_fast_ret"].startswith(
        "f:g/set_evtchn_fast_ret kvm_xen_set_evtchn_fast%return "
    )


def test_leftovers_are_those_of_the_dead(kernel: FakeKernel) -> None:
    """Leftovers are found by the process that made them: not those of one that lives, nor of anybody else."""
    for name in (DEAD, own_name(), "somebody_else"):
        kernel.create(Instance(kernel.tracefs, name))
        kernel.write(kernel.root / "dynamic_events", f"p:{name}/x do_exit ")
    reused = f"xenkvm_{os.getpid()}_1"
    kernel.write(kernel.root / "dynamic_events", f"f:{reused}/x do_exit ")
    assert find_leftovers(kernel.tracefs) == sorted([DEAD, reused])
    for name in (DEAD, reused):
        assert remove_leftovers(kernel.tracefs, name)
    assert kernel.tracefs.instances() == ["somebody_else", own_name()]
    assert [line.split("/")[0] for line in kernel.probes] == [f"p:{own_name()}", "p:somebody_else"]


def test_leftovers_in_use_stay(kernel: FakeKernel) -> None:
    """What somebody has open belongs to a process that lives, if in another PID namespace: it stays whole."""
    kernel.create(Instance(kernel.tracefs, DEAD))
    kernel.write(kernel.root / "dynamic_events", f"p:{DEAD}/x do_exit ")
    kernel.busy.add(DEAD)
    assert not remove_leftovers(kernel.tracefs, DEAD)
    assert kernel.tracefs.instances() == [DEAD]
    assert len(kernel.probes) == 1


def test_the_trial_believes_what_it_sees() -> None:
    """The probes pass if they show the recorder's own VM as it was."""
    assert trial.verdict(trial_lines()) == ""


@pytest.mark.parametrize(
    ("shown", "instead", "verdict"),
    [
        ("rax=0x3a5c7e91", "rax=0x11", "the probe hypercall_ret showed idx=0x0, handled=0x1, rax=0x11"),
        ("id=5", "id=0", "the probe vcpu_created showed idx=0x0, id=0x0"),
        ("hvm_config:", "other:", "the probe hvm_config showed nothing"),
        ("efer=0x0", "efer=(fault)", "the probe hypercall_enter showed idx=0x0, efer=None"),
        ("kvm=0xffff8880063fa000 idx=0 efer", "kvm=0x1 idx=0 efer", "as 2 VMs"),
    ],
)
def test_the_trial_tells_what_is_wrong(shown: str, instead: str, verdict: str) -> None:
    """Probes that show anything else don't pass, and it is said which, and what."""
    lines = [parse_line(line.replace(shown, instead), "sample", 0) for line in TINY_GUEST]
    seen = [line for line in lines if line is not None and line.pid == 93 and "kvm=" in line.fields]
    assert verdict in trial.verdict(seen)


def test_no_line_is_no_proof() -> None:
    """Probes that show nothing don't pass."""
    assert trial.verdict([]) != ""


def test_no_tracefs(tmp_path: Path) -> None:
    """Without tracefs it is said how to mount it."""
    with pytest.raises(RecordError, match=r"no tracefs is mounted at .*mount -t tracefs"):
        find_tracefs(tmp_path)


def test_no_xen_in_the_kernel(kernel: FakeKernel) -> None:
    """Without KVM's folder of events, or without the Xen hypercall's, it is said what to do."""
    instance = Instance(kernel.tracefs, "xenkvm_1_2")
    kernel.create(instance)
    (instance.folder / "events" / HYPERCALL).rmdir()
    with pytest.raises(RecordError, match="built without CONFIG_KVM_XEN"):
        check_events(instance)
    kernel.remove(instance)
    with pytest.raises(RecordError, match="modprobe kvm_amd"):
        check_events(instance)


def test_a_kernel_without_kprobes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has no file for kprobe events defines none, and has none."""
    kernel = pretend(tmp_path / "tracing", monkeypatch)
    for name in ("kprobe_events", "dynamic_events"):
        (kernel.root / name).unlink()
    assert not kernel.tracefs.has_kprobes
    assert kernel.tracefs.probes("mine") == []


def test_a_stream_holds_little(tmp_path: Path) -> None:
    """A line without end takes no more memory than a line may; the next one is read as ever."""
    pipe, writer = os.pipe()
    os.set_blocking(pipe, False)
    stream = TraceStream(pipe, str(tmp_path))
    for _ in range(20):
        os.write(writer, b"x" * 60_000)
        stream.read()
        assert len(stream._rest) <= 64 << 10
    os.write(writer, f"\nCPU:1 [LOST EVENTS]\n{TINY_GUEST[0]}\n".encode())
    stream.read()
    lost, line = stream.ordered(all_of_them=True)
    assert lost == Lost(1)
    assert isinstance(line, TraceLine)
    assert line.event == "vm_created"
    os.close(pipe)
    os.close(writer)
