"""The Xen ioctls as kprobes and return probes show them."""

from __future__ import annotations

from errno import EEXIST
from typing import Final

from attrs import Factory, define, evolve

from pytest_xenkvm.abi.layout import U64
from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.trace.events import Eventfd, Ioctl, JsonObject
from pytest_xenkvm.trace.importers.attributes import attribute, determined
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.deliveries import Cause
from pytest_xenkvm.trace.importers.hypercalls import Modes
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.machine import Machine
from pytest_xenkvm.trace.importers.model import ImportReport
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Timeline

_ORPHAN: Final = "results without their call"
_FAULT: Final = "probes that could not read their argument"
_TOO_SHORT: Final = "attributes of which the probe saw too little"
_NO_VCPU: Final = "vCPU attributes set by a thread whose vCPU is unknown"


@define(kw_only=True)
class OpenIoctl(Cause):
    """An ioctl that has not returned yet; `expires`: trace time (ns) to which it set a timer."""

    event: Ioctl
    expires: int | None = None


@define
class ProbedIoctls:
    """Turns probes into ioctl events. Each method returns why its line is skipped, or None if it is used."""

    timeline: Timeline
    config: Config
    modes: Modes
    threads: Threads
    machine: Machine
    report: ImportReport
    _open: dict[int, OpenIoctl | None] = Factory(dict)
    """By thread; None while one is under way that gives no event."""
    _configs: dict[int, int] = Factory(dict)
    _eventfds: set[int] = Factory(set)
    _with_hva: list[int] = Factory(list)

    def under_way(self, line: TraceLine) -> OpenIoctl | None:
        """Return the ioctl that this thread is in."""
        return self._open.get(line.pid)

    def hvm_config(self, line: TraceLine) -> str | None:
        """KVM_XEN_HVM_CONFIG, which has no return probe: its result is 0 by inference."""
        values, blobs = line.values("flags", "msr", "sizes", bits=32), line.values("blob32", "blob64")
        if values is None or blobs is None:
            return _FAULT
        (flags, msr, sizes), (blob_32, blob_64) = values, blobs
        arg = {
            "flags": flags,
            "msr": msr,
            "blob_addr_32": blob_32,
            "blob_addr_64": blob_64,
            "blob_size_32": sizes & 0xFF,
            "blob_size_64": sizes >> 8 & 0xFF,
        }
        self._configs[line.pid] = self._begin(line, "KVM_XEN_HVM_CONFIG", arg).slot
        del self._open[line.pid]
        self.config.msr = msr
        return None

    def config_returned(self, line: TraceLine) -> str | None:
        """The return of KVM_XEN_HVM_CONFIG was probed."""
        values = line.values("ret", bits=32, signed=True)
        if values is None or line.pid not in self._configs:
            return _ORPHAN
        self.hvm_config_returned(line, values[0])
        return None

    def hvm_config_returned(self, line: TraceLine, ret: int) -> None:
        """The exit of the system call was recorded too: the result is known."""
        slot = self._configs.pop(line.pid, None)
        if slot is not None:
            self._known(slot, ret)

    def hvm_set_attr(self, line: TraceLine) -> str | None:
        """KVM_XEN_HVM_SET_ATTR was called."""
        return self._set_attr(line, "KVM_XEN_HVM_SET_ATTR", None)

    def vcpu_set_attr(self, line: TraceLine) -> str | None:
        """KVM_XEN_VCPU_SET_ATTR was called, on the vCPU's own thread."""
        vcpu = self.threads.named(line)
        if vcpu is None:
            self._open[line.pid] = None
            return _NO_VCPU
        return self._set_attr(line, "KVM_XEN_VCPU_SET_ATTR", vcpu)

    def hvm_evtchn_send(self, line: TraceLine) -> str | None:
        """KVM_XEN_HVM_EVTCHN_SEND was called."""
        values = line.values("port", "vcpu", "prio", bits=32)
        if values is None:
            self._open[line.pid] = None
            return _FAULT
        arg = dict(zip(("port", "vcpu", "priority"), values, strict=True))
        self._begin(line, "KVM_XEN_HVM_EVTCHN_SEND", arg)
        return None

    def returned(self, line: TraceLine) -> str | None:
        """Any of them but KVM_XEN_HVM_CONFIG returned."""
        values = line.values("ret", bits=32, signed=True)
        if values is None or line.pid not in self._open:
            return _ORPHAN
        ioctl = self._open.pop(line.pid)
        if ioctl is None:
            return "results of calls that were skipped"
        event = self._known(ioctl.slot, values[0])
        if event.name.endswith("_SET_ATTR"):
            self._attribute_set(ioctl.slot, event)
            if event.ret == 0:
                self._relate_timer(ioctl)
        return None

    def hvm_got_attr(self, line: TraceLine) -> str | None:
        """KVM_XEN_HVM_GET_ATTR returned."""
        return self._got_attr(line, "KVM_XEN_HVM_GET_ATTR", None)

    def vcpu_got_attr(self, line: TraceLine) -> str | None:
        """KVM_XEN_VCPU_GET_ATTR returned."""
        vcpu = self.threads.named(line)
        return _NO_VCPU if vcpu is None else self._got_attr(line, "KVM_XEN_VCPU_GET_ATTR", vcpu)

    def waiting(self) -> int | None:
        """Return the first slot whose result is still to come."""
        slots = [*self._configs.values(), *(ioctl.slot for ioctl in self._open.values() if ioctl)]
        return min(slots, default=None)

    def give_up(self, slot: int) -> None:
        """Wait no longer for the result of the ioctl in `slot`: it stays 0 by inference."""
        self._configs = {pid: waiting for pid, waiting in self._configs.items() if waiting != slot}
        self._open = {
            pid: None if ioctl and ioctl.slot == slot else ioctl for pid, ioctl in self._open.items()
        }

    def resolve(self, before: int) -> None:
        """Make the host addresses in slots below `before` symbolic."""
        for slot in [slot for slot in self._with_hva if slot < before]:
            self._make_symbolic(slot)
            self._with_hva.remove(slot)

    def finish(self, *, intercepted: bool) -> None:
        """The recording is over; `intercepted`: a hypercall was seen, so a configuration was accepted."""
        slots = self.timeline.slots.values()
        began = [slot.event for slot in slots if isinstance(slot.event, Ioctl)]
        for event in began:
            if event.inferred:
                implied = intercepted and event.name == "KVM_XEN_HVM_CONFIG"
                why = "0: hypercalls were intercepted" if implied else "0 assumed"
                self.report.unknown[f"result of {event.name} ({why})"] += 1
        for name, requested in self.machine.requested.items():
            missing = requested - sum(event.name == name for event in began)
            if missing > 0:
                self.report.unknown[f"argument of {name} (left out)"] += missing
        self.resolve(self.timeline.end)

    def _begin(self, line: TraceLine, name: str, arg: JsonObject, vcpu: int | None = None) -> OpenIoctl:
        event = Ioctl(name=name, arg=arg, vcpu=vcpu, ret=0, inferred=True)
        ioctl = OpenIoctl(slot=self.timeline.open(line.ns, event), event=event)
        self._open[line.pid] = ioctl
        return ioctl

    def _set_attr(self, line: TraceLine, name: str, vcpu: int | None) -> str | None:
        self._open[line.pid] = None
        values = line.values("type", bits=16)
        if values is None:
            return _FAULT
        arg = attribute(name, values[0], _union(line))
        if arg is None:
            return _TOO_SHORT
        self._begin(line, name, arg, vcpu)
        return None

    def _got_attr(self, line: TraceLine, name: str, vcpu: int | None) -> str | None:
        values, result = line.values("type", bits=16), line.values("ret", bits=32, signed=True)
        if values is None or result is None:
            return _FAULT
        out = attribute(name.replace("_GET_", "_SET_"), values[0], _union(line)) if result[0] == 0 else None
        event = Ioctl(name=name, arg={"type": values[0]}, vcpu=vcpu, ret=result[0])
        if out is not None:
            event = evolve(event, out=determined(out, self.config))
        self.timeline.open(line.ns, event)
        return None

    def _relate_timer(self, ioctl: OpenIoctl) -> None:
        """Say by how much the time was ahead that the TIMER attribute set, if the trace shows it."""
        slot = self.timeline.slots[ioctl.slot]
        if ioctl.expires is not None and isinstance(slot.event, Ioctl) and "timer" in slot.event.arg:
            timer = {**slot.event.arg["timer"], "expires_ns": {"now_plus": ioctl.expires - slot.ns}}
            slot.event = evolve(slot.event, arg={**slot.event.arg, "timer": timer})

    def _known(self, slot: int, ret: int) -> Ioctl:
        event = self.timeline.slots[slot].event
        assert isinstance(event, Ioctl)  # noqa: S101  # put there by _begin
        event = evolve(event, ret=ret, inferred=False)
        self.timeline.slots[slot].event = event
        return event

    def _attribute_set(self, slot: int, event: Ioctl) -> None:
        if event.ret in (0, -EEXIST):
            self._eventfd(slot, event.arg)
        if event.ret == 0:
            self.config.accepted(event.arg, event.vcpu)
            self.modes.long_mode = self.config.long_mode
            if _hva(event.arg):
                self._with_hva.append(slot)

    def _eventfd(self, slot: int, arg: JsonObject) -> None:
        """The kernel found the eventfd, so the VMM had created it."""
        if "evtchn" in arg and (eventfd := arg["evtchn"]["deliver"].get("eventfd")):
            fd = eventfd["fd"]
            if fd not in self._eventfds:
                self._eventfds.add(fd)
                self.timeline.slots[slot].first.append(Eventfd(fd=fd, inferred=True))

    def _make_symbolic(self, slot: int) -> None:
        event = self.timeline.slots[slot].event
        assert isinstance(event, Ioctl)  # noqa: S101  # put there by _begin
        hva = _hva(event.arg)
        symbolic = self.config.host_address(hva, first_page=self.machine.first_free_page(self.config))
        member = {"shared_info": {"hva": symbolic}} if "shared_info" in event.arg else {"hva": symbolic}
        if self.config.gpa_of(hva) is None:
            self.report.unknown["guest address behind an accepted host address (a page of its own)"] += 1
        self.timeline.slots[slot].event = evolve(event, arg={**event.arg, **member}, extra={"hva": hva})


def _union(line: TraceLine) -> bytes:
    """Return the first bytes of the attribute's union: the fields d0, d1, ... as far as they go."""
    union = b""
    while (number := line.value(f"d{len(union) // U64.size}")) is not None:
        union += U64.pack(number & U64_MAX)
    return union


def _hva(arg: JsonObject) -> int:
    hva: int = arg.get("shared_info", arg).get("hva", 0)
    return hva
