"""What the ioctls that the kernel accepted have set up, as far as an importer must know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, VCPU_INFO_SIZE, VCPU_TIME_INFO_SIZE, GuestLayout
from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    INVALID_GPA,
    PAGE_SIZE,
    U64_MAX,
    EvtchnFlag,
    HvmAttr,
    VcpuAttr,
)
from pytest_xenkvm.trace.events import JsonObject, MemorySlot


@frozen(kw_only=True)
class Target:
    """Where an outbound port delivers: a local port of the vCPU with this KVM vCPU id."""

    port: int
    vcpu: int


@define
class VcpuConfig:
    """A vCPU's attributes: guest address of its vcpu_info (None: none known), vector and timer port."""

    vcpu_info: int | None = None
    vector: int = 0
    timer_port: int = 0


@frozen(kw_only=True)
class Backing:
    """A memory slot: `size` bytes at guest address `gpa`, backed by host address `hva`."""

    gpa: int
    size: int
    hva: int


@define
class Config:
    """A VM's attributes. `shared_info`: guest address, None if there is none or it isn't known."""

    shared_info: int | None = None
    long_mode: bool = False
    msr: int = 0
    """The hypercall MSR; 0: none."""
    vcpus: dict[int, VcpuConfig] = Factory(dict)
    outbound: dict[int, Target] = Factory(dict)
    pages: set[int] = Factory(set)
    """Guest page numbers that the kernel accepted, so there was memory."""
    host_pages: dict[int, None] = Factory(dict)
    """Host page addresses that the kernel accepted, in order of appearance."""
    backing: dict[int, Backing] = Factory(dict)
    """The VM's memory slots by number, if the recording shows them."""

    @property
    def layout(self) -> GuestLayout:
        """The layout of the structures shared with the guest."""
        return LAYOUT_64 if self.long_mode else LAYOUT_32

    def vcpu(self, index: int) -> VcpuConfig:
        """Return the attributes of a vCPU."""
        return self.vcpus.setdefault(index, VcpuConfig())

    def accepted(self, arg: JsonObject, vcpu: int | None) -> None:
        """Take over an attribute that was set, of a vCPU or (None) of the VM."""
        if vcpu is None:
            if (take := _HVM.get(arg["type"])) is not None:
                take(self, arg)
        elif (take_vcpu := _VCPU.get(arg["type"])) is not None:
            take_vcpu(self, self.vcpu(vcpu), arg)

    def use(self, gpa: int, size: int) -> None:
        """The kernel accepted `size` bytes at `gpa`; that says nothing new where memory slots are known."""
        if self.backing:
            return
        self.pages.update(range(gpa // PAGE_SIZE, (gpa + size - 1) // PAGE_SIZE + 1))

    def gpa_of(self, hva: int) -> int | None:
        """Return the guest address that is backed by a host address, as far as memory slots were seen."""
        slots = (slot for slot in self.backing.values() if slot.hva <= hva < slot.hva + slot.size)
        return next((slot.gpa + hva - slot.hva for slot in slots), None)

    def senders(self, target: Target) -> list[int]:
        """Return the outbound ports that deliver to `target`."""
        return [port for port, delivers in self.outbound.items() if delivers == target]

    def invented(self, first_page: int) -> tuple[MemorySlot, ...]:
        """Return the slot, if any, of the pages that stand for accepted host addresses."""
        size = len(self.host_pages) * PAGE_SIZE
        return (MemorySlot(gpa=first_page * PAGE_SIZE, size=size),) if size else ()

    def slots(self) -> tuple[MemorySlot, ...]:
        """Return the fewest memory slots that hold all accepted guest pages and no other."""
        slots: list[MemorySlot] = []
        for gpa in (page * PAGE_SIZE for page in sorted(self.pages)):
            if slots and slots[-1].gpa + slots[-1].size == gpa:
                last = slots.pop()
                slots.append(MemorySlot(gpa=last.gpa, size=last.size + PAGE_SIZE))
            else:
                slots.append(MemorySlot(gpa=gpa, size=PAGE_SIZE))
        return tuple(slots)

    def host_address(self, hva: int, *, first_page: int) -> dict[str, int]:
        """Return an accepted host address as symbolic, in a page invented from `first_page` on if need be."""
        known = self.gpa_of(hva)
        if known is not None:
            return {"gpa": known}
        page = first_page + list(self.host_pages).index(hva // PAGE_SIZE)
        return {"gpa": page * PAGE_SIZE + hva % PAGE_SIZE}


def _long_mode(config: Config, arg: JsonObject) -> None:
    config.long_mode = bool(arg["long_mode"])


def _shared_info(config: Config, arg: JsonObject) -> None:
    gfn = arg["shared_info"]["gfn"]
    config.shared_info = None if gfn == INVALID_GFN else gfn * PAGE_SIZE & U64_MAX
    if config.shared_info is not None:
        config.use(config.shared_info, PAGE_SIZE)


def _host_page(config: Config, hva: int) -> int | None:
    """Take over an accepted host address; return the guest address behind it if that is known."""
    known = config.gpa_of(hva)
    if hva and known is None:
        config.host_pages.setdefault(hva // PAGE_SIZE)
    return known


def _shared_info_hva(config: Config, arg: JsonObject) -> None:
    config.shared_info = _host_page(config, arg["shared_info"]["hva"])


def _evtchn(config: Config, arg: JsonObject) -> None:
    evtchn: dict[str, Any] = arg["evtchn"]
    port = evtchn["send_port"]
    match evtchn["flags"]:
        case EvtchnFlag.RESET:
            config.outbound.clear()
        case EvtchnFlag.DEASSIGN:
            config.outbound.pop(port, None)
        case _ if (target := evtchn["deliver"].get("port")) is not None:
            config.outbound[port] = Target(port=target["port"], vcpu=target["vcpu"])


def _area(size: int) -> Callable[[Config, VcpuConfig, JsonObject], None]:
    def take(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
        del vcpu
        if arg["gpa"] != INVALID_GPA:
            config.use(arg["gpa"], size)

    return take


def _runstate_area(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
    _area(config.layout.runstate_size)(config, vcpu, arg)


def _vcpu_info(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
    vcpu.vcpu_info = None if arg["gpa"] == INVALID_GPA else arg["gpa"]
    _area(VCPU_INFO_SIZE)(config, vcpu, arg)


def _vcpu_info_hva(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
    vcpu.vcpu_info = _host_page(config, arg["hva"])


def _timer(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
    del config
    vcpu.timer_port = arg["timer"]["port"]


def _vector(config: Config, vcpu: VcpuConfig, arg: JsonObject) -> None:
    del config
    vcpu.vector = arg["vector"]


_HVM: Final[dict[int, Callable[[Config, JsonObject], None]]] = {
    HvmAttr.LONG_MODE: _long_mode,
    HvmAttr.SHARED_INFO: _shared_info,
    HvmAttr.EVTCHN: _evtchn,
    HvmAttr.SHARED_INFO_HVA: _shared_info_hva,
}

_VCPU: Final[dict[int, Callable[[Config, VcpuConfig, JsonObject], None]]] = {
    VcpuAttr.VCPU_INFO: _vcpu_info,
    VcpuAttr.VCPU_TIME_INFO: _area(VCPU_TIME_INFO_SIZE),
    VcpuAttr.RUNSTATE_ADDR: _runstate_area,
    VcpuAttr.TIMER: _timer,
    VcpuAttr.UPCALL_VECTOR: _vector,
    VcpuAttr.VCPU_INFO_HVA: _vcpu_info_hva,
}
