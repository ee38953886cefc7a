"""An adapter's process: started for each replay, ended with it, and never left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from adapter_kit import PATIENCE_S, PRELUDE, is_there, make_vm, pid_of, scripted, xen_exit

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.events import Event, Header, Hypercall, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm.adapter import AdapterError

HEADER: Final = Header(
    max_vcpus=1024,
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=0x1000),),
        vcpus=(VcpuShape(index=0, id=0),),
    ),
)
CALL: Final = Hypercall(
    vcpu=0, longmode=True, cpl=0, nr=99, args=(0, 0, 0, 0, 0, 0), handled="userspace", rax=0
)
LATE: Final = "did not exit within 0.4 s after shutdown; killed"
INTERCEPT: Final = """
ask("ioctl", name="KVM_XEN_HVM_CONFIG", arg={"flags": 34, "msr": 0x40000000, "blob_addr_32": 0,
    "blob_addr_64": 0, "blob_size_32": 0, "blob_size_64": 0})
put("done")
"""
POLITE: Final = (
    "hello(name='polite'); get()"
    + INTERCEPT
    + "get(); put('answer', rax=5)\nassert get()['type'] == 'shutdown'"
)


def replay(vmm: object, *events: Event) -> list[object]:
    """What is observed of the guest's calls: their answers."""
    observations = vmm_replay(EmulatedHost(profile=LINUX_7_3), HEADER, lambda: events, vmm)  # type: ignore[arg-type]
    return [observation.answer for observation in observations if not observation.by_vmm]


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process that is about to end does."""
    deadline = time.monotonic() + within_s
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_there(pid)


def test_a_process_for_each_replay(tmp_path: Path) -> None:
    """A replay starts the process and ends it; the next one starts another."""
    vmm = scripted(tmp_path, POLITE + f"\nopen({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')")
    assert vmm.name.endswith("adapter.py")
    assert replay(vmm, CALL) == [5]
    assert replay(vmm, CALL) == [5]
    assert vmm.name == "polite"
    pids = (tmp_path / "pids").read_text().split()
    assert len({*pids}) == 2
    assert not any(is_there(int(pid)) for pid in pids)


def test_no_answer_is_an_observation(tmp_path: Path) -> None:
    """`null` leaves the guest without an answer."""
    vmm = scripted(tmp_path, POLITE.replace("rax=5", "rax=None"))
    observations = list(vmm_replay(EmulatedHost(profile=LINUX_7_3), HEADER, lambda: [CALL], vmm))
    assert [observation.unanswered for observation in observations if not observation.by_vmm] == [True]


def test_a_failed_replay_leaves_nothing(tmp_path: Path) -> None:
    """An adapter is ended when the replay fails for another reason."""
    vmm = scripted(tmp_path, "configured(name=str(os.getpid())); get()")

    def events() -> list[Event]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(vmm_replay(EmulatedHost(profile=LINUX_7_3), HEADER, events, vmm))
    assert not is_there(int(vmm.name))


def test_an_interrupted_message_is_given_up(tmp_path: Path) -> None:
    """Whoever stops waiting for an answer kills the adapter with `close`, without a word."""
    vmm = scripted(tmp_path, "called(); ask('get_clock'); time.sleep(999)")
    vmm.configure(make_vm())
    vmm._desk.machines["source"].vm = None  # type: ignore[assignment]
    pid = pid_of(vmm)
    with pytest.raises(AttributeError):
        vmm.on_hypercall(make_vm().vcpus[0], xen_exit())
    vmm.close()
    assert not is_there(pid)


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("get(); sys.exit(3)", "exited with status 3 after its last answer"),
        ("get(); os.kill(os.getpid(), 6)", "was killed by SIGABRT after its last answer"),
        ("os.close(1); time.sleep(999)", LATE),
        ("signal.signal(15, signal.SIG_IGN); time.sleep(999)", LATE),
        ("get(); write('more'); time.sleep(999)", "wrote out of turn, when no answer was due: 'more'"),
        (
            "get(); sys.stderr.write('leaked'); sys.exit(1)",
            "exited with status 1 after its last answer\nThe adapter's stderr ended with:\nleaked",
        ),
    ],
)
def test_an_adapter_that_does_not_go_in_peace(tmp_path: Path, end: str, sentence: str) -> None:
    """What it does after its last answer is told, too."""
    vmm = scripted(tmp_path, f"configured(); {end}")
    vmm.configure(make_vm())
    assert vmm._conversation is not None
    vmm._conversation._timeout_s = 0.4 if sentence == LATE else PATIENCE_S
    pid = pid_of(vmm)
    with pytest.raises(AdapterError) as caught:
        vmm.close()
    assert str(caught.value).endswith(f"adapter.py: {sentence}")
    assert not is_there(pid)
    vmm.close()


@pytest.mark.parametrize("end", ["sys.exit(0)", "get()", "sys.stdin.read()", "os.close(1); get()"])
def test_an_adapter_that_goes_in_peace(tmp_path: Path, end: str) -> None:
    """It may end as it likes, with status 0."""
    vmm = scripted(tmp_path, f"configured(); {end}")
    vmm.configure(make_vm())
    pid = pid_of(vmm)
    vmm.close()
    assert not is_there(pid)


def test_what_it_started_is_killed(tmp_path: Path) -> None:
    """Children of an adapter don't outlive it, though it goes in peace."""
    vmm = scripted(
        tmp_path, "child = subprocess.Popen(['sleep', '999']); configured(name=str(child.pid)); get()"
    )
    vmm.configure(make_vm())
    assert is_there(int(vmm.name))
    vmm.close()
    assert gone(int(vmm.name))


