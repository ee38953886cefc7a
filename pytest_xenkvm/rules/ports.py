"""Families `ports` and `shared-info`: event channels that the VMM gives to KVM must be ones that can work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import (
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    EvtchnFlag,
    HvmAttr,
    VcpuAttr,
)
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Ioctls, Judged, Level, Rule
from pytest_xenkvm.trace.decode import action_words
from pytest_xenkvm.trace.events import Event, Ioctl, JsonObject, Wrmsr

_PORTS_32: Final = 1024
_PORTS_64: Final = 4096
_SEND: Final = "KVM_XEN_HVM_EVTCHN_SEND"
_SETS: Final = Ioctls(frozenset({"KVM_XEN_VCPU_SET_ATTR", "KVM_XEN_HVM_SET_ATTR"}))
_ROUTES: Final = Ioctls(frozenset({"KVM_SET_GSI_ROUTING"}))
_SENDS: Final = (
    Ioctls(frozenset({_SEND}), under_test=True),
    Ioctls(frozenset({_SEND}), refused=True),
)
"""Of recorded VMMs, which may send any number of events, those that were lost."""
_CITED: Final = "Xen's public/event_channel.h: EVTCHN_2L_NR_CHANNELS, EVTCHNOP_bind_virq"


@frozen
class _Use:
    """A port that an ioctl gives to KVM. `target`: the KVM vCPU id; `priority`; None where it has none."""

    port: int
    target: int | None = None
    priority: int | None = None


def _uses(event: Ioctl) -> Iterator[_Use]:
    """The ports in an ioctl's argument that are to be delivered, or to be sent to."""
    match event.name, event.arg:
        case "KVM_XEN_HVM_EVTCHN_SEND", _:
            yield _use(event.arg)
        case "KVM_XEN_VCPU_SET_ATTR", {"type": VcpuAttr.TIMER}:
            timer = event.arg["timer"]
            if timer["port"]:
                yield _Use(timer["port"], None, timer["priority"])
        case "KVM_XEN_HVM_SET_ATTR", {"type": HvmAttr.EVTCHN}:
            evtchn = event.arg["evtchn"]
            if evtchn["flags"] in (EvtchnFlag.ASSIGN, EvtchnFlag.UPDATE):
                yield _Use(evtchn["send_port"])
                if "port" in evtchn["deliver"]:
                    yield _use(evtchn["deliver"]["port"])
        case "KVM_SET_GSI_ROUTING", {"entries": [*entries]}:
            for entry in entries:
                if entry["type"] == KVM_IRQ_ROUTING_XEN_EVTCHN:
                    yield _use(entry["xen_evtchn"])


def _use(target: JsonObject) -> _Use:
    return _Use(target["port"], target["vcpu"], target["priority"])


@define(eq=False)
class _UseChecker(Checker):
    """Judges each use of a port once; derive and implement `wrong`."""

    judged: set[_Use] = Factory(set)

    def observe(self, observation: Observation) -> None:
        """Look at the ports in an ioctl."""
        event = observation.event
        if not isinstance(event, Ioctl):
            return
        for use in _uses(event):
            if use in self.judged:
                continue
            wrong = self.wrong(use)
            if wrong is None:
                continue
            self.judged.add(use)
            if wrong:
                self.violate(observation, f"{_whose(event)}{action_words(event)}: {wrong}")
            else:
                self.hold()

    def wrong(self, use: _Use) -> str | None:
        """What is wrong with it; empty if nothing, None if it isn't concerned."""
        raise NotImplementedError


def _whose(event: Ioctl) -> str:
    return "" if event.vcpu is None else f"vCPU {event.vcpu}: "


@define(eq=False)
class _AreTwoLevel(_UseChecker):
    def wrong(self, use: _Use) -> str | None:
        if use.priority is None:
            return None
        if use.priority == KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL:
            return ""
        return (
            f"priority {use.priority} is none that KVM knows, which refuses it with -EINVAL; the only one is "
            "KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL (0xffffffff)"
        )


