"""VMs on the host under judgement, and what a probe came to on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import Profile
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

from .demands import Probe
from .setting import MEMORY, MS, SHARED_INFO
from .vm import ProbeVm

if TYPE_CHECKING:
    import pytest

    from pytest_xenkvm.plugin.own_tests import XenHost
    from pytest_xenkvm.rules.model import Verdict

    from .scenarios import Replayed


SWITCHED_OFF_AFTER: Final = 1200 * MS
"""How long (ns) the kernel's switch for Xen VMs stays on at the most (`static_branch_slow_dec_deferred`)."""


@define(eq=False, repr=False)
class Builder:
    """Creates the VMs of one probe."""

    probe: Probe
    xen_host: XenHost
    vms: list[ProbeVm] = field(factory=list, init=False)
    replayed: list[Replayed] = field(factory=list, init=False)
    """Scenarios that were done again."""
    _verdicts: tuple[Verdict, ...] | None = field(default=None, init=False)

    @property
    def profile(self) -> Profile:
        """The kernel whose answers are expected where kernels differ and no rule decides."""
        return self.xen_host.profile

    @property
    def cpu_vendor(self) -> str:
        """The host CPU's: "amd" or "intel"."""
        return self.xen_host.cpu_vendor

    def __call__(self, *, vcpus: int = 1, irqchip: str = "full", ids: tuple[int, ...] = ()) -> ProbeVm:
        """A VM as KVM_CREATE_VM makes it, with vCPUs whose KVM ids are `ids` or count from 0."""
        numbers = ids or tuple(range(vcpus))
        shape = VmShape(
            irqchip=irqchip,
            memory=(MemorySlot(gpa=0, size=MEMORY),),
            vcpus=tuple(VcpuShape(index=index, id=number) for index, number in enumerate(numbers)),
        )
        vm = ProbeVm(
            probe=self.probe,
            host=self.xen_host.host,
            profile=self.profile,
            shape=shape,
            cpu_vendor=self.cpu_vendor,
        )
        self.vms.append(vm)
        return vm

    def ready(
        self, *, vcpus: int = 1, irqchip: str = "full", ids: tuple[int, ...] = (), long_mode: bool = True
    ) -> ProbeVm:
        """A VM that intercepts hypercalls, with shared_info and every vCPU's vcpu_info in place.

        No vCPU has a Xen ID or a timer port. A millisecond has passed, so that time 1 ns is past.
        """
        vm = self(vcpus=vcpus, irqchip=irqchip, ids=ids)
        vm.config()
        vm.wait(MS)
        vm.set(HvmAttr.LONG_MODE, int(long_mode))
        vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
        for vcpu in vm.vcpus:
            vcpu.place_vcpu_info()
        return vm

    def alone(self, **shape: object) -> ProbeVm:
        """A VM as KVM_CREATE_VM makes it, on a host where no other VM keeps KVM's Xen code switched on.

        That switch (`kvm_xen_enabled`) is the host's, and goes off a second after the last VM with a
        hypercall MSR: what is demanded of a VM without one shows only then.
        """
        vm = self(**shape)  # type: ignore[arg-type]
        vm.wait(SWITCHED_OFF_AFTER)
        return vm

    def timers(self, **shape: object) -> ProbeVm:
        """A VM as `ready`'s, whose vCPU i has Xen ID 10 + i and timer port 20 + i."""
        vm = self.ready(**shape)  # type: ignore[arg-type]
        for vcpu in vm.vcpus:
            vcpu.set(VcpuAttr.VCPU_ID, 10 + vcpu.index)
            vcpu.set_timer(20 + vcpu.index)
        return vm

    def close(self) -> None:
        """Leave no VM on the host."""
        while self.vms:
            self.vms.pop().close()

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the rules that the probe names say of it."""
        from .judging import named_rules, verdicts  # noqa: PLC0415 - only when a probe is over

        if self._verdicts is None:
            self._verdicts = verdicts(named_rules(self.probe.rules), self.vms)
        return self._verdicts

    def disagreement(self) -> str:
        """Why a probe that is content must not be; empty if all is fine."""
        from .judging import disagreement  # noqa: PLC0415

        return disagreement(self.verdicts())

    def part(self, item: pytest.Item, call: pytest.CallInfo[None]) -> str:
        """What the probe came to, as a part of a report."""
        from .reports import probe_part  # noqa: PLC0415

        return probe_part(self, item, call)
