"""One VM's recording: lines of the kernel's trace in, a growing xkt file out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from attrs import Factory, define, evolve, field

from pytest_xenkvm.abi.numbers import HvmAttr
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.record.host import HostFacts
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall, Ioctl
from pytest_xenkvm.trace.importers.kprobes import KprobeImport, kprobe_import
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import Given, ImportReport
from pytest_xenkvm.trace.xkt_live import LiveXktWriter

RECORDER: Final = "xenkvm-record"
_WINDOW_NS: Final = 1_000_000_000
"""How long an event is held back, for what later ones may tell about it."""
_HELD: Final = 50_000
"""How many moments are held back at most while an outcome is still to come."""

_CHEAP: Final = 4 << 20
"""Bytes of a file that is copied without a second thought."""

_WORTH_A_FILE: Final = frozenset({"kvm_xen_hypercall", "hvm_config", "hvm_set_attr", "vcpu_set_attr"})
"""Events by which a VM shows that it is a Xen VM."""


@define(kw_only=True)
class VmRecording:
    """The recording of one VM.

    `doubts`: why there are no kprobe events that could be trusted; "" if there are. `from_the_start`: whether
    the VM was seen to be created.
    `owner`: the thread that it was first seen in. The file, which `next_path` names, is made with the VM's
    first Xen event.
    """

    next_path: Callable[[], Path]
    host: HostFacts
    owner: int
    doubts: str
    from_the_start: bool
    force: bool = False
    limit: int | None = None
    """Events, at most."""
    why_not_full: str = ""
    """Why the scope isn't "full"; "" while it is."""
    notes: list[str] = Factory(list)
    ended: bool = False
    """Whether the VM is gone."""
    lost: int = 0
    hypercalls: int = 0
    events: Counter[str] = Factory(Counter)
    path: Path | None = None
    """The file, once there is one."""
    _report: ImportReport = Factory(ImportReport)
    _importer: KprobeImport = field(init=False)
    _writer: LiveXktWriter | None = None
    _lost_before: int = 0
    _xen_version: int = 0
    _copied: int = 0
    """Bytes of the file when its header was last replaced."""
    _promised: tuple[bool, int] = (False, -1)
    """What the file's header says of scope and number of vCPUs."""

    def __attrs_post_init__(self) -> None:
        given = Given(kernel=self.host.kernel)
        self._importer = kprobe_import(self._report, given, path="trace_pipe", recorder=RECORDER, live=True)
        self.why_not_full = self.doubts
        if not self.doubts and not self.from_the_start:
            self.why_not_full = (
                "the VM was there before the recording began, so its configuration was not seen"
            )

    @property
    def begun(self) -> bool:
        """Whether anything was recorded."""
        return self._writer is not None

    @property
    def written(self) -> int:
        """Events in the file by now."""
        return self._writer.written if self._writer else 0

    @property
    def full(self) -> bool:
        """Whether the trace has scope "full"."""
        return not self.why_not_full

    def take(self, line: TraceLine) -> None:
        """Take a line about this VM. Raises `TraceError` if the file can't be made."""
        if self._writer is None and line.event in _WORTH_A_FILE:
            self.path = self.next_path()
            self._writer = LiveXktWriter(self.path, self._header(), force=self.force)
            self._writer.create()
        if line.event == "kvm_xen_hypercall":
            self.hypercalls += 1
        try:
            self._importer.take(line)
        except Malformed as error:
            self.degrade(f"a line of the kernel's trace could not be understood ({error})")

    def lose(self, count: int) -> None:
        """The kernel says that it dropped events, of whichever VM, before what comes next."""
        self.lost += count
        self._lost_before += count
        self.degrade("events were lost")

    def degrade(self, why: str) -> None:
        """The trace doesn't hold everything any more, so its scope is "hypercalls" from now on."""
        self.why_not_full = self.why_not_full or why

    def settle(self, ns: int) -> None:
        """Write what happened long enough before `ns` (CLOCK_MONOTONIC, everything earlier was taken)."""
        self._write(self._importer.settle(ns - _WINDOW_NS, held=_HELD, full=self.full))

    def flush(self) -> None:
        """Let what was written outlive this process."""
        if self._writer is not None:
            self._renew_header(self._writer, must=False)
            self._writer.flush()

    def close(self) -> None:
        """The VM's recording is over: write what is left, and the header's last word."""
        if self._writer is not None:
            with self._writer:
                self._write(self._importer.finish(full=self.full))
                self._renew_header(self._writer, must=True)

    def _write(self, events: Iterable[Event]) -> None:
        writer = self._writer
        for event in events:
            if writer is None or (self.limit is not None and writer.written >= self.limit):
                continue
            self._check_answer(event)
            if self._lost_before:
                event = evolve(event, extra={**event.extra, "lost_before": self._lost_before})  # noqa: PLW2901
                self._lost_before = 0
            if (self.full, self._importer.threads.count) != self._promised:
                self._renew_header(writer, must=True)
            try:
                writer.write(event)
            except Malformed as error:
                self.degrade(f"an event could not be written ({error})")
                continue
            self.events[event.kind] += 1

    def _check_answer(self, event: Event) -> None:
        """What the kernel answers to XENVER_version is known: it shows whether RAX is read rightly."""
        match event:
            case Ioctl(
                name="KVM_XEN_HVM_SET_ATTR", arg={"type": HvmAttr.XEN_VERSION, "xen_version": version}
            ):
                self._xen_version = version if event.ret == 0 else self._xen_version
            case Hypercall(nr=Nr.xen_version, handled="kernel", rax=rax) if event.args[0] == 0:
                if self.full and rax != self._xen_version:
                    self.degrade(
                        f"XENVER_version was seen to return {rax:#x}, not {self._xen_version:#x} as set"
                    )

    def _renew_header(self, writer: LiveXktWriter, *, must: bool) -> None:
        """Bring the file's header up to date; unless it `must` be, only if that isn't much to copy."""
        if must or writer.size <= max(_CHEAP, 2 * self._copied):
            self._copied = writer.size
            writer.replace_header(self._header())
        self._promised = (self.full, self._importer.threads.count) if must else self._promised

    def _header(self) -> Header:
        shape = self._importer.vm.shape() if not self.doubts and self.from_the_start else None
        notes = ["Recorded by xenkvm record."]
        notes += self.notes
        if self.lost:
            notes.append(f"{self.lost} events of the kernel's trace were lost: the trace has gaps.")
        if not self.full:
            notes.append(f"Scope hypercalls: {self.why_not_full}.")
        return Header(
            kernel=self.host.kernel,
            max_vcpus=self.host.max_vcpus,
            cpu_vendor=self.host.cpu_vendor,
            recorder=RECORDER,
            scope="full" if self.full else "hypercalls",
            vm=shape,
            unseen=("irq", "mem"),
            notes=" ".join(notes),
        )
