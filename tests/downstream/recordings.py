"""Recordings of users' projects, made wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pytest_xenkvm.trace import open_trace, write_trace
from pytest_xenkvm.trace.events import Event, Ioctl

VCPU_ID: Final = 6


def forget_an_id(path: Path) -> None:
    """Make the recording one of a VMM that sets the Xen ID of vCPU 0 only."""
    trace = open_trace(path)
    kept = [event for event in trace.events() if not _sets_id_of_vcpu_1(event)]
    write_trace(path, trace.header, kept)


def _sets_id_of_vcpu_1(event: Event) -> bool:
    if not isinstance(event, Ioctl) or event.name != "KVM_XEN_VCPU_SET_ATTR":
        return False
    return event.vcpu == 1 and event.arg["type"] == VCPU_ID
