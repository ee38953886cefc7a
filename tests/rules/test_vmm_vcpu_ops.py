"""Rules about vcpu_op, which KVM forwards but for timers, and about upcall vectors."""

from __future__ import annotations

from errno import EINVAL, ENOENT, ENOSYS, EPERM
from struct import pack
from typing import Any, Final

import pytest
from rule_traces import Item, check, header, set_id
from vmm_events import ARGUMENT, forwarded, judged, vcpu_attr, vcpu_op, vm_attr

from pytest_xenkvm.abi.numbers import HvmAttr, HvmOp, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace.events import Behind, Hypercall, Ioctl, VcpuRun

UNKNOWN: Final = "vcpu-op.unknown-vcpu-is-refused"
PERIODIC: Final = "vcpu-op.periodic-timer-stops"
AREAS: Final = "vcpu-op.areas-reach-kvm"
VECTOR: Final = "upcall-vector.is-the-vcpus"

INFO: Final = pack("<QII", 0x101, 0, 0)
AREA: Final = pack("<Q", 0x10_1000)


# ---- vcpu-op.unknown-vcpu-is-refused


@pytest.mark.parametrize("answer", [-ENOENT, -ENOSYS])
def test_a_vcpu_that_is_not_there_is_refused(answer: int) -> None:
    """-ENOENT, or -ENOSYS where the operation isn't there either."""
    check(judged(UNKNOWN, vcpu_op(VcpuOp.is_up, 2, result=answer)), "held")


@pytest.mark.parametrize("answer", [0, 1, -EINVAL])
def test_a_vcpu_that_is_not_there_is_served(answer: int) -> None:
    """Anything else is a violation; bits above 31 don't count."""
    found = judged(UNKNOWN, vcpu_op(VcpuOp.is_up, 1 << 32 | 2, result=answer, vcpu=1))
    check(
        found,
        "violated",
        "vCPU 1: VCPUOP_is_up(vcpu=",
        "though the VM has no vCPU 2; Xen answers -ENOENT (-2)",
    )


def test_who_is_there() -> None:
    """VCPUs up to the VM's number, and Xen IDs that the VMM gave; singleshot timers are another rule's."""
    for item in (
        vcpu_op(VcpuOp.is_up, 1),
        vcpu_op(VcpuOp.stop_singleshot_timer, 7),
        vcpu_op(VcpuOp.is_up, 7, cpl=3, result=-EPERM),
        forwarded(Nr.sched_op, 0, 7),
    ):
        check(judged(UNKNOWN, item), "not-exercised")
    check(judged(UNKNOWN, set_id(1, 7), vcpu_op(VcpuOp.is_up, 7)), "not-exercised")


def test_a_vm_that_the_trace_does_not_tell_of() -> None:
    """Then only numbers beyond KVM_MAX_VCPUS are known not to be there."""
    unknown = header(vm=None)
    check(judged(UNKNOWN, vcpu_op(VcpuOp.is_up, 7), of=unknown), "not-exercised")
    check(judged(UNKNOWN, vcpu_op(VcpuOp.is_up, 4096), of=unknown), "violated", "has no vCPU 4096")


# ---- vcpu-op.periodic-timer-stops


def test_periodic_timers_stop() -> None:
    """0 holds; anything else is a violation that says who must answer."""
    check(judged(PERIODIC, vcpu_op(VcpuOp.stop_periodic_timer, 1)), "held")
    found = judged(PERIODIC, vcpu_op(VcpuOp.stop_periodic_timer, 1, result=-ENOSYS))
    check(
        found,
        "violated",
        "vCPU 0: VCPUOP_stop_periodic_timer(vcpu=1) was answered -ENOSYS (-38); Xen answers 0",
        "the kernel forwards the call, so answer 0 in the VMM",
    )
    assert found.rule.level.value == "SHOULD"


