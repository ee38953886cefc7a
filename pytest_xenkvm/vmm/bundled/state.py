"""What `qemu` keeps of its VM besides what KVM keeps: ports, the shared page, timers of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOSYS, EOPNOTSUPP
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import PAGE_SIZE, XEN_LEGACY_MAX_VCPUS, HvmAttr
from pytest_xenkvm.abi.xen_numbers import PortStatus, Virq
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.vmm.bundled.calls import Refusal
from pytest_xenkvm.vmm.bundled.ports import Ports
from pytest_xenkvm.vmm.handles import Vcpu, Vm

VCPU_INFO_SIZE: Final = 64
_PORTS_32: Final = 1024
_PORTS_64: Final = 4096
_PENDING: Final = 0x800
"""Where evtchn_pending lies in shared_info; evtchn_mask follows it, a bit for each port."""


@contextmanager
def as_answer() -> Iterator[None]:
    """What KVM refuses is refused to the guest: -EINVAL, or -ENOSYS for what the host can't do."""
    try:
        yield
    except KvmError as error:
        raise Refusal(ENOSYS if error.errno == EOPNOTSUPP else EINVAL) from error


@define(eq=False)
class State:
    """A VM's state on the VMM's side. vCPUs go by their Xen number, which is their index."""

    vm: Vm
    kernel_timers: bool = True
    """The kernel serves the timers of vCPUs whose guest has bound VIRQ_TIMER."""
    refuses_the_past: bool = False
    """VCPU_SSHOTTMR_future counts, as in Xen up to 4.17; KVM, QEMU and newer Xens ignore it."""
    ports: Ports = Factory(Ports)
    shared_info: int | None = None
    """Guest address of the page, None if KVM has none."""
    mapped_unseen: bool = False
    """The guest has mapped the page, but the recording doesn't show where."""
    own_info: set[int] = Factory(set)
    """vCPUs that have registered a vcpu_info of their own."""
    newest: int = 0
    """The vCPU that registered its vcpu_info last: the one that is being brought up."""
    pirqs: dict[int, int] = Factory(dict)
    """GSI of each PIRQ, in the order in which they were mapped."""
    params_read: int = 0
    """HVM parameters that were asked for without the recording showing which."""
    singleshot: dict[int, int] = Factory(dict)
    """Expiry (ns of the VM's clock) of each vCPU's singleshot timer that the VMM runs."""
    periodic: dict[int, tuple[int, int]] = Factory(dict)
    """Period and next expiry (ns) of each vCPU's periodic timer."""

    @property
    def limit(self) -> int:
        """The number of ports."""
        return _PORTS_64 if self.vm.get_attr(HvmAttr.LONG_MODE) else _PORTS_32

    def vcpu(self, number: int, errno: int) -> Vcpu:
        """The vCPU with that Xen number; raises Refusal(errno) if there is none."""
        if number >= len(self.vm.vcpus):
            raise Refusal(errno)
        return self.vm.vcpus[number]

    # ---- events

    def assign_ipi(self, port: int, vcpu: Vcpu) -> None:
        """Have the kernel deliver what the guest sends to a port."""
        self.vm.assign_ipi(port, vcpu.id)

    def send(self, port: int) -> None:
        """Raise the event of a port, if it can be: without the shared page there is nowhere to put it."""
        target = self.ports.get(port)
        if self.shared_info is None or target.status is PortStatus.CLOSED:
            return
        with suppress(KvmError):  # the guest may have moved memory from under it
            self.vm.evtchn_send(port, self.vm.vcpus[target.vcpu].id)

    def send_again(self, port: int, *, unmask: bool) -> None:
        """Clear a port's mask bit, if `unmask`; raise the event anew if it is pending and isn't masked."""
        if self.shared_info is None:
            return
        pending = self.shared_info + _PENDING
        masked = pending + self.limit // 8
        if unmask:
            if not self._clear(masked, port):
                return  # it was not masked, so nothing was held back
        elif self._is_set(masked, port):
            return
        if self._clear(pending, port):  # so that it counts as new
            self.send(port)

    def _is_set(self, bits: int, port: int) -> bool:
        byte = self.vm.read_memory(bits + port // 8, 1)
        return byte is not None and bool(byte[0] & 1 << port % 8)

    def _clear(self, bits: int, port: int) -> bool:
        """Clear a bit of the page; whether it was set."""
        if not self._is_set(bits, port):
            return False
        where = bits + port // 8
        byte = self.vm.read_memory(where, 1) or b"\0"
        return self.vm.write_memory(where, bytes([byte[0] & ~(1 << port % 8)]))

    def timer_port_changed(self, vcpu: Vcpu) -> None:
        """Hand a vCPU's timer to the kernel if VIRQ_TIMER has a port now, with its expiry."""
        port = self.ports.virq(Virq.TIMER, vcpu.index)
        if self.kernel_timers:
            expires_ns = self.singleshot.pop(vcpu.index, 0) if port else 0
            vcpu.set_timer(port, expires_ns=expires_ns)
            self.run_timer(vcpu)

    # ---- memory

    def map_shared_info(self, gfn: int) -> None:
        """Tell KVM where the page is, and where the vCPUs' information is that have none of their own."""
        gpa = gfn * PAGE_SIZE
        with as_answer():
            self.vm.set_shared_info(None)
            self.shared_info = None
            self.vm.set_shared_info(gfn)
            self.shared_info = gpa
            for vcpu in self.vm.vcpus[:XEN_LEGACY_MAX_VCPUS]:
                if vcpu.index not in self.own_info:
                    vcpu.set_vcpu_info(gpa + vcpu.index * VCPU_INFO_SIZE)

    # ---- timers of the VMM's own

    def run_timer(self, vcpu: Vcpu) -> None:
        """Have the VMM's timer of a vCPU expire when one of its timers does."""
        due = [self.singleshot[vcpu.index]] if vcpu.index in self.singleshot else []
        if vcpu.index in self.periodic:
            due.append(self.periodic[vcpu.index][1])
        if due:
            vcpu.start_vmm_timer(min(due))
        else:
            vcpu.stop_vmm_timer()

    def stop_timers(self, vcpu: Vcpu) -> None:
        """Forget a vCPU's singleshot timer."""
        self.singleshot.pop(vcpu.index, None)
        self.run_timer(vcpu)

    def timer_expired(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Raise VIRQ_TIMER, if the guest has bound it."""
        number = vcpu.index
        if self.singleshot.get(number, expires_ns + 1) <= expires_ns:
            del self.singleshot[number]
        if number in self.periodic:
            period, due = self.periodic[number]
            self.periodic[number] = period, max(due, expires_ns) + period if due <= expires_ns else due
        self.run_timer(vcpu)
        port = self.ports.virq(Virq.TIMER, number)
        if port:
            self.send(port)
