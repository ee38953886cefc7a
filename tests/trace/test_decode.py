"""Events of every kind in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import action_words, event_words, has_failed, outcome_words
from pytest_xenkvm.trace.events import Behind, Event, Hypercall, Ioctl, Mem, NowPlus, Wrmsr


def call(nr: int, *args: int, **fields: Any) -> Hypercall:
    """A 64-bit hypercall from CPL 0."""
    defaults: dict[str, Any] = {"vcpu": 0, "longmode": True, "cpl": 0}
    return Hypercall(nr=nr, args=args, **{**defaults, **fields})


def ioctl(name: str, arg: dict[str, Any], ret: int = 0, **fields: Any) -> Ioctl:
    """An ioctl that succeeds."""
    return Ioctl(name=f"KVM_{name}", arg=arg, ret=ret, **fields)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            ioctl("XEN_VCPU_SET_ATTR", {"type": 6, "vcpu_id": 1}, vcpu=1),
            "KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=1) = 0",
        ),
        (
            ioctl("XEN_VCPU_SET_ATTR", {"type": 6, "vcpu_id": 0xFFFF_FFFF}, -22),
            "KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=XEN_VCPU_ID_INVALID (0xffffffff)) = -EINVAL (-22)",
        ),
        (
            ioctl("XEN_VCPU_GET_ATTR", {"type": 6}, out={"type": 6, "vcpu_id": 3}),
            "KVM_XEN_VCPU_GET_ATTR(VCPU_ID) = 0, vcpu_id=3",
        ),
        (
            ioctl("XEN_VCPU_SET_ATTR", {"type": 0, "gpa": 2**64 - 1}),
            "KVM_XEN_VCPU_SET_ATTR(VCPU_INFO, gpa=INVALID_GPA (0xffffffffffffffff)) = 0",
        ),
        (
            ioctl(
                "XEN_VCPU_SET_ATTR",
                {"type": 7, "timer": {"port": 9, "priority": 2**32 - 1, "expires_ns": {"now_plus": -5000}}},
            ),
            "KVM_XEN_VCPU_SET_ATTR(TIMER, port=9, expires=-5 us) = 0",
        ),
        (
            ioctl(
                "XEN_VCPU_GET_ATTR", {"type": 7}, out={"timer": {"port": 9}}, undetermined={"expires_ns": 4}
            ),
            "KVM_XEN_VCPU_GET_ATTR(TIMER) = 0, port=9; undetermined: expires=@4 ns",
        ),
        (
            ioctl("XEN_HVM_CONFIG", {"flags": 0x22, "msr": 0x4000_0000, "blob_size_32": 0}),
            "KVM_XEN_HVM_CONFIG(flags=INTERCEPT_HCALL|EVTCHN_SEND, msr=0x40000000) = 0",
        ),
        (
            ioctl("XEN_HVM_CONFIG", {"flags": 0x1002, "msr": 0, "blob_addr_32": {"gpa": 4096}}, -22),
            (
                "KVM_XEN_HVM_CONFIG(flags=INTERCEPT_HCALL|0x1000, msr=0x0, "
                "blob_addr_32=host address of 0x1000) = -EINVAL (-22)"
            ),
        ),
        (
            ioctl("XEN_HVM_SET_ATTR", {"type": 1, "shared_info": {"hva": {"gpa": 0x10_0000}}}),
            "KVM_XEN_HVM_SET_ATTR(SHARED_INFO, hva=host address of 0x100000) = 0",
        ),
        (
            ioctl(
                "XEN_HVM_SET_ATTR",
                {
                    "type": 3,
                    "evtchn": {
                        "send_port": 8,
                        "type": 5,
                        "flags": 2,
                        "deliver": {"port": {"port": 8, "vcpu": 1, "priority": 0}},
                    },
                },
            ),
            (
                "KVM_XEN_HVM_SET_ATTR(EVTCHN, send_port=8, type=ipi, flags=UPDATE, "
                "deliver=port 8 to vCPU 1 (priority 0, not 2LEVEL)) = 0"
            ),
        ),
        (
            ioctl("XEN_HVM_SET_ATTR", {"type": 3, "evtchn": {"deliver": {"eventfd": {"port": 0, "fd": 2}}}}),
            "KVM_XEN_HVM_SET_ATTR(EVTCHN, deliver=eventfd 2) = 0",
        ),
        (ioctl("XEN_HVM_SET_ATTR", {"type": 255}, -2), "KVM_XEN_HVM_SET_ATTR(255) = -ENOENT (-2)"),
        (
            ioctl("XEN_HVM_EVTCHN_SEND", {"port": 5, "vcpu": 2, "priority": 2**32 - 1}),
            "KVM_XEN_HVM_EVTCHN_SEND(port 5 to vCPU 2) = 0",
        ),
        (
            ioctl(
                "SET_GSI_ROUTING", {"entries": [{"gsi": 5, "type": 5, "xen_evtchn": {"port": 7, "vcpu": 0}}]}
            ),
            "KVM_SET_GSI_ROUTING(gsi 5: port 7 to vCPU 0 (priority null, not 2LEVEL)) = 0",
        ),
        (ioctl("CHECK_EXTENSION", {"cap": 38}, 511), "KVM_CHECK_EXTENSION(KVM_CAP_XEN_HVM) = 0x1ff"),
        (ioctl("CHECK_EXTENSION", {"cap": 66}, 4096), "KVM_CHECK_EXTENSION(KVM_CAP_MAX_VCPUS) = 4096"),
        (ioctl("IRQ_LINE", {"irq": 5, "level": 1}, -6), "KVM_IRQ_LINE(irq=5, level=1) = -ENXIO (-6)"),
        (events.Eventfd(fd=1), "eventfd 1 created"),
        (events.EventfdRead(fd=1, value=3), "eventfd 1 read: 3"),
        (events.EventfdWrite(fd=1, value=2**64 - 2), "eventfd 1 written: 0xfffffffffffffffe"),
        (Mem(op="read", gpa=4096, data=b"\1\2"), "mem read 0x1000: 0102"),
        (
            Mem(op="write", gpa=4096, data=bytes(64)),
            "mem write 0x1000: 00000000000000000000000000000000... (64 bytes)",
        ),
        (
            Mem(op="write", gpa=0, data=bytes(8), now_plus_at=((0, -1000),)),
            "mem write 0x0: 0000000000000000 with now-1 us at offset 0",
        ),
        (
            Wrmsr(vcpu=0, longmode=True, msr=0x4000_0000, value=0x30_0000, ok=True),
            "wrmsr 0x40000000 = 0x300000",
        ),
        (
            Wrmsr(vcpu=0, longmode=True, msr=0x4000_0000, value=0x30_0000, ok=False),
            "wrmsr 0x40000000 = 0x300000 (#GP)",
        ),
        (
            Wrmsr(vcpu=0, longmode=True, msr=1, value=2, ok=True, run_ret=-14),
            "wrmsr 0x1 = 0x2 (KVM_RUN failed: -EFAULT (-14))",
        ),
        (events.Wait(ns=5_000_000), "wait 5 ms"),
        (events.Irq(vcpu=0, vector=0x53), "irq vector 0x53"),
        (events.VcpuRun(vcpu=0), "vcpu_run"),
        (
            call(29, 0, longmode=False, compat=True, cpl=3, via="page", handled="kernel", rax=0),
            "SCHEDOP_yield() [32-bit, compatibility mode, CPL 3, via page] -> handled in the kernel: 0",
        ),
        (call(29, 0, run_ret=-14), "SCHEDOP_yield() -> KVM_RUN failed: -EFAULT (-14)"),
    ],
)
def test_every_kind_of_event_has_words(event: Event, words: str) -> None:
    """One line says what was done and what came of it."""
    assert event_words(event) == words
    assert words.startswith(action_words(event))
    assert outcome_words(event) in words


@pytest.mark.parametrize(
    ("event", "failed"),
    [
        (ioctl("IRQ_LINE", {}, -6), True),
        (ioctl("IRQ_LINE", {}, 1), False),
        (call(29, 0, rax=2**64 - 22), True),
        (call(29, 0, rax=2**32 - 22), False),
        (call(29, 0, rax=2**32 - 22, longmode=False), True),
        (call(29, 0), False),
        (call(29, 0, run_ret=-14), True),
        (Wrmsr(vcpu=0, longmode=True, msr=0, value=0, ok=False), True),
        (events.Wait(ns=1), False),
    ],
)
def test_failure_is_a_negative_errno_or_a_fault(event: Event, *, failed: bool) -> None:
    """Only a recorded error is a failure; an unknown result is not."""
    assert has_failed(event) is failed


def test_text_from_a_trace_cannot_steer_a_terminal() -> None:
    """Control characters in names, keys and values are escaped, and long text is cut."""
    event = Ioctl(name="KVM_\x1b[2J\n", arg={"a\x07": "b\x1b]0;", "long": "x" * 1000}, ret=0)
    words = event_words(event)
    assert words.isprintable()
    assert len(words) < 300


u64 = st.integers(0, 2**64 - 1)
interesting = st.one_of(u64, st.integers(0, 50), st.sampled_from([2**32 - 1, 2**32, 2**32 + 8, 2**63]))
times = st.one_of(interesting, st.builds(NowPlus, st.integers(-(2**63), 2**63)))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), times),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
KEYS = [
    *("type", "shared_info", "evtchn", "timer", "runstate", "deliver", "port", "eventfd", "fd", "priority"),
    *("gpa", "hva", "gfn", "vcpu_id", "expires_ns", "state", "flags", "entries", "gsi", "xen_evtchn", "cap"),
]
json_objects = st.dictionaries(
    st.sampled_from(KEYS) | st.text(),
    json_values | st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4),
    max_size=8,
)
NAMES = [
    *("KVM_CHECK_EXTENSION", "KVM_XEN_HVM_CONFIG", "KVM_XEN_HVM_SET_ATTR", "KVM_XEN_HVM_GET_ATTR"),
    *("KVM_XEN_VCPU_SET_ATTR", "KVM_XEN_VCPU_GET_ATTR", "KVM_XEN_HVM_EVTCHN_SEND"),
    *("KVM_SET_GSI_ROUTING", "KVM_IRQFD", "KVM_IRQ_LINE"),
]
offsets = st.lists(st.tuples(st.integers(0, 64), st.integers(-(2**63), 2**63)), max_size=3).map(tuple)
behinds = st.builds(Behind, arg=st.integers(0, 6), data=st.binary(max_size=64), now_plus_at=offsets)
any_event = st.one_of(
    st.builds(
        Ioctl,
        name=st.sampled_from(NAMES),
        arg=json_objects,
        ret=st.integers(-(2**31), 2**31),
        out=st.none() | json_objects,
        undetermined=st.none() | json_objects,
    ),
    st.builds(events.Eventfd, fd=u64),
    st.builds(events.EventfdRead, fd=u64, value=u64),
    st.builds(events.EventfdWrite, fd=u64, value=u64),
    st.builds(
        Hypercall,
        vcpu=u64,
        longmode=st.booleans(),
        cpl=st.integers(0, 3),
        nr=interesting,
        args=st.lists(times, max_size=6).map(tuple),
        handled=st.sampled_from([None, "kernel", "userspace"]),
        rax=st.none() | interesting,
        behind=st.none() | st.lists(behinds, max_size=2).map(tuple),
        via=st.none() | st.text(),
        run_ret=st.none() | st.integers(-4096, 0),
    ),
    st.builds(
        Mem, op=st.sampled_from(["read", "write"]), gpa=u64, data=st.binary(max_size=64), now_plus_at=offsets
    ),
    st.builds(Wrmsr, vcpu=u64, longmode=st.booleans(), msr=u64, value=u64, ok=st.booleans()),
    st.builds(events.Wait, ns=u64),
    st.builds(events.Irq, vcpu=u64, vector=u64),
    st.builds(events.VcpuRun, vcpu=u64),
)


@given(event=any_event, memory=st.none() | st.binary(max_size=600), now=st.none() | u64)
def test_decoding_never_raises(event: Event, memory: bytes | None, now: int | None) -> None:
    """Every event that a trace can hold reads as one printable line, whatever lies behind its pointers."""

    def read(gva: int, size: int) -> bytes | None:
        return None if memory is None else (memory * (1 + gva % 3))[:size]

    words = event_words(event, read, now)
    assert words
    assert words.isprintable()
    has_failed(event)
