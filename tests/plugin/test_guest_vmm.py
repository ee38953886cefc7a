"""The VMM under a guest program: its timers, eventfds, guest memory, coroutines."""

from __future__ import annotations

from collections.abc import Callable

import pytest_xenkvm.plugin.guest  # noqa: F401 - stays loaded, or each run in this process would load it anew


def test_the_vmms_own_timers_fire_while_a_program_runs(passes: Callable[..., None]) -> None:
    """on_timer is called when the clock gets there, whether the guest is busy or asleep, and may wake it."""
    passes(
        """
class Ticking(Answering):
    def configure(self, vm):
        super().configure(vm)
        vm.set_shared_info(2)
        vm.vcpus[0].set_vcpu_info(0x3000)
        vm.vcpus[0].set_upcall_vector(0xF3)
        self.fired = []
    def on_hypercall(self, vcpu, xen_exit):
        vcpu.start_vmm_timer(vcpu.vm.get_clock() + 5_000_000)
        return 0
    def on_timer(self, vcpu, expires_ns):
        self.fired.append(vcpu.vm.get_clock() - expires_ns)
        vcpu.vm.evtchn_send(7, vcpu.id)

ASLEEP = bytes.fromhex("b863000000 0f01d9 fb f4")  # mov eax, 99; vmmcall; sti; hlt
BUSY = bytes.fromhex("b863000000 0f01d9 803c250030000000 74f6 f4")  # ... cmp byte ptr [0x3000], 0; jz; hlt

@pytest.mark.parametrize("code, ended", [(ASLEEP, Ended.UNHANDLED), (BUSY, Ended.HALTED)])
def test_own(xenkvm_guest, code, ended):
    guest = xenkvm_guest(vmm=Ticking())
    guest.load(code)
    assert guest.run(limit=100_000_000) is ended
    assert guest.unhandled == (0xF3 if code is ASLEEP else None)
    assert guest.vmm.fired == [0]
    assert guest.vm.get_clock() >= 5_000_000
""",
        passed=2,
    )


def test_a_vmm_cant_keep_a_sleeping_guest_for_ever(passes: Callable[..., None]) -> None:
    """Timers that expire again and again without waking the guest are an error, not a hang."""
    passes(
        """
from pytest_xenkvm.replay import vmm_side
from pytest_xenkvm.replay.errors import ReplayError

class Ticking(Answering):
    def configure(self, vm):
        vm.vcpus[0].start_vmm_timer(10)
    def on_timer(self, vcpu, expires_ns):
        vcpu.start_vmm_timer(expires_ns + 10)

def test_own(xenkvm_guest, monkeypatch):
    monkeypatch.setattr(vmm_side, "MAX_FIRINGS", 500)
    guest = xenkvm_guest(vmm=Ticking())
    guest.load(bytes.fromhex("fb f4"))  # sti; hlt
    with pytest.raises(ReplayError, match="expired 500 times while the guest did nothing"):
        guest.run()
"""
    )


def test_the_vmm_hears_of_eventfds_and_sees_memory(passes: Callable[..., None]) -> None:
    """What the guest signals is handed over; what hypercalls point at is read by the guest's page tables."""
    passes(
        """
class Looking(Answering):
    def configure(self, vm):
        super().configure(vm)
        self.fd, self.signals = vm.open_eventfd(), []
        vm.assign_eventfd(5, self.fd)
    def on_event_channel(self, vm, fd, count):
        self.signals.append((fd, count))
    def on_hypercall(self, vcpu, xen_exit):
        assert vcpu.read_virtual(xen_exit.params[1], 4) == bytes([5, 0, 0, 0])
        assert vcpu.read_virtual(1 << 40, 4) is None
        assert vcpu.write_virtual(xen_exit.params[1], b"new")
        assert not vcpu.write_virtual(1 << 40, b"new")
        assert vcpu.vm.vcpus[1].read_virtual(xen_exit.params[1], 4) == b"new" + bytes(1)
        return 1

def test_own(xenkvm_guest):
    guest = xenkvm_guest(vmm=Looking(), vcpus=2)
    # mov edi, 4; mov esi, 0x2fff; mov eax, 32; vmmcall; mov eax, 99; vmmcall; hlt
    guest.load(bytes.fromhex("bf04000000 beff2f0000 b820000000 0f01d9 b863000000 0f01d9 f4"))
    guest.write_memory(0x2FFF, bytes([5, 0, 0, 0]))
    assert guest.run() is Ended.HALTED
    assert guest.vmm.signals == [(guest.vmm.fd, 1)]
    send, other = guest.calls
    assert [(call.handled, call.rax) for call in guest.calls] == [("kernel", 0), ("userspace", 1)]
    assert [item.data for item in other.behind] == [bytes([5, 0, 0, 0])]
    assert guest.read_memory(0x2FFF, 3) == b"new"
"""
    )


def test_a_vmm_may_be_asynchronous_and_is_closed(passes: Callable[..., None]) -> None:
    """Coroutines are run to their end; close is called when the test is over; None is no answer."""
    passes(
        """
from pytest_xenkvm.replay.errors import ReplayError

class Async:
    closed = []
    async def configure(self, vm):
        vm.xen_hvm_config()
    async def on_hypercall(self, vcpu, xen_exit):
        return None if self.closed else 7
    async def close(self):
        self.closed.append(self)

def test_own(xenkvm_guest):
    guest = xenkvm_guest(vmm=Async())
    guest.load(CALL)
    assert guest.run() is Ended.HALTED
    assert guest.registers.rax == 7
    assert not Async.closed

def test_closed(xenkvm_guest):
    assert len(Async.closed) == 1
    guest = xenkvm_guest(vmm=Async())
    guest.load(CALL)
    with pytest.raises(ReplayError, match="left hypercall 99 without an answer"):
        guest.run()
""",
        passed=2,
    )