@pytest.mark.parametrize(
    "item",
    [
        vcpu_op(VcpuOp.stop_periodic_timer, 9, result=-ENOENT),
        vcpu_op(VcpuOp.stop_periodic_timer, 0, result=-EPERM, cpl=3),
        vcpu_op(VcpuOp.set_periodic_timer, 0, result=-ENOSYS),
    ],
    ids=["no-vcpu", "user-mode", "other-op"],
)
def test_what_stops_no_periodic_timer(item: Item) -> None:
    """A vCPU that isn't there, user mode and other operations say nothing."""
    check(judged(PERIODIC, item), "not-exercised")


# ---- vcpu-op.areas-reach-kvm

REGISTERED: Final = [
    (VcpuOp.register_vcpu_info, INFO, VcpuAttr.VCPU_INFO, {"gpa": 0x10_1000}),
    (VcpuOp.register_vcpu_info, INFO, VcpuAttr.VCPU_INFO_HVA, {"hva": {"gpa": 0x10_1000}}),
    (VcpuOp.register_runstate_memory_area, AREA, VcpuAttr.RUNSTATE_ADDR, {"gpa": 0x10_1000}),
    (VcpuOp.register_vcpu_time_memory_area, AREA, VcpuAttr.VCPU_TIME_INFO, {"gpa": 0x10_1000}),
]
NEXT: Final = VcpuRun(vcpu=0)


@pytest.mark.parametrize(("op", "behind", "attribute", "value"), REGISTERED)
def test_an_area_that_reaches_kvm(op: int, behind: bytes, attribute: int, value: dict[str, Any]) -> None:
    """Set by a behaviour before the call, or by a recorded VMM behind it, on the vCPU that was named."""
    call, made = vcpu_op(op, 1, behind), vcpu_attr(attribute, 1, **value)
    check(judged(AREAS, (3, made), (3, call), (4, NEXT)), "held")
    check(judged(AREAS, call, made, NEXT, under_test=False), "held")


@pytest.mark.parametrize(("op", "behind", "attribute", "value"), REGISTERED)
def test_an_area_that_does_not(op: int, behind: bytes, attribute: int, value: dict[str, Any]) -> None:
    """No SET, a refused one, one on another vCPU, of another attribute or too late: each is a violation."""
    call = vcpu_op(op, 1, behind)
    other = VcpuAttr.UPCALL_VECTOR
    for made in (
        vcpu_attr(attribute, 1, -EINVAL, **value),
        vcpu_attr(attribute, 0, **value),
        vcpu_attr(other, 1, vector=0xF3),
    ):
        found = judged(AREAS, (3, made), (3, call), (4, NEXT))
        check(
            found,
            "violated",
            f"VCPUOP_{VcpuOp(op).name}(vcpu=1",
            "was answered 0, but no accepted KVM_XEN_VCPU",
        )
        assert found.findings[0].place.index == 3
    late = judged(AREAS, call, NEXT, vcpu_attr(attribute, 1, **value))
    check(
        late,
        "violated",
        "gave vCPU 1 that area; the kernel forwards the call and remembers nothing of it: set KVM",
    )


def test_areas_that_nobody_need_set() -> None:
    """Refused ones, those of no address, and other operations are no promise; unseen ones may be kept."""
    gone = vcpu_op(VcpuOp.register_runstate_memory_area, 0, bytes(8))
    unseen = vcpu_op(VcpuOp.register_vcpu_info, 0)
    for call in (
        gone,
        unseen,
        vcpu_op(VcpuOp.register_vcpu_info, 0, INFO, result=-EINVAL),
        vcpu_op(VcpuOp.register_vcpu_info, 0, INFO, cpl=3),
        vcpu_op(VcpuOp.register_vcpu_info, 5, INFO),
        vcpu_op(VcpuOp.is_up, 0, INFO),
    ):
        check(judged(AREAS, call, NEXT), "not-exercised")
    check(judged(AREAS, unseen, vcpu_attr(VcpuAttr.VCPU_INFO, 0, gpa=0x1000), NEXT), "held")


