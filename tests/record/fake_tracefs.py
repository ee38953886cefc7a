"""A folder that behaves as tracefs does, as far as the recorder goes, and the lines that a kernel wrote."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest
from attrs import Factory, define

from pytest_xenkvm.record import session, tracefs
from pytest_xenkvm.record.host import HostFacts
from pytest_xenkvm.record.session import Recorder
from pytest_xenkvm.record.tracefs import Instance, Tracefs

DATA: Final = Path(__file__).parent / "data"
TINY_GUEST: Final = (DATA / "tiny-guest-7.3.txt").read_text().splitlines()
"""All that Linux 7.3-rc7 told while tiny_guest.py made 6 hypercalls, the recorder's own trial before it."""
FACTS: Final = HostFacts(kernel="7.3.0-rc7", max_vcpus=4096, cpu_vendor="amd")
GUEST_VM: Final = "kvm=0xffff8880063fa000"
GUEST_PID: Final = 95
RECORDER_PID: Final = 93

Recording = Callable[..., AbstractContextManager[tuple[Recorder, Callable[[Iterable[str]], None]]]]
"""The fixture `recorded`."""

_GROUPS: Final = ("kvm/kvm_xen_hypercall", "kvm/kvm_userspace_exit", "timer/hrtimer_start")
_SCHED: Final = ("sched/sched_process_fork", "sched/sched_process_exit")
_DEFINITION: Final = re.compile(r"[fpr]\d*:(\w+)/(\w+) .*")


@define
class FakeKernel:
    """`refuses`: probes that it doesn't accept; `busy`: instances that somebody has open.

    `vcpu_names`: what functions call their vCPU, by the probe's name, if not `vcpu`.
    """

    root: Path
    refuses: set[str] = Factory(set)
    busy: set[str] = Factory(set)
    vcpu_names: dict[str, str] = Factory(dict)
    written: list[tuple[str, str]] = Factory(list)
    """Every file that was written to, below the root, and what."""

    def build(self) -> None:
        """Make the folder."""
        (self.root / "instances").mkdir(parents=True)
        for event in (*_GROUPS, *_SCHED):
            (self.root / "events" / event).mkdir(parents=True)
        (self.root / "kprobe_events").touch()
        (self.root / "dynamic_events").touch()
        (self.root / "kprobe_profile").touch()

    @property
    def tracefs(self) -> Tracefs:
        """The folder as the recorder sees it."""
        return Tracefs(self.root)

    @property
    def probes(self) -> list[str]:
        """The lines of dynamic_events."""
        return (self.root / "dynamic_events").read_text().splitlines()

    def write(self, path: Path, text: str) -> None:
        """Take what is written to a file."""
        self.written.append((str(path.relative_to(self.root)), text))
        if path.name == "dynamic_events":
            self._probe(path, text)
        elif not path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    def create(self, instance: Instance) -> None:
        """Make an instance."""
        instance.folder.mkdir()
        shutil.copytree(self.root / "events", instance.folder / "events")
        os.mkfifo(instance.folder / "trace_pipe")
        (instance.folder / "per_cpu" / "cpu0").mkdir(parents=True)
        self.stats(instance.name, overrun=0)

    def stats(self, name: str, *, overrun: int) -> None:
        """Say how many events were lost."""
        path = self.root / "instances" / name / "per_cpu" / "cpu0" / "stats"
        path.write_text(f"entries: 0\noverrun: {overrun}\ndropped events: 0\n")

    def remove(self, instance: Instance) -> None:
        """Remove an instance."""
        if instance.name in self.busy:
            raise OSError(errno.EBUSY, "Device or resource busy", str(instance.folder))
        shutil.rmtree(instance.folder, ignore_errors=True)

    def _probe(self, path: Path, text: str) -> None:
        lines = self.probes
        if text.startswith("-:"):
            lines = [line for line in lines if not line.partition(":")[2].startswith(f"{text[2:]} ")]
        else:
            match = _DEFINITION.fullmatch(text)
            assert match is not None, text
            named_otherwise = "vcpu->" in text and match[2] in self.vcpu_names
            if match[2] in self.refuses or named_otherwise:
                raise OSError(errno.EINVAL, "Invalid argument", str(path))
            lines.append(text)
        path.write_text("".join(f"{line}\n" for line in lines))


def pretend(
    root: Path, monkeypatch: pytest.MonkeyPatch, trial: Callable[..., str] = lambda *_: ""
) -> FakeKernel:
    """Return a fake kernel in place of this one; `trial` judges its probes."""
    kernel = FakeKernel(root)
    kernel.build()
    monkeypatch.setattr(tracefs, "write", kernel.write)
    monkeypatch.setattr(Instance, "create", lambda self: kernel.create(self))  # noqa: PLW0108 - a method
    monkeypatch.setattr(Instance, "remove", lambda self: kernel.remove(self))  # noqa: PLW0108 - a method
    monkeypatch.setattr(session, "try_probes", trial)
    return kernel
