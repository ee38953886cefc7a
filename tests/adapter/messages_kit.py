"""Messages of every kind, whole, and changed in some place by Hypothesis."""

from __future__ import annotations

import copy
from typing import Any, Final

from hypothesis import strategies as st

Message = dict[str, Any]

XEN_EVTCHN: Final = {"port": 1, "vcpu": 0, "priority": 2**32 - 1}
RUNSTATE: Final = dict.fromkeys(
    ("state", "state_entry_time", "time_running", "time_runnable", "time_blocked", "time_offline"), 0
)


def _evtchn(deliver: Message) -> Message:
    return {"type": 3, "evtchn": {"send_port": 7, "type": 2, "flags": 0, "deliver": deliver}}


VM_ARGS: Final[list[Message]] = [
    {"type": 0, "long_mode": 1},
    {"type": 1, "shared_info": {"gfn": 2**64 - 1}},
    {"type": 2, "vector": 0xF3},
    _evtchn({"port": XEN_EVTCHN}),
    _evtchn({"eventfd": {"port": 0, "fd": 3}}),
    {"type": 4, "xen_version": 0x40011},
    {"type": 5, "runstate_update_flag": 1},
    {"type": 6, "shared_info": {"hva": {"gpa": 0x1000}}},
    {"type": 7},
]
VCPU_ARGS: Final[list[Message]] = [
    *({"type": type_, "gpa": 0x1000} for type_ in (0, 1, 2)),
    *({"type": type_, "runstate": RUNSTATE} for type_ in (3, 4, 5)),
    {"type": 6, "vcpu_id": 1},
    {"type": 7, "timer": {"port": 16, "priority": 2**32 - 1, "expires_ns": {"now_plus": -1}}},
    {"type": 8, "vector": 0xF3},
    {"type": 9, "hva": 0},
    {"type": 0xFFFF},
]
BLOBS: Final = {"blob_addr_32": 0, "blob_addr_64": {"gpa": 0}, "blob_size_32": 0, "blob_size_64": 255}
ROUTES: Final = [{"gsi": 5, "type": 5, "xen_evtchn": XEN_EVTCHN}, {"gsi": 6, "type": 1}]
OTHER_ARGS: Final[list[tuple[str, Message]]] = [
    ("KVM_CHECK_EXTENSION", {"cap": 38}),
    ("KVM_XEN_HVM_CONFIG", {"flags": 34, "msr": 0x40000000, **BLOBS}),
    ("KVM_XEN_HVM_GET_ATTR", {"type": 4}),
    ("KVM_XEN_HVM_EVTCHN_SEND", XEN_EVTCHN),
    ("KVM_SET_GSI_ROUTING", {"entries": ROUTES}),
    ("KVM_IRQFD", {"fd": 3, "gsi": 5, "flags": 1}),
    ("KVM_IRQ_LINE", {"irq": 5, "level": 1}),
]
FROM_ADAPTER: Final[list[Message]] = [
    {
        "type": "hello",
        "protocol": 1,
        "name": "x",
        "capabilities": ["timer", "migrate"],
        "encoding": "msgpack",
    },
    {"type": "done"},
    {"type": "answer", "rax": -38},
    {"type": "answer", "rax": None},
    *({"type": "ioctl", "name": name, "arg": arg} for name, arg in OTHER_ARGS),
    *({"type": "ioctl", "name": "KVM_XEN_HVM_SET_ATTR", "arg": arg, "vm": "target"} for arg in VM_ARGS),
    *({"type": "ioctl", "name": "KVM_XEN_VCPU_SET_ATTR", "vcpu": 1, "arg": arg} for arg in VCPU_ARGS),
    {"type": "ioctl", "name": "KVM_XEN_VCPU_GET_ATTR", "vcpu": 0, "arg": {"type": 6}},
    {"type": "raw_ioctl", "request": 0x4048AECB, "vcpu": 1, "data": "0600", "vm": "source"},
    {"type": "get_clock", "vm": "source"},
    {"type": "set_clock", "ns": 1, "vm": "source"},
    {"type": "read_memory", "gpa": 0, "size": 65536, "vm": "source"},
    {"type": "write_memory", "gpa": 0, "data": "00fF", "vm": "source"},
    {"type": "gpa_to_hva", "gpa": 0, "vm": "source"},
    {"type": "hva_to_gpa", "hva": 0, "vm": "source"},
    {"type": "read_virtual", "vcpu": 4095, "gva": 0, "size": 1},
    {"type": "write_virtual", "vcpu": 0, "gva": 2**64 - 1, "data": "00"},
    {"type": "translate", "vcpu": 0, "gva": 0},
    {"type": "start_vmm_timer", "vcpu": 0, "expires_ns": 0},
    {"type": "stop_vmm_timer", "vcpu": 0},
    {"type": "open_eventfd", "vm": "source"},
    {"type": "read_eventfd", "fd": 3, "vm": "source"},
    {"type": "write_eventfd", "fd": 3, "value": 1, "vm": "source"},
]
TO_ADAPTER: Final[list[Message]] = [
    {"type": "start", "protocol": 1, "harness": "pytest-xenkvm 0.1.0"},
    {"type": "configure", "vcpus": 2, "ids": [0, 4]},
    {
        "type": "hypercall",
        "vcpu": 1,
        "longmode": 1,
        "cpl": 3,
        "input": 24,
        "params": [0, 1, 2, 3, 4, 2**64 - 1],
    },
    {"type": "timer", "vcpu": 0, "expires_ns": 5},
    {"type": "event_channel", "fd": 3, "count": 1},
    {"type": "migrate"},
    {"type": "result", "ret": -22, "out": {"type": 6, "vcpu_id": 0}, "data": "00"},
    {"type": "shutdown"},
]

