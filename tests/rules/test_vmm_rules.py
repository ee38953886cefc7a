"""The VMM rules, on tiny VMMs that serve a guest of two vCPUs well and badly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import ENOSYS
from typing import Any, Final

import pytest
from attrs import evolve, frozen
from rule_traces import (
    EINVAL,
    RULES,
    UNSET,
    VMM,
    HandTrace,
    arm,
    check,
    config,
    header,
    set_id,
    set_port,
    stop,
)

from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.rules.model import Verdict
from pytest_xenkvm.rules.run import ReplayOptions, observe_trace, run_trace
from pytest_xenkvm.trace.events import Behind, Event, Hypercall
from pytest_xenkvm.vmm import KvmError, Vcpu, Vm, Vmm, XenExit

SET: Final = "vcpu-id.set-before-timers"
UNIQUE: Final = "vcpu-id.unique"
RESTORE: Final = "vcpu-id.unset-is-not-restored"

OLD_KERNELS: Final = ("linux-6.12", "linux-7.2")
IN_1_MS: Final = Behind(arg=2, data=bytes(16), now_plus_at=((0, 1_000_000),))
SET_THE_ID: Final = "set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID on every vCPU before the guest runs"


def guest_call(vcpu: int, **more: Any) -> Hypercall:
    """The guest arms the timer of the vCPU that it runs on; nobody knows what came of it."""
    call = arm(vcpu, vcpu, None, behind=(IN_1_MS,), **more)
    return evolve(call, rax=None)


GUEST: Final = (guest_call(0), guest_call(1))


@frozen(kw_only=True)
class TinyVmm(Vmm):
    """Sets the IDs that it is given, then timer ports, and answers everything alike."""

    ids: Sequence[int | None] = (0, 1)
    ports: bool = True
    answer: int = -ENOSYS
    then: Callable[[Vm], None] = lambda _vm: None

    def configure(self, vm: Vm) -> None:
        """Intercept hypercalls; IDs; ports; whatever else."""
        vm.xen_hvm_config()
        for vcpu, xen_id in zip(vm.vcpus, self.ids, strict=True):
            if xen_id is not None:
                vcpu.set_vcpu_id(xen_id)
            if self.ports:
                vcpu.set_timer(10 + vcpu.index)
        self.then(vm)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Answer alike."""
        del vcpu, xen_exit
        return self.answer


def judged(rule: str, behaviour: Vmm, events: Sequence[Event] = GUEST, profile: str = "linux-7.3") -> Verdict:
    """The verdict on a VMM that serves this guest."""
    trace = HandTrace(header=header(scope="hypercalls"), items=tuple(events))
    (found,) = run_trace(trace, [RULES[rule]], ReplayOptions(profile=profile, behaviour=behaviour)).verdicts
    return found


def recorded(rule: str, *events: Event, recorder: str = "ftrace", profile: str = "linux-7.3") -> Verdict:
    """The verdict on the VMM of a recording."""
    trace = HandTrace(header=header(recorder=recorder), items=events)
    (found,) = run_trace(trace, [RULES[rule]], ReplayOptions(profile=profile)).verdicts
    return found


@pytest.mark.parametrize("profile", ["linux-6.12", "linux-7.2", "linux-7.3"])
def test_a_vmm_that_sets_its_ids_is_fine(profile: str) -> None:
    """With an ID of its own on every vCPU all VMM rules hold, on every kernel."""
    for rule in (SET, UNIQUE, RESTORE):
        check(judged(rule, TinyVmm(), profile=profile), "held")


def test_a_vmm_may_serve_all_timers_itself() -> None:
    """Without IDs and timer ports, a VMM that answers the forwarded calls needs no ID."""
    check(judged(SET, TinyVmm(ids=(None, None), ports=False, answer=0)), "held")


@pytest.mark.parametrize("profile", OLD_KERNELS)
def test_a_forgotten_id_on_an_old_kernel(profile: str) -> None:
    """Up to 7.2 the finding shows -EINVAL from the kernel on vCPU 1, and what to do."""
    found = judged(SET, TinyVmm(ids=(0, None)), profile=profile)
    check(
        found,
        "violated",
        "vCPU 1 has no Xen ID when its guest calls VCPUOP_set_singleshot_timer(vcpu=1, timeout=+1 ms), "
        "which was handled in the kernel: -EINVAL (-22) (up to Linux 7.2 every vCPU, not only the first, "
        "starts with ID 0, and from Linux 7.3 on the call is forwarded)",
        SET_THE_ID,
    )
    assert [finding.place for finding in found.findings] == [Place(1)]


