"""The rules about what a VMM owes its guest, on tiny VMMs and on a real guest's boot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from attrs import evolve, field, frozen
from rule_traces import (
    EFAULT,
    EINVAL,
    ENOSYS,
    KERNEL,
    RULES,
    VMM,
    HandTrace,
    Item,
    arm,
    check,
    config,
    happened,
    header,
    hypercall,
    set_id,
    set_port,
    set_timer_op,
    stop,
    verdict,
)

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.numbers import XenHvmFlag
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.rules.model import Level, Verdict
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm

GUESTS: Final = "vcpu-id.is-the-guests"
INTERCEPTED: Final = "hypercalls.are-intercepted"
SERVED: Final = "timers.are-served"
DUTIES: Final = (GUESTS, INTERCEPTED, SERVED)
BOOTS: Final = (
    "linux-boot",
    "linux-boot-7.2",
    "linux-boot-7.3",
    "linux-boot-1vcpu",
    "linux-boot-1vcpu-again",
)
GUEST: Final = (evolve(stop(0, 0), rax=None), evolve(stop(1, 1), rax=None))
SWAPPED: Final = (config(), set_id(0, 1), set_id(1, 0), set_port(0, 9), set_port(1, 9))


@frozen(kw_only=True)
class TinyVmm(Vmm):
    """Intercepts hypercalls, gives IDs and timer ports, answers everything alike."""

    xen_id: Callable[[int], int] = field(default=lambda index: index)
    ports: bool = True
    answer: int = ENOSYS

    def configure(self, vm: Vm) -> None:
        """Hypercalls, IDs, ports."""
        vm.xen_hvm_config()
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_id(self.xen_id(vcpu.index))
            if self.ports:
                vcpu.set_timer(10 + vcpu.index)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Answer alike."""
        del vcpu, xen_exit
        return self.answer


def swapped(index: int) -> int:
    """The ID of the other one of two vCPUs."""
    return 1 - index


def judged(
    behaviour: Vmm, *events: Event, profile: str = "linux-7.3", recorder: str = "ftrace"
) -> dict[str, Verdict]:
    """How a VMM that serves this guest does its duties."""
    trace = HandTrace(header=header(scope="hypercalls", recorder=recorder), items=events or GUEST)
    options = ReplayOptions(profile=profile, behaviour=behaviour)
    found = run_trace(trace, [RULES[rule] for rule in DUTIES], options).verdicts
    return {verdict.rule.id: verdict for verdict in found}


def booted(name: str, behaviour: Vmm | None = None, until: int | None = None) -> dict[str, Verdict]:
    """How the VMM of a bundled boot, or `behaviour` in its place, does its duties."""
    profile = "auto" if behaviour is None else "linux-7.3"
    options = ReplayOptions(profile=profile, behaviour=behaviour, until=until)
    found = run_trace(open_trace(f"@{name}"), [RULES[rule] for rule in DUTIES], options).verdicts
    return {verdict.rule.id: verdict for verdict in found}


@pytest.mark.parametrize("profile", ["linux-6.12", "linux-7.2", "linux-7.3"])
def test_a_vmm_that_does_its_duties(profile: str) -> None:
    """With interception, the guest's own IDs and timer ports everything is held, on every kernel."""
    for found in judged(TinyVmm(), profile=profile).values():
        check(found, "held")


@pytest.mark.parametrize("boot", BOOTS)
def test_the_vmm_of_a_real_boot_does_its_duties(boot: str) -> None:
    """The VMMs of the bundled recordings violate nothing, and all of it is exercised."""
    for found in booted(boot, until=2000).values():
        check(found, "held")


# ---- vcpu-id.is-the-guests


def test_swapped_ids_on_a_real_boot() -> None:
    """IDs of the wrong vCPUs are violations on both vCPUs: ID, the guest's number, the call, what to set."""
    found = booted("linux-boot-7.3", TinyVmm(xen_id=swapped))
    check(
        found[GUESTS],
        "violated",
        "vCPU 0 has Xen ID 1 when its guest calls VCPUOP_stop_singleshot_timer(vcpu=0) on it, which was "
        "handled in the kernel: -EINVAL (-22); a guest can set the timer of no vCPU but the one that it runs "
        "on, so it knows this one as 0: set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID of vCPU 0 to 0",
        "vCPU 1 has Xen ID 0 when its guest calls VCPUOP_stop_singleshot_timer(vcpu=1)",
    )
    assert found[GUESTS].violations == 2
    check(found[SERVED], "not-exercised")


