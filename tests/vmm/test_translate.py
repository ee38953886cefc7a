"""Vcpu.translate: where a guest virtual address leads while its hypercall is answered."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from duties_guest import HEADER

from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.guest_program import ProgramVm
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.rules.hosts import UNICORN, emulated_host
from pytest_xenkvm.trace.events import Hypercall
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm

ASKED: Final = (0x2345, 1 << 48 | 0x2345, 0x4000_0000)
"""In memory; the same by an alias, as the walk ignores the upper bits; behind memory."""
CALL: Final = Hypercall(ts=5, vcpu=1, longmode=True, cpl=0, nr=12, args=(0,) * 6)


class Asks(Vmm):
    """Translates, in answer to a hypercall."""

    def __init__(self) -> None:
        self.told: list[int | None] = []

    def configure(self, vm: Vm) -> None:
        """Intercept."""
        vm.xen_hvm_config()

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Ask."""
        del xen_exit
        self.told = [vcpu.translate(address) for address in ASKED]
        return 0


@pytest.mark.parametrize("engine", ["model", UNICORN])
def test_virtual_is_physical(engine: str) -> None:
    """A guest whose memory is known has its memory mapped one to one, and nothing behind it."""
    behaviour = Asks()
    host = emulated_host(HEADER, LINUX_7_3, engine)
    (*_rest, last) = vmm_replay(host, HEADER, lambda: [CALL], behaviour)
    assert behaviour.told == [0x2345, 0x2345, None]
    assert last is not None


def test_tables_that_the_recording_does_not_show() -> None:
    """It raises, which leaves the answer unjudged if the behaviour lets it pass."""
    seen = [
        *vmm_replay(EmulatedHost(profile=LINUX_7_3), evolve(HEADER, unseen=("mem",)), lambda: [CALL], Asks())
    ]
    assert [item.unjudged for item in seen if item.event.kind == CALL.kind] == [("rax",)]


def test_only_while_a_call_is_answered() -> None:
    """At other times a replay knows no page tables."""
    assert HEADER.vm is not None
    vm = Vm.on(EmulatedHost(profile=LINUX_7_3).create_vm(HEADER.vm, cpu_vendor="amd"), HEADER.vm)
    with pytest.raises(UnseenMemory, match="vCPU 0 waits for no answer"):
        vm.vcpus[0].translate(0)


def test_a_guest_program_has_tables_of_its_own() -> None:
    """They are walked; its other vCPUs have none."""
    assert HEADER.vm is not None
    vm = ProgramVm.create(HEADER.vm)
    vm.load(b"\xf4", 0x1000)
    assert [vm.translate(vcpu, 0x2345) for vcpu in (0, 1)] == [0x2345, 0x2345]
    assert [vm.translate(vcpu, 0x4000_0000) for vcpu in (0, 1)] == [None, None]
