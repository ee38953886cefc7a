"""Which VM, and which of its vCPUs, a line of the kernel's trace is about.

Probes show the VM (`kvm`, its address in the kernel) and often the vCPU's index (`idx`). What has no such
field happens in the course of what the same thread was last seen to do. To the importer a vCPU is a thread of
its own, whichever thread drives it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.record.family import Family
from pytest_xenkvm.record.host import HostFacts
from pytest_xenkvm.record.vm import VmRecording
from pytest_xenkvm.trace.importers.lines import TraceLine

_OWNER: Final = re.compile(r" kvm=0x([0-9a-f]{1,16})(?: idx=(\d{1,4}))?(?=\s|$)")
_NESTED: Final = frozenset({"set_evtchn_fast", "set_evtchn_fast_ret", "xen_route"})
"""Probes that show a VM but happen in the course of something else."""


@define(kw_only=True)
class Sorter:
    """Hands each line to the recording of its VM.

    `members`: whose VMs are recorded. `doubts`: why there are no kprobe events that could be trusted, "" if
    there are; without them, a process is taken for a VM. `lost`: events lost by the kernel, as far as it has
    said so.
    """

    facts: HostFacts
    members: Family
    doubts: str
    outputs: Callable[[int], Path]
    force: bool = False
    limit: int | None = None
    proc: Path = Path("/proc")
    recordings: list[VmRecording] = Factory(list)
    """Those whose files are open; some of their VMs may be gone."""
    closed: list[VmRecording] = Factory(list)
    lost: int = 0
    _by_vm: dict[int, VmRecording | None] = Factory(dict)
    """By the VM's address, or process; None: not to be recorded."""
    _doing: dict[int, tuple[int, int | None]] = Factory(dict)
    """By thread: the VM that it was last seen to be busy with, and the vCPU."""
    _files: int = 0

    @property
    def all(self) -> list[VmRecording]:
        """All recordings that have a file, over or not."""
        return [vm for vm in (*self.closed, *self.recordings) if vm.begun]

    @property
    def written(self) -> int:
        """Events in all files."""
        return sum(vm.written for vm in self.all)

    def lose(self, count: int) -> None:
        """The kernel dropped events; nobody knows of which VM."""
        self.lost += count
        for vm in self.recordings:
            vm.lose(count)

    def take(self, line: TraceLine) -> None:
        """Hand over a line. Raises `TraceError`."""
        if self.doubts:
            self._take_plain(line)
            return
        match = _OWNER.search(line.fields)
        vm = int(match[1], 16) if match else None
        vcpu = int(match[2]) if match and match[2] else None
        if vm is None or line.event in _NESTED:
            busy_with, vcpu = self._doing.get(line.pid, (None, None))
            vcpu = vcpu if vm in (None, busy_with) else None
            vm = busy_with if vm is None else vm
        else:
            self._doing[line.pid] = vm, vcpu
        if vm is not None:
            self._take_of(vm, _as_seen_by(line, vcpu), line.pid)

    def close(self, *, ended: bool) -> None:
        """Close the files of VMs that have `ended`, or of all."""
        for vm in [vm for vm in self.recordings if vm.ended or not ended]:
            self.recordings.remove(vm)
            vm.close()
            if vm.begun:
                self.closed.append(vm)

    def _take_of(self, vm: int, line: TraceLine, thread: int) -> None:
        if line.event == "vm_created":
            self._over(vm)
        if vm not in self._by_vm:
            self._by_vm[vm] = self._begin(line, thread)
        recording = self._by_vm[vm]
        if line.event == "vm_destroyed":
            self._over(vm)
        elif recording is not None and line.event != "vm_created":
            recording.take(line)

    def _over(self, vm: int) -> None:
        recording = self._by_vm.pop(vm, None)
        self._doing = {pid: doing for pid, doing in self._doing.items() if doing[0] != vm}
        if recording is not None:
            recording.ended = True

    def _begin(self, line: TraceLine, thread: int) -> VmRecording | None:
        if thread not in self.members:
            return None
        recording = VmRecording(
            next_path=self._next_path,
            host=self.facts,
            owner=thread,
            doubts=self.doubts,
            from_the_start=line.event == "vm_created",
            force=self.force,
            limit=self.limit,
        )
        self.recordings.append(recording)
        return recording

    def _next_path(self) -> Path:
        self._files += 1
        return self.outputs(self._files)

    def _take_plain(self, line: TraceLine) -> None:
        """Without probes: hypercalls and exits of threads, by the process that they belong to."""
        if line.pid in self.members:
            process, _ = self._doing.setdefault(line.pid, (self._process(line.pid), None))
            self._take_of(process, line, line.pid)

    def _process(self, thread: int) -> int:
        try:
            status = (self.proc / str(thread) / "status").read_text()
        except OSError:
            return thread
        return next((int(row[5:]) for row in status.splitlines() if row.startswith("Tgid:")), thread)


def _as_seen_by(line: TraceLine, vcpu: int | None) -> TraceLine:
    """The line on a thread that is the vCPU's own; the tracepoint of a timer gets its meaning as a name."""
    event = "timer_expires" if line.event == "hrtimer_start" else line.event
    return TraceLine(
        path=line.path,
        number=line.number,
        task=line.task if vcpu is None else f"CPU {vcpu}/KVM",
        pid=line.pid if vcpu is None else -1 - vcpu,
        in_irq=line.in_irq,
        ns=line.ns,
        event=event,
        fields=line.fields,
    )
