"""VMM behaviours whose methods are coroutines, and the end of a replay."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from scripted_vmm import HEADER, MODEL, Scripted, call, replay

from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.vmm import Vcpu, Vm, XenExit


class Coroutines:
    """A VMM all of whose methods are coroutines, and which keeps a task running."""

    name = "all async"

    def __init__(self) -> None:
        self.called: list[str] = []
        self.loops: set[object] = set()

    async def _note(self, what: str) -> None:
        await asyncio.sleep(0)
        self.called.append(what)
        self.loops.add(asyncio.get_running_loop())

    async def configure(self, vm: Vm) -> None:
        """Start a timer and a task."""
        vm.xen_hvm_config()
        vm.vcpus[0].start_vmm_timer(0)
        fd = vm.open_eventfd()
        vm.assign_eventfd(5, fd)
        vm.write_eventfd(fd, 3)
        self.task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        await self._note("configure")

    async def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Answer with the vCPU and the number."""
        await self._note("on_hypercall")
        return vcpu.index * 100 + xen_exit.input

    async def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Note it."""
        del vcpu, expires_ns
        await self._note("on_timer")

    async def on_event_channel(self, vm: Vm, fd: int, count: int) -> None:
        """Note the count."""
        del vm, fd
        await self._note(f"on_event_channel {count}")

    async def on_migrate(self, source: Vm, target: Vm) -> None:
        """Note it."""
        del source, target
        await self._note("on_migrate")

    async def close(self) -> None:
        """Note it."""
        await self._note("close")


ALL_CALLS: Final = ["configure", "on_timer", "on_hypercall", "on_event_channel 3", "on_migrate", "close"]


def test_methods_may_be_coroutines() -> None:
    """Each is run to its end before the replay goes on, all in one event loop, which ends with the replay."""
    vmm = Coroutines()
    (observation,) = (seen for seen in replay([call(vcpu=1)], vmm) if not seen.by_vmm)
    assert observation.answer == 112
    assert vmm.called == ALL_CALLS
    assert len(vmm.loops) == 1
    assert vmm.task.cancelled()


def test_a_coroutine_may_replay() -> None:
    """An asynchronous behaviour is no trouble where an event loop runs already."""

    async def main() -> list[str]:
        vmm = Coroutines()
        replay([call()], vmm)
        return vmm.called

    assert asyncio.run(main()) == ALL_CALLS


def test_a_behaviour_is_closed_when_the_replay_fails() -> None:
    """Close is called once, whether the replay comes to its end or not."""
    closed: list[str] = []

    class Closes(Scripted):
        def close(self) -> None:
            closed.append("closed")

    replay([], Closes())
    with pytest.raises(ZeroDivisionError):
        replay([call()], Closes(on_hypercall=lambda *_: 1 // 0))
    unfinished = vmm_replay(MODEL, HEADER, lambda: [call()], Closes())
    next(unfinished)
    unfinished.close()  # type: ignore[attr-defined]
    assert closed == ["closed"] * 3
