"""Hypercalls that may stay in the kernel: who handles a call, and with what result.

Dispatch, first row that matches (`kvm_xen_hypercall`):

    INTERCEPT_HCALL or the hypercall MSR not configured   KVM's own hypercall ABI answers
    bit 31 of the number, while Hyper-V's are enabled      Hyper-V's hypercall ABI answers (at CPL 0)
    CPL > 0                                               forwarded
    number in the table below and its handler takes it    handled in the kernel
    otherwise                                             forwarded

A caller in 64-bit code uses the 64-bit ABI; every other caller the 32-bit ABI, with all registers truncated
to 32 bits. A handler returns the result (0, a value, or -errno) or FORWARD.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL
from typing import Final, final

from attrs import define

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, U32, U64, GuestLayout
from pytest_xenkvm.abi.numbers import (
    HV_STATUS_INVALID_HYPERCALL_CODE,
    HV_STATUS_INVALID_HYPERCALL_INPUT,
    KVM_ENOSYS,
    KVM_EPERM,
    KVM_HC_KICK_CPU,
    KVM_HC_SCHED_YIELD,
    KVM_HC_VAPIC_POLL_IRQ,
    SCHED_POLL_MAX_PORTS,
    U32_MAX,
    U64_MAX,
    XEN_VCPU_ID_INVALID,
    EvtchnOp,
    Hypercall,
    SchedOp,
    VcpuOp,
    XenHvmFlag,
    XenVer,
)
from pytest_xenkvm.core import outbound, timer
from pytest_xenkvm.core.evtchn import is_pending
from pytest_xenkvm.core.lapic import keeps_awake
from pytest_xenkvm.core.state import ANY_PORT, VcpuState, VmState

ReadVirt = Callable[[int, int, int], "bytes | None"]
"""Reads (address, size, needed): `size` bytes at a guest virtual address, of which the kernel looks at the
first `needed`, and those behind them may be left out; None if the guest's page tables or memory don't reach.
May raise UnseenMemory."""


class UnseenMemory(Exception):
    """A hypercall depends on guest memory that nobody recorded: what it does can't be known."""


@define
class HypercallRegisters:
    """A hypercall as the guest's registers have it: number, six arguments, mode and privilege."""

    nr: int
    args: tuple[int, int, int, int, int, int]
    longmode: bool
    """The vCPU executes 64-bit code (EFER.LMA and CS.L)."""
    cpl: int

    @property
    def layout(self) -> GuestLayout:
        """Layout of the structures that the arguments point at; follows the caller's mode."""
        return LAYOUT_64 if self.longmode else LAYOUT_32

    def seen_by_kernel(self) -> HypercallRegisters:
        """The same call with the registers truncated as the caller's mode has it."""
        if self.longmode:
            return self
        a0, a1, a2, a3, a4, a5 = (arg & U32_MAX for arg in self.args)
        return HypercallRegisters(self.nr & U32_MAX, (a0, a1, a2, a3, a4, a5), longmode=False, cpl=self.cpl)


@define
class Call:
    """Everything a handler looks at."""

    vm: VmState
    vcpu: VcpuState
    regs: HypercallRegisters
    read_virt: ReadVirt
    block_until: int | None = None
    """A blocked vCPU wakes when the VM's clock reaches this (ns): it is known not to have slept longer."""

    def read(self, address: int, size: int, *, needed: int | None = None) -> bytes | None:
        """Guest memory behind a pointer; only the first `needed` bytes (default: all) matter."""
        return self.read_virt(address, size, size if needed is None else needed)


@final
class Forward:
    """The type of FORWARD."""


FORWARD: Final = Forward()
"""The VMM must answer: KVM_EXIT_XEN."""

_STOP_SINGLESHOT: Final = int(VcpuOp.stop_singleshot_timer)
_SINGLESHOT_OPS: Final = (int(VcpuOp.set_singleshot_timer), _STOP_SINGLESHOT)
"""Plain numbers: guests make these calls all the time."""

_SINGLESHOT_64: Final = LAYOUT_64.singleshot.size
_SINGLESHOT_32: Final = LAYOUT_32.singleshot.size

_TIMEOUT_SIZE: Final = U64.size
_timeout: Final = U64.unpack_from

_SEND: Final = int(EvtchnOp.send)

_KVM_HYPERCALLS: Final = frozenset((KVM_HC_VAPIC_POLL_IRQ, KVM_HC_KICK_CPU, KVM_HC_SCHED_YIELD))

_HYPER_V_BIT: Final = 1 << 31

Result = int | Forward


def dispatch(call: Call) -> Result:
    """Handle a hypercall as the table above says."""
    regs, vm = call.regs, call.vm
    if not (vm.config.intercepts or vm.intercepts_hypercalls):
        return _kvm_hypercall(call)
    if regs.cpl > 0:
        return FORWARD
    handler = _HANDLERS.get(regs.nr)
    if handler is not None:
        return handler(call)
    return _hyper_v_hypercall(call) if vm.hyper_v and regs.nr & _HYPER_V_BIT else FORWARD


def _hyper_v_hypercall(call: Call) -> int:
    """Hyper-V's own ABI (`kvm_hv_hypercall`), of which no call is modelled.

    Its input is RCX of a 64-bit caller, in which a Xen hypercall has nothing, and EDX:EAX of a 32-bit one,
    where bit 31 is reserved.
    """
    return HV_STATUS_INVALID_HYPERCALL_CODE if call.regs.longmode else HV_STATUS_INVALID_HYPERCALL_INPUT


