"""Small traces and a conftest.py with rules of its own, for the tests of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest_xenkvm.rules.run  # noqa: F401 - stays loaded, or each run in this process would load it anew
from pytest_xenkvm.trace import write_trace
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    MemorySlot,
    VcpuShape,
    VmShape,
)

HEADER: Final = Header(
    kernel="7.3.0",
    max_vcpus=4096,
    recorder="ftrace",
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=4 << 20),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=1)),
    ),
)
ENOSYS: Final = (1 << 64) - 38

CONFIGURE: Final = Ioctl(
    name="KVM_XEN_HVM_CONFIG",
    arg={
        "flags": 34,
        "msr": 0x4000_0000,
        "blob_addr_32": 0,
        "blob_addr_64": 0,
        "blob_size_32": 0,
        "blob_size_64": 0,
    },
    ret=0,
)


def stop_timer(vcpu: int, rax: int | None) -> Hypercall:
    """The guest calls VCPUOP_stop_singleshot_timer and the VMM answers; None: nobody saw what."""
    params = (9, vcpu, 0, 0, 0, 0)
    return Hypercall(
        vcpu=vcpu,
        longmode=True,
        cpl=0,
        nr=24,
        args=params,
        handled="userspace",
        exit=HypercallExit(type=1, longmode=1, cpl=0, input=24, params=params),
        rax=rax,
    )


def set_id(vcpu: int, ret: int = 0) -> Ioctl:
    """The VMM gives a vCPU its Xen ID."""
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg={"type": 6, "vcpu_id": vcpu}, ret=ret)


ANSWERED: Final[tuple[Event, ...]] = (CONFIGURE, set_id(0), set_id(1), stop_timer(0, 0), stop_timer(1, 0))
"""All calls are answered with 0."""
REFUSED: Final[tuple[Event, ...]] = (CONFIGURE, set_id(0), stop_timer(0, 0), stop_timer(1, ENOSYS))
"""vCPU 1 gets -ENOSYS."""
UNSEEN: Final[tuple[Event, ...]] = (CONFIGURE, stop_timer(0, None))
"""Nobody saw the answer."""
DIVERGING: Final[tuple[Event, ...]] = (CONFIGURE, set_id(0), set_id(1, ret=-22), stop_timer(1, 0))
"""No kernel refuses the ID of vCPU 1."""

RULES: Final = """
import pytest
from pytest_xenkvm.rules.model import Checker, Judged, Level, Rule
from pytest_xenkvm.trace.events import Hypercall, Wrmsr


class Answered(Checker):
    def observe(self, observation):
        if observation.event.rax == 0:
            self.hold()
        else:
            self.violate(observation, f"vCPU {observation.event.vcpu} got no answer")


def rule(id, level=Level.MUST, sees=Hypercall):
    return Rule(
        id=id, title="Calls are answered.", level=level, judges=Judged.VMM, citation="Paper, section 1",
        explanation="Guests wait for an answer.", advice="Answer.", checker=Answered, sees=(sees,),
    )


def pytest_xenkvm_rules(config):
    return [rule("demo.answered"), rule("demo.advised", Level.SHOULD), rule("demo.msr", sees=Wrmsr)]
"""
"""A conftest.py: a MUST rule, a SHOULD rule, and one that no trace here exercises."""


def write(path: Path, *events: Event, header: Header = HEADER) -> Path:
    """Write a trace of these events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trace(path, header, events)
    return path
