"""Adapters for tests: small programs in Python that say what a test wants, and VMs for them to configure."""

from __future__ import annotations

import json
import os
import sys
from errno import EINVAL
from pathlib import Path
from typing import Any, Final

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost, EmulatedVm
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm import Vm
from pytest_xenkvm.vmm.adapter import AdapterVmm

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = 0x10_0000
SHAPE: Final = VmShape(
    irqchip="split",
    memory=(MemorySlot(gpa=0, size=MEMORY),),
    vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=4)),
)
PATIENCE_S: Final = 60.0
"""For adapters that do answer, on a busy machine."""

PRELUDE: Final = """
import json, os, signal, subprocess, sys, time

def get():
    return json.loads(sys.stdin.readline())

def write(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def put(type_, **members):
    write(json.dumps({"type": type_, **members}) + "\\n")

def ask(type_, **members):
    put(type_, **members)
    return get()

def hello(**members):
    get()
    put("hello", **{"protocol": 1, **members})

def configured(**members):
    hello(**members)
    get()
    put("done")

def called(**members):
    configured(**members)
    return get()

"""


class RefusingVm(EmulatedVm):
    """Refuses every ioctl with -EINVAL."""

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        """Refuse."""
        del request, argument, vcpu
        return -EINVAL


def make_vm(*, refusing: bool = False) -> Vm:
    """Handles of a fresh VM with two vCPUs and 1 MiB of memory."""
    host_vm = EmulatedHost(profile=LINUX_7_3).create_vm(SHAPE)
    return Vm.on(RefusingVm(host_vm.machine) if refusing else host_vm, SHAPE)


def xen_exit(number: int = 24, *params: int, cpl: int = 0, longmode: int = 1) -> XenExit:
    """A forwarded hypercall, vcpu_op by default."""
    padded = (*params, *(0,) * (6 - len(params)))
    return XenExit(type=1, longmode=longmode, cpl=cpl, input=number, params=padded)  # type: ignore[arg-type]


def scripted(folder: Path, body: str, timeout_s: float = PATIENCE_S) -> AdapterVmm:
    """An adapter whose program is the prelude and this body."""
    program = folder / "adapter.py"
    program.write_text(PRELUDE + body)
    return AdapterVmm([sys.executable, "-I", "-S", str(program)], timeout_s=timeout_s)


def pid_of(vmm: AdapterVmm) -> int:
    """The process behind an adapter that runs."""
    assert vmm._conversation is not None
    return vmm._conversation.process.pid


def is_there(pid: int) -> bool:
    """Whether a process exists, be it as a zombie of ours; one of init's is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    state, parent = status.rpartition(")")[2].split()[:2]
    return state != "Z" or int(parent) == os.getpid()


def schema(type_: str) -> dict[str, Any]:
    """The published JSON Schema of a message."""
    folder = ROOT / "pytest_xenkvm" / "vmm" / "adapter" / "schema"
    found: dict[str, Any] = json.loads((folder / f"{type_}.json").read_text())
    return found