@pytest.mark.parametrize("profile", OLD_KERNELS)
def test_the_default_of_vcpu_0_is_no_excuse(profile: str) -> None:
    """That an old kernel serves vCPU 0 without an ID doesn't make it right."""
    found = judged(SET, TinyVmm(ids=(None, None)), profile=profile)
    check(
        found,
        "violated",
        "vCPU 0 has no Xen ID",
        "which was handled in the kernel: 0 (up to",
        "vCPU 1 has no",
    )


def test_a_forgotten_id_that_ends_in_enosys() -> None:
    """A VMM that forwards to nobody leaves the guest without a timer."""
    found = judged(SET, TinyVmm(ids=(None, None), ports=False))
    check(
        found,
        "violated",
        "vCPU 0 has no Xen ID when its guest calls VCPUOP_set_singleshot_timer(vcpu=0, timeout=+1 ms), "
        "which was forwarded to the VMM, which answered -ENOSYS (-38) (the guest is left without a timer): "
        + SET_THE_ID,
    )
    check(
        judged(SET, TinyVmm(ids=(None, None), ports=False), [guest_call(0, longmode=False)]),
        "violated",
        "[32-bit], which was forwarded to the VMM, which answered -ENOSYS (-38)",
    )


def test_serving_timers_beside_the_kernels_is_not_consistent() -> None:
    """A VMM that answers itself though it set a timer port, or gave another vCPU an ID, needs the ID."""
    check(
        judged(SET, TinyVmm(ids=(None, None), answer=0)),
        "violated",
        "vCPU 0 has no Xen ID",
        "which answered 0 (port 10 makes set_timer_op use the kernel's timer",
    )
    check(
        judged(SET, TinyVmm(ids=(0, None), ports=False, answer=0)),
        "violated",
        "vCPU 1 has no Xen ID",
        "which answered 0 (vCPU 0 has an ID, so the VMM serves only some of the timers)",
    )


def test_a_vcpu_is_reported_once() -> None:
    """However often the guest calls, a vCPU without an ID is one violation."""
    found = judged(SET, TinyVmm(ids=(0, None)), GUEST * 3)
    check(found, "violated", "vCPU 1 has no Xen ID")
    assert found.violations == 1


def test_an_id_that_comes_late_is_too_late() -> None:
    """The ID must be there at the first call; one that follows doesn't help."""
    events = (config(), set_port(1, 9), arm(1, 1, VMM, EINVAL), set_id(1, 1), arm(1, 1))
    found = recorded(SET, *events)
    check(found, "violated", "vCPU 1 has no Xen ID")
    assert [finding.place.line for finding in found.findings] == [4]
    check(recorded(SET, *events[:2], *events[3:]), "held")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [guest_call(0, cpl=3)],
        [evolve(guest_call(0), nr=29)],
        [evolve(guest_call(0), args=(7, 0, 0, 0, 0, 0))],
    ],
)
def test_a_guest_without_singleshot_timers_judges_no_vmm(events: list[Event]) -> None:
    """Only a singleshot call of the guest's kernel shows whether the IDs were set in time."""
    check(judged(SET, TinyVmm(ids=(None, None)), events), "not-exercised")
    check(judged(UNIQUE, TinyVmm(ids=(0, 0)), events), "not-exercised")


def test_an_answer_that_nobody_saw_judges_no_vmm() -> None:
    """A recording that doesn't show the VMM's answer doesn't show whether it served the call."""
    seen = (config(), arm(1, 1, VMM, 0))
    check(recorded(SET, *seen), "held")
    check(recorded(SET, seen[0], evolve(seen[1], rax=None)), "not-exercised")


def test_a_vmm_without_intercept_is_not_judged() -> None:
    """Without INTERCEPT_HCALL there is no Xen hypercall."""
    check(judged(SET, Vmm()), "not-exercised")


@pytest.mark.parametrize("rule", [SET, UNIQUE, RESTORE])
def test_a_test_program_is_not_judged(rule: str) -> None:
    """The VMM of a probe's recording does odd things on purpose."""
    events = (config(), set_id(0, UNSET, EINVAL), set_id(0, 1), set_id(1, 1), arm(1, 1, VMM, -ENOSYS))
    assert recorded(rule, *events, recorder="ftrace").reason == ""
    found = recorded(rule, *events, recorder="kvm-oracle")
    assert found.state.value == "not-exercised"
    assert found.reason == "judges the VMM, and this trace's VMM is a test program"


