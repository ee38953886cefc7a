"""The probes on trial: a VM of the recorder's own does known things, and the probes must show just those.

So nothing that the recorder assumes of a kernel has to be believed: which argument is which, where RAX lies,
that results are those of the calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.record.stream import Lost, TraceStream
from pytest_xenkvm.record.tiny_vm import CODE, TinyVm
from pytest_xenkvm.trace.importers.lines import TraceLine

_PATIENCE_S: Final = 5.0
_VCPU_ID: Final = 5
_VERSION: Final = 0x3A5C_7E91
"""Unlikely anywhere else in a vCPU's state."""
_FORWARDED: Final = 0x2F
"""xc_reserved_op of a later age: no kernel handles it."""
_ANSWER: Final = 0x51B2_C6D4

_EXPECTED: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    ("vcpu_created", {"idx": 0, "id": _VCPU_ID}),
    ("vm_ioctl", {"u1": CODE}),
    ("vm_ioctl_ret", {"ret": 0}),
    ("hvm_config", {"flags": 2, "msr": 0x4000_0000}),
    ("hvm_config_ret", {"ret": 0}),
    ("hvm_set_attr", {"type": 4, "d0": _VERSION}),
    ("hvm_set_attr_ret", {"ret": 0}),
    ("hypercall_enter", {"idx": 0, "efer": 0}),
    ("hypercall_ret", {"idx": 0, "handled": 1, "rax": _VERSION}),
    ("hypercall_ret", {"idx": 0, "handled": 0, "longmode": 0}),
    ("hypercall_answered", {"idx": 0, "rax": _ANSWER}),
)


def try_probes(stream: TraceStream, vendor: str) -> str:
    """Return what is wrong with the probes; "" if they show what this process makes a VM do."""
    try:
        with TinyVm(vendor, vcpu_id=_VCPU_ID) as vm:
            vm.configure(xen_version=_VERSION)
            done = vm.hypercall(Nr.xen_version), vm.hypercall(_FORWARDED, answer=_ANSWER)
    except OSError as error:
        return f"the probes could not be tried, since the recorder's own VM failed ({error})"
    if done != (_VERSION, _ANSWER):
        return f"the probes could not be tried, since hypercalls of the recorder's own VM returned {done}"
    return verdict(_own_lines(stream))


def verdict(seen: list[TraceLine]) -> str:
    """Return what is wrong with what the probes showed of the recorder's own VM; "" if nothing is."""
    vms = {line.value("kvm") for line in seen}
    if len(vms) != 1:
        return f"the probes showed the recorder's own VM as {len(vms)} VMs"
    for event, numbers in _EXPECTED:
        shown = [{name: line.value(name) for name in numbers} for line in seen if line.event == event]
        if shown and numbers not in shown:
            return f"the probe {event} showed {_some(shown[0])} of a VM where {_some(numbers)} was done"
        if not shown and event != "hypercall_answered":
            return f"the probe {event} showed nothing of the recorder's own VM"
    return ""


def _own_lines(stream: TraceStream) -> list[TraceLine]:
    """What probes showed of this process's VM, up to its end."""
    own = os.getpid()
    seen: list[TraceLine] = []
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        stream.read()
        for item in stream.ordered():
            if isinstance(item, Lost) or item.pid != own or "kvm=" not in item.fields:
                continue
            seen.append(item)
            if item.event == "vm_destroyed":
                return seen
        time.sleep(0.01)
    return seen


def _some(numbers: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name}={value if value is None else hex(value)}" for name, value in numbers.items())
