"""What a VMM sees and does besides timers: eventfds, guest memory, no answer, migration."""

from __future__ import annotations

import pytest
from attrs import evolve
from scripted_vmm import EVTCHN_OP, HEADER, HOSTS, MEMORY_OP, SEND, Scripted, call, replay

from pytest_xenkvm.abi.ioctls import KVM_CHECK_EXTENSION, KVM_XEN_HVM_CONFIG
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.trace.events import (
    Behind,
    Hypercall,
    Ioctl,
    Mem,
    VcpuRun,
)
from pytest_xenkvm.vmm import KvmError, UnseenMemory, Vcpu, Vm, Vmm, XenExit


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
    """A call that the behaviour couldn't see enough of was forwarded; only its answer isn't judged."""

    def on_hypercall(vcpu: Vcpu, xen_exit: XenExit) -> int:
        vcpu.read_virtual(xen_exit.params[0], 4)
        return 0

    header = evolve(HEADER, unseen=("mem",))
    event = call(MEMORY_OP, 0x1234)
    behaviour = Scripted(on_hypercall=on_hypercall)
    (observation, _second) = (
        seen for seen in replay([event, event], behaviour, header=header) if not seen.by_vmm
    )
    assert isinstance(observation.event, Hypercall)
    assert (observation.event.handled, observation.unjudged) == ("userspace", ("rax",))
    assert len(behaviour.called) == 2


def test_ioctls_that_no_trace_can_hold() -> None:
    """Arguments that are no structure of their ioctl are the VMM's own business: nothing is observed."""

    def configure(vm: Vm) -> None:
        for request, size in ((KVM_CHECK_EXTENSION, 4), (KVM_XEN_HVM_CONFIG, 3)):
            with pytest.raises(KvmError):
                vm.ioctl(request, bytearray(size))

    assert replay([call()], Scripted(configure=configure)) == replay([call()], Scripted())


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
