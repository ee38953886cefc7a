"""A recording from beginning to end: what is set up in tracefs, and the lines that come from it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import Factory, define, field

from pytest_xenkvm.record import family, host, probes
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.family import Family
from pytest_xenkvm.record.host import HostFacts
from pytest_xenkvm.record.leftovers import own_name, remove_leftovers
from pytest_xenkvm.record.sorting import Sorter
from pytest_xenkvm.record.stream import Lost, TraceStream
from pytest_xenkvm.record.tracefs import Instance, Tracefs
from pytest_xenkvm.record.trial import try_probes

_TIMER: Final = "timer/hrtimer_start"
_XEN_TIMER: Final = "function.function == xen_timer_callback"
_XEN_EXIT: Final = "reason == 34"
_FLUSH_S: Final = 1.0
_CLEAN_S: Final = 1.0
_DRAIN_S: Final = 5.0
"""How long the end of a recording may take to read what is left in the buffers."""


@define(kw_only=True)
class Setup:
    """What was asked for: `buffer_kb` for each CPU; `name` of all that is made in tracefs.

    `follow`: whether to follow who starts whom, for a recording of some processes only.
    """

    tracefs: Tracefs
    buffer_kb: int
    follow: bool = False
    name: str = Factory(own_name)


@define
class Recorder:
    """A recording under way.

    `doubts`: why it can't be of scope "full"; "" if it can. `missed`: which probes were passed unnoticed, and
    how often.
    """

    setup: Setup
    instance: Instance
    stream: TraceStream
    sorter: Sorter
    family: Family
    doubts: str
    missed: dict[str, int] = Factory(dict)
    _noted: int = 0
    """Losses that were noted in the stream."""
    _flushed: float = field(factory=time.monotonic)

    def pump(self) -> bool:
        """Take in what the kernel has to tell; return whether that was all for now. Raises `TraceError`."""
        self.stream.read()
        self._hand_over()
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_S:
            self._flushed = now
            self._count_misses()
            self.sorter.close(ended=True)
            for vm in self.sorter.recordings:
                vm.settle(self.stream.reached)
                vm.flush()
        return self.stream.drained

    def stop(self) -> None:
        """Record no more, take in what is left, and close all files. Raises `TraceError`."""
        self.instance.set("tracing_on", "0")
        deadline = time.monotonic() + _DRAIN_S
        while not self.pump() and time.monotonic() < deadline:
            pass
        self._hand_over(all_of_them=True)
        self._count_misses()
        if (unsaid := self.instance.overruns() - self._noted) > 0:
            self.sorter.lose(unsaid)
        self.sorter.close(ended=False)

    def _hand_over(self, *, all_of_them: bool = False) -> None:
        for item in self.stream.ordered(all_of_them=all_of_them):
            if isinstance(item, Lost):
                self._noted += item.count
                self.sorter.lose(item.count)
            elif not self.family.take(item):
                self.sorter.take(item)

    def _count_misses(self) -> None:
        """Add the probes that were passed unnoticed."""
        before, self.missed = sum(self.missed.values()), probes.misses(self.setup.tracefs, self.setup.name)
        if (more := sum(self.missed.values()) - before) > 0:
            self.sorter.lose(more)


@contextmanager
def recording(
    setup: Setup, facts: HostFacts, *, outputs: Callable[[int], Path], force: bool, limit: int | None
) -> Iterator[Recorder]:
    """Set everything up, try the probes, and clean up whatever happens.

    `outputs`: the file of the first, second, ... VM. Raises RecordError.
    """
    tracefs, instance = setup.tracefs, Instance(setup.tracefs, setup.name)
    with ExitStack() as stack:
        instance.create()
        stack.callback(_clean, tracefs, setup.name)
        host.check_events(instance)
        try:
            doubts = _set_up(setup, instance)
            pipe = os.open(instance.folder / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            why = error.strerror or str(error)
            raise RecordError(
                f"{error.filename}: {why}; recording needs root and full access to tracefs"
            ) from None
        stack.callback(os.close, pipe)
        stream = TraceStream(pipe, str(instance.folder / "trace_pipe"))
        instance.set("tracing_on", "1")
        if not doubts:
            doubts = try_probes(stream, facts.cpu_vendor)
        members = Family()
        sorter = Sorter(
            facts=facts, members=members, doubts=doubts, outputs=outputs, force=force, limit=limit
        )
        yield Recorder(setup, instance, stream, sorter, members, doubts)


def _set_up(setup: Setup, instance: Instance) -> str:
    """Choose and switch on the events; return why the trace can't be full, "" if it can. Raises OSError."""
    tracefs = setup.tracefs
    instance.set("tracing_on", "0")
    instance.set("buffer_size_kb", str(setup.buffer_kb))
    instance.set("trace_clock", "mono")
    doubts = ""
    if not tracefs.has_kprobes:
        doubts = "this kernel takes no kprobe events (CONFIG_KPROBE_EVENTS)"
    elif refused := probes.define_probes(tracefs, setup.name):
        doubts = (
            f"this kernel refused {len(refused)} of the kprobe events, the first being {refused[0]}"
            " (they need Linux 6.9 or later with BTF of the module kvm)"
        )
        tracefs.remove_probes(setup.name)
    if not doubts:
        probes.enable_probes(instance, setup.name)
        _follow_timers(instance)
    instance.enable(host.HYPERCALL)
    instance.enable(host.EXIT, condition=_XEN_EXIT)
    for event in family.EVENTS if setup.follow else ():
        instance.enable(event)
    return doubts


def _follow_timers(instance: Instance) -> None:
    """Record when the host's own timers for Xen expire: that tells the guest's clock."""
    try:
        instance.enable(_TIMER, condition=_XEN_TIMER)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise  # else the guest's clock is estimated from when timers fired


def _clean(tracefs: Tracefs, name: str) -> None:
    """Leave tracefs as it was. Raises RecordError if that can't be done."""
    deadline = time.monotonic() + _CLEAN_S
    try:
        while not remove_leftovers(tracefs, name):
            if time.monotonic() > deadline:
                where, why = tracefs.root / "instances" / name, "someone has it open"
                break
            time.sleep(0.02)
        else:
            return
    except OSError as error:
        where, why = Path(error.filename), str(error.strerror)
    raise RecordError(f"{where}: can't be removed ({why}); `xenkvm record --clean` tries again")
