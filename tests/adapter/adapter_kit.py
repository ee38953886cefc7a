"""Adapters for tests: small programs in Python that say what a test wants, and VMs for them to configure."""

from __future__ import annotations

import os
import sys
import time
from errno import EINVAL
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost, EmulatedVm
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm import Vm
from pytest_xenkvm.vmm.adapter import AdapterError, AdapterVmm
from pytest_xenkvm.vmm.adapter.conversation import shown_command

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = 0x10_0000
SHAPE: Final = VmShape(
    irqchip="split",
    memory=(MemorySlot(gpa=0, size=MEMORY),),
    vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=4)),
)
PATIENCE_S: Final = 60.0
"""For adapters that do answer, on a busy machine."""
MUCH_LATER_S: Final = 20.0
"""No fault may take as long to be told, however busy the machine is."""

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


def told(vmm: AdapterVmm, timeout_s: float = PATIENCE_S) -> str:
    """What an adapter is blamed for when it configures, answers vcpu_op and is closed; it is gone then.

    `timeout_s` is the time-out of all behind `configure`.
    """
    pids: list[int] = []
    began = time.monotonic()
    with pytest.raises(AdapterError) as caught:
        _configure_call_and_close(vmm, timeout_s, pids)
    assert time.monotonic() - began < MUCH_LATER_S
    assert not any(is_there(pid) for pid in pids or [pid_of(vmm)])
    prefix = f"the VMM adapter {shown_command(vmm._command)}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


def _configure_call_and_close(vmm: AdapterVmm, timeout_s: float, pids: list[int]) -> None:
    vmm.configure(make_vm())
    assert vmm._conversation is not None
    pids.append(pid_of(vmm))
    vmm._conversation._timeout_s = timeout_s
    vmm.on_hypercall(make_vm().vcpus[0], xen_exit())
    vmm.close()
