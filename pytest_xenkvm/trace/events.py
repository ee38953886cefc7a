"""Header and events of a trace as frozen objects: what was recorded, nothing about what it means.

The fields are those of the interchange format (docs/reference/trace-format.md), under the same names.
`None` stands for "not recorded". Numbers are unsigned unless a field says otherwise; times are ns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from attrs import Factory, evolve, frozen

JsonObject = Mapping[str, Any]
"""A JSON object as parsed; by convention never mutated."""


@frozen
class NowPlus:
    """An absolute guest time given relative to the guest's clock at that moment: now + `delta` ns."""

    delta: int


@frozen(kw_only=True)
class MemorySlot:
    """Guest memory [gpa, gpa + size), in bytes."""

    gpa: int
    size: int


@frozen(kw_only=True)
class VcpuShape:
    """A vCPU: `index` is the order of creation, `id` the KVM vCPU id (APIC id)."""

    index: int
    id: int


@frozen(kw_only=True)
class VmShape:
    """The VM as created: irqchip "none", "split" or "full", its memory and its vCPUs."""

    irqchip: str
    memory: tuple[MemorySlot, ...]
    vcpus: tuple[VcpuShape, ...]


IRQCHIPS: Final = ("none", "split", "full")
SCOPES: Final = ("full", "hypercalls")
VENDORS: Final = ("amd", "intel")


@frozen(kw_only=True)
class Header:
    """Line 1 of a trace.

    `unseen` lists kinds of event that the recorder had no means to see ("irq", "mem"): their absence
    says nothing. It is kept in the file under that key and is empty for recorders that see all.
    """

    kernel: str | None = None
    max_vcpus: int | None = None
    cpu_vendor: str = "amd"
    recorder: str = "unknown"
    scope: str = "full"
    vm: VmShape | None = None
    notes: str = ""
    unseen: tuple[str, ...] = ()
    extra: JsonObject = Factory(dict)


@frozen(kw_only=True, slots=False)
class Event:
    """What all events share.

    `ts`: ns since the first event, host CLOCK_MONOTONIC. `inferred`: not recorded but implied by a
    recorded outcome. `extra`: unknown keys, kept as they were.
    """

    kind: ClassVar[str]

    ts: int | None = None
    inferred: bool = False
    extra: JsonObject = Factory(dict)


@frozen(kw_only=True, slots=False)
class Ioctl(Event):
    """A Xen-related ioctl by its UAPI name, with argument, result (0, positive or -errno) and output."""

    kind: ClassVar[str] = "ioctl"

    name: str
    arg: JsonObject
    ret: int
    vcpu: int | None = None
    out: JsonObject | None = None
    undetermined: JsonObject | None = None
    sum_ok: bool | None = None


@frozen(kw_only=True, slots=False)
class Eventfd(Event):
    """The VMM created eventfd `fd` (a symbolic number)."""

    kind: ClassVar[str] = "eventfd"

    fd: int


@frozen(kw_only=True, slots=False)
class EventfdRead(Event):
    """The VMM drained eventfd `fd` and got `value` (0 if there was nothing)."""

    kind: ClassVar[str] = "eventfd_read"

    fd: int
    value: int


@frozen(kw_only=True, slots=False)
class EventfdWrite(Event):
    """The VMM added `value` to eventfd `fd`."""

    kind: ClassVar[str] = "eventfd_write"

    fd: int
    value: int


@frozen(kw_only=True, slots=False)
class HypercallExit:
    """What KVM_EXIT_XEN delivered: `type` 1, the caller's mode and CPL, the number and six parameters."""

    type: int
    longmode: int
    cpl: int
    input: int
    params: tuple[int | NowPlus, ...]
    extra: JsonObject = Factory(dict)


@frozen(kw_only=True, slots=False)
class Behind:
    """Bytes that lay behind pointer argument number `arg`; `now_plus_at` as in `Mem`."""

    arg: int
    data: bytes
    now_plus_at: tuple[tuple[int, int], ...] = ()
    extra: JsonObject = Factory(dict)


@frozen(kw_only=True, slots=False)
class Hypercall(Event):
    """The guest executed VMCALL or VMMCALL.

    `handled`: "kernel", "userspace" or None (unknown); `rax`: the guest's RAX (EAX) afterwards; `raw`:
    the full 64-bit registers of a 32-bit call; `run_ret`: KVM_RUN itself failed with this -errno.
    """

    kind: ClassVar[str] = "hypercall"

    vcpu: int
    longmode: bool
    cpl: int
    nr: int
    args: tuple[int | NowPlus, ...]
    handled: str | None = None
    exit: HypercallExit | None = None
    rax: int | None = None
    behind: tuple[Behind, ...] | None = None
    via: str | None = None
    compat: bool = False
    raw: JsonObject | None = None
    run_ret: int | None = None


@frozen(kw_only=True, slots=False)
class Mem(Event):
    """Bytes stored to (`op` "write") or found in (`op` "read") guest memory at `gpa`.

    `mask`: which bits of a read are determined. `now_plus_at`: (offset, delta) pairs; the 8 bytes at
    `offset` hold the guest's clock at that moment plus `delta` ns, and are zero in `data`.
    """

    kind: ClassVar[str] = "mem"

    op: str
    gpa: int
    data: bytes
    mask: bytes | None = None
    now_plus_at: tuple[tuple[int, int], ...] = ()
    sum_ok: bool | None = None