def test_promises_of_several_vcpus() -> None:
    """A vCPU that goes on breaks its own promise, not another's."""
    first = vcpu_op(VcpuOp.register_vcpu_info, 0, INFO)
    second = vcpu_op(VcpuOp.register_vcpu_info, 1, INFO, vcpu=1)
    kept = vcpu_attr(VcpuAttr.VCPU_INFO, 0, gpa=0x10_1000)
    found = judged(AREAS, first, second, VcpuRun(vcpu=1), kept, NEXT, under_test=False)
    check(found, "violated", "gave vCPU 1 that area")
    assert (found.violations, found.exercised) == (1, 2)


# ---- upcall-vector.is-the-vcpus


def set_vector(vcpu: int = 1, vector: int = 0xF3, *, seen: bool = True, **more: Any) -> Hypercall:
    """HVMOP_set_evtchn_upcall_vector."""
    behind = (Behind(arg=1, data=pack("<IBxxx", vcpu, vector)),) if seen else None
    return forwarded(Nr.hvm_op, HvmOp.set_evtchn_upcall_vector, ARGUMENT, behind=behind, **more)


OF_THE_VCPU: Final = vcpu_attr(VcpuAttr.UPCALL_VECTOR, 1, vector=0xF3)


def test_a_vector_on_its_vcpu() -> None:
    """Before the call or behind it, also where the recording doesn't show which vCPU was meant."""
    check(judged(VECTOR, (3, OF_THE_VCPU), (3, set_vector()), (4, NEXT)), "held")
    for seen in (True, False):
        check(judged(VECTOR, set_vector(seen=seen), OF_THE_VCPU, NEXT, under_test=False), "held")


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (vm_attr(VcpuAttr.UPCALL_VECTOR, -EINVAL, vcpu=1), "the file of vCPU 1 answered -EINVAL (-22)"),
        (vm_attr(VcpuAttr.UPCALL_VECTOR, -ENOENT), "the VM's file answered -ENOENT (-2)"),
        (vm_attr(HvmAttr.UPCALL_VECTOR, -EINVAL, vcpu=0), "the file of vCPU 0 answered -EINVAL (-22)"),
    ],
    ids=["vcpu-file", "vm-file", "vm-type"],
)
def test_a_vector_on_the_vm(made: Ioctl, where: str) -> None:
    """The VM's ioctl on a vCPU's file, or with a vCPU's type, is one violation, wherever it is made."""
    for items in (((3, made), (3, set_vector()), (4, NEXT)), (set_vector(), made, NEXT)):
        found = judged(VECTOR, *items)
        check(
            found,
            "violated",
            f"KVM_XEN_HVM_SET_ATTR with type {made.arg['type']} on {where}",
            "TYPE_UPCALL_VECTOR (8)",
        )
        assert found.violations == 1


def test_a_vector_that_nobody_set() -> None:
    """Success without any SET, or with one on another vCPU, is a violation."""
    other = vcpu_attr(VcpuAttr.UPCALL_VECTOR, 0, vector=0xF3)
    for items in ((set_vector(), NEXT), ((3, other), (3, set_vector()), (4, NEXT))):
        check(
            judged(VECTOR, *items),
            "violated",
            "HVMOP_set_evtchn_upcall_vector(vcpu=1, vector=0xf3) was answered 0, but no accepted "
            "KVM_XEN_VCPU_SET_ATTR gave vCPU 1 that vector",
        )


def test_what_sets_no_vector() -> None:
    """Refusals, unseen arguments without a SET, the VM's own vector and user mode say nothing."""
    own = vm_attr(HvmAttr.UPCALL_VECTOR, vector=0xF3)
    for call in (
        set_vector(result=-EINVAL),
        set_vector(seen=False),
        set_vector(vector=0),
        set_vector(cpl=3),
        own,
    ):
        check(judged(VECTOR, call, NEXT), "not-exercised")
    check(judged(VECTOR, OF_THE_VCPU), "not-exercised")
