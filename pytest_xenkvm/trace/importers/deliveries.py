"""Event channel deliveries as the probes on kvm_xen_set_evtchn_fast show them.

What the kernel answered says what it found in shared_info: 1, the pending bit was clear and the port not
masked; 0, it was pending already; -ENOTCONN, it was clear and the port masked; anything else, it changed
nothing. If it injected the vCPU's upcall vector, the selector bit in vcpu_info was clear.
"""

from __future__ import annotations

from errno import ENOTCONN
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.layout import EVTCHN_PENDING
from pytest_xenkvm.trace.importers.clock import GuestClock
from pytest_xenkvm.trace.importers.config import Config, Target
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Bit, Timeline

_TIMER_CALLERS: Final = frozenset({"xen_timer_callback", "kvm_xen_inject_timer_irqs"})
_DELIVERED: Final = 1
_COALESCED: Final = 0


def _bit(base: int, number: int) -> Bit:
    return base + number // 8, number % 8


@define
class Delivery:
    """One call of kvm_xen_set_evtchn_fast; `vcpu_id` is the KVM vCPU id."""

    port: int
    vcpu_id: int
    ns: int
    injected: bool = False
    ret: int | None = None

    @property
    def target(self) -> Target:
        """Where it went."""
        return Target(port=self.port, vcpu=self.vcpu_id)


@define
class Cause:
    """An ioctl or hypercall that is under way on a thread: its slot, and what it has delivered."""

    slot: int
    deliveries: list[Delivery] = Factory(list)
    fired: bool = False
    """The timer that it armed was due already and fired in its course."""


@define
class Deliveries:
    """Follows deliveries and asks the timeline for the bits that they found."""

    config: Config
    threads: Threads
    timeline: Timeline
    clock: GuestClock
    report: ImportReport
    _running: dict[tuple[int, bool], Delivery] = Factory(dict)
    """By thread, and whether inside an interrupt: an interrupt may come in the middle of a delivery."""
    _armed: dict[int, int] = Factory(dict)
    """By vCPU: a slot right after its timer was armed."""

    def armed(self, vcpu: int, abs_ns: int, ns: int) -> None:
        """The vCPU's timer was armed for guest time `abs_ns`, at trace time `ns`."""
        self._armed[vcpu] = self.timeline.open(ns)
        self.clock.arm(vcpu, abs_ns)

    def begin(self, line: TraceLine) -> bool:
        """kvm_xen_set_evtchn_fast was called; False if the probe couldn't read its argument."""
        values = line.values("port", "vcpu_id", bits=32)
        if values is None:
            return False
        port, vcpu_id = values
        self._running[line.pid, line.in_irq] = Delivery(port, vcpu_id, line.ns)
        return True

    def interrupt(self, apic_id: int, vector: int, line: TraceLine) -> bool:
        """A local APIC took a vector; return whether that was the upcall of a delivery under way."""
        delivery = self._running.get((line.pid, line.in_irq))
        vcpu = self._vcpu(delivery) if delivery else None
        if delivery is None or vcpu is None or apic_id != delivery.vcpu_id:
            return False
        delivery.injected = vector == self.config.vcpu(vcpu).vector
        return delivery.injected

    def upcall(self, line: TraceLine) -> bool:
        """The vCPU's own upcall vector was injected; return whether that was a delivery under way."""
        delivery = self._running.get((line.pid, line.in_irq))
        if delivery is not None:
            delivery.injected = True
        return delivery is not None

    def end(self, line: TraceLine, cause: Cause | None) -> bool:
        """It returned; `cause` is what the thread was doing. False if its call wasn't seen."""
        values = line.values("ret", bits=32, signed=True)
        delivery = self._running.pop((line.pid, line.in_irq), None)
        if delivery is None or values is None:
            return False
        (delivery.ret,) = values
        vcpu = self._vcpu(delivery)
        if vcpu is None:
            return True
        if self._is_timer(line, delivery, vcpu, cause):
            slot = self._armed.get(vcpu)
            if line.in_irq or (cause is None and not line.caller):
                self.clock.fired(vcpu, delivery.ns)
            elif cause is not None:
                cause.fired = True
                slot = cause.slot
            self._found(delivery, vcpu, slot, kernel_slot=None)
        else:
            slot = None
            if cause is not None and not line.in_irq:
                cause.deliveries.append(delivery)
                slot = cause.slot
            self._found(delivery, vcpu, slot, kernel_slot=slot)
        return True

    def _vcpu(self, delivery: Delivery) -> int | None:
        return self.threads.index_of(delivery.vcpu_id)

    def _is_timer(self, line: TraceLine, delivery: Delivery, vcpu: int, cause: Cause | None) -> bool:
        if line.caller in _TIMER_CALLERS:
            return True
        if delivery.port != self.config.vcpu(vcpu).timer_port:
            return False
        # Where functions have no names: what the cause armed fired at once.
        return cause is None or (not line.caller and self._armed.get(vcpu, -1) > cause.slot)

    def _found(self, delivery: Delivery, vcpu: int, slot: int | None, *, kernel_slot: int | None) -> None:
        """Ask for the bits that the answer implies, before `slot` if they can have been so that early.

        A timer's are asked for as soon as it was armed: by then a replay's earlier timer has fired, and
        this one finds them however early it does. The kernel's own changes belong to `kernel_slot`, or to
        now.
        """
        base = self.config.shared_info
        in_range = delivery.port < self.config.layout.max_ports
        if not in_range or delivery.ret not in (_DELIVERED, _COALESCED, -ENOTCONN):
            return
        if base is None:
            self.report.unknown["guest stores implied by a delivery (shared_info's address unknown)"] += 1
            return
        pending = _bit(base + EVTCHN_PENDING, delivery.port)
        mask = _bit(base + self.config.layout.evtchn_mask, delivery.port)
        asked = [(pending, delivery.ret == _COALESCED)]
        kernel_set = []
        if delivery.ret != _COALESCED:
            asked.append((mask, delivery.ret == -ENOTCONN))
            kernel_set.append(pending)
        selector = self._selector(delivery, vcpu)
        if selector is not None and delivery.ret == _DELIVERED:
            kernel_set.append(selector)
            if delivery.injected:
                asked.append((selector, False))
        for bit, value in asked:
            self.timeline.imply(bit, slot, delivery.ns, value=value)
        if kernel_set and kernel_slot is None:
            kernel_slot = self.timeline.open(delivery.ns)
        for bit in kernel_set:
            self.timeline.set_by_kernel(bit, kernel_slot or 0)

    def _selector(self, delivery: Delivery, vcpu: int) -> Bit | None:
        base = self.config.vcpu(vcpu).vcpu_info
        layout = self.config.layout
        return None if base is None else _bit(base + layout.pending_sel, delivery.port // layout.word_bits)
