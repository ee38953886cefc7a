"""A VM that is driven event by event: each thing done to it becomes an event of its history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from attrs import define, evolve, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, GuestLayout
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.migration import Migrator
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import number, result
from pytest_xenkvm.trace.events import Event, Header, VmShape
from pytest_xenkvm.vmm.ioctl_bytes import pack, unpack

from .demands import Probe
from .setting import SHARED_INFO

_E = TypeVar("_E", bound=Event)


@define(eq=False)
class DrivenVm:
    """A VM on the host under judgement; `told` is its history."""

    probe: Probe
    host: Host
    profile: Profile
    shape: VmShape
    cpu_vendor: str
    told: list[Observation] = field(factory=list, init=False)
    migrator: Migrator = field(init=False)
    header: Header = field(init=False)
    max_vcpus: int = field(init=False)
    """The host's KVM_MAX_VCPUS."""
    long_mode: bool = field(default=False, init=False)
    """The layout that shared structures are expected in."""
    shared_info: int = field(default=SHARED_INFO, init=False)
    upcall_vector: int = field(default=0, init=False)
    _stepper: Stepper = field(init=False)
    """Does events on the host's VM, which lives as long as this and `migrator` hold it."""

    def __attrs_post_init__(self) -> None:
        self.migrator = Migrator(self.host)
        vm = self.migrator.create_vm(self.shape, cpu_vendor=self.cpu_vendor)
        self.header = Header(cpu_vendor=self.cpu_vendor, recorder="conformance", vm=self.shape)
        self._stepper = Stepper(vm, self.header)
        self.max_vcpus = self._stepper.vm.ioctl(ioctls.KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS)
        self.header = evolve(self.header, max_vcpus=self.max_vcpus)
        self.tell(
            events.Ioctl(name="KVM_CHECK_EXTENSION", arg={"cap": KVM_CAP_MAX_VCPUS}, ret=self.max_vcpus)
        )

    @property
    def layout(self) -> GuestLayout:
        """The layout that shared structures are expected in."""
        return LAYOUT_64 if self.long_mode else LAYOUT_32

    # ---- telling and demanding

    def tell(self, event: _E, answer: int | None = None) -> _E:
        """It happened."""
        self.told.append(Observation(place=Place(len(self.told)), event=event, answer=answer))
        return event

    def fail(self, demanded: str, observed: str, vcpu: int | None = None) -> NoReturn:
        """The host doesn't do what is demanded of the last event."""
        __tracebackhide__ = True
        self.probe.fail(demanded, observed, self.told, vcpu)

    def ioctl(
        self,
        name: str,
        arg: Mapping[str, Any],
        *,
        vcpu: int | None = None,
        ret: int | None = 0,
        out: Mapping[str, Any] | None = None,
    ) -> events.Ioctl:
        """Make an ioctl, by its UAPI name and with its argument as a trace has it.

        `ret`: what it must return (None: anything); `out`: members that a GET must store.
        """
        __tracebackhide__ = True
        wanted = events.Ioctl(name=name, arg=arg, ret=ret or 0, vcpu=vcpu)
        reads = name.endswith("_GET_ATTR")
        made = self.tell(self._get(wanted) if reads else self._stepper.ioctl(wanted))
        if ret is not None and made.ret != ret:
            self.fail(result(ret), event_words(made), vcpu)
        for member, value in (out or {}).items():
            found = (made.out or {}).get(member)
            if found != value:
                self.fail(f"{result(0)}, {member}={_plain(value)}", event_words(made), vcpu)
        return made

    def _get(self, wanted: events.Ioctl) -> events.Ioctl:
        """Make a GET whose structure holds ones: what the host doesn't store shows."""
        request, argument = pack(wanted, self._stepper.names)
        if isinstance(argument, bytearray):
            argument[ioctls.ATTR_HEADER.size :] = b"\xff" * ioctls.ATTR_UNION_SIZE
        ret = self._stepper.vm.ioctl(request, argument, vcpu=wanted.vcpu)
        out = unpack(wanted.name, argument, self._stepper.names) if ret >= 0 else None
        return evolve(wanted, ret=ret, out=out)

    def untold_ioctl(self, request: int, argument: bytearray, *, vcpu: int | None = None) -> int:
        """Make an ioctl that traces don't hold: 0, a positive value, or -errno."""
        return self._stepper.vm.ioctl(request, argument, vcpu=vcpu)

    def hva(self, gpa: int) -> int:
        """The host address of a guest address."""
        return self._stepper.names.host_address({"gpa": gpa})

    def close(self) -> None:
        """Let go of the VM, which the host then forgets; nothing can be done to it any more."""
        del self._stepper, self.migrator

    # ---- for vCPUs

    def do_hypercall(self, event: events.Hypercall, answer: int, *, moved: bool = False) -> events.Hypercall:
        """Let the guest make a hypercall; a forwarded one is answered, with RIP elsewhere if `moved`."""

        def answered(_event: events.Hypercall, _exit: XenExit) -> int:
            return answer

        happened = self._stepper.hypercall(event, None, answered, moved=moved)
        if happened is None:
            self.tell(event)
            self.fail(
                "an outcome that can be known", "the host can't tell what the hypercall does", event.vcpu
            )
        return self.tell(happened, answer if happened.exit is not None else None)

    def do_run(self, vcpu: int) -> None:
        """Let a vCPU enter the guest."""
        self.tell(self._stepper.vcpu_run(events.VcpuRun(vcpu=vcpu)))

    def do_enable_local_apic(self, vcpu: int, *, enabled: bool) -> None:
        """Let the guest enable or disable its local APIC by software, which traces don't hold."""
        self._stepper.vm.enable_local_apic(vcpu, enabled=enabled)

    def do_wrmsr(self, event: events.Wrmsr) -> events.Wrmsr:
        """Let the guest write an MSR."""
        return self.tell(self._stepper.wrmsr(event))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return number(value) if isinstance(value, int) else str(value)