_NUMBERS: Final = [0, 1, 2, 3, 5, 7, 10, 255, 256, 4095, 4096, 65535, 65536, 65537, 2**32 - 1, 2**32, 2**63]
_INTEGERS: Final = st.sampled_from(
    [*_NUMBERS, 2**64 - 1, 2**64, *(-number for number in (*_NUMBERS[1:], 2**63 + 1))]
)
_WORDS: Final = st.sampled_from(
    ["", "0", "00", "0g", "00" * 65536, "00" * 65537, "source", "timer", "json", "KVM_IRQFD", "n" * 101]
)
_OTHER: Final = st.one_of(  # copied, since what was put in may be changed next
    _INTEGERS,
    _WORDS,
    st.none(),
    st.booleans(),
    st.builds(list),
    st.builds(dict),
    st.lists(_INTEGERS | _WORDS, max_size=7),
    st.sampled_from([{"gpa": 0}, {"now_plus": 0}, {"now_plus": 0, "gpa": 0}, XEN_EVTCHN, RUNSTATE, ROUTES]),
    st.lists(st.sampled_from(["timer", "migrate", "fly"]), max_size=3),
).map(copy.deepcopy)
_KEYS: Final = st.sampled_from(["type", "vcpu", "vm", "name", "gpa", "hva", "port", "eventfd", "x", "name"])


def _places(value: object) -> list[tuple[Any, Any]]:
    """Where something may be changed: containers and keys."""
    found: list[tuple[Any, Any]] = []
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *_places(value[key])]  # type: ignore[index]
    return found


@st.composite
def changed(draw: st.DrawFn, examples: list[Message]) -> Message:
    """One of the messages, changed in up to two places."""
    message = copy.deepcopy(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(0, 2))):
        places = _places(message)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if container is message and key == "type":
            how = "add"
        if how == "replace":
            container[key] = draw(_OTHER)
        elif how == "remove":
            del container[key]
        elif isinstance(container, dict):
            container.setdefault(draw(_KEYS), draw(_OTHER))
        else:
            container.append(draw(_OTHER))
    return message
