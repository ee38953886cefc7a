"""Behaviours that break one rule each: about event channel ports and the page that their bits are in."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from pytest_xenkvm.abi.numbers import EvtchnFlag, EvtchnStat, HvmAttr
from pytest_xenkvm.abi.xen_numbers import PortStatus
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.vmm.bundled.minimal import FIRST_TIMER_PORT, Minimal
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.state import State
from pytest_xenkvm.vmm.handles import Vcpu, Vm

_NO_PORT: Final = 4096
_NO_VCPU: Final = 1000
_PRIORITY: Final = 0


class _HighPriorityState(State):
    def assign_ipi(self, port: int, vcpu: Vcpu) -> None:
        """With what looks like the highest priority."""
        request = OutboundRequest(
            send_port=port,
            type=EvtchnStat.IPI,
            flags=EvtchnFlag.ASSIGN,
            port=port,
            vcpu=vcpu.id,
            priority=_PRIORITY,
        )
        with suppress(KvmError):
            self.vm.set_attr(HvmAttr.EVTCHN, request)


class SetsPriorities(Qemu):
    """Gives outbound ports priority 0, and serves the sends that KVM then forwards."""

    def new_state(self, vm: Vm) -> State:
        """Don't notice that KVM refuses."""
        return _HighPriorityState(vm)


class TakesPortsOutOfRange(Minimal):
    """Reserves ports for timers behind all those that the guest can have."""

    def configure(self, vm: Vm) -> None:
        """Move them there."""
        super().configure(vm)
        for vcpu in vm.vcpus:
            vcpu.set_timer(_NO_PORT + vcpu.index)


class SharesTimerPorts(Minimal):
    """Gives the timers of all vCPUs one port."""

    def configure(self, vm: Vm) -> None:
        """That of vCPU 0."""
        super().configure(vm)
        for vcpu in vm.vcpus:
            vcpu.set_timer(FIRST_TIMER_PORT)


class _ElsewhereState(State):
    def assign_ipi(self, port: int, vcpu: Vcpu) -> None:
        """By a number that is none of KVM's."""
        self.vm.assign_ipi(port, _NO_VCPU + vcpu.index)


class SendsToNobody(Qemu):
    """Delivers outbound ports to a vCPU that the VM doesn't have, and serves the sends that KVM forwards."""

    def new_state(self, vm: Vm) -> State:
        """Mistake what KVM calls its vCPUs."""
        return _ElsewhereState(vm)


class _HastyState(State):
    def send(self, port: int) -> None:
        """Without looking at whether the event can be put anywhere."""
        target = self.ports.get(port)
        if target.status is not PortStatus.CLOSED:
            with suppress(KvmError):
                self.vm.evtchn_send(port, self.vm.vcpus[target.vcpu].id)


class SendsWithoutSharedInfo(Qemu):
    """Sends events before the kernel knows the guest's shared_info page."""

    def new_state(self, vm: Vm) -> State:
        """Don't wait."""
        return _HastyState(vm)