@define(eq=False)
class _AreInRange(_UseChecker):
    long_mode: bool = False

    def observe(self, observation: Observation) -> None:
        """The guest's mode decides how many ports there are."""
        event = observation.event
        if _latches_long_mode(event):
            self.long_mode = True
        super().observe(observation)

    def wrong(self, use: _Use) -> str | None:
        if 0 < use.port < (_PORTS_64 if self.long_mode else _PORTS_32):
            return ""
        if 0 < use.port < _PORTS_64:  # the guest may yet turn out to be a 64-bit one
            return None
        return (
            f"port {use.port} can't be delivered: 2-level event channels go from 1 to {_PORTS_32 - 1}, in a "
            f"64-bit guest to {_PORTS_64 - 1}. KVM takes some such ports without a word, and their events "
            "are lost"
        )


def _latches_long_mode(event: Event) -> bool:
    if isinstance(event, Wrmsr):
        return event.longmode
    return (
        isinstance(event, Ioctl)
        and event.name == "KVM_XEN_HVM_SET_ATTR"
        and bool(event.arg.get("long_mode"))
        and event.vcpu is None
    )


@define(eq=False)
class _AreNotShared(Checker):
    timers: dict[int, int] = Factory(dict)
    """Timer port of each vCPU."""
    outbound: set[int] = Factory(set)

    def observe(self, observation: Observation) -> None:
        """Follow the accepted uses of ports that the guest sees."""
        event = observation.event
        if not isinstance(event, Ioctl) or event.ret < 0 or observation.place.after:
            return
        match event.name, event.arg:
            case "KVM_XEN_VCPU_SET_ATTR", {"type": VcpuAttr.TIMER, "timer": {"port": int(port)}}:
                self.timers.pop(event.vcpu or 0, None)
                if port:
                    self._judge(observation, port)
                    self.timers[event.vcpu or 0] = port
            case "KVM_XEN_HVM_SET_ATTR", {"type": HvmAttr.EVTCHN}:
                self._outbound(observation, event.arg["evtchn"]["send_port"], event.arg["evtchn"]["flags"])

    def _outbound(self, observation: Observation, port: int, flags: int) -> None:
        if flags == EvtchnFlag.RESET:
            self.outbound.clear()
        elif flags == EvtchnFlag.DEASSIGN:
            self.outbound.discard(port)
        elif flags == EvtchnFlag.ASSIGN:
            self._judge(observation, port)
            self.outbound.add(port)

    def _judge(self, observation: Observation, port: int) -> None:
        uses = [f"the timer of vCPU {index}" for index, other in self.timers.items() if other == port]
        if port in self.outbound:
            uses.append("an outbound port of the guest")
        if uses:
            event = observation.event
            self.violate(
                observation,
                f"{_whose(event) if isinstance(event, Ioctl) else ''}{action_words(event)}: port {port} "
                f"already is {' and '.join(uses)}; a port has one use and belongs to one vCPU, so give "
                "every use a port of its own",
            )
        elif self.timers or self.outbound:
            self.hold()


@define(eq=False)
class _TargetIsAVcpu(_UseChecker):
    def wrong(self, use: _Use) -> str | None:
        shape = self.context.header.vm
        if use.target is None or shape is None:
            return None
        ids = [vcpu.id for vcpu in shape.vcpus]
        if use.target in ids:
            return ""
        return (
            f"the VM has no vCPU with KVM's id {use.target}, so the event goes nowhere; there are "
            f"{', '.join(map(str, ids))}. It is the id of KVM_CREATE_VCPU (the APIC id), not the Xen ID"
        )


@define(eq=False)
class _SharedInfoFirst(Checker):
    seen: bool = False

    def observe(self, observation: Observation) -> None:
        """Look at whether an event can be delivered."""
        event = observation.event
        if not isinstance(event, Ioctl) or event.name != _SEND:
            return
        if not self.context.setup.shared_info:
            self.violate(
                observation,
                f"{action_words(event)} while the kernel has no shared_info page, so the event is lost: set "
                "KVM_XEN_ATTR_TYPE_SHARED_INFO (or _HVA) when the guest maps the page, and hold events back "
                "until then",
            )
        elif not self.seen:
            self.seen = True
            self.hold()