def test_swapped_ids_in_32_bit_mode() -> None:
    """A refusal in EAX counts, and the call is said to be a 32-bit one."""
    found = verdict(GUESTS, *SWAPPED, arm(0, 0, KERNEL, EINVAL, longmode=False))
    check(found, "violated", "arg=0x200000) [32-bit] on it")


def test_a_vcpu_with_a_wrong_id_is_reported_once() -> None:
    """However often the guest calls, and even if the ID is put right then, it is one violation."""
    refused = arm(0, 0, KERNEL, EINVAL)
    found = verdict(GUESTS, *SWAPPED, refused, refused, set_id(0, 0), arm(0, 0))
    check(found, "violated", "vCPU 0 has Xen ID 1")
    assert (found.violations, found.exercised, found.findings[0].place) == (1, 1, Place(5))


def test_a_guest_that_plays_is_no_fault_of_the_vmm() -> None:
    """A guest that knows the ID may name other vCPUs; with another ID from then on it is the VMM again."""
    setup = (config(), set_id(0, 0), set_port(0, 9))
    plays = arm(0, 1, KERNEL, EINVAL)
    check(verdict(GUESTS, *setup, arm(0, 0), plays), "held")
    check(verdict(GUESTS, config(), set_id(0, 0), arm(0, 0, VMM), set_port(0, 9), plays), "not-exercised")
    check(verdict(GUESTS, *setup, arm(0, 0), set_id(0, 5), arm(0, 0, KERNEL, EINVAL)), "violated", "Xen ID 5")


def test_user_mode_excuses_no_wrong_id() -> None:
    """What a guest's user mode names says nothing about the number that its kernel knows."""
    user = arm(0, 1, VMM, ENOSYS, cpl=3)
    check(verdict(GUESTS, *SWAPPED, user, arm(0, 0, KERNEL, EINVAL)), "violated", "vCPU 0 has Xen ID 1")


@pytest.mark.parametrize(
    "event",
    [
        arm(0, 0, VMM, EINVAL, cpl=3),
        arm(0, 0, KERNEL, EFAULT),
        arm(0, 0, VMM, EINVAL),
        arm(0, 4096, KERNEL, EINVAL),
        evolve(arm(0, 0, KERNEL, EINVAL), extra={"unseen_args": [1]}),
        set_timer_op(0, 5),
        hypercall(0, Nr.vcpu_op, 7, 0, handled=KERNEL, result=EINVAL),
    ],
    ids=["user-mode", "fault", "forwarded", "no-id", "unseen", "set-timer-op", "other-op"],
)
def test_calls_that_say_nothing_about_the_id(event: Event) -> None:
    """Only a singleshot call that the kernel refuses for a number that could be an ID shows a wrong ID."""
    check(verdict(GUESTS, *SWAPPED, event), "not-exercised")


def test_an_id_without_a_timer_port_is_not_compared() -> None:
    """Without a port the kernel compares nothing, without an ID there is nothing to compare."""
    check(judged(TinyVmm(ports=False, answer=0))[GUESTS], "not-exercised")
    refused = arm(1, 1, KERNEL, EINVAL)
    check(verdict(GUESTS, config(), set_port(1, 9), refused), "not-exercised")
    check(verdict(GUESTS, config(), set_id(1, 0), refused), "not-exercised")


def test_the_guest_of_a_test_program_names_what_it_likes() -> None:
    """A probe's guest doesn't show by what number a guest knows its vCPU, whatever VMM serves it."""
    check(judged(TinyVmm(xen_id=swapped))[GUESTS], "violated", "vCPU 0 has", "vCPU 1 has")
    check(judged(TinyVmm(xen_id=swapped), recorder="kvm-oracle")[GUESTS], "not-exercised")


# ---- hypercalls.are-intercepted


def test_a_vmm_that_configures_nothing() -> None:
    """Without KVM_XEN_HVM_CONFIG the first hypercall of a boot is the one violation, and what to call."""
    found = booted("linux-boot-7.3", Vmm())
    check(
        found[INTERCEPTED],
        "violated",
        "vCPU 0: the guest calls XENVER_get_features(arg=0xffffffff8e603e40) while Xen hypercalls are not "
        "intercepted, so KVM's own hypercall ABI answered: -KVM_ENOSYS (-1000). Before the guest runs, call "
        "KVM_XEN_HVM_CONFIG with INTERCEPT_HCALL in its flags and a hypercall MSR that is not 0",
    )
    assert (found[INTERCEPTED].violations, found[INTERCEPTED].exercised) == (1, 1)
    check(found[GUESTS], "not-exercised")
    check(found[SERVED], "not-exercised")


