"""What a run measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import asdict, define, field, frozen

_MIB: Final = 1024


@frozen(kw_only=True)
class Speed:
    """A workload on a trace: the fastest round."""

    trace: str
    events: int
    workload: str
    seconds: float


@frozen(kw_only=True)
class Memory:
    """The peak memory of a process that does a workload on a trace, in KiB."""

    events: int
    workload: str
    peak_kib: int


@frozen(kw_only=True)
class SmallVm:
    """A VM of 4 MiB created, one hypercall made, and the VM dropped: the fastest of many, in seconds."""

    model: float
    alone: float
    """On Unicorn, on an engine of its own."""
    pooled: float
    """On Unicorn, on an engine that VMs before it had."""


@frozen(kw_only=True)
class StartUp:
    """`pytest --collect-only` in an empty directory: the fastest of several, in seconds."""

    without_plugin: float
    with_plugin: float


@frozen(kw_only=True)
class PageFigures:
    """The HTML report of a trace in a browser: bytes; ms to show the timeline, redraw it and filter it."""

    events: int
    size: int
    ready_ms: float
    draw_ms: float
    filter_ms: float


@frozen(kw_only=True)
class Collection:
    """`pytest --collect-only` of a corpus of small traces, in CPU seconds of the process."""

    traces: int
    items: int
    headers: float
    """Opening the traces: reading their headers, and nothing else."""
    plain: float
    """`pytest --collect-only` of as many parametrised test functions."""
    collected: float
    wholes: float
    """The same as nobody asked for it, of so many traces: an item for each trace."""
    files: float
    """`pytest --collect-only` of the corpus by a plugin that makes an item of each file, and reads none."""
    start_up: float
    """`pytest --collect-only` of one of the traces, alone in a folder."""
    start_up_of_files: float
    """The same by that plugin."""


@frozen(kw_only=True)
class SecondRun:
    """`pytest` on all bundled traces, in seconds: with an empty cache, with a full one, and of no trace."""

    first: float
    second: float
    start_up: float


@define
class Figures:
    """All of a run."""

    speeds: list[Speed] = field(factory=list)
    memories: list[Memory] = field(factory=list)
    small_vm: SmallVm | None = None
    start_up: StartUp | None = None
    page: PageFigures | None = None
    collection: Collection | None = None
    second_run: SecondRun | None = None

    def as_json(self) -> dict[str, object]:
        """For the JSON file."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The tables that were measured."""
        if self.speeds:
            columns = f"{'seconds':>9}{'events/s':>12}{'x decode':>10}{'x model':>9}"
            yield f"{'trace':<18}{'events':>10}  {'workload':<9}{columns}"
            yield from map(self._speed_line, self.speeds)
        if self.memories:
            yield ""
            yield f"{'peak memory':<18}{'events':>10}  {'workload':<9}{'MiB':>9}"
            for memory in self.memories:
                yield f"{'':<18}{memory.events:>10,}  {memory.workload:<9}{memory.peak_kib / _MIB:>9.1f}"
        if self.small_vm is not None:
            vm = self.small_vm
            yield ""
            yield (
                f"VM of 4 MiB and one hypercall: model {vm.model * 1e6:.0f} us, "
                f"unicorn {vm.alone * 1e6:.0f} us, on an engine used before {vm.pooled * 1e6:.0f} us "
                f"({vm.pooled / vm.alone:.2f})"
            )
        if self.start_up is not None:
            bare, loaded = self.start_up.without_plugin, self.start_up.with_plugin
            yield ""
            yield (
                f"pytest --collect-only, empty directory: {bare * 1000:.0f} ms without the plugin, "
                f"{loaded * 1000:.0f} ms with it ({loaded / bare - 1:+.1%})"
            )

        if self.page is not None:
            page = self.page
            yield ""
            yield (
                f"HTML report, {page.events:,} events, {page.size / 1e6:.1f} MB: timeline shown in "
                f"{page.ready_ms:.0f} ms, drawn in {page.draw_ms:.0f} ms, filtered in {page.filter_ms:.0f} ms"
            )

        if self.collection is not None:
            yield ""
            yield from self._collection_lines(self.collection)
        if self.second_run is not None:
            run = self.second_run
            yield ""
            yield (
                f"pytest on the bundled traces: {run.first:.2f} s, again from the cache {run.second:.2f} s "
                f"({run.second / run.first:.0%}); start-up alone {run.start_up:.2f} s"
            )

    @staticmethod
    def _collection_lines(found: Collection) -> Iterator[str]:
        yield f"{f'pytest --collect-only, {found.traces:,} traces':<59}{'CPU s':>8}{'headers':>9}"
        for words, seconds in (
            ("their headers read", found.headers),
            ("beyond start-up: files read by nobody, an item each", found.files - found.start_up_of_files),
            ("beyond start-up: the traces, an item each", found.wholes - found.start_up),
            (f"the traces, an item each, {found.traces:,} items", found.wholes),
            (f"the traces, an item for each rule, {found.items:,} items", found.collected),
            ("as many items of parametrised functions", found.plain),
            ("one of the traces", found.start_up),
        ):
            yield f"    {words:<55}{seconds:>8.2f}{seconds / found.headers:>9.2f}"

    def _speed_line(self, speed: Speed) -> str:
        seconds = {other.workload: other.seconds for other in self.speeds if other.trace == speed.trace}
        ratios = (
            f"{speed.seconds / seconds[base]:.2f}" if base in seconds else "" for base in ("decode", "model")
        )
        decode, model = ratios
        return (
            f"{speed.trace:<18}{speed.events:>10,}  {speed.workload:<9}{speed.seconds:>9.3f}"
            f"{speed.events / speed.seconds:>12,.0f}{decode:>10}{model:>9}"
        )
