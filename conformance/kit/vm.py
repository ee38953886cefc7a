"""A VM that a probe builds: each thing done to it becomes an event of its history, in a trace's own terms.

Methods do one thing and demand its outcome: `ret`, `answers` and the like say what is expected. What a host
does instead fails the probe, in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from attrs import define, evolve, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.layout import EVTCHN_PENDING, LAYOUT_32, LAYOUT_64, GuestLayout
from pytest_xenkvm.abi.numbers import (
    KVM_CAP_MAX_VCPUS,
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    PAGE_SIZE,
    EvtchnStat,
    HvmAttr,
    XenHvmFlag,
)
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.migration import Migrator
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import data as hex_words
from pytest_xenkvm.trace.decode_values import number, result
from pytest_xenkvm.trace.events import Event, Header, VmShape

from .demands import Probe
from .setting import MS, MSR, SECOND, SHARED_INFO
from .vcpu import ProbeVcpu

DEFAULT_FLAGS: Final = int(XenHvmFlag.INTERCEPT_HCALL | XenHvmFlag.EVTCHN_SEND)
PRIO_2LEVEL: Final = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL

_MAX_IRQS: Final = 8
"""Interrupts in a row that a guest takes before a probe looks again."""
_LONGEST_STEP: Final = 50 * MS
_E = TypeVar("_E", bound=Event)

_VM_MEMBERS: Final = {
    HvmAttr.LONG_MODE: "long_mode",
    HvmAttr.UPCALL_VECTOR: "vector",
    HvmAttr.XEN_VERSION: "xen_version",
    HvmAttr.RUNSTATE_UPDATE_FLAG: "runstate_update_flag",
}
"""The members of the attribute union that are numbers."""


@define(eq=False)
class ProbeVm:
    """A VM on the host under judgement; `told` is its history."""

    probe: Probe
    host: Host
    profile: Profile
    shape: VmShape
    cpu_vendor: str
    told: list[Observation] = field(factory=list, init=False)
    vcpus: tuple[ProbeVcpu, ...] = field(init=False)
    migrator: Migrator = field(init=False)
    header: Header = field(init=False)
    max_vcpus: int = field(init=False)
    """The host's KVM_MAX_VCPUS."""
    long_mode: bool = field(default=False, init=False)
    """The layout that shared structures are expected in."""
    shared_info: int = field(default=SHARED_INFO, init=False)
    upcall_vector: int = field(default=0, init=False)
    added: int = field(default=0, init=False)
    """Memory slots added since."""
    _stepper: Stepper = field(init=False)
    """Does events on the host's VM, which lives as long as this and `migrator` hold it."""
    _next_fd: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self.migrator = Migrator(self.host)
        vm = self.migrator.create_vm(self.shape, cpu_vendor=self.cpu_vendor)
        self.header = Header(cpu_vendor=self.cpu_vendor, recorder="conformance", vm=self.shape)
        self._stepper = Stepper(vm, self.header)
        self.vcpus = tuple(ProbeVcpu(self, vcpu.index, vcpu.id) for vcpu in self.shape.vcpus)
        self.max_vcpus = self._stepper.vm.ioctl(ioctls.KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS)
        self.header = evolve(self.header, max_vcpus=self.max_vcpus)
        self.tell(
            events.Ioctl(name="KVM_CHECK_EXTENSION", arg={"cap": KVM_CAP_MAX_VCPUS}, ret=self.max_vcpus)
        )

    @property
    def layout(self) -> GuestLayout:
        """The layout that shared structures are expected in."""
        return LAYOUT_64 if self.long_mode else LAYOUT_32

    # ---- telling and demanding

    def tell(self, event: _E, answer: int | None = None) -> _E:
        """It happened."""
        self.told.append(Observation(place=Place(len(self.told)), event=event, answer=answer))
        return event

    def fail(self, demanded: str, observed: str, vcpu: int | None = None) -> NoReturn:
        """The host doesn't do what is demanded of the last event."""
        __tracebackhide__ = True
        self.probe.fail(demanded, observed, self.told, vcpu)

    def ioctl(
        self,
        name: str,
        arg: Mapping[str, Any],
        *,
        vcpu: int | None = None,
        ret: int | None = 0,
        out: Mapping[str, Any] | None = None,
    ) -> events.Ioctl:
        """Make an ioctl, by its UAPI name and with its argument as a trace has it.

        `ret`: what it must return (None: anything); `out`: members that a GET must store.
        """
        __tracebackhide__ = True
        wanted = events.Ioctl(name=name, arg=arg, ret=ret or 0, vcpu=vcpu)
        made = self.tell(self._stepper.ioctl(wanted))
        if ret is not None and made.ret != ret:
            self.fail(result(ret), event_words(made), vcpu)
        for member, value in (out or {}).items():
            found = (made.out or {}).get(member)
            if found != value:
                self.fail(f"{result(0)}, {member}={_plain(value)}", event_words(made), vcpu)
        return made

    # ---- configuration

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
        """What memory holds."""
        return self.tell(self._stepper.mem(events.Mem(op="read", gpa=gpa, data=bytes(size)))).data

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

    # ---- time

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

    def set_clock(self, ns: int) -> None:
        """KVM_SET_CLOCK, which traces don't hold."""
        __tracebackhide__ = True
        ret = self._stepper.vm.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(ns, 0, 0, 0)))
        if ret:
            self.fail(f"KVM_SET_CLOCK({ns} ns) to return 0", result(ret))

    def add_memory(self, gpa: int, size: int = PAGE_SIZE) -> None:
        """KVM_SET_USER_MEMORY_REGION with a new slot, which traces don't hold."""
        self._stepper.vm.add_memory(gpa, size)

    def close(self) -> None:
        """Let go of the VM, which the host then forgets; nothing can be done to it any more."""
        del self._stepper, self.migrator

    # ---- for vCPUs

    def do_hypercall(self, event: events.Hypercall, answer: int, *, moved: bool = False) -> events.Hypercall:
        """Let the guest make a hypercall; a forwarded one is answered, with RIP elsewhere if `moved`."""

        def answered(_event: events.Hypercall, _exit: XenExit) -> int:
            return answer

        happened = self._stepper.hypercall(event, None, answered, moved=moved)
        if happened is None:
            self.tell(event)
            self.fail(
                "an outcome that can be known", "the host can't tell what the hypercall does", event.vcpu
            )
        return self.tell(happened, answer if happened.exit is not None else None)

    def do_run(self, vcpu: int) -> None:
        """Let a vCPU enter the guest."""
        self.tell(self._stepper.vcpu_run(events.VcpuRun(vcpu=vcpu)))

    def do_wrmsr(self, event: events.Wrmsr) -> events.Wrmsr:
        """Let the guest write an MSR."""
        return self.tell(self._stepper.wrmsr(event))

    def do_take_interrupts(self, vcpu: ProbeVcpu) -> list[int]:
        """The vectors that the guest takes now; after the VM-wide one it clears evtchn_upcall_pending."""
        vectors = []
        for _ in range(_MAX_IRQS):
            taken = self._stepper.irq(events.Irq(vcpu=vcpu.index, vector=0))
            if taken is None:
                break
            self.tell(taken)
            vectors.append(taken.vector)
            if taken.vector == self.upcall_vector and vcpu.vcpu_info is not None:
                self.store(vcpu.vcpu_info, b"\0")
        return vectors

    def hva(self, gpa: int) -> int:
        """The host address of a guest address."""
        return self._stepper.names.host_address({"gpa": gpa})


def _member(type_: int, value: Any) -> dict[str, Any]:
    if type_ == HvmAttr.SHARED_INFO:
        return {"shared_info": {"gfn": value}}
    if type_ == HvmAttr.SHARED_INFO_HVA:
        return {"shared_info": {"hva": value}}
    member = _VM_MEMBERS.get(HvmAttr(type_)) if type_ in set(HvmAttr) else None
    return {} if member is None else {member: value}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return number(value) if isinstance(value, int) else str(value)


def _ports(ports: list[int]) -> str:
    return f"ports {', '.join(map(str, ports))}" if ports else "no port"
