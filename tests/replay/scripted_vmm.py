"""A VMM whose methods are a test's functions, and replays of a few events with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from attrs import evolve

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.vmm import vmm_replay
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Ioctl,
    MemorySlot,
    VcpuShape,
    VmShape,
)
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm, VmmBehaviour, XenExit

HEADER: Final = Header(
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=0x10_0000),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=2)),
    ),
)
MODEL: Final = EmulatedHost(profile=LINUX_7_3)
HOSTS: Final = [MODEL, UnicornHost(profile=LINUX_7_3)]
MEMORY_OP: Final = 12
EVTCHN_OP: Final = 32
SEND: Final = 4


class Scripted(Vmm):
    """A VMM whose methods are a test's functions, and which notes what was called."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.methods = methods
        self.called: list[tuple[object, ...]] = []

    def configure(self, vm: Vm) -> None:
        """Intercept, and what the test wants."""
        self.vm = vm
        vm.xen_hvm_config()
        self._do("configure", vm)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> Any:
        """As the test says; 0 if it says nothing."""
        self.called.append(("hypercall", vcpu.vm.get_clock()))
        return self._do("on_hypercall", vcpu, xen_exit) if "on_hypercall" in self.methods else 0

    def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """Note vCPU, expiry and clock."""
        self.called.append(("timer", vcpu.index, expires_ns, vcpu.vm.get_clock()))
        self._do("on_timer", vcpu, expires_ns)

    def on_event_channel(self, vm: Vm, fd: int, count: int) -> None:
        """Note eventfd and count."""
        self.called.append(("event channel", fd, count))
        self._do("on_event_channel", vm, fd, count)

    def _do(self, name: str, *args: object) -> Any:
        return self.methods[name](*args) if name in self.methods else None


def replay(
    events: Sequence[Event], behaviour: VmmBehaviour, host: Host = MODEL, header: Header = HEADER
) -> list[Observation]:
    """All observations."""
    return list(vmm_replay(host, header, lambda: events, behaviour))


def call(nr: int = MEMORY_OP, *args: int, **rest: Any) -> Hypercall:
    """A hypercall of vCPU 0, recorded as forwarded and answered with 77."""
    return evolve(
        Hypercall(
            vcpu=0,
            longmode=True,
            cpl=0,
            nr=nr,
            args=(*args, *(0,) * (6 - len(args))),
            handled="userspace",
            rax=77,
        ),
        **rest,
    )


def by_vmm(observations: Iterable[Observation]) -> list[tuple[Place, str]]:
    """Place and name of the VMM's ioctls, as they came, without the configuration."""
    return [
        (observation.place, observation.event.name)
        for observation in observations
        if observation.by_vmm and isinstance(observation.event, Ioctl) and observation.place.index >= 0
    ]
