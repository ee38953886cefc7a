"""Whatever is done to a VM in whatever order: what always holds.

The examples are the same in every run, unless XENKVM_EXAMPLES=5000, say, asks for as many new ones.
"""

from __future__ import annotations

import os
from errno import EFAULT, ENOENT
from struct import pack
from typing import Any, Final

from core_values import (
    VCPU_VALUES,
    VM_VALUES,
    addresses,
    configs,
    deltas,
    durations,
    fds,
    gsis,
    modes,
    msr_values,
    msrs,
    numbers_of_calls,
    ports,
    priorities,
    routes,
    sub_ops,
    u64,
    vcpu_ids,
)
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from watched_vm import ALL_IDS, ARGUMENT, FAILED_CALLS, VCPUS, WatchedVm
from xen_vms import PAGE, PRIORITY, answer, changed, observable

from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    INVALID_GPA,
    U32_MAX,
    U64_MAX,
    XEN_VCPU_ID_INVALID,
    EvtchnOp,
    HvmAttr,
    Hypercall,
    SchedOp,
    VcpuAttr,
    VcpuOp,
)
from pytest_xenkvm.core.area import MemoryArea
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercall_page import MsrWrite
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.routing import GsiRoute
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.core.timer import signed

DEEPER: Final = os.environ.get("XENKVM_EXAMPLES")
vcpus = st.integers(0, VCPUS - 1)

SHARED_INFO_SHOWS: Final = {"SHARED_INFO", "SHARED_INFO_HVA"}
REMEMBERED: Final[dict[int, set[str]]] = {
    HvmAttr.SHARED_INFO: SHARED_INFO_SHOWS,
    HvmAttr.SHARED_INFO_HVA: SHARED_INFO_SHOWS,
    HvmAttr.LONG_MODE: {"LONG_MODE"},
}
"""VM attributes of which -EFAULT changes something: a refused area is remembered, LONG_MODE switches."""
REMEMBERED_VCPU: Final[dict[int, set[str]]] = {
    VcpuAttr.VCPU_INFO: {"VCPU_INFO", "VCPU_INFO_HVA", "inside"},
    VcpuAttr.VCPU_INFO_HVA: {"VCPU_INFO", "VCPU_INFO_HVA", "inside"},
    VcpuAttr.VCPU_TIME_INFO: {"VCPU_TIME_INFO"},
    VcpuAttr.RUNSTATE_ADDR: {"RUNSTATE_ADDR"},
}
"""The same for vCPU attributes; "inside", since a VM-wide vector follows vcpu_info."""


