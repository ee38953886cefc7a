"""Family `vcpu-op`: KVM forwards all of vcpu_op but singleshot timers, and remembers nothing of it."""

from __future__ import annotations

from errno import ENOENT, ENOSYS
from typing import ClassVar, Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import HvmOp, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.forwarded_calls import (
    FORWARDED,
    FORWARDED_VCPU_OPS,
    ForwardedCall,
    ForwardedChecker,
    bytes_behind,
    forwarded_call,
    vcpu_exists,
    vcpu_index,
    word_behind,
)
from pytest_xenkvm.rules.model import Checker, Ioctls, Judged, Level, Rule
from pytest_xenkvm.trace.decode_values import result
from pytest_xenkvm.trace.events import Ioctl, VcpuRun

_SET_VCPU_ATTR: Final = "KVM_XEN_VCPU_SET_ATTR"
_SET_VM_ATTR: Final = "KVM_XEN_HVM_SET_ATTR"
_VECTOR: Final = f"KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR ({VcpuAttr.UPCALL_VECTOR:d})"

_SETS: Final = Ioctls(frozenset({_SET_VCPU_ATTR, _SET_VM_ATTR}))
_SINGLESHOT: Final = (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer)
_AREAS: Final[dict[int, frozenset[int]]] = {
    VcpuOp.register_vcpu_info: frozenset({VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_INFO_HVA}),
    VcpuOp.register_runstate_memory_area: frozenset({VcpuAttr.RUNSTATE_ADDR}),
    VcpuOp.register_vcpu_time_memory_area: frozenset({VcpuAttr.VCPU_TIME_INFO}),
}
"""The attributes by which KVM learns of an area that the guest registers."""


@define(eq=False)
class _UnknownVcpuIsRefused(ForwardedChecker):
    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        named = call.arg32(1)
        if call.nr != Nr.vcpu_op or call.event.cpl or named is None or call.arg32(0) in _SINGLESHOT:
            return
        if vcpu_exists(self.context, named) is not False:
            return
        if call.answer in (-ENOENT, -ENOSYS):
            self.hold()
            return
        self.violate(
            observation,
            f"{call.words}, though the VM has no vCPU {named}; Xen answers -ENOENT (-2): compare the number, "
            "as 32 bits, with the VM's vCPUs before doing anything",
        )


@define(eq=False)
class _PeriodicTimerStops(ForwardedChecker):
    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        named = call.arg32(1)
        if not call.is_op(Nr.vcpu_op, VcpuOp.stop_periodic_timer) or call.event.cpl or named is None:
            return
        if not vcpu_exists(self.context, named):
            return
        if call.answer == 0:
            self.hold()
            return
        self.violate(
            observation,
            f"{call.words}; Xen answers 0 whether or not the periodic timer runs, and Linux takes anything "
            "else for a Xen without these timers: the kernel forwards the call, so answer 0 in the VMM",
        )


@frozen
class _Promise:
    """A success that the VMM has to keep: an attribute to be set on a vCPU."""

    observation: Observation
    call: ForwardedCall
    target: int | None
    """Index of the vCPU; None where the trace doesn't show which."""
    attributes: frozenset[int]
    binding: bool
    """The trace shows what the guest asked for; otherwise it may have asked for nothing."""

    @property
    def goes_on(self) -> tuple[int | None, int]:
        """The vCPUs that must not go on before it is kept."""
        return self.target, self.call.event.vcpu

    def kept_by(self, attribute: int, vcpu: int) -> bool:
        """Whether a SET of that attribute on that vCPU keeps it."""
        return attribute in self.attributes and self.target in (None, vcpu)


