"""What concerns a VMM besides hypercalls: its own timers, eventfds, guest memory, migration, coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import pytest
from attrs import evolve

from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.replay import vmm_side
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Header,
    Hypercall,
    Ioctl,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
)
from pytest_xenkvm.vmm import KvmError, UnseenMemory, Vcpu, Vm, Vmm, VmmBehaviour, XenExit

HEADER: Final = Header(
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=0x10_0000),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=2)),
    ),
)
MODEL: Final = EmulatedHost(profile=LINUX_7_3)
HOSTS: Final = [MODEL, UnicornHost(profile=LINUX_7_3)]
MEMORY_OP: Final = 12
EVTCHN_OP: Final = 32
SEND: Final = 4


class Scripted(Vmm):
    """A VMM whose methods are a test's functions, and which notes what was called."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.methods = methods
        self.called: list[tuple[object, ...]] = []

    def configure(self, vm: Vm) -> None:
        """Intercept, and what the test wants."""
        self.vm = vm
        vm.xen_hvm_config()
        self._do("configure", vm)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> Any:
        """As the test says; 0 if it says nothing."""
        self.called.append(("hypercall", vcpu.vm.get_clock()))
        return self._do("on_hypercall", vcpu, xen_exit) if "on_hypercall" in self.methods else 0

    def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Note vCPU, expiry and clock."""
        self.called.append(("timer", vcpu.index, expires_ns, vcpu.vm.get_clock()))
        self._do("on_timer", vcpu, expires_ns)

    def on_event_channel(self, vm: Vm, fd: int, count: int) -> None:
        """Note eventfd and count."""
        self.called.append(("event channel", fd, count))
        self._do("on_event_channel", vm, fd, count)

    def _do(self, name: str, *args: object) -> Any:
        return self.methods[name](*args) if name in self.methods else None


def replay(
    events: Sequence[Event], behaviour: VmmBehaviour, host: Host = MODEL, header: Header = HEADER
) -> list[Observation]:
    """All observations."""
    return list(vmm_replay(host, header, lambda: events, behaviour))


def call(nr: int = MEMORY_OP, *args: int, **rest: Any) -> Hypercall:
    """A hypercall of vCPU 0, recorded as forwarded and answered with 77."""
    return evolve(
        Hypercall(
            vcpu=0,
            longmode=True,
            cpl=0,
            nr=nr,
            args=(*args, *(0,) * (6 - len(args))),
            handled="userspace",
            rax=77,
        ),
        **rest,
    )


def by_vmm(observations: Iterable[Observation]) -> list[tuple[Place, str]]:
    """Place and name of the VMM's ioctls, as they came, without the configuration."""
    return [
        (observation.place, observation.event.name)
        for observation in observations
        if observation.by_vmm and isinstance(observation.event, Ioctl) and observation.place.index >= 0
    ]


def start_in_configure(*timers: tuple[int, int]) -> Callable[[Vm], None]:
    """Starts timers: vCPU and expiry."""

    def configure(vm: Vm) -> None:
        for vcpu, expires_ns in timers:
            vm.vcpus[vcpu].start_vmm_timer(expires_ns)

    return configure


def test_timers_fire_in_order_between_events() -> None:
    """VMM timers expire at their own time, in the order of time, before the event that comes later."""
    vmm = Scripted(configure=start_in_configure((0, 700), (1, 300)))
    replay([call(ts=100), call(ts=500), call(ts=1000), call(ts=1001)], vmm)
    assert vmm.called == [
        ("hypercall", 0),
        ("hypercall", 100),
        ("timer", 1, 300, 300),
        ("hypercall", 500),
        ("timer", 0, 700, 700),
        ("hypercall", 1000),
    ]


def test_a_kernel_timer_at_the_same_time_comes_first() -> None:
    """When a VMM timer expires, the kernel's timers up to that time have fired and later ones have not."""
    seen: list[int] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        for vcpu, expires_ns in zip(vm.vcpus, (400, 401), strict=True):
            vcpu.set_timer(7, expires_ns=expires_ns)
        vm.vcpus[0].start_vmm_timer(400)

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        seen.extend(other.get_timer().expires_ns for other in vcpu.vm.vcpus)

    replay([Wait(ns=500)], Scripted(configure=configure, on_timer=on_timer))
    assert seen == [0, 401]


