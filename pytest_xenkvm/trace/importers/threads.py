"""Which vCPU a thread runs: from KVM_CREATE_VCPU, else from QEMU's thread names, else by order."""

from __future__ import annotations

import re
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import VcpuShape
from pytest_xenkvm.trace.fields import MAX_VCPUS
from pytest_xenkvm.trace.importers.ftrace_lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport

_QEMU_NAME: Final = re.compile(r"CPU (\d{1,4})/KVM")


@define
class Threads:
    """The vCPUs of one VM by the threads that run them.

    A recording of two VMs is refused as soon as two threads claim the same vCPU.
    """

    report: ImportReport
    _index_by_pid: dict[int, int] = Factory(dict)
    _pid_by_index: dict[int, int] = Factory(dict)
    _next_free: int = 0
    """No vCPU below it is free."""
    ids: dict[int, int] = Factory(dict)
    """KVM vCPU ids by index, as far as KVM_CREATE_VCPU was seen."""

    def created(self, line: TraceLine, vcpu_id: int) -> None:
        """KVM_CREATE_VCPU was called. QEMU does so on the vCPU's own thread, in the order of their names."""
        index = self.named(line)
        if index is None:
            index = len(self.ids)
        else:
            self._claim(line, index)
        self.ids[index] = vcpu_id

    def named(self, line: TraceLine) -> int | None:
        """Return the vCPU of a thread that is known or named after its vCPU, else None."""
        if line.pid in self._index_by_pid:
            return self._index_by_pid[line.pid]
        match = _QEMU_NAME.fullmatch(line.task)
        return int(match[1]) if match else None

    def runner(self, line: TraceLine) -> int:
        """Return the vCPU of a thread that surely runs one, since it made a hypercall."""
        if line.pid in self._index_by_pid:
            return self._index_by_pid[line.pid]
        index = self.named(line)
        if index is None:
            while self._next_free in self._pid_by_index:
                self._next_free += 1
            index = self._next_free
            self.report.unknown["vCPU of a thread without a vCPU's name (by order of appearance)"] += 1
        self._claim(line, index)
        return index

    def _claim(self, line: TraceLine, index: int) -> None:
        if index >= MAX_VCPUS:
            what = f"thread {line.pid} would run vCPU {index}; expected at most {MAX_VCPUS} vCPUs of one VM"
            raise Malformed(what, line.path, line=line.number)
        owner = self._pid_by_index.setdefault(index, line.pid)
        if owner != line.pid:
            what = f"threads {owner} and {line.pid} both run vCPU {index}; expected a recording of one VM"
            raise Malformed(what, line.path, line=line.number)
        self._index_by_pid[line.pid] = index

    def index_of(self, vcpu_id: int) -> int | None:
        """Return the index of the vCPU with this KVM vCPU id, which is the same number if it was not seen."""
        assumed = None if vcpu_id in self.ids else vcpu_id
        return next((index for index, known in self.ids.items() if known == vcpu_id), assumed)

    def shapes(self) -> tuple[VcpuShape, ...]:
        """Return the VM's vCPUs by index, all up to the highest that was seen."""
        return tuple(VcpuShape(index=i, id=self.ids.get(i, i)) for i in range(self.count))

    @property
    def count(self) -> int:
        """How many vCPUs there are, as far as was seen."""
        return max([*self.ids, *self._pid_by_index], default=-1) + 1
