"""sched_op: SCHEDOP_yield and SCHEDOP_poll."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    INVALID_GPA,
    PAGE_SIZE,
    SCHED_POLL_MAX_PORTS,
    U32_MAX,
    HvmAttr,
    Hypercall,
    SchedOp,
    VcpuAttr,
    XenHvmFlag,
)
from pytest_xenkvm.trace.events import NowPlus

from .kit.calls import guest_layout
from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.polling import LONG, PORT, at_once, until_timeout, wakes
from .kit.setting import ARGUMENT, MEMORY, MODES, MODES_32, MS, NOWHERE, SECOND, SHARED_INFO, Mode

pytestmark = pytest.mark.source(
    "kvm_xen_hcall_sched_op, kvm_xen_schedop_poll; Xen's public/sched.h: SCHEDOP_poll"
)


@pytest.mark.parametrize("mode", MODES)
def test_yield(new_vm: Builder, mode: Mode) -> None:
    """SCHEDOP_yield is 0 in the kernel, whatever its argument; its number has 32 bits."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.yield_(mode=mode)
    vcpu.call(Hypercall.sched_op, SchedOp.yield_, NOWHERE, mode=mode)
    if mode.longmode:
        vcpu.call(Hypercall.sched_op, SchedOp.yield_ | 1 << 32)


def test_yield_without_anything(new_vm: Builder) -> None:
    """SCHEDOP_yield takes nothing but INTERCEPT_HCALL."""
    for irqchip in ("none", "split", "full"):
        vm = new_vm(irqchip=irqchip)
        vm.config(flags=XenHvmFlag.INTERCEPT_HCALL)
        vm.vcpus[0].yield_()


def test_other_sub_ops(new_vm: Builder) -> None:
    """Other sub-operations of sched_op go to the VMM, with all 64 bits of their number."""
    vcpu = new_vm.ready().vcpus[0]
    for op in (1, 2, 4, 5, 6, 7, 8, U32_MAX, 1 << 32 | 7, 1 << 32 | 1):
        vcpu.call(Hypercall.sched_op, op, ARGUMENT, answers=FORWARDED)


@pytest.mark.parametrize("cpl", [1, 3])
def test_above_cpl_0(new_vm: Builder, cpl: int) -> None:
    """A poll from above CPL 0 goes to the VMM, whatever its argument."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.poll([5], cpl=cpl, answers=FORWARDED)
    vcpu.call(Hypercall.sched_op, SchedOp.poll, NOWHERE, cpl=cpl, answers=FORWARDED)


# ---- when a poll blocks, and what ends it


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ports", [(5,), (5, 6), (6, 7, 5), (1023, 5)], ids=str)
def test_pending_port(new_vm: Builder, ports: tuple[int, ...], mode: Mode) -> None:
    """A poll comes back at once if any of its ports is pending, also if that is masked; it stays pending."""
    vm = new_vm.ready()
    vm.send(5)
    at_once(vm.vcpus[0], *ports, mode=mode)
    vm.pending(5)
    vm.mask(5)
    at_once(vm.vcpus[0], *ports, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ports", [(), (5,), (5, 6)], ids=str)
def test_timeout(new_vm: Builder, ports: tuple[int, ...], mode: Mode) -> None:
    """A poll blocks until its timeout, which is relative, if no port of it is pending, or it has none."""
    vm = new_vm.ready()
    vm.mask(4)
    vm.send(4)
    until_timeout(vm.vcpus[0], *ports, mode=mode)


def test_number_has_32_bits(new_vm: Builder) -> None:
    """SCHEDOP_poll's number loses its upper half."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.poll([5], 1)
    vcpu.call(Hypercall.sched_op, SchedOp.poll | 1 << 32, ARGUMENT)
    vcpu.call(Hypercall.sched_op, SchedOp.poll | 1 << 32, NOWHERE, answers=-EFAULT)


@pytest.mark.parametrize("mode", MODES_32)
def test_upper_halves_of_a_32_bit_call(new_vm: Builder, mode: Mode) -> None:
    """Of a 32-bit caller's registers the upper halves don't count."""
    vm = new_vm.ready()
    vm.send(5)
    at_once(vm.vcpus[0], 5, mode=mode, high_halves=U32_MAX)