def test_a_timer_in_the_past_fires_at_once() -> None:
    """It expires when on_hypercall has returned, before the guest goes on, and its ioctls come first."""
    made: list[str] = []

    def on_hypercall(vcpu: Vcpu, _exit: XenExit) -> int:
        vcpu.start_vmm_timer(0)
        made.append("returned")
        return 0

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        made.append("fired")
        vcpu.vm.evtchn_send(3, vcpu.id)

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[0].set_vcpu_info(0x2000)

    vmm = Scripted(configure=configure, on_hypercall=on_hypercall, on_timer=on_timer)
    observations = replay([call(ts=50)], vmm)
    assert made == ["returned", "fired"]
    at_the_call = [seen for seen in observations if seen.place == Place(0)]
    assert [seen.by_vmm for seen in at_the_call] == [True, False]
    assert by_vmm(at_the_call) == [(Place(0), "KVM_XEN_HVM_EVTCHN_SEND")]
    assert vmm.vm.read_memory(0x2000, 1) == b"\1"


def test_one_timer_a_vcpu() -> None:
    """Starting takes the place of the timer that runs, and stopping stops it; both may be done any time."""
    vmm = Scripted(configure=start_in_configure((0, 10), (0, 20), (1, 30)))
    vmm.methods["on_timer"] = lambda vcpu, _expires_ns: vcpu.vm.vcpus[1].stop_vmm_timer()
    replay([Wait(ns=100)], vmm)
    assert vmm.called == [("timer", 0, 20, 20)]
    vmm.vm.vcpus[0].stop_vmm_timer()


def test_a_timer_may_be_started_again_when_it_expires() -> None:
    """A periodic timer expires as often as it fits into the time that passes."""
    vmm = Scripted(configure=start_in_configure((0, 100)))
    vmm.methods["on_timer"] = lambda vcpu, expires_ns: vcpu.start_vmm_timer(expires_ns + 100)
    replay([Wait(ns=450, ts=450)], vmm)
    assert [when for _, _, _, when in vmm.called] == [100, 200, 300, 400]


def test_the_guest_takes_the_interrupts_of_a_timer() -> None:
    """What on_timer injects between two events is taken before the guest does anything else."""
    left: list[int | None] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[1].set_vcpu_info(0x2000)
        vm.vcpus[1].set_upcall_vector(0xF3)
        vm.vcpus[0].start_vmm_timer(10)

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        vcpu.vm.evtchn_send(3, vcpu.vm.vcpus[1].id)

    def on_hypercall(vcpu: Vcpu, _exit: XenExit) -> int:
        left.append(vcpu._files.host.take_interrupt(1))
        return 0

    events = [call(ts=20), call(ts=30), call(ts=40)]
    vmm = Scripted(configure=configure, on_timer=on_timer, on_hypercall=on_hypercall)
    replay(events, vmm)
    assert left == [None, None, None]
    assert vmm.vm.read_memory(0x2000, 1) == b"\1"


def test_endless_timers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that is started in the past each time it expires ends the replay, as does one too near."""
    vmm = Scripted(configure=start_in_configure((0, 0)), on_timer=lambda vcpu, _: vcpu.start_vmm_timer(0))
    with pytest.raises(ReplayError, match="expired 10,000 times at 0 ns of the VM's clock: on_timer must"):
        replay([], vmm)
    monkeypatch.setattr(vmm_side, "MAX_FIRINGS", 100)
    vmm = Scripted(configure=start_in_configure((0, 1)))
    vmm.methods["on_timer"] = lambda vcpu, expires_ns: vcpu.start_vmm_timer(expires_ns + 1)
    replay([Wait(ns=100, ts=100), Wait(ns=100, ts=200)], vmm)
    with pytest.raises(ReplayError, match="expired 100 times while the guest did nothing"):
        replay([Wait(ns=101, ts=101)], vmm)


def test_a_timer_needs_on_timer() -> None:
    """A behaviour that starts a timer but can't be told is told so."""

    class Deaf(Vmm):
        def configure(self, vm: Vm) -> None:
            vm.vcpus[0].start_vmm_timer(5)

    with pytest.raises(ReplayError, match="behaviour Deaf started a VMM timer but has no on_timer"):
        replay([Wait(ns=5)], Deaf())


