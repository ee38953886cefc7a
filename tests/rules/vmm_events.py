"""What VMMs do and answer, as events by hand, and what the rules about VMMs make of them."""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack
from typing import Any, Final

from attrs import evolve
from rule_traces import RULES, VMM, Item, config, happened, header, hypercall

from pytest_xenkvm.abi.numbers import INVALID_GFN, U32_MAX, EvtchnOp, HvmAttr, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import Virq
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Context, Verdict
from pytest_xenkvm.trace.events import Behind, Header, Hypercall, Ioctl

ARGUMENT: Final = 0x20_0000
MS: Final = 1_000_000


def forwarded(nr: int, *args: int, result: int = 0, vcpu: int = 0, **more: Any) -> Hypercall:
    """A hypercall that the VMM answered with `result`."""
    return hypercall(vcpu, int(nr), *map(int, args), handled=VMM, result=result, **more)


def vcpu_op(op: int, named: int, behind: bytes | None = None, **more: Any) -> Hypercall:
    """A vcpu_op that the VMM answered; the structure behind its argument if that was seen."""
    if behind is not None:
        more["behind"] = (Behind(arg=2, data=behind),)
    return forwarded(Nr.vcpu_op, op, named, ARGUMENT, **more)


def singleshot(delta: int | None, flags: int | None = 0, *, vcpu: int = 0, **more: Any) -> Hypercall:
    """A set_singleshot_timer of the vCPU itself, `delta` ns from now; None is absolute 0, or no flags."""
    data = pack("<Q", 0) if flags is None else pack("<QIxxxx", 0, flags)
    now_plus = () if delta is None else ((0, delta),)
    behind = (Behind(arg=2, data=data, now_plus_at=now_plus),)
    named = more.pop("named", vcpu)
    timer = VcpuOp.set_singleshot_timer
    return forwarded(Nr.vcpu_op, timer, named, ARGUMENT, vcpu=vcpu, behind=behind, **more)


def stop_timer(vcpu: int = 0, **more: Any) -> Hypercall:
    """A stop_singleshot_timer of the vCPU itself."""
    return forwarded(Nr.vcpu_op, VcpuOp.stop_singleshot_timer, more.pop("named", vcpu), vcpu=vcpu, **more)


def bind_timer(vcpu: int = 0, virq: int = Virq.TIMER, **more: Any) -> Hypercall:
    """The guest binds a vCPU's VIRQ_TIMER."""
    behind = (Behind(arg=1, data=pack("<III", virq, vcpu, 0)),)
    return forwarded(Nr.event_channel_op, EvtchnOp.bind_virq, ARGUMENT, behind=behind, **more)


def vm_attr(type_: int, ret: int = 0, vcpu: int | None = None, **value: Any) -> Ioctl:
    """KVM_XEN_HVM_SET_ATTR."""
    return Ioctl(name="KVM_XEN_HVM_SET_ATTR", vcpu=vcpu, arg={"type": int(type_), **value}, ret=ret)


def vcpu_attr(type_: int, vcpu: int = 0, ret: int = 0, **value: Any) -> Ioctl:
    """KVM_XEN_VCPU_SET_ATTR."""
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg={"type": int(type_), **value}, ret=ret)


def shared_info(gfn: int = 1, ret: int = 0) -> Ioctl:
    """SHARED_INFO at a guest frame."""
    return vm_attr(HvmAttr.SHARED_INFO, ret, shared_info={"gfn": gfn})


NO_SHARED_INFO: Final = shared_info(INVALID_GFN)


def timer(port: int, vcpu: int = 0, ret: int = 0, *, expires_ns: int = 0, priority: int = U32_MAX) -> Ioctl:
    """TIMER of a vCPU."""
    value = {"port": port, "priority": priority, "expires_ns": expires_ns}
    return vcpu_attr(VcpuAttr.TIMER, vcpu, ret, timer=value)


def outbound(port: int, vcpu: int = 0, ret: int = 0, *, flags: int = 0, priority: int = U32_MAX) -> Ioctl:
    """EVTCHN: an outbound IPI port."""
    target = {"port": port, "vcpu": vcpu, "priority": priority}
    evtchn = {"send_port": port, "type": 5, "flags": flags, "deliver": {"port": target}}
    return vm_attr(HvmAttr.EVTCHN, ret, evtchn=evtchn)


def send(port: int, vcpu: int = 0, *, priority: int = U32_MAX, ret: int = 0) -> Ioctl:
    """KVM_XEN_HVM_EVTCHN_SEND to a vCPU by KVM's id."""
    arg = {"port": port, "vcpu": vcpu, "priority": priority}
    return Ioctl(name="KVM_XEN_HVM_EVTCHN_SEND", arg=arg, ret=ret)


def route(port: int, vcpu: int = 0, *, priority: int = U32_MAX, kind: int = 5) -> Ioctl:
    """KVM_SET_GSI_ROUTING with one route."""
    target = {"port": port, "vcpu": vcpu, "priority": priority}
    arg = {"entries": [{"gsi": 9, "type": kind, "xen_evtchn": target}]}
    return Ioctl(name="KVM_SET_GSI_ROUTING", arg=arg, ret=0)


def judged(
    rule: str, *items: Item | tuple[int, Item], under_test: bool = True, of: Header | None = None
) -> Verdict:
    """How a rule judges what happened after KVM_XEN_HVM_CONFIG; (place, item) puts it somewhere."""
    context = Context(header=of or header(), max_vcpus=4096, vmm_under_test=under_test)
    judge = Judge((RULES[rule],), context)
    for observation in _placed([config(), *items]):
        judge.observe(observation)
    (verdict,) = judge.verdicts()
    return verdict


def migrated(rule: str, source: Iterable[Item], target: Iterable[Item]) -> Verdict:
    """How a rule judges what a behaviour did, and then did to the VM that it migrated to."""
    judge = Judge((RULES[rule],), Context(header=header(), max_vcpus=4096, vmm_under_test=True))
    for observation in _placed([config(), *source]):
        judge.observe(observation)
    for observation in _placed(target):
        judge.observe(evolve(observation, place=Place(9, after=True), by_vmm=True))
    (verdict,) = judge.verdicts()
    return verdict


def _placed(items: Iterable[Item | tuple[int, Item]]) -> Iterable[Observation]:
    for index, item in enumerate(items):
        place, what = item if isinstance(item, tuple) else (index, item)
        observation = what if isinstance(what, Observation) else happened(what)
        yield evolve(observation, place=Place(place))