@pytest.mark.parametrize("profile", ["linux-7.2", "linux-7.3"])
def test_ids_that_clash(profile: str) -> None:
    """Two vCPUs with one ID are found at the guest's next singleshot call, once."""
    found = judged(UNIQUE, TinyVmm(ids=(1, 1)), [*GUEST, *GUEST], profile=profile)
    check(
        found,
        "violated",
        "vCPU 0 and vCPU 1 have the same Xen ID 1 when the guest calls VCPUOP_set_singleshot_timer(vcpu=0, "
        "timeout=+1 ms) on vCPU 0, which was handled in the kernel: -EINVAL (-22)",
        "give every vCPU of the VM an ID of its own with KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID",
    )
    assert (found.violations, found.findings[0].place) == (1, Place(0))


def test_a_clash_that_was_put_right_in_time() -> None:
    """Only the IDs at the time of a call count, and it takes two of them."""
    check(judged(UNIQUE, TinyVmm(ids=(1, 1), then=lambda vm: vm.vcpus[0].set_vcpu_id(0))), "held")
    check(judged(UNIQUE, TinyVmm(ids=(0, None))), "not-exercised")


def test_a_clash_of_other_vcpus_counts() -> None:
    """The IDs of all vCPUs count, whichever makes the call; each clash is a violation of its own."""
    events = [config(), set_id(0, 0), set_id(1, 1), set_id(2, 1), arm(0, 0, VMM), stop(0, 0, VMM)]
    trace = HandTrace(header=header(vcpus=3), items=(*events, set_id(0, 1), stop(0, 0, VMM)))
    (found,) = run_trace(trace, [RULES[UNIQUE]], ReplayOptions(profile="linux-7.3")).verdicts
    check(
        found,
        "violated",
        "vCPU 1 and vCPU 2 have the same Xen ID 1 when",
        "vCPU 1 and vCPU 2 and vCPU 0 have",
    )
    assert found.violations == 2


def migrates(vm: Vm) -> None:
    """Read every ID and write it back, as a live migration does; go on where the kernel refuses."""
    for vcpu in vm.vcpus:
        try:
            vcpu.set_vcpu_id(vcpu.get_vcpu_id())
        except KvmError:
            continue


def test_an_unset_id_that_is_written_back() -> None:
    """A VMM that restores what it read as unset is told to leave it out."""
    found = judged(RESTORE, TinyVmm(ids=(None, 1), then=migrates))
    check(
        found,
        "violated",
        "vCPU 0: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=XEN_VCPU_ID_INVALID (0xffffffff)) answered -EINVAL "
        "(-22), as the VMM had read it from there; an unset ID can't be written",
        "leave a VCPU_ID of 0xffffffff out",
    )
    assert (found.violations, found.findings[0].place) == (1, Place(-1))


def test_an_invented_sentinel_is_no_better() -> None:
    """Writing 0xffffffff is wrong also where it was not read before."""
    found = recorded(RESTORE, set_id(0, UNSET, EINVAL))
    check(found, "violated", "answered -EINVAL (-22), an unset ID can't be written")
    check(recorded(RESTORE, set_id(0, 4096, EINVAL)), "held")
    check(judged(RESTORE, TinyVmm(ids=(None, None))), "not-exercised")


def test_observations_carry_the_vmms_answer() -> None:
    """In both replays a forwarded call's observation has the VMM's answer as u64, every other one None."""
    calls = (guest_call(1), guest_call(0), guest_call(1))
    trace = HandTrace(header=header(scope="hypercalls"), items=calls)
    options = ReplayOptions(profile="linux-7.3", behaviour=TinyVmm(ids=(0, None)))
    answers = [seen.answer for seen in observe_trace(trace, options) if isinstance(seen.event, Hypercall)]
    assert answers == [-ENOSYS % (1 << 64), None, -ENOSYS % (1 << 64)]

    recording = (
        config(),
        arm(0, 0, VMM, 5),
        set_port(0, 9),
        set_id(0, 0),
        arm(0, 0),
        evolve(GUEST[1], rax=None),
    )
    kernel = observe_trace(HandTrace(header=header(), items=recording), ReplayOptions(profile="linux-7.3"))
    assert [seen.answer for seen in kernel] == [None, 5, None, None, None, 0]
