"""VMM replay: the trace's guest meets a VMM under test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from errno import EINVAL, ENOSYS
from typing import Any, Final

import pytest
from attrs import evolve

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    Irq,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
    Wrmsr,
)
from pytest_xenkvm.vmm import KvmError, TimerSetting, Vcpu, Vm, Vmm, VmmBehaviour, XenExit

HEADER: Final = Header(
    max_vcpus=1024,
    vm=VmShape(
        irqchip="full",
        memory=(MemorySlot(gpa=0, size=0x10_0000),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=2)),
    ),
)
MSR: Final = 0x4000_0000
HYPERCALL_PAGE: Final = 0x8000


class Recorder(Vmm):
    """A VMM that intercepts hypercalls and remembers what it was asked."""

    def __init__(
        self,
        answer: Callable[[Vcpu, XenExit], Any] = lambda _vcpu, _exit: 0,
        configure: Callable[[Vm], None] = lambda _vm: None,
    ) -> None:
        self.answer = answer
        self.more = configure
        self.asked: list[tuple[int, XenExit]] = []
        self.vm: Vm | None = None

    def configure(self, vm: Vm) -> None:
        """Intercept, and what the test wants."""
        self.vm = vm
        vm.xen_hvm_config()
        self.more(vm)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Remember and answer."""
        self.asked.append((vcpu.index, xen_exit))
        result: int = self.answer(vcpu, xen_exit)
        return result


def replay(events: Sequence[Event], behaviour: VmmBehaviour, header: Header = HEADER) -> list[Observation]:
    """All observations but those of the migration that ends the replay."""
    observations = vmm_replay(EmulatedHost(profile=LINUX_7_3), header, lambda: events, behaviour)
    return [observation for observation in observations if not observation.place.after]


def of_the_guest(observations: Iterable[Observation]) -> list[Observation]:
    """Without the VMM's ioctls."""
    return [observation for observation in observations if not observation.by_vmm]


def of_the_vmm(observations: Iterable[Observation]) -> list[tuple[int, str]]:
    """Place and name of the VMM's ioctls."""
    return [
        (observation.place.index, observation.event.name)
        for observation in observations
        if observation.by_vmm and isinstance(observation.event, Ioctl)
    ]


def call(nr: int, *args: int, vcpu: int = 0, **rest: Any) -> Hypercall:
    """A hypercall of a 64-bit kernel, recorded as forwarded and answered with 77."""
    return evolve(
        Hypercall(
            vcpu=vcpu,
            longmode=True,
            cpl=0,
            nr=nr,
            args=(*args, *(0,) * (6 - len(args))),
            handled="userspace",
            rax=77,
        ),
        **rest,
    )


MEMORY_OP: Final = 12


def test_configure_is_observed() -> None:
    """What the VMM sets up is observed before the first event, addresses by what they back."""

    def configure(vm: Vm) -> None:
        vm.vcpus[1].set_vcpu_id(1)
        vm.set_shared_info_hva(vm.gpa_to_hva(0x3000) or 0)
        vm.vcpus[1].get_vcpu_id()

    observations = replay([], Recorder(configure=configure))
    assert {observation.place for observation in observations} == {Place(-1)}
    assert all(observation.by_vmm for observation in observations)
    _config, set_id, shared_info, get_id = (observation.event for observation in observations)
    assert set_id == Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=1, arg={"type": 6, "vcpu_id": 1}, ret=0)
    assert shared_info == Ioctl(
        name="KVM_XEN_HVM_SET_ATTR", arg={"type": 6, "shared_info": {"hva": {"gpa": 0x3000}}}, ret=0
    )
    assert get_id == Ioctl(
        name="KVM_XEN_VCPU_GET_ATTR", vcpu=1, arg={"type": 6}, ret=0, out={"type": 6, "vcpu_id": 1}
    )


