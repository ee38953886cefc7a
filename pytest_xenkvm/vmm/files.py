"""The file descriptors behind the handles: ioctls as they are made, and what the VMM keeps for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from struct import error as StructError  # noqa: N812 (it is a class)
from typing import Any, Final, NamedTuple

from attrs import Factory, define, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import EvtchnFlag, HvmAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.hosts import attribute_codec as codec
from pytest_xenkvm.hosts.protocol import HostVm
from pytest_xenkvm.trace.events import VmShape
from pytest_xenkvm.vmm.vmm_timers import VmmTimers


class IoctlMade(NamedTuple):
    """An ioctl as it was made: argument before and after, result; `vcpu` an index, None for the VM's file."""

    request: int
    before: int | bytearray
    after: int | bytearray
    ret: int
    vcpu: int | None


IoctlWatcher = Callable[[IoctlMade], None]
"""Is told of each ioctl."""

_EVENTFD_PORT: Final = 0
"""The delivery port of an outbound port that signals an eventfd."""


@define(eq=False)
class Files:
    """The file descriptors of a VM and its vCPUs, watched; and the VMM's own timers."""

    host: HostVm
    shape: VmShape
    watch: IoctlWatcher | None
    timers: VmmTimers = Factory(VmmTimers)
    outbound_eventfds: dict[int, int] = field(factory=dict, init=False)
    """By outbound port, the eventfd that the guest signals through it."""

    def ioctl(self, request: int, argument: int | bytearray, vcpu: int | None = None) -> int:
        """Make an ioctl on the VM or on a vCPU; a positive result, or KvmError."""
        before = bytearray(argument) if isinstance(argument, bytearray) else argument
        ret = self.host.ioctl(request, argument, vcpu=vcpu)
        if self.watch is not None:
            self.watch(IoctlMade(request, before, argument, ret, vcpu))
        check(ret)
        if request == ioctls.KVM_XEN_HVM_SET_ATTR and isinstance(argument, bytearray):
            self._learn(argument)
        return ret

    def _learn(self, argument: bytearray) -> None:
        """Keep `outbound_eventfds` up to date."""
        if codec.attribute_type(argument) != HvmAttr.EVTCHN:
            return
        made = codec.load_vm_value(argument, HvmAttr.EVTCHN)
        if made.flags == EvtchnFlag.RESET:
            self.outbound_eventfds.clear()
        elif made.flags == EvtchnFlag.DEASSIGN:
            self.outbound_eventfds.pop(made.send_port, None)
        elif made.flags == EvtchnFlag.ASSIGN and made.port == _EVENTFD_PORT:
            self.outbound_eventfds[made.send_port] = made.vcpu  # the member that holds the descriptor


def check(ret: int) -> int:
    """A result that is none of an error; raises KvmError for -errno."""
    if ret < 0:
        raise KvmError(-ret)
    return ret


@contextmanager
def fitting(attributes: type[IntEnum], type_: int, value: Any) -> Iterator[None]:
    """Say which value of which attribute its structure can't hold (ValueError)."""
    try:
        yield
    except (StructError, AttributeError, TypeError) as error:
        name = attributes(type_).name if type_ in {*attributes} else str(type_)
        raise ValueError(f"{value!r} is no value of attribute {name}: {error}") from error
    except KeyError:
        raise ValueError(f"there is no attribute {type_} that could be set") from None


def attribute(type_: int) -> bytearray:
    """An attribute structure of that type, its union zeroed."""
    argument = bytearray(ioctls.ATTR_SIZE)
    ioctls.ATTR_HEADER.pack_into(argument, 0, type_)
    return argument