def test_an_expiry_must_be_an_int() -> None:
    """A timer can't be started for a fraction of a nanosecond."""
    with pytest.raises(TypeError, match=r"expires_ns is 1\.5, expected the VM's clock in ns"):
        replay([], Scripted(configure=lambda vm: vm.vcpus[0].start_vmm_timer(1.5)))


def test_eventfds_of_outbound_ports_are_handed_over() -> None:
    """What the guest signals is drained and handed over after its hypercall, and no other eventfd is."""
    fds: list[int] = []

    def configure(vm: Vm) -> None:
        fds.extend(vm.open_eventfd() for _ in range(3))
        vm.assign_eventfd(5, fds[1])
        vm.assign_eventfd(6, fds[2])
        vm.deassign(6)
        vm.write_eventfd(fds[0], 1)
        vm.write_eventfd(fds[2], 1)

    def on_event_channel(vm: Vm, fd: int, count: int) -> None:
        del fd, count
        vm.get_attr(HvmAttr.LONG_MODE)

    vmm = Scripted(configure=configure, on_event_channel=on_event_channel)
    send = call(EVTCHN_OP, SEND, 0x2000)
    observations = replay([Mem(op="write", gpa=0x2000, data=b"\5\0\0\0"), VcpuRun(vcpu=0), send, send], vmm)
    assert vmm.called == [("event channel", fds[1], 1)] * 2
    assert [vmm.vm.read_eventfd(fd) for fd in fds] == [1, 0, 1]
    at_the_first = [seen for seen in observations if seen.place == Place(2)]
    assert [seen.by_vmm for seen in at_the_first] == [False, True]


def test_eventfds_are_the_vmms_unless_it_wants_to_be_told() -> None:
    """Without an on_event_channel of its own, a behaviour reads its eventfds itself."""

    class Reads(Vmm):
        def configure(self, vm: Vm) -> None:
            self.vm, self.fd = vm, vm.open_eventfd()
            vm.xen_hvm_config()
            vm.assign_eventfd(5, self.fd)

    vmm = Reads()
    replay([Mem(op="write", gpa=0x2000, data=b"\5\0\0\0"), call(EVTCHN_OP, SEND, 0x2000)], vmm)
    assert vmm.vm.read_eventfd(vmm.fd) == 1


def test_a_reset_drops_eventfds() -> None:
    """Ports that are reset signal nothing any more."""
    vmm = Scripted()
    replay([], vmm)
    vmm.vm.assign_eventfd(5, vmm.vm.open_eventfd())
    assert len(vmm.vm.outbound_eventfds) == 1
    vmm.vm.assign_ipi(6, 0)
    vmm.vm.reset_evtchn()
    assert vmm.vm.outbound_eventfds == frozenset()


@pytest.mark.parametrize("host", HOSTS, ids=["model", "unicorn"])
def test_guest_memory_behind_a_call(host: Host) -> None:
    """A behaviour reads and writes what an argument points at, where the recorder's guest has it."""
    read: list[bytes | None] = []

    def on_hypercall(vcpu: Vcpu, xen_exit: XenExit) -> int:
        pointer = xen_exit.params[1]
        read.append(vcpu.read_virtual(pointer + 1, 2))
        assert vcpu.write_virtual(pointer, b"new")
        read.append(vcpu.read_virtual(pointer, 4))
        read.append(vcpu.read_virtual(0x10_0000 - 1, 2))
        assert not vcpu.write_virtual(0x10_0000 - 1, b"\1\1")
        return 0

    vmm = Scripted(on_hypercall=on_hypercall)
    replay([Mem(op="write", gpa=0x2FFE, data=b"old!"), call(MEMORY_OP, 0, 0x2FFE)], vmm, host)
    assert read == [b"ld", b"new!", None]
    assert vmm.vm.read_memory(0x2FFE, 4) == b"new!"
    assert vmm.vm.read_memory(0x10_0000 - 1, 1) == b"\0"