def test_a_forwarded_call_is_answered() -> None:
    """A hypercall that KVM forwards is the VMM's: it sees the exit, and the guest gets its answer."""
    behaviour = Recorder(lambda vcpu, xen_exit: vcpu.index + xen_exit.params[1])
    (observation,) = of_the_guest(replay([call(MEMORY_OP, 7, 40, vcpu=1)], behaviour))
    assert behaviour.asked == [
        (1, XenExit(type=1, longmode=1, cpl=0, input=MEMORY_OP, params=(7, 40, 0, 0, 0, 0)))
    ]
    event = observation.event
    assert isinstance(event, Hypercall)
    assert (event.handled, event.rax, observation.answer) == ("userspace", 41, 41)
    assert event.exit == HypercallExit(type=1, longmode=1, cpl=0, input=MEMORY_OP, params=(7, 40, 0, 0, 0, 0))
    assert observation.divergences == ()


@pytest.mark.parametrize(("longmode", "rax"), [(True, 2**64 - ENOSYS), (False, 2**32 - ENOSYS)])
def test_an_errno_is_an_answer(*, longmode: bool, rax: int) -> None:
    """A negative errno reaches the guest as wide as its registers are."""
    (observation,) = of_the_guest(replay([call(MEMORY_OP, longmode=longmode)], Recorder(lambda *_: -ENOSYS)))
    assert isinstance(observation.event, Hypercall)
    assert observation.event.rax == rax
    assert observation.answer == 2**64 - ENOSYS


def test_a_call_that_the_kernel_serves() -> None:
    """A hypercall that the VMM's setup keeps in the kernel doesn't reach it, however it was recorded."""
    behaviour = Recorder(configure=lambda vm: vm.set_xen_version(4, 17))
    (observation,) = of_the_guest(replay([call(17, 0)], behaviour))
    assert behaviour.asked == []
    assert isinstance(observation.event, Hypercall)
    assert (observation.event.handled, observation.event.rax) == ("kernel", 0x40011)
    assert observation.answer is None


def test_the_vmms_side_of_the_recording_is_left_out() -> None:
    """Recorded ioctls, eventfds, memory reads and interrupts aren't done again and aren't observed."""
    events = [
        Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 4, "xen_version": 9}, ret=0),
        Eventfd(fd=1),
        EventfdWrite(fd=1, value=1),
        EventfdRead(fd=1, value=1),
        Mem(op="read", gpa=0, data=b"\1"),
        Irq(vcpu=0, vector=0xF3),
        call(17, 0),
    ]
    behaviour = Recorder(lambda *_: 5)
    (observation,) = of_the_guest(replay(events, behaviour))
    assert observation.place == Place(6)
    assert len(behaviour.asked) == 1


def test_the_guests_side_is_done() -> None:
    """Stores, MSR writes, entries and waits happen and are observed at their place."""
    wrmsr = Wrmsr(vcpu=0, longmode=True, msr=MSR, value=HYPERCALL_PAGE, ok=False)
    events = [
        Mem(op="write", gpa=0x2000, data=b"xen"),
        wrmsr,
        VcpuRun(vcpu=1),
        Wait(ns=10),
    ]
    behaviour = Recorder()
    observations = of_the_guest(replay(events, behaviour))
    assert [observation.place.index for observation in observations] == [0, 1, 2, 3]
    assert observations[1].event == evolve(wrmsr, ok=True)
    assert behaviour.vm is not None
    assert behaviour.vm.read_memory(0x2000, 3) == b"xen"
    assert behaviour.vm.read_memory(HYPERCALL_PAGE, 1) == b"\xb8"


def test_ioctls_while_answering() -> None:
    """The ioctls that an answer takes are observed at the call's place, before the call itself."""

    def answer(vcpu: Vcpu, _exit: XenExit) -> int:
        vcpu.set_vcpu_info(0x2000)
        return 0

    observations = replay([VcpuRun(vcpu=0), call(24, 10, 1)], Recorder(answer))
    assert of_the_vmm(observations) == [(-1, "KVM_XEN_HVM_CONFIG"), (1, "KVM_XEN_VCPU_SET_ATTR")]
    assert isinstance(observations[-1].event, Hypercall)


def test_a_refusal_reaches_the_vmm() -> None:
    """A refused ioctl raises KvmError in the VMM and is observed with its errno."""
    refusals = []

    def configure(vm: Vm) -> None:
        try:
            vm.vcpus[0].set_vcpu_id(1 << 20)
        except KvmError as error:
            refusals.append(error.errno)

    observation = replay([], Recorder(configure=configure))[-1]
    assert refusals == [EINVAL]
    assert isinstance(observation.event, Ioctl)
    assert observation.event.ret == -EINVAL