@define(eq=False)
class _PromiseChecker(Checker):
    """Looks for the SET that a successful hypercall stands for.

    A behaviour's ioctls are observed before the hypercall, a recorded VMM's behind it: a promise is open
    until the vCPU that it is about, or its caller, goes on.
    """

    alike: ClassVar[bool] = True
    alike_args: ClassVar[bool] = False

    done: set[tuple[int, int]] = Factory(set)
    """Attribute and vCPU of the SETs made for the hypercall that comes next."""
    done_at: int = -1
    """Their place."""
    promises: list[_Promise] = Factory(list)

    def observe(self, observation: Observation) -> None:
        """Take note of SETs, and of hypercalls that promise one."""
        event = observation.event
        if isinstance(event, Ioctl):
            if not observation.place.after:
                self.ioctl(observation, event)
            return
        made = self.done if self.done_at == observation.place.index else set()
        self.done = set()
        for late in [late for late in self.promises if getattr(event, "vcpu", None) in late.goes_on]:
            self.promises.remove(late)
            if late.binding:
                self.violate(late.observation, self.broken(late))
        call = forwarded_call(observation, self.context)
        promise = None if call is None or call.event.cpl or call.answer else self.promised(observation, call)
        if promise is None:
            return
        if any(promise.kept_by(*item) for item in made):
            self.hold()
        else:
            self.promises.append(promise)

    @property
    def settled(self) -> bool:
        """Not while a promise is open."""
        return not self.promises

    def ioctl(self, observation: Observation, event: Ioctl) -> None:
        """An ioctl of the VMM."""
        if event.name != _SET_VCPU_ATTR or event.ret < 0 or event.vcpu is None:
            return
        made = (event.arg["type"], event.vcpu)
        kept = next((promise for promise in self.promises if promise.kept_by(*made)), None)
        if kept is not None:
            self.promises.remove(kept)
            self.hold()
            return
        if self.done_at != observation.place.index:
            self.done, self.done_at = set(), observation.place.index
        self.done.add(made)

    def promised(self, observation: Observation, call: ForwardedCall) -> _Promise | None:
        """What a hypercall at CPL 0 that was answered with 0 promises."""
        raise NotImplementedError

    def broken(self, promise: _Promise) -> str:
        """What to say of a promise that was not kept."""
        raise NotImplementedError


@define(eq=False)
class _AreasReachKvm(_PromiseChecker):
    unlike: ClassVar[frozenset[int]] = frozenset({int(Nr.vcpu_op)})

    def promised(self, observation: Observation, call: ForwardedCall) -> _Promise | None:
        named, op = call.arg32(1), call.arg32(0)
        if call.nr != Nr.vcpu_op or op not in _AREAS or named is None or not vcpu_exists(self.context, named):
            return None
        target = vcpu_index(self.context, named)
        asked = bytes_behind(call.event, 2)
        binding = asked is not None and any(asked[:8])
        return _Promise(observation, call, target, _AREAS[op], binding)

    def broken(self, promise: _Promise) -> str:
        names = " or ".join(f"KVM_XEN_VCPU_ATTR_TYPE_{VcpuAttr(type_).name}" for type_ in promise.attributes)
        return (
            f"{promise.call.words}, but no accepted KVM_XEN_VCPU_SET_ATTR gave vCPU {promise.target} that "
            f"area; the kernel forwards the call and remembers nothing of it: set {names} to the address "
            "that the guest named, or refuse the call"
        )


@define(eq=False)
class _VectorIsTheVcpus(_PromiseChecker):
    unlike: ClassVar[frozenset[int]] = frozenset({int(Nr.hvm_op)})
    misdirected_at: int | None = None
    """Place of the last SET that went to the VM."""

    def ioctl(self, observation: Observation, event: Ioctl) -> None:
        """A SET of a VM attribute that is a vCPU's is the mistake itself."""
        of_the_vm = event.name == _SET_VM_ATTR
        if of_the_vm and (event.vcpu is not None or event.arg["type"] == VcpuAttr.UPCALL_VECTOR):
            self.misdirected_at = observation.place.index
            self.promises.clear()
            where = "the VM's file" if event.vcpu is None else f"the file of vCPU {event.vcpu}"
            self.violate(
                observation,
                f"KVM_XEN_HVM_SET_ATTR with type {event.arg['type']} on {where} answered "
                f"{result(event.ret)}; a vCPU's upcall vector is an attribute of that vCPU: use "
                f"KVM_XEN_VCPU_SET_ATTR with {_VECTOR} on its file, and check the result",
            )
        elif event.name == _SET_VCPU_ATTR and event.arg["type"] == VcpuAttr.UPCALL_VECTOR:
            super().ioctl(observation, event)

    def promised(self, observation: Observation, call: ForwardedCall) -> _Promise | None:
        """A vCPU's upcall vector that was accepted."""
        if not call.is_op(Nr.hvm_op, HvmOp.set_evtchn_upcall_vector):
            return None
        if self.misdirected_at == observation.place.index:
            return None
        named, vector = word_behind(call.event, 1, 0), word_behind(call.event, 1, 4)
        target = None if named is None else vcpu_index(self.context, named)
        types = frozenset({int(VcpuAttr.UPCALL_VECTOR)})
        return _Promise(observation, call, target, types, binding=bool(vector))

    def broken(self, promise: _Promise) -> str:
        """What to say of it."""
        return (
            f"{promise.call.words}, but no accepted KVM_XEN_VCPU_SET_ATTR gave vCPU {promise.target} that "
            f"vector, so its events would come by the VM's way or not at all: set {_VECTOR} on that vCPU"
        )


