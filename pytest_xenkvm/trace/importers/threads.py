"""Which vCPU a thread runs: from KVM_CREATE_VCPU, else from QEMU's thread names, else by order."""

from __future__ import annotations

import re
from itertools import count
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import VcpuShape
from pytest_xenkvm.trace.fields import MAX_VCPUS
from pytest_xenkvm.trace.importers.lines import TraceLine
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
    _index_by_fd: dict[int, int] = Factory(dict)
    """As far as the results of KVM_CREATE_VCPU were seen."""

    def created(self, line: TraceLine, vcpu_id: int) -> int:
        """KVM_CREATE_VCPU was called; return the vCPU.

        QEMU does so on the vCPU's own thread, in the order of their names.
        """
        match = _QEMU_NAME.fullmatch(line.task)
        index = len(self.ids) if match is None else int(match[1])
        self._check(line, index)
        if match is not None:
            self._claim(line, index)
        self.ids[index] = vcpu_id
        return index

    def has_id(self, line: TraceLine, index: int, vcpu_id: int) -> None:
        """The vCPU was created with this KVM vCPU id."""
        self._check(line, index)
        self.ids[index] = vcpu_id

    def not_created(self, index: int) -> None:
        """KVM_CREATE_VCPU failed; the vCPU may have been created by an earlier call."""
        if index not in self._index_by_fd.values():
            self.ids.pop(index, None)

    def has_fd(self, index: int, fd: int) -> None:
        """KVM_CREATE_VCPU gave the vCPU this descriptor."""
        self._index_by_fd[fd] = index

    def uses(self, line: TraceLine, fd: int) -> None:
        """The thread called one of KVM's ioctls: on a vCPU's descriptor it acts for that vCPU from now on."""
        if fd in self._index_by_fd:
            self._index_by_pid[line.pid] = self._index_by_fd[fd]

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

    def _check(self, line: TraceLine, index: int) -> None:
        if index >= MAX_VCPUS:
            what = f"thread {line.pid} would run vCPU {index}; expected at most {MAX_VCPUS} vCPUs of one VM"
            raise Malformed(what, line.path, line=line.number)

    def _claim(self, line: TraceLine, index: int) -> None:
        self._check(line, index)
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
        taken = set(self.ids.values())
        free = (vcpu_id for vcpu_id in count(self.count) if vcpu_id not in taken)
        assumed = (i if i not in taken else next(free) for i in range(self.count))
        return tuple(VcpuShape(index=i, id=self.ids.get(i, other)) for i, other in enumerate(assumed))

    @property
    def count(self) -> int:
        """How many vCPUs there are, as far as was seen."""
        return max([*self.ids, *self._pid_by_index], default=-1) + 1
