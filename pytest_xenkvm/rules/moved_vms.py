"""Family `migration`, as far as the VMM does it: in which order it sets up the VM that it migrates to."""

from __future__ import annotations

from typing import Any, Final

from attrs import define

from pytest_xenkvm.abi.numbers import VcpuAttr
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Ioctls, Judged, Level, Rule
from pytest_xenkvm.rules.tracking import Setup
from pytest_xenkvm.trace.events import Ioctl

_TIMERS: Final = Ioctls(frozenset({"KVM_XEN_VCPU_SET_ATTR"}))


@define(eq=False)
class _TimerChecker(Checker):
    """Is shown the timers that are set on the target; derive and implement `restored`."""

    def observe(self, observation: Observation) -> None:
        """Dismiss what is no accepted timer with a port on a VM that another is migrated to."""
        event, source = observation.event, self.context.source
        if source is None or not isinstance(event, Ioctl) or event.name != "KVM_XEN_VCPU_SET_ATTR":
            return
        if event.arg["type"] == VcpuAttr.TIMER and event.ret >= 0 and event.arg["timer"]["port"]:
            self.restored(observation, event.vcpu or 0, event.arg["timer"], source)

    def restored(self, observation: Observation, vcpu: int, timer: dict[str, Any], source: Setup) -> None:
        """Judge a vCPU's timer (port, expiry) by what was set up on the VM that it comes from."""
        raise NotImplementedError


@define(eq=False)
class _IdsFirst(_TimerChecker):
    def restored(self, observation: Observation, vcpu: int, timer: dict[str, Any], source: Setup) -> None:
        xen_id, now = source.vcpu(vcpu).xen_id, self.context.setup.vcpu(vcpu).xen_id
        if xen_id is None:
            return
        if xen_id == now:
            self.hold()
            return
        has = "no Xen ID" if now is None else f"Xen ID {now}"
        self.violate(
            observation,
            f"vCPU {vcpu} gets its timer (port {timer['port']}) on the VM that it is migrated to while it "
            f"has {has} there, expected {xen_id} as before: restore KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID before "
            "KVM_XEN_VCPU_ATTR_TYPE_TIMER",
        )


@define(eq=False)
class _AreasFirst(_TimerChecker):
    def restored(self, observation: Observation, vcpu: int, timer: dict[str, Any], source: Setup) -> None:
        if not timer["expires_ns"] or not source.shared_info:
            return
        if self.context.setup.shared_info:
            self.hold()
            return
        self.violate(
            observation,
            f"vCPU {vcpu} gets its running timer (port {timer['port']}) on the VM that it is migrated to "
            "while the kernel has no shared_info page there; a timer that came due on the way fires at once, "
            "and its event is lost: restore the VM's SHARED_INFO and each VCPU_INFO before any TIMER",
        )


RULES: Final = (
    Rule(
        id="migration.ids-before-timers",
        title="On the VM that it migrates to, the VMM restores a vCPU's Xen ID before its timer.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="kvm_xen_vcpu_set_attr, kvm_xen_hcall_vcpu_op (commit c10bd49bdcc9, Linux 7.3)",
        explanation=(
            "With a timer port the kernel serves a vCPU's timer hypercalls, by its Xen ID. A vCPU whose ID "
            "comes later, or never, refuses its guest's calls up to Linux 7.2, except on vCPU 0, and from "
            "7.3 on forwards them to a VMM that doesn't expect them any more."
        ),
        advice="Restore VCPU_ID first and TIMER last, as restore_snapshot does.",
        checker=_IdsFirst,
        sees=(_TIMERS,),
        exercised_by="a VMM under test that migrates a vCPU with a Xen ID and restores its timer port",
    ),
    Rule(
        id="migration.areas-before-timers",
        title="On the VM that it migrates to, the VMM restores shared_info before running timers.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="kvm_xen_vcpu_set_attr, kvm_xen_start_timer, kvm_xen_set_evtchn_fast",
        explanation=(
            "Setting TIMER with an expiry arms the timer, and fires it if the expiry has passed, as it "
            "often has after a migration. The event is a bit in shared_info. Without that page it is put "
            "off to the vCPU's next entry and lost if the page still isn't there."
        ),
        advice="Restore SHARED_INFO and VCPU_INFO before TIMER, as restore_snapshot does.",
        checker=_AreasFirst,
        sees=(_TIMERS,),
        exercised_by="a VMM under test that migrates a vCPU whose timer runs, with SHARED_INFO set",
    ),
)
