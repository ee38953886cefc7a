"""VMM behaviours that come with the package: conforming ones, and for each rule one that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_xenkvm.vmm.behaviour import VmmBehaviour
from pytest_xenkvm.vmm.bundled import broken_answers, broken_ids, broken_ports, broken_timers
from pytest_xenkvm.vmm.bundled.minimal import Minimal
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.userspace_timers import UserspaceTimers

CONFORMING: Final[dict[str, Callable[[], VmmBehaviour]]] = {
    "qemu": Qemu,
    "minimal": Minimal,
    "userspace-timers": UserspaceTimers,
}
"""Behaviours that no rule objects to."""

BROKEN: Final[dict[str, Callable[[], VmmBehaviour]]] = {
    "vcpu-id.set-before-timers": broken_ids.ForgetsIds,
    "vcpu-id.unique": broken_ids.SharesIds,
    "vcpu-id.unset-is-not-restored": broken_ids.WritesUnsetIds,
    "vcpu-id.is-the-guests": broken_ids.SwapsIds,
    "migration.ids-before-timers": broken_ids.RestoresTimersFirst,
    "migration.areas-before-timers": broken_ids.RestoresAreasLast,
    "hypercalls.are-intercepted": broken_answers.InterceptsNothing,
    "hypercalls.are-answered": broken_answers.LeavesCallsUnanswered,
    "hypercalls.user-mode-is-refused": broken_answers.ServesUserMode,
    "hypercalls.unknown-is-enosys": broken_answers.CutsNumbers,
    "hypercalls.version-is-told": broken_answers.TellsNoVersion,
    "timers.are-served": broken_answers.LeavesTimersUnserved,
    "timers.other-vcpu-is-refused": broken_timers.ServesOtherVcpus,
    "timers.past-fires-at-once": broken_timers.LosesPastTimers,
    "timers.fire-when-due": broken_timers.LosesTimers,
    "timers.stop-cancels": broken_timers.StopsNoTimer,
    "timers.etime-is-for-the-past": broken_timers.RefusesThePast,
    "vcpu-op.unknown-vcpu-is-refused": broken_answers.ServesAnyVcpu,
    "vcpu-op.areas-reach-kvm": broken_answers.LeavesAreasToTheKernel,
    "vcpu-op.periodic-timer-stops": broken_answers.StopsNoPeriodicTimer,
    "upcall-vector.is-the-vcpus": broken_answers.SetsVectorsOnTheVm,
    "ports.are-2level": broken_ports.SetsPriorities,
    "ports.are-in-range": broken_ports.TakesPortsOutOfRange,
    "ports.are-not-shared": broken_ports.SharesTimerPorts,
    "ports.target-is-a-vcpu": broken_ports.SendsToNobody,
    "shared-info.before-events": broken_ports.SendsWithoutSharedInfo,
}
"""For each rule about VMMs, by its id: a behaviour that breaks it and no other, to prove that it bites."""

BUNDLED: Final[dict[str, Callable[[], VmmBehaviour]]] = {
    **CONFORMING,
    **{f"broken-{rule}": behaviour for rule, behaviour in BROKEN.items()},
}
"""What makes a bundled behaviour, by its name."""