RULES: Final = (
    Rule(
        id="vcpu-op.unknown-vcpu-is-refused",
        title="The VMM refuses a vcpu_op on a vCPU that the VM doesn't have.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's public/vcpu.h: vcpu_op; common/domain.c: do_vcpu_op",
        explanation=(
            "The second argument of vcpu_op names a vCPU by the guest's own number. Xen looks it up before "
            "it looks at the operation, and answers -ENOENT if there is none. KVM looks at it in singleshot "
            "timer calls only and forwards all others as they are, so a number that is out of range comes "
            "to the VMM unchecked. -ENOSYS, for an operation that the VMM doesn't have, refuses it too."
        ),
        advice="Cut the number to 32 bits, as Xen does, look the vCPU up, and answer -ENOENT without one.",
        checker=_UnknownVcpuIsRefused,
        sees=(FORWARDED_VCPU_OPS,),
        exercised_by="a forwarded vcpu_op at CPL 0, not a singleshot timer's, on a vCPU that isn't there",
    ),
    Rule(
        id="vcpu-op.areas-reach-kvm",
        title="An area that the VMM lets its guest register is one that KVM was told of.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's public/vcpu.h: VCPUOP_register_*; kvm_xen_hypercall, kvm_xen_vcpu_set_attr",
        explanation=(
            "The guest registers its vcpu_info, runstate and time areas by hypercall; the kernel fills them. "
            "But the kernel forwards these calls: it learns of an area only by the VMM's "
            "KVM_XEN_VCPU_SET_ATTR. A VMM that answers 0 and leaves the rest to the kernel makes the guest "
            "look at memory that nobody writes: no event shows there, and time stands still."
        ),
        advice=(
            "Set VCPU_INFO, RUNSTATE_ADDR or VCPU_TIME_INFO on the vCPU that the guest names, and answer an "
            "error if KVM refuses."
        ),
        checker=_AreasReachKvm,
        sees=(FORWARDED, _SETS, VcpuRun),
        exercised_by=(
            "a VCPUOP_register_vcpu_info, _runstate_memory_area or _vcpu_time_memory_area at CPL 0 that the "
            "VMM answers with 0 and that a SET follows, or whose argument the trace shows"
        ),
    ),
    Rule(
        id="vcpu-op.periodic-timer-stops",
        title="VCPUOP_stop_periodic_timer succeeds on every vCPU.",
        level=Level.SHOULD,
        judges=Judged.VMM,
        citation="Xen's public/vcpu.h: VCPUOP_stop_periodic_timer; Linux's xen/time.c: xen_time_init",
        explanation=(
            "KVM has no periodic timer and forwards the call, also where it serves singleshot timers itself. "
            "Linux stops the periodic timer of each vCPU first: if that fails, it takes it that vcpu_op has "
            "no timers at all, or, later on, dies."
        ),
        advice="Answer 0 for every vCPU that is there; a VMM without periodic timers has nothing else to do.",
        checker=_PeriodicTimerStops,
        sees=(FORWARDED_VCPU_OPS,),
        exercised_by="a VCPUOP_stop_periodic_timer at CPL 0 on a vCPU that the VM has",
    ),
    Rule(
        id="upcall-vector.is-the-vcpus",
        title="The VMM sets the upcall vector of a vCPU on that vCPU, not on the VM.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's public/hvm/hvm_op.h: HVMOP_set_evtchn_upcall_vector; kvm_xen_vcpu_set_attr",
        explanation=(
            "VMs and vCPUs have attributes of their own, with numbers and ioctls of their own. UPCALL_VECTOR "
            "is both: 2 of a VM, whose vector every vCPU gets by a way that looks at shared memory, and 8 of "
            "a vCPU, whose vector is an interrupt of its local APIC. KVM_XEN_HVM_SET_ATTR fails on a vCPU's "
            "file, and with type 8 on a VM's; QEMU once did the former and didn't look at the result."
        ),
        advice="Use KVM_XEN_VCPU_SET_ATTR with type 8 on the file of the vCPU that the guest names.",
        checker=_VectorIsTheVcpus,
        sees=(FORWARDED, _SETS, VcpuRun),
        exercised_by=(
            "an HVMOP_set_evtchn_upcall_vector at CPL 0 that the VMM answers with 0, and that a SET follows "
            "or whose argument the trace shows; or a KVM_XEN_HVM_SET_ATTR meant for a vCPU"
        ),
    ),
)