RULES: Final = (
    Rule(
        id="ports.are-2level",
        title="Every event channel that the VMM gives to KVM has the priority 2LEVEL.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Linux's Documentation/virt/kvm/api.rst: KVM_XEN_HVM_EVTCHN_SEND; kvm_xen_setup_evtchn",
        explanation=(
            "KVM knows 2-level event channels only. The field `priority` is there for FIFO ones to come; any "
            "other value is -EINVAL, wherever it stands: timers, outbound ports, routes, events sent."
        ),
        advice="Pass KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL (0xffffffff), not 0.",
        checker=_AreTwoLevel,
        sees=(_SETS, _ROUTES, *_SENDS),
        exercised_by="a TIMER with a port, an outbound port, a route to an event channel, or an event sent",
    ),
    Rule(
        id="ports.are-in-range",
        title="Every event channel port that the VMM gives to KVM is one that its guest can have.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=f"{_CITED}; kvm_xen_set_evtchn_fast, max_evtchn_port",
        explanation=(
            "A port is a bit in shared_info, which has room for 1024 of them in a 32-bit guest and for 4096 "
            "in a 64-bit one; 0 is none. KVM refuses some ports out of range, but takes them as a vCPU's "
            "timer port or in a route: the timer then fires and its event is lost."
        ),
        advice="Allocate ports from 1 on; beyond 1023 only when LONG_MODE is latched.",
        checker=_AreInRange,
        sees=(_SETS, _ROUTES, *_SENDS, Wrmsr),
        exercised_by="a TIMER with a port, an outbound port, a route to an event channel, or an event sent",
    ),
    Rule(
        id="ports.are-not-shared",
        title="No two vCPUs have the same timer port, and no timer port is an outbound port.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=f"{_CITED}; kvm_xen_vcpu_set_attr",
        explanation=(
            "VIRQ_TIMER is a virtual interrupt of each vCPU, which the guest binds to a port of its own. The "
            "pending bits of ports are the VM's: of two vCPUs whose timers share one, the second to fire "
            "finds the bit set and wakes nobody. KVM doesn't compare ports."
        ),
        advice="Allocate a free port for each bind, and set that vCPU's TIMER to it.",
        checker=_AreNotShared,
        sees=(_SETS,),
        exercised_by="a timer port or an outbound port given to KVM while it has another one",
    ),
    Rule(
        id="ports.target-is-a-vcpu",
        title="Every event that the VMM has KVM deliver goes to a vCPU of the VM, by KVM's id.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Linux's Documentation/virt/kvm/api.rst: KVM_XEN_HVM_EVTCHN_SEND; kvm_xen_set_evtchn_fast",
        explanation=(
            "Event channels name their vCPU by the id that KVM_CREATE_VCPU was given, which is the APIC id; "
            "the guest's hypercalls name it by the Xen ID. Where CPUs have threads, the two differ. KVM "
            "takes a target that isn't there, and delivers nothing."
        ),
        advice="Translate the Xen vCPU number of a hypercall to the KVM vCPU id.",
        checker=_TargetIsAVcpu,
        sees=(_SETS, _ROUTES, *_SENDS),
        exercised_by="an outbound port or a route with a vCPU, or an event sent, where the vCPUs are known",
    ),
    Rule(
        id="shared-info.before-events",
        title="The VMM sends events only while the kernel has the guest's shared_info page.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Linux's Documentation/virt/kvm/api.rst: KVM_XEN_HVM_SET_ATTR; kvm_xen_set_evtchn_fast",
        explanation=(
            "An event is a pending bit in shared_info before it is anything in a vcpu_info. However "
            "completely the VMM has set VCPU_INFO, without SHARED_INFO the kernel refuses every event, and a "
            "refused event is lost."
        ),
        advice="Set SHARED_INFO before VCPU_INFO, and keep what happens earlier until then.",
        checker=_SharedInfoFirst,
        sees=_SENDS,
        exercised_by="a KVM_XEN_HVM_EVTCHN_SEND by a VMM under test, or one in a recording that failed",
    ),
)
