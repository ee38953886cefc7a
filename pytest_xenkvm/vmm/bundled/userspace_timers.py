"""`userspace-timers`: a VMM that leaves no timer to the kernel, and so needs no Xen ID."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from pytest_xenkvm.abi.numbers import VcpuAttr
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.state import State
from pytest_xenkvm.vmm.handles import Vcpu, Vm
from pytest_xenkvm.vmm.snapshot import restore_snapshot, take_snapshot


class UserspaceTimers(Qemu):
    """Like `qemu`, but the kernel knows neither IDs nor timer ports: it forwards every timer hypercall.

    The port matters as much as the ID. Up to Linux 7.2 an ID that was never set is 0 on every vCPU, so with a
    timer port the kernel would serve vCPU 0 and refuse all others; without a port, every kernel forwards.
    """

    def new_state(self, vm: Vm) -> State:
        """Keep the timers, and refuse a past timeout if the guest asks for that."""
        return State(vm, kernel_timers=False, refuses_the_past=True)

    def identify(self, vcpu: Vcpu) -> None:
        """Leave the ID unset."""

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """Move no ID, whatever an unset one reads as on this kernel; the timers go on over there."""
        self.prepare(target)
        snapshot = take_snapshot(source)
        vcpus = tuple(_without_id(values) for values in snapshot.vcpus)
        restore_snapshot(evolve(snapshot, vcpus=vcpus), target)
        for index, expires_ns in self.state.singleshot.items():
            target.vcpus[index].start_vmm_timer(expires_ns)


def _without_id(values: Mapping[VcpuAttr, Any]) -> Mapping[VcpuAttr, Any]:
    return {attribute: value for attribute, value in values.items() if attribute is not VcpuAttr.VCPU_ID}
