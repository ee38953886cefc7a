"""What it costs to create a small VM, make one hypercall and drop the VM."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import pytest

from benchmarks.figures import Figures, SmallVm
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.cpu import pool
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import GuestCall, Host
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

SHAPE: Final = VmShape(
    irqchip="split", memory=(MemorySlot(gpa=0, size=4 << 20),), vcpus=(VcpuShape(index=0, id=0),)
)
CALL: Final = GuestCall(nr=99, args=(0,) * 6, longmode=True, cpl=0)


ROUNDS: Final = 300


def fastest(host: Host) -> float:
    """Seconds of a VM's whole life, the shortest of many."""
    return min(seconds(host) for _ in range(ROUNDS))


def seconds(host: Host) -> float:
    """Seconds of one VM's life."""
    began = perf_counter()
    host.create_vm(SHAPE, cpu_vendor="amd").hypercall(0, CALL)
    return perf_counter() - began


def test_small_vm(figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """With registers handed in, on Unicorn with engines used again, and with none kept."""
    unicorn = UnicornHost(profile=LINUX_7_3)
    model, pooled = fastest(EmulatedHost(profile=LINUX_7_3)), fastest(unicorn)
    monkeypatch.setattr(pool, "MEMORY_KEPT", 0)
    figures.small_vm = SmallVm(model=model, alone=fastest(unicorn), pooled=pooled)