@pytest.mark.parametrize(
    "setup", [config(flags=XenHvmFlag.EVTCHN_SEND), config(msr=0), config(ret=EINVAL)], ids=str
)
def test_half_a_configuration_intercepts_nothing(setup: Event) -> None:
    """The flag, the MSR and the kernel's consent: one missing is a violation."""
    check(verdict(INTERCEPTED, setup, stop(0, 0, KERNEL, -1000)), "violated", "answered: -KVM_ENOSYS (-1000)")


def test_interception_that_comes_and_goes() -> None:
    """Interception too late, or switched off under the guest, is violated once; what is fine is held once."""
    call = stop(0, 0, KERNEL, -1000)
    late = verdict(INTERCEPTED, call, call, config(), call, call)
    off = verdict(INTERCEPTED, config(), call, call, config(flags=0), call, config(), config(flags=0), call)
    for found, place in ((late, Place(0)), (off, Place(4))):
        check(found, "violated", "vCPU 0: the guest calls")
        assert (found.violations, found.exercised, found.findings[0].place) == (1, 2, place)


def test_any_hypercall_tells_whether_they_are_intercepted() -> None:
    """Number, vCPU and privilege level don't matter; no hypercall, no verdict."""
    call = hypercall(1, Nr.xen_version, 0, handled=KERNEL, result=-1, cpl=3, longmode=False)
    check(verdict(INTERCEPTED, call), "violated", "vCPU 1: the guest calls XENVER_version() [32-bit, CPL 3]")
    check(verdict(INTERCEPTED, config(), call), "held")
    check(verdict(INTERCEPTED, config(), set_id(0, 0)), "not-exercised")


# ---- timers.are-served


def test_ids_without_ports_and_without_answers() -> None:
    """A VMM that gives IDs, but no ports, and serves no forwarded call leaves its guest without a timer."""
    found = judged(TinyVmm(ports=False), *GUEST, *GUEST)[SERVED]
    check(
        found,
        "violated",
        "vCPU 0: the guest calls VCPUOP_stop_singleshot_timer(vcpu=0), which was forwarded to the VMM, which "
        "answered -ENOSYS (-38); that leaves the vCPU without a timer: set the port of "
        "KVM_XEN_VCPU_ATTR_TYPE_TIMER on vCPU 0 so that the kernel serves it, or serve it in the VMM's "
        "on_hypercall",
        "vCPU 1: the guest",
    )
    assert (found.rule.level, found.violations) == (Level.SHOULD, 2)


def test_what_is_missing_is_named() -> None:
    """Without an ID the kernel can't serve the call either, so the finding tells what to set: ID or port."""
    call = stop(0, 0, VMM, ENOSYS, longmode=False)
    check(
        verdict(SERVED, config(), call), "violated", "[32-bit]", "set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID and the"
    )
    ported = verdict(SERVED, config(), set_port(0, 9), call)
    check(ported, "violated", "timer: set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID on vCPU 0 so that")


def test_a_vmm_may_serve_the_calls_itself() -> None:
    """Any other answer to a forwarded call serves it."""
    check(judged(TinyVmm(ports=False, answer=0))[SERVED], "held")
    check(judged(TinyVmm(ports=False, answer=-62))[SERVED], "held")


@pytest.mark.parametrize(
    "items",
    [
        [],
        [arm(0, 0, VMM, ENOSYS)],
        [config(), arm(0, 0, VMM, ENOSYS, cpl=3)],
        [config(), set_timer_op(0, 5, VMM, ENOSYS)],
        [config(), hypercall(0, Nr.sched_op, 1, handled=VMM, result=ENOSYS)],
        [config(), happened(arm(0, 0, VMM, ENOSYS), unjudged=("rax",))],
        [config(), set_id(0, 1), set_port(0, 9), arm(0, 0, KERNEL, EINVAL)],
    ],
    ids=["nothing", "no-intercept", "user-mode", "set-timer-op", "other", "unseen", "refused"],
)
def test_calls_that_say_nothing_about_timers(items: list[Item]) -> None:
    """Only singleshot calls of the guest's kernel count, with an answer that was seen or the kernel's 0."""
    check(verdict(SERVED, *items), "not-exercised")


@pytest.mark.parametrize("rule", DUTIES)
def test_the_vmm_of_a_test_program_has_no_duties(rule: str) -> None:
    """In a kernel replay, the VMM of a probe's recording is not judged."""
    trace = HandTrace(header=header(recorder="kvm-oracle"), items=(stop(0, 0, KERNEL, -1000), *SWAPPED))
    (found,) = run_trace(trace, [RULES[rule]], ReplayOptions(profile="linux-7.3")).verdicts
    assert found.state.value == "not-exercised"
    assert found.reason == "judges the VMM, and this trace's VMM is a test program"