def _kvm_hypercall(call: Call) -> int:
    """KVM's own ABI (`kvm_emulate_hypercall`).

    CLOCK_PAIRING (9) and SEND_IPI (10) are not modelled: their arguments are in registers that a Xen
    hypercall doesn't use.
    """
    if call.regs.cpl > 0:
        return -KVM_EPERM
    return 0 if call.regs.nr in _KVM_HYPERCALLS else -KVM_ENOSYS


def _xen_version(call: Call) -> Result:
    """XENVER_version if the VMM set XEN_VERSION; the sub-op is compared in 64 bits."""
    if call.regs.args[0] == XenVer.version and call.vm.xen_version:
        return call.vm.xen_version
    return FORWARD


def _event_channel_op(call: Call) -> Result:
    """EVTCHNOP_send to an outbound port; the sub-op is compared in 64 bits."""
    args = call.regs.args
    if args[0] != _SEND:
        return FORWARD
    port = call.read_virt(args[1], U32.size, U32.size)
    if port is None:
        return -EFAULT
    return 0 if outbound.send(call.vm, U32.unpack(port)[0]) else FORWARD


def _sched_op(call: Call) -> Result:
    """SCHEDOP_yield and SCHEDOP_poll; the sub-op loses bits 32-63."""
    sub_op = call.regs.args[0] & U32_MAX
    if sub_op == SchedOp.yield_:
        return 0
    return _poll(call) if sub_op == SchedOp.poll else FORWARD


def _poll(call: Call) -> int:
    """`kvm_xen_schedop_poll`: block until a listed port is pending, an event comes, or the timeout passes.

    Without EVTCHN_SEND or an in-kernel local APIC it is a yield that reads nothing. The timeout is
    relative. The ports' limit follows the VM's layout, the structure's layout the caller's.
    """
    vm = call.vm
    if not vm.config.flags & XenHvmFlag.EVTCHN_SEND or not vm.has_local_apic:
        return 0
    layout = call.regs.layout
    data = call.read(call.regs.args[1], layout.sched_poll.size)
    if data is None:
        return -EFAULT
    pointer, count, timeout = layout.sched_poll.unpack(data)
    if count > SCHED_POLL_MAX_PORTS:
        return -EINVAL
    array = call.read(pointer, count * U32.size) if count else b""
    if array is None:
        return -EFAULT
    ports = [port for (port,) in U32.iter_unpack(array)]
    if any(port >= vm.layout.max_ports for port in ports):
        return -EINVAL
    # a vCPU whose selector bits wait is runnable (`kvm_xen_has_pending_events`)
    waits = call.vcpu.deferred_sel != 0
    can_block = vm.shared_info.mapped is not None and not waits and not keeps_awake(vm, call.vcpu)
    if can_block and not any(is_pending(vm, port) for port in ports):
        limits = [vm.now + timeout] if timeout else []
        limits += [call.block_until] if call.block_until is not None else []
        call.vcpu.polling = ports[0] if count == 1 else ANY_PORT
        _block(vm, call.vcpu, min(limits, default=None))
    return 0


def _block(vm: VmState, vcpu: VcpuState, limit: int | None) -> None:
    """Let the VM's clock run until something wakes the vCPU; with nothing to wait for, wake at once."""
    vcpu.kicked = False
    while not vcpu.kicked:
        deadline = timer.next_deadline(vm)
        if deadline is None or (limit is not None and limit < deadline):
            timer.advance(vm, limit if limit is not None else vm.now)
            break
        timer.advance(vm, deadline)
    vcpu.polling = None


def _vcpu_op(call: Call) -> Result:
    """set/stop_singleshot_timer (`kvm_xen_hcall_vcpu_op`); the first check that applies decides.

    Sub-op neither of the two: forwarded · no timer port: forwarded · from Linux 7.3, Xen ID unset:
    forwarded, whatever vCPU the guest names · another vCPU named: -EINVAL · argument unreadable: -EFAULT.
    Sub-op and vCPU number lose bits 32-63. The argument's flags are ignored.
    """
    regs, vcpu = call.regs, call.vcpu
    args = regs.args
    sub_op, named_vcpu = args[0] & U32_MAX, args[1] & U32_MAX
    if sub_op not in _SINGLESHOT_OPS or not vcpu.timer.port:
        return FORWARD
    if vcpu.xen_id == XEN_VCPU_ID_INVALID and call.vm.profile.forwards_singleshot_while_id_unset:
        return FORWARD
    if named_vcpu != vcpu.xen_id:
        return -EINVAL
    if sub_op == _STOP_SINGLESHOT:
        timer.stop(vcpu)
        return 0
    size = _SINGLESHOT_64 if regs.longmode else _SINGLESHOT_32
    argument = call.read_virt(args[2], size, _TIMEOUT_SIZE)
    if argument is None:
        return -EFAULT
    (timeout,) = _timeout(argument)
    timer.start(call.vm, vcpu, timeout)
    return 0


def _set_timer_op(call: Call) -> Result:
    """set_timer_op: no vCPU number, so no ID check; 0 stops; armed with the Linux workaround."""
    if not call.vcpu.timer.port:
        return FORWARD
    timeout = call.regs.args[0]
    if not call.regs.longmode:
        timeout |= call.regs.args[1] << 32
    if timeout:
        timer.start(call.vm, call.vcpu, timeout & U64_MAX, linux_workaround=True)
    else:
        timer.stop(call.vcpu)
    return 0


_HANDLERS: Final[dict[int, Callable[[Call], Result]]] = {
    Hypercall.set_timer_op: _set_timer_op,
    Hypercall.xen_version: _xen_version,
    Hypercall.vcpu_op: _vcpu_op,
    Hypercall.sched_op: _sched_op,
    Hypercall.event_channel_op: _event_channel_op,
}
"""Every other number is forwarded."""
