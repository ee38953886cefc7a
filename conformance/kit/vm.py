"""A VM that a probe builds: each thing done to it becomes an event of its history, in a trace's own terms.

Methods do one thing and demand its outcome: `ret`, `answers` and the like say what is expected. What a host
does instead fails the probe, in words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.layout import EVTCHN_PENDING
from pytest_xenkvm.abi.numbers import (
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    PAGE_SIZE,
    EvtchnStat,
    HvmAttr,
    XenHvmFlag,
)
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import data as hex_words
from pytest_xenkvm.trace.decode_values import number, result

from .driven import DrivenVm
from .setting import MS, MSR, SECOND
from .vcpu import ProbeVcpu

DEFAULT_FLAGS: Final = int(XenHvmFlag.INTERCEPT_HCALL | XenHvmFlag.EVTCHN_SEND)
PRIO_2LEVEL: Final = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL

_MAX_IRQS: Final = 8
"""Interrupts in a row that a guest takes before a probe looks again."""
_LONGEST_STEP: Final = 50 * MS

_VM_MEMBERS: Final = {
    HvmAttr.LONG_MODE: "long_mode",
    HvmAttr.UPCALL_VECTOR: "vector",
    HvmAttr.XEN_VERSION: "xen_version",
    HvmAttr.RUNSTATE_UPDATE_FLAG: "runstate_update_flag",
}
"""The members of the attribute union that are numbers."""


@define(eq=False)
class ProbeVm(DrivenVm):
    """A VM on the host under judgement."""

    vcpus: tuple[ProbeVcpu, ...] = field(init=False)
    added: int = field(default=0, init=False)
    """Memory slots added since."""
    _next_fd: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.vcpus = tuple(ProbeVcpu(self, vcpu.index, vcpu.id) for vcpu in self.shape.vcpus)

    # ---- configuration

    def enable_hyper_v(self) -> None:
        """KVM_SET_CPUID2 with Hyper-V's leaves and its guest OS identity, which traces don't hold."""
        self._stepper.vm.enable_hyper_v()

    def config(self, flags: int = DEFAULT_FLAGS, msr: int = MSR, *, ret: int = 0, **blob: Any) -> None:
        """KVM_XEN_HVM_CONFIG; `blob`: blob_addr_64 and so on, addresses as numbers or {"gpa": G}."""
        __tracebackhide__ = True
        empty = {"blob_addr_32": 0, "blob_addr_64": 0, "blob_size_32": 0, "blob_size_64": 0}
        self.ioctl("KVM_XEN_HVM_CONFIG", {"flags": flags, "msr": msr, **empty, **blob}, ret=ret)

    def set(self, type_: int, value: Any = 0, *, ret: int = 0) -> None:
        """KVM_XEN_HVM_SET_ATTR; SHARED_INFO as a frame number, _HVA as a host address or {"gpa": G}."""
        __tracebackhide__ = True
        self.ioctl("KVM_XEN_HVM_SET_ATTR", {"type": int(type_), **_member(type_, value)}, ret=ret)
        if type_ == HvmAttr.LONG_MODE:
            self.long_mode = bool(value)
        elif ret == 0 and type_ == HvmAttr.UPCALL_VECTOR:
            self.upcall_vector = value

    def get(self, type_: int, value: Any = None, *, ret: int = 0) -> Any:
        """KVM_XEN_HVM_GET_ATTR, which must read `value` (None: anything)."""
        __tracebackhide__ = True
        out = None if value is None or ret else _member(type_, value)
        read = self.ioctl("KVM_XEN_HVM_GET_ATTR", {"type": int(type_)}, ret=ret, out=out).out or {}
        return next((read[member] for member in read if member != "type"), None)

    def outbound(  # noqa: PLR0913 - the attribute's members
        self,
        send_port: int,
        *,
        type_: int = EvtchnStat.INTERDOMAIN,
        flags: int = 0,
        port: int = 0,
        vcpu: int = 0,
        priority: int = PRIO_2LEVEL,
        fd: int | None = None,
        ret: int = 0,
    ) -> None:
        """EVTCHN: what becomes of an outbound port: delivered to `port` on a vCPU id, or to eventfd `fd`."""
        __tracebackhide__ = True
        deliver: dict[str, Any] = {"port": {"port": port, "vcpu": vcpu, "priority": priority}}
        if fd is not None:
            deliver = {"eventfd": {"port": port, "fd": fd}}
        evtchn = {"send_port": send_port, "type": int(type_), "flags": int(flags), "deliver": deliver}
        self.ioctl("KVM_XEN_HVM_SET_ATTR", {"type": int(HvmAttr.EVTCHN), "evtchn": evtchn}, ret=ret)

    def send(self, port: int, vcpu: int = 0, *, priority: int = PRIO_2LEVEL, ret: int = 0) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND to a vCPU id."""
        __tracebackhide__ = True
        self.ioctl("KVM_XEN_HVM_EVTCHN_SEND", {"port": port, "vcpu": vcpu, "priority": priority}, ret=ret)

    def route(self, *routes: tuple[int, int, int], priority: int = PRIO_2LEVEL, ret: int = 0) -> None:
        """KVM_SET_GSI_ROUTING: each GSI to a port on a vCPU id."""
        __tracebackhide__ = True
        entries = [
            {
                "gsi": gsi,
                "type": KVM_IRQ_ROUTING_XEN_EVTCHN,
                "xen_evtchn": {"port": port, "vcpu": vcpu, "priority": priority},
            }
            for gsi, port, vcpu in routes
        ]
        self.ioctl("KVM_SET_GSI_ROUTING", {"entries": entries}, ret=ret)

    def irq_line(self, gsi: int, level: int, *, ret: int = 0) -> None:
        """KVM_IRQ_LINE."""
        __tracebackhide__ = True
        self.ioctl("KVM_IRQ_LINE", {"irq": gsi, "level": level}, ret=ret)

    def irqfd(self, fd: int, gsi: int, flags: int = 0, *, ret: int = 0) -> None:
        """KVM_IRQFD."""
        __tracebackhide__ = True
        self.ioctl("KVM_IRQFD", {"fd": fd, "gsi": gsi, "flags": flags}, ret=ret)

    def eventfd(self) -> int:
        """Create an eventfd; its number in this VM's history."""
        fd, self._next_fd = self._next_fd, self._next_fd + 1
        self.tell(self._stepper.eventfd(events.Eventfd(fd=fd)))
        return fd

    def eventfd_write(self, fd: int, value: int) -> None:
        """Add to an eventfd."""
        self.tell(self._stepper.eventfd_write(events.EventfdWrite(fd=fd, value=value)))

    def eventfd_holds(self, fd: int, value: int) -> None:
        """Drain an eventfd, which must have counted `value`."""
        __tracebackhide__ = True
        read = self.tell(self._stepper.eventfd_read(events.EventfdRead(fd=fd, value=value)))
        if read.value != value:
            self.fail(f"a count of {number(value)}", event_words(read))

    # ---- guest memory

    def store(self, gpa: int, data: bytes, *, now_plus_at: tuple[tuple[int, int], ...] = ()) -> None:
        """Guest or VMM store bytes; `now_plus_at`: offsets that get the guest's clock plus so many ns."""
        self.tell(self._stepper.mem(events.Mem(op="write", gpa=gpa, data=data, now_plus_at=now_plus_at)))

    def read(self, gpa: int, size: int) -> bytes:
        """What memory holds, of one slot or of several; nothing where there is none."""
        found, end = b"", gpa + size
        while gpa < end:
            part = min(end, (gpa // PAGE_SIZE + 1) * PAGE_SIZE) - gpa
            found += self.tell(self._stepper.mem(events.Mem(op="read", gpa=gpa, data=bytes(part)))).data
            gpa += part
        return found

    def holds(self, gpa: int, data: bytes, what: str = "", *, mask: bytes | None = None) -> None:
        """Memory must hold these bytes, `mask` says which bits of them."""
        __tracebackhide__ = True
        found = self.read(gpa, len(data))
        bits = mask or b"\xff" * len(data)
        if any((mine ^ theirs) & bit for mine, theirs, bit in zip(found, data, bits, strict=True)):
            words = f"{what or 'guest memory'} at {gpa:#x}"
            self.fail(f"{words} holds {hex_words(data)}", f"it holds {hex_words(found)}")

    def ports_pending(self) -> list[int]:
        """The ports whose pending bit is set."""
        found = int.from_bytes(
            self.read(self.shared_info + EVTCHN_PENDING, self.layout.max_ports // 8), "little"
        )
        return [port for port in range(self.layout.max_ports) if found >> port & 1]

    def pending(self, *ports: int) -> None:
        """Of all ports exactly these must be pending."""
        __tracebackhide__ = True
        found = self.ports_pending()
        if found != sorted(ports):
            self.fail(f"{_ports(sorted(ports))} pending in shared_info", f"{_ports(found)} pending")

    def mask(self, *ports: int) -> None:
        """The guest masks these ports and no others."""
        bits = sum(1 << port for port in ports)
        self.store(
            self.shared_info + self.layout.evtchn_mask, bits.to_bytes(self.layout.max_ports // 8, "little")
        )

    def clear_events(self) -> None:
        """The guest clears all pending bits and each vCPU's selector and upcall flag."""
        self.store(self.shared_info + EVTCHN_PENDING, bytes(self.layout.max_ports // 8))
        for vcpu in self.vcpus:
            if vcpu.vcpu_info is not None:
                self.store(vcpu.vcpu_info, bytes(16))

    # ---- interrupts and time

    def do_take_interrupts(self, index: int) -> list[int]:
        """The vectors that the guest takes now; after the VM-wide one it clears evtchn_upcall_pending."""
        vcpu, vectors = self.vcpus[index], []
        for _ in range(_MAX_IRQS):
            taken = self._stepper.irq(events.Irq(vcpu=index, vector=0))
            if taken is None:
                break
            self.tell(taken)
            vectors.append(taken.vector)
            if taken.vector == self.upcall_vector and vcpu.vcpu_info is not None:
                self.store(vcpu.vcpu_info, b"\0")
        return vectors

    def wait(self, ns: int) -> None:
        """At least `ns` pass; then each vCPU enters the guest."""
        self.tell(self._stepper.wait(events.Wait(ns=ns), len(self.vcpus), None))
        for vcpu in self.vcpus:
            vcpu.take_interrupts()

    def until(self, condition: Callable[[], bool], what: str, *, limit: int = 5 * SECOND) -> None:
        """Let time pass until `condition` holds, which must be within `limit` (ns) and takes no longer."""
        __tracebackhide__ = True
        waited, step = 0, MS
        while not condition():
            if waited >= limit:
                self.fail(f"{what}, sooner or later", f"it didn't within {limit // SECOND} s")
            self.wait(step)
            waited, step = waited + step, min(2 * step, _LONGEST_STEP)

    def until_pending(self, port: int) -> None:
        """Let time pass until the port is pending."""
        __tracebackhide__ = True
        place = self.shared_info + EVTCHN_PENDING + port // 8
        self.until(lambda: self.read(place, 1)[0] >> port % 8 & 1 == 1, f"port {port} becomes pending")

    def clock(self) -> int:
        """The guest's Xen clock (ns)."""
        return self._stepper.vm.guest_clock(0)

    def real_time(self) -> int:
        """The host's real time (ns since 1970)."""
        return self._stepper.vm.real_time()

    def wait_for_cpu(self, ns: int) -> int:
        """Another thread has the CPU for `ns` or more, which traces don't hold: how long it did."""
        return self._stepper.vm.wait_for_cpu(ns)

    def set_clock(self, ns: int) -> None:
        """KVM_SET_CLOCK, which traces don't hold."""
        __tracebackhide__ = True
        ret = self._stepper.vm.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(ns, 0, 0, 0)))
        if ret:
            self.fail(f"KVM_SET_CLOCK({ns} ns) to return 0", result(ret))

    # ---- memory slots, which traces don't hold

    def add_memory(self, gpa: int, size: int = PAGE_SIZE, *, log_dirty: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION with a new slot; `log_dirty`: KVM_MEM_LOG_DIRTY_PAGES."""
        self._stepper.vm.add_memory(gpa, size, log_dirty=log_dirty)

    def remove_memory(self, gpa: int) -> None:
        """KVM_SET_USER_MEMORY_REGION of size 0, for the slot that was added there."""
        self._stepper.vm.remove_memory(gpa)

    def dirty_log(self, gpa: int) -> frozenset[int]:
        """KVM_GET_DIRTY_LOG of the slot that was added there: pages, by guest address."""
        return self._stepper.vm.dirty_log(gpa)


def _member(type_: int, value: Any) -> dict[str, Any]:
    if type_ == HvmAttr.SHARED_INFO:
        return {"shared_info": {"gfn": value}}
    if type_ == HvmAttr.SHARED_INFO_HVA:
        return {"shared_info": {"hva": value}}
    member = _VM_MEMBERS.get(HvmAttr(type_)) if type_ in set(HvmAttr) else None
    return {} if member is None else {member: value}


def _ports(ports: list[int]) -> str:
    return f"ports {', '.join(map(str, ports))}" if ports else "no port"