@pytest.mark.parametrize("ports", [(20,), (6, 20)], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_own_timer_wakes(new_vm: Builder, *, ports: tuple[int, ...], masked: bool) -> None:
    """The event of a polled port ends the poll when it comes, masked or not."""
    vm = new_vm.timers()
    if masked:
        vm.mask(PORT)
    wakes(vm.vcpus[0], *ports)


@pytest.mark.parametrize("ports", [(6,), (6, 7), ()], ids=str)
def test_unmasked_event_wakes(new_vm: Builder, ports: tuple[int, ...]) -> None:
    """An event that is announced to the vCPU ends the poll, though it polls other ports."""
    wakes(new_vm.timers().vcpus[0], *ports)


def test_masked_event_of_another_port(new_vm: Builder) -> None:
    """A masked event doesn't end the poll of one port that is another's."""
    vm = new_vm.timers()
    vm.mask(PORT)
    vm.vcpus[0].set_timer(PORT, NowPlus(5 * MS))
    until_timeout(vm.vcpus[0], 6)
    vm.pending(PORT)


@pytest.mark.parametrize("ports", [(6, 7), ()], ids=str)
def test_masked_event_of_many_ports(new_vm: Builder, ports: tuple[int, ...]) -> None:
    """A poll of any number of ports but one ends with every masked event of its vCPU."""
    vm = new_vm.timers()
    vm.mask(PORT)
    wakes(vm.vcpus[0], *ports)


def test_shared_infos_layout(new_vm: Builder) -> None:
    """Where the pending bits are follows LONG_MODE, how the argument lies the caller's mode."""
    vm = new_vm.ready(long_mode=False)
    vm.send(40)
    at_once(vm.vcpus[0], 40, mode=Mode.LONG)
    at_once(vm.vcpus[0], 40, mode=Mode.PROTECTED)


def test_without_shared_info(new_vm: Builder) -> None:
    """Without shared_info, or with one that was refused, a poll comes back at once."""
    vm = new_vm.ready()
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    at_once(vm.vcpus[0], 5)
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    at_once(vm.vcpus[0], 5)
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    until_timeout(vm.vcpus[0], 5)


@pytest.mark.parametrize(("irqchip", "flags"), [("none", 0x22), ("full", 0x2), ("split", 0x2)])
def test_as_a_yield(new_vm: Builder, irqchip: str, flags: int) -> None:
    """Without EVTCHN_SEND or an in-kernel local APIC a poll is a yield that reads nothing."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.config(flags=flags)
    vcpu = vm.vcpus[0]
    at_once(vcpu, 5)
    vcpu.call(Hypercall.sched_op, SchedOp.poll, NOWHERE)
    vcpu.poll([5000], count=1000)


def test_with_a_split_irqchip(new_vm: Builder) -> None:
    """A local APIC alone makes a poll block."""
    until_timeout(new_vm.ready(irqchip="split").vcpus[0], 5)


def test_deferred_event_ends_it(new_vm: Builder) -> None:
    """An event that can't be announced yet ends a poll, too."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vcpu.set_timer(PORT, NowPlus(SECOND // 2))
    at_once(vcpu, 6)


# ---- what is read, and in which order


@pytest.mark.parametrize("mode", MODES)
def test_unreadable_structure(new_vm: Builder, mode: Mode) -> None:
    """A structure that can't be read is -EFAULT."""
    vcpu = new_vm.ready().vcpus[0]
    for at in (NOWHERE, MEMORY, MEMORY - 8):
        vcpu.call(Hypercall.sched_op, SchedOp.poll, at, answers=-EFAULT, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_size_of_the_structure(new_vm: Builder, mode: Mode) -> None:
    """The structure has 24 bytes for a 64-bit caller and 16 for a 32-bit one, and may end with memory."""
    vm = new_vm.ready()
    vm.send(5)
    size = 24 if mode.longmode else 16
    vm.vcpus[0].poll([5], LONG, at=MEMORY - size, mode=mode)
    vm.vcpus[0].call(Hypercall.sched_op, SchedOp.poll, MEMORY - size + 1, answers=-EFAULT, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_number_of_ports(new_vm: Builder, mode: Mode) -> None:
    """A poll has up to 128 ports; more are -EINVAL, before the array is looked at."""
    vm = new_vm.ready()
    most = list(range(1, SCHED_POLL_MAX_PORTS + 1))
    vm.send(most[-1])
    at_once(vm.vcpus[0], *most, mode=mode)
    for count in (129, 1 << 16, 0x8000_0000, U32_MAX):
        vm.vcpus[0].poll([], count=count, array=NOWHERE, answers=-EINVAL, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_unreadable_ports(new_vm: Builder, mode: Mode) -> None:
    """Ports that can't be read are -EFAULT."""
    vcpu = new_vm.ready().vcpus[0]
    for array, count in ((NOWHERE, 1), (NOWHERE, 128), (MEMORY - 4, 2), (MEMORY - 2, 1)):
        vcpu.poll([], LONG, count=count, array=array, answers=-EFAULT, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_no_ports(new_vm: Builder, mode: Mode) -> None:
    """Of a poll without ports the array isn't looked at."""
    new_vm.ready().vcpus[0].poll([], 1, count=0, array=NOWHERE, mode=mode)


@pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
@pytest.mark.parametrize("caller", MODES)
def test_ports_out_of_range(new_vm: Builder, *, caller: Mode, long_mode: bool) -> None:
    """A port from the layout's limit on is -EINVAL, wherever it stands; port 0 and the last one are fine."""
    vm = new_vm.ready(long_mode=long_mode)
    vcpu = vm.vcpus[0]
    limit = 4096 if long_mode else 1024
    vm.send(5)
    for ports in ([limit], [limit, 5], [5, limit], [5, U32_MAX], [6, 7, limit + 1]):
        vcpu.poll(ports, LONG, answers=-EINVAL, mode=caller)
    at_once(vcpu, limit - 1, 0, 5, mode=caller)


def test_last_port(new_vm: Builder) -> None:
    """The last port of the layout can be polled, and port 0."""
    vm = new_vm.ready()
    vm.send(4095)
    at_once(vm.vcpus[0], 4095)
    vm.store(SHARED_INFO + 0x800, b"\1")
    at_once(vm.vcpus[0], 0)


@pytest.mark.parametrize("mode", MODES)
def test_argument_is_left_alone(new_vm: Builder, mode: Mode) -> None:
    """The guest's structure and ports are left as they were."""
    vm = new_vm.ready()
    vm.vcpus[0].poll([5, 6], 1, mode=mode)
    packed = guest_layout(mode).sched_poll.pack(ARGUMENT + 0x100, 2, 1)
    vm.holds(ARGUMENT, packed, "the structure")
    vm.holds(ARGUMENT + 0x100, b"\5\0\0\0\6\0\0\0", "the ports")
