"""ftrace with kprobes: the VM and its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from ftrace_text import (
    CONFIG,
    PRIORITY,
    call,
    hypercalls,
    imported,
    ioctls,
    kept,
    line,
    lives,
    outbound,
    set_attr,
    without_config,
)

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Eventfd, Ioctl, MemorySlot, Wrmsr
from pytest_xenkvm.trace.files import write_trace


def test_configuration_result_from_the_system_calls_exit() -> None:
    """Where the exit of the system call was recorded, the configuration's result is known."""
    enter = "sys_ioctl(fd: 9, cmd: 4038ae7a, arg: 7ffd0000)"
    trace = imported(line(text) for text in (enter, CONFIG, "sys_ioctl -> 0xffffffffffffffea"))
    (config,) = ioctls(trace, "KVM_XEN_HVM_CONFIG")
    assert (config.ret, config.inferred) == (-22, False)


def test_a_runstate_is_no_event_channel(tmp_path: Path) -> None:
    """The vCPU attribute RUNSTATE_CURRENT has the number that EVTCHN has of the VM's."""
    trace = lives([call(29, 0), kept(), *set_attr("vcpu", 3, 1)])
    (attr,) = ioctls(trace, "KVM_XEN_VCPU_SET_ATTR")
    assert (attr.ret, attr.arg["type"], attr.arg["runstate"]["state"]) == (0, 3, 1)
    assert write_trace(tmp_path / "a.xkt", trace.header, trace.events) == len(trace.events)


def test_a_vcpu_beyond_kvms_is_refused() -> None:
    """A vCPU number that no VM has stops the import, however many vCPUs it would make."""
    with pytest.raises(Malformed, match="expected at most 4096 vCPUs"):
        lives(["vcpu_created: (f) idx=4294967295 id=0"])


def test_a_timer_expires_under_another_attribute() -> None:
    """A host timer that is set while an attribute without a timer is on its way tells nothing of it."""
    first, last = set_attr("hvm", 0, 1)
    (attr,) = ioctls(lives([first, "timer_expires: (f) expires=5000", last]), "KVM_XEN_HVM_SET_ATTR")
    assert attr.arg == {"type": 0, "long_mode": 1}


def test_attributes_that_are_too_long_are_skipped() -> None:
    """A runstate of which the probe saw 32 of 48 bytes is left out and counted; one seen whole is not."""
    short = lives(set_attr("vcpu", 4, 0, 6, 1, 2))
    whole = lives(set_attr("vcpu", 4, 0, 10, 1, 2, 3, 4))
    assert without_config(short) == 0
    assert short.report.skipped["attributes of which the probe saw too little"] == 1
    assert whole.events[1] == Ioctl(
        ts=1000,
        name="KVM_XEN_VCPU_SET_ATTR",
        vcpu=0,
        ret=0,
        arg={
            "type": 4,
            "runstate": {
                "state": 0,
                "state_entry_time": 10,
                "time_running": 1,
                "time_runnable": 2,
                "time_blocked": 3,
                "time_offline": 4,
            },
        },
    )


def test_accepted_host_addresses_get_a_page_of_their_own() -> None:
    """A host address that the kernel took becomes a page above all others; one it refused stays a number."""
    texts = [
        *set_attr("hvm", 1, 0x10),
        *set_attr("hvm", 6, 0x7F0000001000),
        *set_attr("vcpu", 9, 0x7F0000002040),
        *set_attr("hvm", 6, 0x7F0000001001, ret=-22),
    ]
    trace = lives(texts)
    _config, _gfn, shared, vcpu_info, refused = trace.events
    assert isinstance(shared, Ioctl)
    assert isinstance(vcpu_info, Ioctl)
    assert isinstance(refused, Ioctl)
    assert shared.arg == {"type": 6, "shared_info": {"hva": {"gpa": 0x11000}}}
    assert shared.extra == {"hva": 0x7F0000001000}
    assert vcpu_info.arg == {"type": 9, "hva": {"gpa": 0x12040}}
    assert refused.arg == {"type": 6, "shared_info": {"hva": 0x7F0000001001}}
    assert trace.header.vm is not None
    assert trace.header.vm.memory == (
        MemorySlot(gpa=0x10000, size=0x1000),
        MemorySlot(gpa=0x11000, size=0x2000),
    )


def test_the_callers_knowledge_wins() -> None:
    """Memory, irqchip, vendor and limit that the caller gives are taken over."""
    header = lives([], memory=1 << 20, irqchip="full", cpu_vendor="intel", max_vcpus=1024).header
    assert header.vm is not None
    assert header.vm.memory == (MemorySlot(gpa=0, size=1 << 20),)
    assert (header.vm.irqchip, header.cpu_vendor, header.max_vcpus) == ("full", "intel", 1024)


@pytest.mark.parametrize(
    ("commands", "irqchip"),
    [(["ae01", "ae60"], "full"), (["ae01", "4400ae8f"], "split"), (["ae01"], "none")],
)
def test_irqchip_from_the_ioctls(commands: list[str], irqchip: str) -> None:
    """The irqchip follows from KVM_CREATE_IRQCHIP and from ioctls that need a local APIC."""
    entered = [f"sys_ioctl(fd: 9, cmd: 0x{command}, arg: 0)" for command in commands]
    header = lives(entered).header
    assert header.vm is not None
    assert header.vm.irqchip == irqchip