class AnyOrder(WatchedVm):
    """Operations in any order on a VM with three vCPUs."""

    # What the VMM does

    @rule(config=configs)
    def configure(self, config: HvmConfig) -> None:
        """KVM_XEN_HVM_CONFIG."""
        self.do("configure", config)

    @rule(data=st.data(), attr=st.sampled_from(list(VM_VALUES)))
    def set_attr(self, data: st.DataObject, attr: int) -> None:
        """KVM_XEN_HVM_SET_ATTR; what was accepted, or refused for want of memory, is read back."""
        value = data.draw(VM_VALUES[attr])
        result = self.do("set_attr", attr, value, may_change=REMEMBERED.get(attr))
        if isinstance(result, KvmError) and result.errno != EFAULT:
            return
        if attr != HvmAttr.EVTCHN:
            assert self.do("get_attr", attr) == self.expected(attr, value)

    def expected(self, attr: int, value: int) -> int:
        """What a GET shows after a SET of a VM attribute."""
        if attr in (HvmAttr.LONG_MODE, HvmAttr.RUNSTATE_UPDATE_FLAG):
            return int(bool(value))
        if attr == HvmAttr.SHARED_INFO:
            return value if value == INVALID_GFN else value % (1 << 52)
        return value

    @rule(data=st.data(), vcpu=vcpus, attr=st.sampled_from(list(VCPU_VALUES)))
    def set_vcpu_attr(self, data: st.DataObject, vcpu: int, attr: int) -> None:
        """KVM_XEN_VCPU_SET_ATTR; what was accepted, or refused for want of memory, is read back."""
        value = data.draw(VCPU_VALUES[attr])
        may_change = {f"{name} {vcpu}" for name in REMEMBERED_VCPU.get(attr, ())}
        result = self.do("set_vcpu_attr", vcpu, attr, value, may_change=may_change)
        refused = isinstance(result, KvmError)
        if (refused and result.errno != EFAULT) or attr == VcpuAttr.RUNSTATE_ADJUST:
            return
        if attr == VcpuAttr.TIMER:  # remembered, as reading it has an effect
            found = self.do("get_vcpu_attr", vcpu, attr)
        else:
            found = answer(self.vm.get_vcpu_attr, self.states[vcpu], attr)
        if attr == VcpuAttr.RUNSTATE_ADDR:
            assert found == (f"-{ENOENT}" if refused or value == INVALID_GPA else value)
        elif attr == VcpuAttr.RUNSTATE_CURRENT:
            assert found == (value[0],)
        elif attr == VcpuAttr.TIMER:
            assert found.port == value.port
            assert found.expires_ns in ((0, value.expires_ns) if value.port else (0,))
        else:
            assert found == value

    @rule(attr=st.sampled_from(list(VM_VALUES)))
    def get_attr(self, attr: int) -> None:
        """KVM_XEN_HVM_GET_ATTR."""
        self.do("get_attr", attr)

    @rule(vcpu=vcpus, attr=st.sampled_from(list(VCPU_VALUES)))
    def get_vcpu_attr(self, vcpu: int, attr: int) -> None:
        """KVM_XEN_VCPU_GET_ATTR."""
        self.do("get_vcpu_attr", vcpu, attr)

    def address(self, area: MemoryArea) -> int | None:
        """The guest address of a usable area."""
        if area.mapped is None:
            return None
        return area.gpa if area.hva == 0 else self.vm.state.memory.hva_to_gpa(area.hva, 1)

    @rule(port=ports, vcpu=vcpus)
    def deliver(self, port: int, vcpu: int) -> None:
        """An event that is delivered is seen at every level, at once or at a later entry."""
        state, target = self.vm.state, self.states[vcpu]
        base, info = self.address(state.shared_info), self.address(target.vcpu_info)
        assume(port < state.layout.max_ports and base is not None)
        assert base is not None
        assume(info is None or info // PAGE != base // PAGE)
        was_pending = self.bit(base + 0x800, port)
        masked = self.bit(base + state.layout.evtchn_mask, port)
        word = port // state.layout.word_bits
        selected = (
            target.deferred_sel >> word & 1
            if info is None
            else self.bit(info + state.layout.pending_sel, word)
        )
        result = self.do("send", port, ALL_IDS[vcpu], PRIORITY)
        assert isinstance(result, KvmError) == (port == 0)
        if port and not was_pending:
            assert self.bit(base + 0x800, port)
        if port and not was_pending and not masked:
            if info is None:
                assert target.deferred_sel >> word & 1
            else:
                assert self.bit(info + state.layout.pending_sel, word)
                assert selected or self.bit(info, 0)

    @rule(port=ports, vcpu_id=vcpu_ids, priority=priorities)
    def send(self, port: int, vcpu_id: int, priority: int) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND."""
        self.do("send", port, vcpu_id, priority)

    @rule(entries=st.lists(routes, max_size=3))
    def set_gsi_routing(self, entries: list[GsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING."""
        self.do("set_gsi_routing", entries)

    @rule(gsi=gsis, level=st.integers(0, 1))
    def set_irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        self.do("set_irq_line", gsi, level)

    @rule(fd=fds, gsi=gsis, flags=st.sampled_from([0, 0, 1, 2, 3, U32_MAX]))
    def set_irqfd(self, fd: int, gsi: int, flags: int) -> None:
        """KVM_IRQFD."""
        self.do("set_irqfd", fd, gsi, flags)

    @rule(fd=fds, is_eventfd=st.sampled_from([True, True, False]))
    def open_file(self, *, fd: int, is_eventfd: bool) -> None:
        """The VMM opens an eventfd, or another file."""
        assume(fd not in self.vm.state.files)
        self.do("open_file", fd, is_eventfd)

    @rule(fd=fds, value=u64)
    def write_eventfd(self, fd: int, value: int) -> None:
        """write(2) on an eventfd."""
        self.do("write_eventfd", fd, value)

    @rule(fd=fds)
    def drain_eventfd(self, fd: int) -> None:
        """read(2) on an eventfd."""
        self.do("drain_eventfd", fd)

    # What the guest does

    @rule(vcpu=vcpus)
    def enter(self, vcpu: int) -> None:
        """KVM_RUN."""
        self.do("enter", vcpu)

    @rule(
        vcpu=vcpus,
        mode=modes,
        nr=numbers_of_calls,
        sub_op=sub_ops | u64,
        argument=u64 | addresses | st.integers(0, 2),
        pointer=addresses | u64,
        block_for=st.none() | durations,
        seen=st.sampled_from([True, True, True, False]),
    )
    def any_hypercall(
        self, *, vcpu: int, mode: Any, nr: int, block_for: Any, seen: bool, **args: int
    ) -> None:
        """A hypercall of any kind."""
        call = (*mode, nr, args["sub_op"], args["argument"], args["pointer"])
        self.call(vcpu, call, block_for, seen=seen)

    @rule(vcpu=vcpus, mode=modes, named=vcpus, delta=deltas, stop=st.booleans())
    def singleshot(self, *, vcpu: int, mode: Any, named: int, delta: int, stop: bool) -> None:
        """set/stop_singleshot_timer: handled where the profile says so, and then the timer is as asked."""
        timeout = self.vm.state.now + delta & U64_MAX
        self.do("store", ARGUMENT, pack("<QII", timeout, 1, 0))
        sub_op = VcpuOp.stop_singleshot_timer if stop else VcpuOp.set_singleshot_timer
        result = self.call(vcpu, (*mode, Hypercall.vcpu_op, sub_op, named, ARGUMENT))
        state, target = self.vm.state, self.states[vcpu]
        if not state.intercepts_hypercalls:
            return
        unset = self.profile.forwards_singleshot_while_id_unset and target.xen_id == XEN_VCPU_ID_INVALID
        assert isinstance(result, XenExit) == (mode[1] > 0 or not target.timer.port or unset)
        if isinstance(result, XenExit):
            return
        assert result in (FAILED_CALLS if named != target.xen_id else {0})
        if result == 0 and (stop or signed(delta) > 0):
            assert target.timer.deadline == (None if stop else state.now + signed(delta))

    @rule(vcpu=vcpus, mode=modes, low=u64, high=u64)
    def set_timer(self, vcpu: int, mode: Any, low: int, high: int) -> None:
        """set_timer_op never fails, and a timer that it leaves running is at most 2^50 ns away."""
        result = self.call(vcpu, (*mode, Hypercall.set_timer_op, low, high))
        deadline = self.states[vcpu].timer.deadline
        if not isinstance(result, XenExit) and self.vm.state.intercepts_hypercalls:
            assert result == 0
            assert deadline is None or deadline - self.vm.state.now < 1 << 50

    @rule(
        vcpu=vcpus,
        mode=modes,
        ports=st.lists(ports, max_size=3),
        timeout=durations | st.just(U64_MAX),
        block_for=st.none() | durations,
    )
    def poll(self, vcpu: int, mode: Any, ports: list[int], timeout: int, block_for: int | None) -> None:
        """SCHEDOP_poll ends, and never later than its timeout or what is known of its duration."""
        array = ARGUMENT + 64
        layout = "<QIIQ" if mode[0] else "<IIQ"
        count = (len(ports), 0) if mode[0] else (len(ports),)
        self.do("store", ARGUMENT, pack(layout, array, *count, timeout))
        self.do("store", array, b"".join(pack("<I", port) for port in ports))
        start = self.vm.state.now
        self.call(vcpu, (*mode, Hypercall.sched_op, SchedOp.poll, ARGUMENT), block_for)
        limits = [limit for limit in (timeout or None, block_for) if limit is not None]
        assert not limits or self.vm.state.now <= start + min(limits)

    @rule(vcpu=vcpus, mode=modes, port=ports)
    def send_by_guest(self, vcpu: int, mode: Any, port: int) -> None:
        """EVTCHNOP_send is handled only for an outbound port."""
        self.do("store", ARGUMENT, pack("<I", port))
        result = self.call(vcpu, (*mode, Hypercall.event_channel_op, EvtchnOp.send, ARGUMENT))
        if self.vm.state.intercepts_hypercalls and port not in self.vm.state.outbound:
            assert isinstance(result, XenExit)

    @rule(vcpu=vcpus, rip=st.integers(0, 1))
    def complete(self, vcpu: int, rip: int) -> None:
        """KVM_RUN after a hypercall that was not forwarded is refused."""
        assert isinstance(self.do("complete", vcpu, rip), KvmError)

    @rule(vcpu=vcpus, msr=msrs, value=msr_values, active=st.booleans())
    def wrmsr(self, *, vcpu: int, msr: int, value: int, active: bool) -> None:
        """A WRMSR that takes #GP or fails the run latches the mode at most, with its wall clock."""
        self.do("enter", vcpu)
        before = observable(self.vm)
        result = self.do("wrmsr", vcpu, msr, value, active, may_change={"LONG_MODE", "memory"})
        if result is not MsrWrite.OK:
            differs = changed(before, observable(self.vm))
            # A latched mode changes what deferred selector bits become, too.
            assert differs <= {"LONG_MODE", "memory", f"inside {vcpu}"}
            assert "LONG_MODE" in differs or not differs

    @rule(vcpu=vcpus)
    def take_vector(self, vcpu: int) -> None:
        """The guest takes an interrupt: the one that was to be next."""
        upcoming = self.vm.next_vector(self.states[vcpu])
        assert self.do("take_vector", vcpu) == upcoming

    @rule(gpa=addresses, data=st.sampled_from([b"\0", b"\1", b"\xff", bytes(8), b"\xff" * 8, bytes(512)]))
    def store(self, gpa: int, data: bytes) -> None:
        """The guest stores to its memory."""
        self.do("store", gpa, data)

    @rule(gpa=addresses, words=st.lists(ports | durations, min_size=1, max_size=6))
    def store_words(self, gpa: int, words: list[int]) -> None:
        """The guest puts a hypercall's argument together."""
        self.do("store", gpa, b"".join((word & U32_MAX).to_bytes(4, "little") for word in words))

    # Time

    @rule(by=durations | st.just(U64_MAX))
    def advance(self, by: int) -> None:
        """Time passes."""
        self.do("advance", by)

    @precondition(lambda self: not self.clock_went_back)
    @rule(now=durations)
    def set_clock(self, now: int) -> None:
        """KVM_SET_CLOCK."""
        self.clock_went_back = now < self.vm.state.now
        self.do("set_clock", now)

    @rule(vcpu=vcpus, ns=durations)
    def wait_for_cpu(self, vcpu: int, ns: int) -> None:
        """The host's scheduler keeps the vCPU waiting."""
        self.do("wait_for_cpu", vcpu, ns)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=int(DEEPER or 250),
    derandomize=DEEPER is None,
    database=None,
    deadline=None,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
