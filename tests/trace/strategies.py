"""Hypothesis strategies for traces: headers, events and whole traces that the formats can hold.

Numbers are drawn near the boundaries of their fields as often as anywhere else.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from pytest_xenkvm.abi.ioctls import VCPU_IOCTLS
from pytest_xenkvm.trace.events import (
    IRQCHIPS,
    VENDORS,
    Behind,
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    Irq,
    Mem,
    MemorySlot,
    NowPlus,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
    Wrmsr,
)

Trace = tuple[Header, list[Event]]

_EDGES: Final = (0, 7, 8, 15, 16, 31, 32, 63, 64)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    """Integers of `bits` bits, biased towards powers of two and their neighbours."""
    top = (1 << bits) - 1
    edges = {(1 << edge) + step for edge in _EDGES for step in (-1, 0, 1)} | {top - 1, top}
    return st.sampled_from(sorted(edge for edge in edges if 0 <= edge <= top)) | st.integers(0, top)


U8: Final = unsigned(8)
U16: Final = unsigned(16)
U32: Final = unsigned(32)
U64: Final = unsigned(64)
S64: Final = unsigned(64).map(lambda value: value - (1 << 64) if value >> 63 else value)
ERRNO: Final = st.sampled_from([0, -2, -14, -22, 1, 511]) | S64
REGISTER: Final[st.SearchStrategy[int | NowPlus]] = U64 | S64.map(NowPlus)
TIME_MEMBER: Final = U64 | st.fixed_dictionaries({"now_plus": S64})
ADDRESS: Final = U64 | st.fixed_dictionaries({"gpa": U64})
TEXT: Final = st.text(st.characters(codec="utf-8"), max_size=12)

FREE_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
"""Any JSON that an unknown key may hold."""

_EXTRA_KEY: Final = st.sampled_from(["during", "x-note", "zeta", "alpha", "\u00e9", ""])
EXTRA: Final[st.SearchStrategy[dict[str, Any]]] = st.just({}) | st.dictionaries(
    _EXTRA_KEY, FREE_JSON, max_size=3
)

COMMON: Final[dict[str, st.SearchStrategy[Any]]] = {
    "ts": st.none() | U64,
    "inferred": st.booleans(),
    "extra": EXTRA,
}

XEN_EVTCHN: Final = st.fixed_dictionaries({"port": U32, "vcpu": U32, "priority": U32})
_DELIVER: Final = st.fixed_dictionaries({"port": XEN_EVTCHN}) | st.fixed_dictionaries(
    {"eventfd": st.fixed_dictionaries({"port": U32, "fd": U32})}
)
_EVTCHN: Final = {"send_port": U32, "type": U32, "flags": U32, "deliver": _DELIVER}
_TIMER: Final = {"port": U32, "priority": U32, "expires_ns": TIME_MEMBER}
_RUNSTATE: Final[dict[str, st.SearchStrategy[Any]]] = dict.fromkeys(
    ("state", "state_entry_time", "time_running", "time_runnable", "time_blocked", "time_offline"), U64
)
_HVM_MEMBERS: Final[dict[int, dict[str, st.SearchStrategy[Any]]]] = {
    0: {"long_mode": U8},
    1: {"shared_info": st.fixed_dictionaries({"gfn": U64})},
    2: {"vector": U8},
    3: {"evtchn": st.fixed_dictionaries(_EVTCHN)},
    4: {"xen_version": U32},
    5: {"runstate_update_flag": U8},
    6: {"shared_info": st.fixed_dictionaries({"hva": ADDRESS})},
    7: {},
}
_VCPU_MEMBERS: Final[dict[int, dict[str, st.SearchStrategy[Any]]]] = {
    **{number: {"gpa": U64} for number in (0, 1, 2)},
    **{number: {"runstate": st.fixed_dictionaries(_RUNSTATE)} for number in (3, 4, 5)},
    6: {"vcpu_id": U32},
    7: {"timer": st.fixed_dictionaries(_TIMER)},
    8: {"vector": U8},
    9: {"hva": ADDRESS},
    0xFFFF: {},
}
_ROUTE: Final = st.fixed_dictionaries({"gsi": U32, "type": st.just(5), "xen_evtchn": XEN_EVTCHN})
_PLAIN_ARGS: Final[dict[str, st.SearchStrategy[dict[str, Any]]]] = {
    "KVM_CHECK_EXTENSION": st.fixed_dictionaries({"cap": U64}),
    "KVM_XEN_HVM_CONFIG": st.fixed_dictionaries(
        {
            "flags": U32,
            "msr": U32,
            "blob_addr_32": ADDRESS,
            "blob_addr_64": ADDRESS,
            "blob_size_32": U8,
            "blob_size_64": U8,
        }
    ),
    "KVM_XEN_HVM_EVTCHN_SEND": XEN_EVTCHN,
    "KVM_SET_GSI_ROUTING": st.fixed_dictionaries({"entries": st.lists(_ROUTE, max_size=3)}),
    "KVM_IRQFD": st.fixed_dictionaries({"fd": U32, "gsi": U32, "flags": U32}),
    "KVM_IRQ_LINE": st.fixed_dictionaries({"irq": U32, "level": U32}),
}
_ATTR_IOCTLS: Final = {"KVM_XEN_HVM": _HVM_MEMBERS, "KVM_XEN_VCPU": _VCPU_MEMBERS}


@st.composite
def _attributes(draw: st.DrawFn, vcpu: st.SearchStrategy[int]) -> Ioctl:
    scope = draw(st.sampled_from(sorted(_ATTR_IOCTLS)))
    name = scope + draw(st.sampled_from(["_GET_ATTR", "_SET_ATTR"]))
    number = draw(st.sampled_from(sorted(_ATTR_IOCTLS[scope])))
    union = st.fixed_dictionaries({"type": st.just(number), **_ATTR_IOCTLS[scope][number]})
    setting = name.endswith("_SET_ATTR")
    return Ioctl(
        name=name,
        vcpu=draw(vcpu) if name in VCPU_IOCTLS else None,
        arg=draw(union) if setting else {"type": number},
        ret=draw(ERRNO),
        out=None if setting else draw(st.none() | union),
        undetermined=None if setting else draw(st.none() | st.just({})),
        sum_ok=draw(st.none() | st.booleans()),
        **{key: draw(strategy) for key, strategy in COMMON.items()},
    )


def _plain_ioctls() -> st.SearchStrategy[Ioctl]:
    return st.one_of(
        [
            st.builds(Ioctl, name=st.just(name), arg=arg, ret=ERRNO, **COMMON)
            for name, arg in _PLAIN_ARGS.items()
        ]
    )


@st.composite
def _now_plus_at(draw: st.DrawFn, size: int) -> tuple[tuple[int, int], ...]:
    if size < 8:
        return ()
    return tuple(draw(st.lists(st.tuples(st.integers(0, size - 8), S64), max_size=2)))


@st.composite
def behinds(draw: st.DrawFn) -> Behind:
    """Bytes behind a pointer argument."""
    data = draw(st.binary(max_size=24))
    return Behind(
        arg=draw(st.integers(0, 5)), data=data, now_plus_at=draw(_now_plus_at(len(data))), extra=draw(EXTRA)
    )


@st.composite
def hypercalls(draw: st.DrawFn, vcpu: st.SearchStrategy[int], scope: str = "full") -> Hypercall:
    """Hypercalls: mostly plain ones, some with all that one can have."""
    unknown = scope == "hypercalls"
    handled = draw(st.sampled_from(["kernel", "userspace", *([None] if unknown else [])]))
    longmode, cpl, nr = draw(st.booleans()), draw(st.integers(0, 3)), draw(U64)
    args = tuple(draw(st.tuples(*[U64] * 6) | st.tuples(*[REGISTER] * 6)))
    exits: list[st.SearchStrategy[HypercallExit | None]] = [st.none()]
    if handled == "userspace":
        as_passed = HypercallExit(type=1, longmode=int(longmode), cpl=cpl, input=nr, params=args)
        exits += [
            st.just(as_passed),
            st.builds(
                HypercallExit,
                type=U32,
                longmode=st.integers(0, 1),
                cpl=st.integers(0, 3),
                input=U64,
                params=st.tuples(*[REGISTER] * 6),
                extra=EXTRA,
            ),
        ]
    rest: dict[str, st.SearchStrategy[Any]] = {
        **COMMON,
        "behind": st.none() | st.lists(behinds(), max_size=2).map(tuple),
        "raw": st.none() | st.fixed_dictionaries({"nr": U64, "args": st.lists(U64, min_size=6, max_size=6)}),
        "run_ret": st.none() | ERRNO,
    }
    more = (
        {key: draw(strategy) for key, strategy in rest.items()} if draw(st.booleans()) else {"ts": draw(U64)}
    )
    return Hypercall(
        vcpu=draw(vcpu),
        longmode=longmode,
        cpl=cpl,
        nr=nr,
        args=args,
        handled=handled,
        exit=draw(st.one_of(exits)),
        rax=draw(st.none() | U64 if unknown or handled == "userspace" else U64),
        via=draw(st.sampled_from([None, "page"])),
        compat=draw(st.booleans()),
        **more,
    )


@st.composite
def mems(draw: st.DrawFn) -> Mem:
    """Reads and writes of guest memory."""
    op = draw(st.sampled_from(["read", "write"]))
    data = draw(st.binary(max_size=40))
    masks = st.none() | st.binary(min_size=len(data), max_size=len(data)) if op == "read" else st.none()
    return Mem(
        op=op,
        gpa=draw(U64),
        data=data,
        mask=draw(masks),
        now_plus_at=draw(_now_plus_at(len(data))),
        sum_ok=draw(st.none() | st.booleans()),
        **{key: draw(strategy) for key, strategy in COMMON.items()},
    )


def events(vcpus: int, scope: str = "full") -> st.SearchStrategy[Event]:
    """Events of a trace with `vcpus` vCPUs."""
    vcpu = st.integers(0, vcpus - 1)
    return st.one_of(
        hypercalls(vcpu, scope),
        _plain_ioctls(),
        _attributes(vcpu),
        mems(),
        st.builds(Eventfd, fd=U32, **COMMON),
        st.builds(EventfdRead, fd=U32, value=U64, **COMMON),
        st.builds(EventfdWrite, fd=U32, value=U64, **COMMON),
        st.builds(
            Wrmsr,
            vcpu=vcpu,
            longmode=st.booleans(),
            msr=U32,
            value=U64,
            ok=st.booleans(),
            compat=st.booleans(),
            run_ret=st.none() | ERRNO,
            **COMMON,
        ),
        st.builds(Wait, ns=U64, **COMMON),
        st.builds(Irq, vcpu=vcpu, vector=U8, **COMMON),
        st.builds(VcpuRun, vcpu=vcpu, **COMMON),
    )


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers; the VM has one to four vCPUs and a few pages of memory."""
    ids = draw(st.lists(U32, min_size=1, max_size=4, unique=True))
    pages = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1024)), max_size=3))
    slots, start = [], 0
    for gap, size in pages:
        slots.append(MemorySlot(gpa=(start + gap) << 12, size=size << 12))
        start += gap + size
    vm = VmShape(
        irqchip=draw(st.sampled_from(IRQCHIPS)),
        memory=tuple(slots),
        vcpus=tuple(VcpuShape(index=index, id=number) for index, number in enumerate(ids)),
    )
    scope = draw(st.sampled_from(["full", "full", "hypercalls"]))
    return Header(
        kernel=draw(st.none() | TEXT),
        max_vcpus=draw(st.none() | st.integers(1, 4096)),
        cpu_vendor=draw(st.sampled_from(VENDORS)),
        recorder=draw(TEXT),
        scope=scope,
        vm=draw(st.none() | st.just(vm)) if scope == "hypercalls" else vm,
        notes=draw(TEXT),
        unseen=draw(st.sampled_from([(), ("irq",), ("irq", "mem")])),
        extra=draw(EXTRA),
    )


@st.composite
def traces(draw: st.DrawFn, max_events: int = 12) -> Trace:
    """Whole traces: a header and events that agree with it."""
    header = draw(headers())
    vcpus = 4096 if header.vm is None else len(header.vm.vcpus)
    return header, draw(st.lists(events(vcpus, header.scope), max_size=max_events))