def test_max_vcpus_from_the_system_calls_exit() -> None:
    """KVM_CAP_MAX_VCPUS is known if the exits of system calls were recorded."""
    header = lives(["sys_ioctl(fd: 9, cmd: ae03, arg: 42)", "sys_ioctl -> 0x1000"]).header
    assert header.max_vcpus == 4096


def test_late_recordings_replay_only_as_hypercalls() -> None:
    """A recording that began after the configuration has scope "hypercalls"."""
    trace = imported(line(text) for text in (call(29, 0), kept()))
    assert (trace.header.scope, trace.header.vm) == ("hypercalls", None)


def test_hypercall_page() -> None:
    """A write to the configured MSR is an event, with the outcome that the tracepoint shows."""
    efer = "kvm_msr: msr_write c0000080 = 0xd01"
    page = "write_hypercall_page: (f) data=0x5000"
    trace = lives([efer, page, "kvm_msr: msr_write 40000000 = 0x5000"])
    refused = lives(["kvm_msr: msr_write 40000000 = 0x5001 (#GP)"])
    assert trace.events[1] == Wrmsr(ts=2000, vcpu=0, longmode=True, msr=0x40000000, value=0x5000, ok=True)
    assert isinstance(refused.events[1], Wrmsr)
    assert not refused.events[1].ok
    assert trace.header.vm is not None
    assert trace.header.vm.memory == (MemorySlot(gpa=0x5000, size=4096),)


def test_hypercall_page_without_the_tracepoint() -> None:
    """A page write whose outcome nobody saw is inferred to have worked."""
    trace = lives(["write_hypercall_page: (f) data=0x5000"])
    assert isinstance(trace.events[1], Wrmsr)
    assert trace.events[1].inferred


def test_two_vms_are_refused() -> None:
    """Two threads that run the same vCPU are two VMs, which one trace can't hold."""
    other = line(call(29, 0), 9, task="CPU 0/KVM-300")
    with pytest.raises(Malformed, match=r"recording, line 2: threads 160 and 300 both run vCPU 0"):
        imported([line(call(29, 0)), other])


def test_probes_that_could_not_read_are_skipped() -> None:
    """A probe that faulted on its argument gives no event."""
    trace = lives(["hvm_set_attr: (f) type=(fault) d0=(fault)", "hvm_set_attr_ret: (f <- f) ret=0"])
    assert without_config(trace) == 0
    assert trace.report.skipped["probes that could not read their argument"] == 1


def test_a_deassigned_port_is_no_eventfd() -> None:
    """Only an assignment without a delivery port means an eventfd."""
    (deassigned,) = ioctls(lives(outbound(5, 0, flags=1)), "KVM_XEN_HVM_SET_ATTR")
    assert deassigned.arg["evtchn"]["deliver"] == {"port": {"port": 0, "vcpu": 0, "priority": PRIORITY}}


@pytest.mark.parametrize(("results", "created"), [([0, 0], [9]), ([-9], []), ([-17], [9])])
def test_eventfds_are_created_once(results: list[int], created: list[int]) -> None:
    """An eventfd is created once, and not at all if the kernel said that it was none."""
    texts = [text for ret in results for text in set_attr("hvm", 3, 2 << 32 | 5, 0, 9, ret=ret)]
    trace = lives(texts)
    assert [event.fd for event in trace.events if isinstance(event, Eventfd)] == created


def test_refused_areas_need_no_memory() -> None:
    """Only accepted areas get memory; a runstate area may need two pages."""
    texts = [*set_attr("vcpu", 0, 0x9000, ret=-14), *set_attr("vcpu", 2, 0x4FF0)]
    header = lives(texts).header
    assert header.vm is not None
    assert header.vm.memory == (MemorySlot(gpa=0x4000, size=0x2000),)


def test_a_thread_is_known_by_its_creation() -> None:
    """A thread that created its vCPU is known even where the trace lost its name."""
    created = [
        line(f"sys_ioctl(fd: a, cmd: ae41, arg: {vcpu_id:x})", task=f"CPU {index}/KVM-16{index}")
        for index, vcpu_id in ((0, 0), (1, 4))
    ]
    nameless = [line(call(29, 0), task="<...>-161"), line(kept(), task="<...>-161")]
    trace = imported([line(CONFIG), *created, *nameless])
    assert [made.vcpu for made in hypercalls(trace)] == [1]
    assert trace.header.vm is not None
    assert [vcpu.id for vcpu in trace.header.vm.vcpus] == [0, 4]


def test_a_refused_efer_proves_nothing() -> None:
    """Only an EFER that the guest really got shows long mode."""
    small = "kvm_xen_hypercall: cpl 0 nr 0x1d a0 0x0 a1 0x0 a2 0x0 a3 0x0 a4 0x0 a5 0"
    efer = "kvm_msr: msr_write c0000080 = 0xd01"
    off = set_attr("hvm", 0, 0)
    for write, longmode in ((efer, True), (f"{efer} (#GP)", False)):
        (made,) = hypercalls(lives([*off, write, small, kept()]))
        assert made.longmode is longmode


def test_a_late_configuration_is_not_enough() -> None:
    """A configuration after the first hypercall was not the first, so the trace doesn't replay on its own."""
    trace = imported(line(text) for text in (call(29, 0), kept(), CONFIG))
    assert trace.header.scope == "hypercalls"