@pytest.mark.parametrize("host", HOSTS, ids=["model", "unicorn"])
@pytest.mark.parametrize("longmode", [True, False], ids=["64", "32"])
def test_memory_that_the_recording_shows(host: Host, *, longmode: bool) -> None:
    """Of a real guest, the bytes that were recorded can be read, written and read again."""
    read: list[bytes | None] = []

    def on_hypercall(vcpu: Vcpu, _exit: XenExit) -> int:
        read.append(vcpu.read_virtual(0xFFF2, 2))
        assert vcpu.write_virtual(0xFFF2, b"CDEFGH")
        assert vcpu.write_virtual(0x8000, b"lost")
        read.append(vcpu.read_virtual(0xFFF0, 4))
        for address, size in ((0xFFF2, 3), (0x8000, 4)):
            with pytest.raises(UnseenMemory, match=rf"doesn't show {size} bytes at guest virtual 0x"):
                vcpu.read_virtual(address, size)
        return 5

    behind = (Behind(arg=1, data=b"abcd"),)
    arg = 0xFFF0 if longmode else 0xF_0000_FFF0
    event = call(MEMORY_OP, 0, arg, longmode=longmode, behind=behind)
    header = evolve(HEADER, unseen=("mem",))
    observation = next(
        seen for seen in replay([event], Scripted(on_hypercall=on_hypercall), host, header) if not seen.by_vmm
    )
    assert read == [b"cd", b"abCD"]
    assert observation.answer == 5


def test_unseen_memory_may_pass() -> None:
    """A call that the behaviour couldn't see enough of isn't judged; the guest goes on as recorded."""

    def on_hypercall(vcpu: Vcpu, xen_exit: XenExit) -> int:
        vcpu.read_virtual(xen_exit.params[0], 4)
        return 0

    header = evolve(HEADER, unseen=("mem",))
    event = call(MEMORY_OP, 0x1234)
    behaviour = Scripted(on_hypercall=on_hypercall)
    (observation, _second) = (
        seen for seen in replay([event, event], behaviour, header=header) if not seen.by_vmm
    )
    assert (observation.event, observation.unjudged, observation.answer) == (event, ("unseen memory",), None)
    assert len(behaviour.called) == 2


def test_virtual_memory_needs_a_call() -> None:
    """While no hypercall waits, a replay doesn't know what a vCPU has mapped."""
    vmm = Scripted()
    replay([call()], vmm)
    with pytest.raises(UnseenMemory, match="vCPU 0 waits for no answer"):
        vmm.vm.vcpus[0].read_virtual(0x1000, 1)
    assert vmm.vm.vcpus[0].write_virtual(0x1000, b"lost")
    assert vmm.vm.read_memory(0x1000, 4) == bytes(4)


def test_no_answer_at_all() -> None:
    """A hypercall that on_hypercall returns None for is observed as unanswered, and the guest finds 0."""
    vmm = Scripted(on_hypercall=lambda *_: None)
    (observation,) = (seen for seen in replay([call()], vmm) if not seen.by_vmm)
    assert isinstance(observation.event, Hypercall)
    assert (observation.unanswered, observation.answer, observation.event.rax) == (True, None, 0)
    (answered,) = (seen for seen in replay([call()], Scripted()) if not seen.by_vmm)
    assert (answered.unanswered, answered.answer) == (False, 0)


def test_the_behaviour_migrates() -> None:
    """When all is over, on_migrate moves the VM; what it does to the fresh one is observed there."""

    def configure(vm: Vm) -> None:
        vm.vcpus[1].set_vcpu_id(9)

    observations = replay([call(), call()], Scripted(configure=configure))
    after = [seen for seen in observations if seen.place.after]
    assert {seen.place for seen in after} == {Place(1, after=True)}
    assert all(seen.by_vmm for seen in after)
    ids = [
        (seen.event.vcpu, seen.event.arg["vcpu_id"])
        for seen in after
        if isinstance(seen.event, Ioctl)
        if seen.event.arg["type"] == VcpuAttr.VCPU_ID and seen.event.vcpu is not None
    ]
    assert ids == [(1, 9)]
    assert {seen.event.name for seen in after if isinstance(seen.event, Ioctl)} == {
        "KVM_XEN_HVM_SET_ATTR",
        "KVM_XEN_VCPU_SET_ATTR",
    }


