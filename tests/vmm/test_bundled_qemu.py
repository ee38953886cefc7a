"""How close `qemu` comes to the QEMU of the recordings: every answer, one by one."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
from bundled_replays import BOOTS

from pytest_xenkvm.rules.run import ReplayOptions, observe_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.decode import hypercall_name
from pytest_xenkvm.trace.events import Hypercall
from pytest_xenkvm.vmm.bundled.calls import Call, Fields
from pytest_xenkvm.vmm.bundled.qemu import Qemu

FORWARDED: Final = {
    "@linux-boot": (2427, 797, 783),
    "@linux-boot-1vcpu": (697, 697, 686),
    "@linux-boot-1vcpu-again": (698, 698, 687),
    "@linux-boot-7.2": (2271, 263, 249),
    "@linux-boot-7.3": (2224, 393, 379),
}
"""Answers of `qemu` that are as recorded; how many of these calls were forwarded then, too; and how many have
an argument that had to be assumed.

More are forwarded now, because the kernel delivers no event while it has no shared_info page, and no
recording shows where that was: it then forwards what the guest sends.
"""

ASSUMED: Final = {
    "XENVER_get_features",
    "XENMEM_add_to_physmap",
    "HVMOP_set_param",
    "HVMOP_get_param",
    "HVMOP_set_evtchn_upcall_vector",
    "VCPUOP_register_vcpu_info",
    "VCPUOP_register_vcpu_time_memory_area",
    "VCPUOP_register_runstate_memory_area",
    "EVTCHNOP_bind_virq",
    "EVTCHNOP_bind_ipi",
    "EVTCHNOP_bind_pirq",
    "EVTCHNOP_bind_vcpu",
    "EVTCHNOP_bind_interdomain",
    "EVTCHNOP_alloc_unbound",
    "EVTCHNOP_unmask",
    "EVTCHNOP_close",
    "PHYSDEVOP_map_pirq",
    "PHYSDEVOP_irq_status_query",
    "PHYSDEVOP_eoi",
    "GNTTABOP_query_size",
    "GNTTABOP_set_version",
}
"""Hypercalls whose argument the recordings don't show, so that `qemu` takes what Linux passes there."""

UNKNOWN: Final = {"EVTCHNOP_send", "SCHEDOP_poll"}
"""Those that depend on unseen memory already in the kernel, in part: they are not judged."""


class Listening(Qemu):
    """`qemu`, telling where it had to assume something."""

    assumed: Counter[str]

    def assume(self, call: Call) -> Fields | None:
        """Note the hypercall."""
        fields = super().assume(call)
        if fields is not None:
            self.assumed[hypercall_name(call.xen_exit.input, call.op)] += 1
        return fields


@pytest.mark.parametrize("boot", BOOTS)
def test_every_answer_is_as_recorded(boot: str) -> None:
    """Whatever is forwarded, `qemu` answers what QEMU answered, and the kernel what the kernel did."""
    trace, behaviour = open_trace(boot), Listening()
    behaviour.assumed = Counter()
    recorded = [*trace.events()]
    same, forwarded_then, different, unseen = 0, 0, [], Counter[str]()
    for observation in observe_trace(trace, ReplayOptions(behaviour=behaviour)):
        then, now = recorded[max(observation.place.index, 0)], observation.event
        if observation.by_vmm or not (isinstance(then, Hypercall) and isinstance(now, Hypercall)):
            continue
        if observation.unjudged or then.rax is None:
            unseen[hypercall_name(now.nr, int(str(now.args[0])))] += 1
        elif then.rax != now.rax:
            different.append((observation.place.line, then.rax, now.rax))
        elif now.handled == "userspace":
            same += 1
            forwarded_then += then.handled == "userspace"
    assert different == []
    assert (same, forwarded_then, behaviour.assumed.total()) == FORWARDED[boot]
    assert {*unseen} <= UNKNOWN
    assert {*behaviour.assumed} == ASSUMED


def test_the_timers_stay_in_the_kernel() -> None:
    """Every singleshot call that KVM served for QEMU it serves for `qemu`."""
    calls = Counter[str | None]()
    for observation in observe_trace(open_trace("@linux-boot"), ReplayOptions(behaviour=Qemu())):
        event = observation.event
        if isinstance(event, Hypercall) and event.nr == 24 and event.args[0] in (8, 9):
            calls[event.handled] += 1
    assert calls == {"kernel": 6409}
