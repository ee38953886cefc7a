"""An event as it happened against the event as recorded: outcomes that differ, outcomes not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from attrs import asdict, frozen

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, U64, GuestLayout
from pytest_xenkvm.abi.numbers import U64_MAX, XEN_RUNSTATE_UPDATE
from pytest_xenkvm.trace.events import Event, EventfdRead, Hypercall, Ioctl, Irq, Mem, Wrmsr
from pytest_xenkvm.vmm.ioctl_bytes import RUNSTATE_MEMBERS


@frozen
class Difference:
    """A recorded outcome and the one that happened."""

    kind: str
    expected: Any
    observed: Any


MAX_SHOWN: Final = 4096
"""Bytes of memory that a difference holds of either side: a page."""

_SUM_IS_OFF: Final = Difference("sum_ok", expected=True, observed=False)


def differences(recorded: Event, happened: Event) -> Iterator[Difference]:
    """The outcomes that differ; events without outcomes have none."""
    if recorded is happened and not getattr(recorded, "sum_ok", None):
        return
    compare = _COMPARE.get(type(recorded))
    if compare is not None:
        yield from compare(recorded, happened)


def unjudged(recorded: Event) -> tuple[str, ...]:
    """The outcomes of an event that its recorder could not see."""
    if not isinstance(recorded, Hypercall):
        return ()
    unseen = []
    if recorded.handled is None:
        unseen.append("handled")
    if recorded.rax is None and recorded.run_ret is None:
        unseen.append("rax")
    return tuple(unseen)


def _ioctl(recorded: Ioctl, happened: Ioctl) -> Iterator[Difference]:
    if recorded.ret != happened.ret:
        yield Difference("ret", recorded.ret, happened.ret)
        return
    expected, observed = recorded.out or {}, happened.out or {}
    if not _contains(observed, expected):
        yield Difference("out", dict(expected), dict(observed))
    if recorded.sum_ok and not _runstate_adds_up(observed.get("runstate", {})):
        yield _SUM_IS_OFF


def _contains(observed: Any, expected: Any) -> bool:
    """Whether every recorded member was observed with its value; members left out are undetermined."""
    if isinstance(expected, Mapping) and isinstance(observed, Mapping):
        return all(key in observed and _contains(observed[key], value) for key, value in expected.items())
    return bool(observed == expected)


def _runstate_adds_up(runstate: Mapping[str, int]) -> bool:
    if any(member not in runstate for member in RUNSTATE_MEMBERS):
        return False
    _state, entry_time, *times = (runstate[member] for member in RUNSTATE_MEMBERS)
    return entry_time == sum(times) & U64_MAX


def _eventfd_read(recorded: EventfdRead, happened: EventfdRead) -> Iterator[Difference]:
    if recorded.value != happened.value:
        yield Difference("eventfd_read", recorded.value, happened.value)


def _hypercall(recorded: Hypercall, happened: Hypercall) -> Iterator[Difference]:
    if recorded.run_ret is not None:
        yield Difference("run_ret", recorded.run_ret, happened.run_ret)
        return
    if recorded.handled is None:
        return
    if recorded.handled != happened.handled:
        yield Difference("handled", _how(recorded), _how(happened))
        return
    if recorded.exit is not None and recorded.exit != happened.exit:
        yield Difference("exit", asdict(recorded.exit), asdict(happened.exit) if happened.exit else None)
    if recorded.rax is not None and recorded.rax != happened.rax:
        yield Difference("rax", recorded.rax, happened.rax)


def _how(event: Hypercall) -> dict[str, Any]:
    return {"handled": event.handled, "rax": event.rax}


def _mem(recorded: Mem, happened: Mem) -> Iterator[Difference]:
    if recorded.op == "write":
        return
    mask = recorded.mask or b"\xff" * len(recorded.data)
    if _masked(recorded.data, mask) != _masked(happened.data, mask):
        yield Difference("mem", recorded.data[:MAX_SHOWN].hex(), happened.data[:MAX_SHOWN].hex())
    if recorded.sum_ok and not _guest_runstate_adds_up(happened.data):
        yield _SUM_IS_OFF


def _masked(data: bytes, mask: bytes) -> bytes:
    return bytes(byte & bits for byte, bits in zip(data, mask, strict=False))


def _guest_runstate_adds_up(data: bytes) -> bool:
    layouts: dict[int, GuestLayout] = {layout.runstate_size: layout for layout in (LAYOUT_64, LAYOUT_32)}
    layout = layouts.get(len(data))
    if layout is None:
        return False
    entry_time, *times = (value for (value,) in U64.iter_unpack(data[layout.runstate_entry_time :]))
    return bool(entry_time & ~XEN_RUNSTATE_UPDATE == sum(times) & U64_MAX & ~XEN_RUNSTATE_UPDATE)


def _wrmsr(recorded: Wrmsr, happened: Wrmsr) -> Iterator[Difference]:
    if recorded.run_ret != happened.run_ret:
        yield Difference("run_ret", recorded.run_ret, happened.run_ret)
    elif recorded.ok != happened.ok:
        yield Difference("ok", recorded.ok, happened.ok)


def _irq(recorded: Irq, happened: Irq) -> Iterator[Difference]:
    if recorded.vector != happened.vector:
        yield Difference("irq", recorded.vector, happened.vector)


_COMPARE: Final[dict[type[Event], Callable[[Any, Any], Iterator[Difference]]]] = {
    Ioctl: _ioctl,
    EventfdRead: _eventfd_read,
    Hypercall: _hypercall,
    Mem: _mem,
    Wrmsr: _wrmsr,
    Irq: _irq,
}
