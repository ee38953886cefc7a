"""A state machine around one VM: it remembers what was done, and what must hold after each step."""

from __future__ import annotations

from errno import EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENXIO, EOPNOTSUPP
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from operations import UNSEEN, perform
from xen_vms import MSR, PAGE, PRIORITY, changed, make_vm, observable

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, HvmAttr, VcpuAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.profile import PROFILES, HostLimits, Profile
from pytest_xenkvm.core.routing import GsiRoute
from pytest_xenkvm.core.state import HvmConfig, VcpuState
from pytest_xenkvm.core.vcpu_attrs import TimerSetting

SLOTS: Final = ((0, 6 * PAGE), (7 * PAGE, 2 * PAGE))
"""Memory with a hole at page 6."""
ERRNOS: Final = {EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENXIO, EOPNOTSUPP}
FAILED_CALLS: Final = {number + 1 - errno for number in (U32_MAX, U64_MAX) for errno in (EFAULT, EINVAL)}
VCPUS: Final = 3
ARGUMENT: Final = 4 * PAGE
"""Where the guest puts a hypercall's argument; nothing refuses it, and areas may lie there too."""
ALL_IDS: Final = (0, 7, 2)


class WatchedVm(RuleBasedStateMachine):
    """A VM that is looked at before and after whatever is done to it."""

    @initialize(
        profile=st.sampled_from(list(PROFILES.values())),
        irqchip=st.sampled_from(["full", "full", "split", "none"]),
        limits=st.builds(
            HostLimits,
            max_vcpus=st.sampled_from([1, 1024, 4096, U32_MAX]),
            run_delay_info=st.sampled_from([True, True, False]),
        ),
        vendor=st.sampled_from(["amd", "intel"]),
        ready=st.sampled_from([True, True, True, False]),
    )
    def create(self, *, profile: Profile, irqchip: str, limits: HostLimits, vendor: str, ready: bool) -> None:
        """Create the VM, bare or configured so that most things work."""
        self.shape: dict[str, Any] = {
            "irqchip": irqchip,
            "limits": limits,
            "cpu_vendor": vendor,
            "vcpu_ids": ALL_IDS,
            "slots": SLOTS,
        }
        self.profile = profile
        self.vm = make_vm(profile, **self.shape)
        self.done: list[tuple[tuple[Any, ...], Any]] = []
        self.clock_went_back = False
        if ready:
            self.do("configure", HvmConfig(flags=0x22, msr=MSR))
            self.do("set_attr", HvmAttr.SHARED_INFO, 1)
            for vcpu in range(VCPUS):
                self.do("set_vcpu_attr", vcpu, VcpuAttr.VCPU_INFO, 2 * PAGE + 64 * vcpu)
                self.do("set_vcpu_attr", vcpu, VcpuAttr.TIMER, TimerSetting(port=3 + vcpu, expires_ns=10**12))
                self.do("set_vcpu_attr", vcpu, VcpuAttr.VCPU_ID, vcpu)
            self.do("open_file", 3, *[True])
            for send_port, port, target in ((1, 31, 0), (63, 0, 3)):
                request = OutboundRequest(
                    send_port=send_port, type=2, flags=0, port=port, vcpu=target, priority=PRIORITY
                )
                self.do("set_attr", HvmAttr.EVTCHN, request)
            self.do("set_gsi_routing", [GsiRoute(gsi=24, type=5, port=64, vcpu_id=7, priority=PRIORITY)])

    def do(self, name: str, *args: Any, may_change: set[str] | None = None) -> Any:
        """Do an operation and remember it. Refused, it changes nothing; with -EFAULT only `may_change`."""
        before = observable(self.vm)
        result = perform(self.vm, name, *args)
        self.done.append(((name, *args), result))
        if isinstance(result, KvmError):
            assert result.errno in ERRNOS
            assert changed(before, observable(self.vm)) <= (
                may_change if may_change and result.errno == EFAULT else set()
            )
        return result

    @property
    def states(self) -> list[VcpuState]:
        """The vCPUs."""
        return self.vm.state.vcpus

    def call(
        self, vcpu: int, call: tuple[Any, ...], block_for: int | None = None, *, seen: bool = True
    ) -> Any:
        """A hypercall that fails, is forwarded, or depends on unseen memory changes nothing."""
        self.do("enter", vcpu)
        before = observable(self.vm)
        result = self.do("hypercall", vcpu, call, block_for, seen)
        if result is UNSEEN or isinstance(result, XenExit) or result in FAILED_CALLS:
            assert changed(before, observable(self.vm)) == set()
        if isinstance(result, XenExit):
            longmode, cpl, nr, *args = call
            limit = U64_MAX if longmode else U32_MAX
            assert (result.longmode, result.cpl, result.input) == (longmode, cpl, nr & limit)
            assert result.params[: len(args)] == tuple(arg & limit for arg in args)
            assert self.do("complete", vcpu, 0) is True
        return result

    def bit(self, gpa: int, number: int) -> int:
        """A bit of guest memory."""
        return (self.vm.state.memory.read(gpa + number // 8, 1) or b"")[0] >> number % 8 & 1

    # What always holds

    @invariant()
    def ids_are_unset_or_valid(self) -> None:
        """A Xen ID is the profile's unset value, or below KVM_MAX_VCPUS."""
        for vcpu in self.states:
            assert vcpu.xen_id == self.profile.unset_vcpu_id or vcpu.xen_id < self.vm.state.limits.max_vcpus

    @invariant()
    def timers_are_in_one_state(self) -> None:
        """A timer is idle and shows 0, or runs towards a time ahead, or is pending."""
        for vcpu in self.states:
            timer = vcpu.timer
            if timer.deadline is None:
                assert timer.pending or timer.expires_ns == 0
            else:
                assert timer.deadline > self.vm.state.now
                assert not timer.pending

    @invariant()
    def runstate_times_add_up(self) -> None:
        """The times of a runstate add up to its entry time, also if the clock went back."""
        for vcpu in self.states:
            assert sum(vcpu.runstate.times) & U64_MAX == vcpu.runstate.entry_time

    @invariant()
    def nothing_leaves_its_bounds(self) -> None:
        """Numbers stay as wide as the kernel has them, memory keeps its size, and nobody polls any more."""
        state = self.vm.state
        assert 0 <= state.now <= U64_MAX
        assert [len(slot.buffer) for slot in state.memory.slots] == [size for _gpa, size in SLOTS]
        assert all(0 < port < 4096 for port in state.outbound)
        for vcpu in self.states:
            assert 0 <= vcpu.deferred_sel <= U64_MAX
            assert vcpu.irr >> 256 == 0 == vcpu.irr & 0xFFFF
            assert vcpu.irr == 0 or state.has_local_apic
            assert vcpu.polling is None
            for number in (vcpu.timer.expires_ns, vcpu.runstate.entry_time, *vcpu.runstate.times):
                assert 0 <= number <= U64_MAX

    def teardown(self) -> None:
        """The same operations on a fresh VM give the same results and the same bytes."""
        if not hasattr(self, "vm"):
            return
        again = make_vm(self.profile, **self.shape)
        for operation, result in self.done:
            assert told(perform(again, *operation)) == told(result)
        assert changed(observable(self.vm), observable(again)) == set()


def told(result: Any) -> Any:
    """A result that can be compared."""
    return str(result) if isinstance(result, KvmError) else result