def test_a_migration_of_ones_own() -> None:
    """on_migrate gets the replay's VM and a fresh one of the same shape; without it nothing is migrated."""

    class Plain:
        """Has the two methods only."""

        def configure(self, vm: Vm) -> None:
            vm.vcpus[0].set_vcpu_id(3)

        def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
            raise NotImplementedError

    class Migrates(Plain):
        """Reads and writes."""

        def on_migrate(self, source: Vm, target: Vm) -> None:
            assert [vcpu.id for vcpu in target.vcpus] == [0, 2]
            assert source.vcpus[0].get_vcpu_id() == 3
            with pytest.raises(KvmError):
                target.vcpus[0].set_vcpu_id(1 << 20)

    assert len(replay([], Plain())) == 1
    (observation,) = (seen for seen in replay([], Migrates()) if seen.place.after)
    assert isinstance(observation.event, Ioctl)
    assert observation.event.ret == -22


class Coroutines:
    """A VMM all of whose methods are coroutines, and which keeps a task running."""

    name = "all async"

    def __init__(self) -> None:
        self.called: list[str] = []
        self.loops: set[object] = set()

    async def _note(self, what: str) -> None:
        await asyncio.sleep(0)
        self.called.append(what)
        self.loops.add(asyncio.get_running_loop())

    async def configure(self, vm: Vm) -> None:
        """Start a timer and a task."""
        vm.xen_hvm_config()
        vm.vcpus[0].start_vmm_timer(0)
        fd = vm.open_eventfd()
        vm.assign_eventfd(5, fd)
        vm.write_eventfd(fd, 3)
        self.task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        await self._note("configure")

    async def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Answer with the vCPU and the number."""
        await self._note("on_hypercall")
        return vcpu.index * 100 + xen_exit.input

    async def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Note it."""
        del vcpu, expires_ns
        await self._note("on_timer")

    async def on_event_channel(self, vm: Vm, fd: int, count: int) -> None:
        """Note the count."""
        del vm, fd
        await self._note(f"on_event_channel {count}")

    async def on_migrate(self, source: Vm, target: Vm) -> None:
        """Note it."""
        del source, target
        await self._note("on_migrate")

    async def close(self) -> None:
        """Note it."""
        await self._note("close")


ALL_CALLS: Final = ["configure", "on_timer", "on_hypercall", "on_event_channel 3", "on_migrate", "close"]


def test_methods_may_be_coroutines() -> None:
    """Each is run to its end before the replay goes on, all in one event loop, which ends with the replay."""
    vmm = Coroutines()
    (observation,) = (seen for seen in replay([call(vcpu=1)], vmm) if not seen.by_vmm)
    assert observation.answer == 112
    assert vmm.called == ALL_CALLS
    assert len(vmm.loops) == 1
    assert vmm.task.cancelled()


def test_a_coroutine_may_replay() -> None:
    """An asynchronous behaviour is no trouble where an event loop runs already."""

    async def main() -> list[str]:
        vmm = Coroutines()
        replay([call()], vmm)
        return vmm.called

    assert asyncio.run(main()) == ALL_CALLS


def test_a_behaviour_is_closed_when_the_replay_fails() -> None:
    """Close is called once, whether the replay comes to its end or not."""
    closed: list[str] = []

    class Closes(Scripted):
        def close(self) -> None:
            closed.append("closed")

    replay([], Closes())
    with pytest.raises(ZeroDivisionError):
        replay([call()], Closes(on_hypercall=lambda *_: 1 // 0))
    unfinished = vmm_replay(MODEL, HEADER, lambda: [call()], Closes())
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    assert closed == ["closed"] * 3
