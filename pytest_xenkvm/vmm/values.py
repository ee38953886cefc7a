"""Values that ioctls carry, as a VMM writes them."""

from __future__ import annotations

from typing import NamedTuple

from attrs import frozen

from pytest_xenkvm.abi.numbers import KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL


class RunstateInfo(NamedTuple):
    """Runstate as the ioctls carry it: state and times in ns."""

    state: int
    state_entry_time: int = 0
    time_running: int = 0
    time_runnable: int = 0
    time_blocked: int = 0
    time_offline: int = 0


@frozen(kw_only=True)
class Route:
    """A GSI route to an event channel: the port, and the KVM vCPU id that it is delivered to."""

    gsi: int
    port: int
    vcpu_id: int
    priority: int = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