def test_ioctls_that_no_trace_holds() -> None:
    """The VMM may make ioctls that aren't about Xen; they are its own business."""
    observations = replay([], Recorder(configure=lambda vm: vm.set_clock(5)))
    assert of_the_vmm(observations) == [(-1, "KVM_XEN_HVM_CONFIG")]


def test_time_is_the_traces() -> None:
    """The VM's clock follows the events' times, so that the timers that the VMM armed fire."""
    timers: list[TimerSetting] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[0].set_timer(7, expires_ns=1000)

    def answer(vcpu: Vcpu, _exit: XenExit) -> int:
        timers.append(vcpu.get_timer())
        return 0

    events = [call(MEMORY_OP, ts=ts) for ts in (999, 1000, 1001)]
    replay(events, Recorder(answer, configure))
    assert [timer.expires_ns for timer in timers] == [1000, 1000, 0]


def test_interrupts_are_taken() -> None:
    """The guest takes an upcall when it comes: none is left when it makes its next call."""
    left: list[int | None] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[0].set_vcpu_info(0x2000)
        vm.vcpus[0].set_upcall_vector(0xF3)

    def answer(vcpu: Vcpu, _exit: XenExit) -> int:
        assert behaviour.vm is not None
        left.append(behaviour.vm._files.host.take_interrupt(0))
        if len(left) == 1:
            behaviour.vm.evtchn_send(7, vcpu.id)
            assert behaviour.vm.read_memory(0x2000, 1) == b"\1"
        return 0

    behaviour = Recorder(answer, configure)
    replay([call(MEMORY_OP), call(MEMORY_OP)], behaviour)
    assert left == [None, None]


def test_an_unknown_vm_is_made_up() -> None:
    """Without a VM in the header there are as many vCPUs as the events name, with some memory."""
    counts: list[int] = []
    header = Header(scope="hypercalls")
    behaviour = Recorder(configure=lambda vm: counts.append(len(vm.vcpus)))
    replay([call(MEMORY_OP, vcpu=4)], behaviour, header)
    replay([Wait(ns=1)], behaviour, header)
    assert counts == [5, 1]
    assert behaviour.vm is not None
    assert behaviour.vm.read_memory(0x10_0000, 1) == b"\0"


@pytest.mark.parametrize("answer", ["0", 1.0, 1 << 64, -(1 << 63) - 1])
def test_no_answer(answer: object) -> None:
    """An answer that is no int is one sentence about the hypercall."""
    with pytest.raises(ReplayError, match=rf"returned {answer!r} for hypercall 12, expected an int"):
        replay([call(MEMORY_OP)], Recorder(lambda *_: answer))


def test_what_the_vmm_raises() -> None:
    """The VMM's own exceptions pass through as they are."""

    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replay([call(MEMORY_OP)], Recorder(fail))
    with pytest.raises(ZeroDivisionError):
        replay([], Recorder(configure=fail))


def test_memory_that_nobody_saw() -> None:
    """A call that depends on memory that the recording lacks isn't judged; with those bytes it is done."""
    header = evolve(HEADER, unseen=("mem",))
    vmm = Recorder(configure=lambda vm: vm.assign_ipi(7, 0))
    (unseen,) = of_the_guest(replay([call(32, 4, 0x2000)], vmm, header))
    assert unseen.unjudged == ("unseen memory",)
    behind = (Behind(arg=1, data=bytes((9, 0, 0, 0))),)
    (seen,) = of_the_guest(replay([call(32, 4, 0x2000, behind=behind)], vmm, header))
    assert seen.unjudged == ()
    assert vmm.asked[0][1].input == 32


def test_a_plain_vmm_answers_enosys() -> None:
    """The base class configures nothing and implements nothing."""
    vmm = Vmm()
    assert replay([VcpuRun(vcpu=0)], vmm)[0].place == Place(0)
    exit_ = XenExit(type=1, longmode=1, cpl=0, input=1, params=(0, 0, 0, 0, 0, 0))
    seen: list[Vcpu] = []
    replay([], Recorder(configure=lambda vm: seen.extend(vm.vcpus)))
    assert vmm.on_hypercall(seen[0], exit_) == -ENOSYS