@frozen(kw_only=True, slots=False)
class Wrmsr(Event):
    """The guest wrote MSR `msr`; `ok` False means it took #GP. `longmode` is EFER.LMA."""

    kind: ClassVar[str] = "wrmsr"

    vcpu: int
    longmode: bool
    msr: int
    value: int
    ok: bool
    compat: bool = False
    run_ret: int | None = None


@frozen(kw_only=True, slots=False)
class Wait(Event):
    """At least `ns` of host time passed; then every vCPU entered the guest once, in index order."""

    kind: ClassVar[str] = "wait"

    ns: int


@frozen(kw_only=True, slots=False)
class Irq(Event):
    """The guest took interrupt vector `vector`."""

    kind: ClassVar[str] = "irq"

    vcpu: int
    vector: int


@frozen(kw_only=True, slots=False)
class VcpuRun(Event):
    """The vCPU entered the guest once without making a hypercall."""

    kind: ClassVar[str] = "vcpu_run"

    vcpu: int


EVENTS: Final[dict[str, type[Event]]] = {
    cls.kind: cls
    for cls in (
        Ioctl,
        Eventfd,
        EventfdRead,
        EventfdWrite,
        Hypercall,
        Mem,
        Wrmsr,
        Wait,
        Irq,
        VcpuRun,
    )
}
"""Every event class by its `ev`."""

E = TypeVar("E", bound=Event)
T = TypeVar("T")

Seen = tuple[int, bytes, "int | None", int, "str | None", int]
"""What lay behind one pointer argument: its number, the data; the place in the data where the guest's clock
stands (None: nowhere) and what is added to it (ns); an extra key (None: none), its number. See `Behind`."""

Told = tuple[tuple[int, int, int, int, int, int], "Seen | None"]
"""What hypercalls that one object stands for differ in: their arguments, and what lay behind one of them."""

TimedEvent = tuple["int | None", Event, "Told | None"]
"""A time, and an event whose own `ts` may be unset, as one object may stand for several events.

What hypercalls of one object differ in besides their time comes third (None: in nothing). Then neither
arguments 2 ... 5 of the event count, nor argument 1 from `LEAST_POINTER` on, nor what lay behind them:
`as_told` makes the one that is meant.
"""

LEAST_POINTER: Final = 4096
"""An argument 1 that is less is a number that matters (a vCPU, say), all others are taken for addresses."""

ARGS: Final = 6
"""Arguments of a hypercall."""

BRIEF_BYTES: Final = 256
"""Bytes of data that an event keeps when it is kept for a report."""

_FEW_MEMBERS: Final = 8


def at_time(event: E, ts: int | None) -> E:
    """The same event at another time: what `attrs.evolve` makes, at a fraction of the price."""
    return made_of(type(event), {**vars(event), "ts": ts})


def made_of(cls: type[T], values: dict[str, Any]) -> T:
    """An object of one of these classes with exactly these attributes, all of them, unchecked.

    What its constructor makes, at a fraction of the price; this is why the classes have no slots.
    """
    made = object.__new__(cls)
    object.__setattr__(made, "__dict__", values)
    return made


def timed(events: Iterable[Event]) -> Iterator[TimedEvent]:
    """Events beside their times."""
    for event in events:
        yield event.ts, event, None


def as_told(event: E, told: Told | None) -> E:
    """The event that is meant by one that stands for several, and by what comes third in `TimedEvent`."""
    if told is None or not isinstance(event, Hypercall):
        return event
    read, seen = told
    args = tuple(map(int, read))
    values: dict[str, Any] = {**vars(event), "args": args, "behind": None}
    if seen is not None:
        arg, data, offset, delta, key, number = seen
        clocks = () if offset is None else ((offset, delta),)
        extra = {} if key is None else {key: number}
        values["behind"] = (Behind(arg=arg, data=data, now_plus_at=clocks, extra=extra),)
    if event.exit is not None:
        values["exit"] = made_of(HypercallExit, {**vars(event.exit), "params": args})
    return made_of(type(event), values)


def is_small(event: Event) -> bool:
    """Whether the event takes little memory, so that thousands can be remembered."""
    if event.extra:
        return False
    if isinstance(event, Ioctl):
        plain = event.out is None and event.undetermined is None and len(event.arg) <= _FEW_MEMBERS
        return plain and all(
            type(value) is int and len(name) <= BRIEF_BYTES for name, value in event.arg.items()
        )
    return not isinstance(event, Mem) or len(event.data) <= BRIEF_BYTES


def brief(event: Event) -> Event:
    """The event to keep for a report: of bounded size, data cut to `BRIEF_BYTES`."""
    if event.extra:
        event = evolve(event, extra={})
    if isinstance(event, Mem) and len(event.data) > BRIEF_BYTES:
        mask = event.mask and event.mask[:BRIEF_BYTES]
        return evolve(event, data=event.data[:BRIEF_BYTES], mask=mask)
    if isinstance(event, Hypercall) and event.behind and not _is_brief(event.behind):
        seen = (evolve(item, data=item.data[:BRIEF_BYTES], extra={}) for item in event.behind[:ARGS])
        return evolve(event, behind=tuple(seen))
    return event


def _is_brief(behind: tuple[Behind, ...]) -> bool:
    """One short item, with no more than a number for an extra key."""
    if len(behind) != 1 or len(behind[0].data) > BRIEF_BYTES:
        return False
    extra = behind[0].extra
    return not extra or (len(extra) == 1 and type(next(iter(extra.values()))) is int)