def test_a_forgotten_adapter_is_killed(tmp_path: Path) -> None:
    """Its process goes with the object."""
    vmm = scripted(tmp_path, "configured(); time.sleep(999)")
    vmm.configure(make_vm())
    pid = pid_of(vmm)
    assert is_there(pid)
    del vmm
    gc.collect()
    assert not is_there(pid)


@pytest.mark.parametrize("end", ["", "raise SystemExit(7)", "1 / 0"])
def test_the_end_of_the_harness_is_the_adapters(tmp_path: Path, end: str) -> None:
    """When Python exits, however, so does the adapter."""
    (tmp_path / "adapter.py").write_text(
        PRELUDE + "configured(); signal.signal(1, signal.SIG_IGN); time.sleep(999)"
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from adapter_kit import make_vm, pid_of\n"
        "from pytest_xenkvm.vmm.adapter import AdapterVmm\n"
        "vmm = AdapterVmm([sys.executable, '-I', '-S', sys.argv[2]])\n"
        f"vmm.configure(make_vm())\nprint(pid_of(vmm), flush=True)\n{end}"
    )
    arguments = [str(Path(__file__).parent), str(tmp_path / "adapter.py")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert gone(int(done.stdout)), done.stderr


def test_a_fork_leaves_the_adapter_alone(tmp_path: Path) -> None:
    """A forked child of the harness that drops the object doesn't kill its parent's adapter."""
    vmm = scripted(tmp_path, "called(); put('answer', rax=7); get()")
    vmm.configure(make_vm())
    assert vmm._conversation is not None
    process = vmm._conversation.process
    process._owner += 1  # as if this were the child
    process.abandon()
    assert vmm.on_hypercall(make_vm().vcpus[0], xen_exit()) == 7
    vmm.close()


def test_an_eventfd_is_left_to_an_adapter_that_reads_it(tmp_path: Path) -> None:
    """Without the capability, nobody drains eventfds but the adapter itself."""
    vmm = scripted(tmp_path, "configured(); get()")
    vmm.configure(make_vm())
    assert not hasattr(vmm, "on_event_channel")
    vmm.close()
    able = scripted(tmp_path, "configured(capabilities=['event_channel']); get()")
    able.configure(make_vm())
    assert hasattr(able, "on_event_channel")
    able.close()


def test_much_on_stderr_holds_up_nobody(tmp_path: Path) -> None:
    """An adapter that writes more to stderr than a pipe holds gets to answer, and to read what is long."""
    body = """
called()
put('read_memory', gpa=0, size=65536)
sys.stderr.write('noise' * 100_000)
get()
assert len(ask('read_memory', gpa=0, size=65536)['data']) == 2 * 65536
put('answer', rax=1)
get()
"""
    vmm = scripted(tmp_path, body)
    vmm.configure(make_vm())
    assert vmm.on_hypercall(make_vm().vcpus[0], xen_exit()) == 1
    vmm.close()
