"""What `xenkvm record` says of the VMs that it has recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pytest_xenkvm.record.vm import VmRecording
from pytest_xenkvm.trace.decode_values import text

_ONE_BY_ONE: Final = 10
"""More VMs than that are told of together: a test suite makes hundreds."""
_MAX_PATH: Final = 1000


def recorded_lines(vms: Sequence[VmRecording], *, quiet: bool) -> Iterator[str]:
    """A line for each VM, or for all VMs of the same scope if they are many; `quiet`: none for full ones."""
    told = [vm for vm in vms if not quiet or not vm.full]
    if len(vms) <= _ONE_BY_ONE:
        for vm in told:
            yield f"{text(str(vm.path), _MAX_PATH)}: {_counts([vm])}, scope {_scope(vm)}"
        return
    for scope in dict.fromkeys(map(_scope, told)):
        alike = [vm for vm in told if _scope(vm) == scope]
        first, last = (text(str(vm.path), _MAX_PATH) for vm in (alike[0], alike[-1]))
        yield f"{first} ... {last}: {counted(len(alike), 'VM')}, {_counts(alike)}, scope {scope}"


def counted(number: int, what: str) -> str:
    """So many, in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def _scope(vm: VmRecording) -> str:
    return "full" if vm.full else f"hypercalls ({vm.why_not_full})"


def _counts(vms: Sequence[VmRecording]) -> str:
    events, hypercalls = sum(vm.written for vm in vms), sum(vm.hypercalls for vm in vms)
    return f"{counted(events, 'event')}, {counted(hypercalls, 'hypercall')}"
