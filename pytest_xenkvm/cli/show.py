"""`xenkvm show`: a trace in words, one line an event."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from shutil import get_terminal_size
from typing import Any, Final

import click

from pytest_xenkvm.cli.counts import count_lines
from pytest_xenkvm.cli.selection import Selection, parse_hypercalls, parse_kinds
from pytest_xenkvm.trace.decode import event_words, has_failed
from pytest_xenkvm.trace.decode_values import enough, number, text
from pytest_xenkvm.trace.events import EVENTS, Event, Header, Hypercall
from pytest_xenkvm.trace.files import open_trace
from pytest_xenkvm.trace.jsonl import event_to_json, header_to_json

_HEADING: Final = "#event   line  ms since start  vCPU  what happened"
_FIRST_EVENT_LINE: Final = 2
"""JSON Lines line of event 0."""
_NS_PER_MS: Final = 1_000_000
_KIB: Final = 1 << 10
_MIB: Final = 1 << 20

_EPILOG: Final = """\b
Examples:
  xenkvm show boot.xkt                                     all of it, paged on a terminal
  xenkvm show boot.xkt --hypercall vcpu_op --forwarded     timer calls that reached the VMM
  xenkvm show boot.xkt --hypercall VCPUOP_set_singleshot_timer --failed
  xenkvm show boot.xkt --from 100 --to 120                 the events around a divergence
  xenkvm show boot.xkt --count                             how often each thing happened
  xenkvm show boot.xkt --json > boot.jsonl                 the same trace as JSON Lines

Times behind @ are absolute (the guest's clock); +1 ms is 1 ms after the guest's clock at that moment.
"""


@click.command(epilog=_EPILOG)
@click.argument("trace")
@click.option("--vcpu", type=click.IntRange(0), metavar="N", help="Only events of the vCPU with index N.")
@click.option(
    "--kind",
    callback=parse_kinds,
    metavar="KIND,...",
    help=f"Only events of these kinds: {', '.join(EVENTS)}.",
)
@click.option(
    "--hypercall",
    callback=parse_hypercalls,
    metavar="NAME,...",
    help="Only these hypercalls: vcpu_op, VCPUOP_set_singleshot_timer, 24.",
)
@click.option("--handled", "handled", flag_value="kernel", help="Only hypercalls that the kernel handled.")
@click.option("--forwarded", "handled", flag_value="userspace", help="Only hypercalls forwarded to the VMM.")
@click.option("--failed", is_flag=True, help="Only what ended in a negative errno, #GP or a failed KVM_RUN.")
@click.option("--inferred", is_flag=True, help="Only events that an importer inferred.")
@click.option("--from", "first", type=click.IntRange(0), default=0, metavar="N", help="Start at event N.")
@click.option("--to", "last", type=click.IntRange(0), metavar="N", help="Stop after event N.")
@click.option("--grep", default="", metavar="TEXT", help="Only lines that contain TEXT, in any case.")
@click.option("--count", "output", flag_value="count", help="Print a summary table instead.")
@click.option("--json", "output", flag_value="json", help="Print JSON Lines instead: the output is a trace.")
@click.pass_context
def show(
    ctx: click.Context,
    /,
    trace: str,
    output: str | None,
    kind: frozenset[str],
    hypercall: frozenset[Any],
    **selected: Any,
) -> None:
    """Print TRACE (a file, or @NAME for one that comes with xenkvm) in words, one line an event.

    Options that select add up: an event is shown if all of them hold for it.
    """
    selection = Selection(kinds=kind, hypercalls=hypercall, **selected)
    opened = open_trace(trace)
    events = selection.of(opened.events())
    match output:
        case "json":
            objects = chain([header_to_json(opened.header)], (event_to_json(event) for _, event in events))
            write(ctx, (json.dumps(obj, separators=(",", ":")) for obj in objects))
        case "count":
            write(ctx, chain(header_lines(opened.header), count_lines(event for _, event in events)))
        case _:
            shown = (event_line(index, event) for index, event in events)
            write(ctx, chain(header_lines(opened.header), [click.style(_HEADING, dim=True)], shown))


def write(ctx: click.Context, lines: Iterable[str]) -> None:
    """Print lines as they come; on a terminal, what doesn't fit goes through the pager."""
    remaining = iter(lines)
    if sys.stdout.isatty():
        start = list(islice(remaining, get_terminal_size().lines))
        if len(start) == get_terminal_size().lines:
            os.environ.setdefault("LESS", "-FRX")  # as git does: colours, and no pager for what fits
            rest = (f"\n{line}" for line in chain(start[1:], remaining))
            click.echo_via_pager(chain(start[:1], rest), color=ctx.color)
            return
        remaining = iter(start)
    for line in remaining:
        click.echo(line)


def header_lines(header: Header) -> Iterator[str]:
    """What the trace says about itself, as comments."""
    facts = [
        f"host kernel {text(header.kernel) if header.kernel else 'unknown'}",
        f"KVM_MAX_VCPUS {header.max_vcpus or 'unknown'}",
        header.cpu_vendor,
        f"recorder {text(header.recorder)}",
        f"scope {header.scope}",
    ]
    yield f"# {', '.join(facts)}"
    if header.vm:
        memory = sum(slot.size for slot in header.vm.memory)
        vcpus = enough(f"{vcpu.index} (id {number(vcpu.id)})" for vcpu in header.vm.vcpus)
        yield f"# VM: irqchip {header.vm.irqchip}, {_size(memory)}, vCPUs {vcpus or 'none'}"
    if header.unseen:
        yield f"# not seen by the recorder: {text(', '.join(header.unseen))}"
    if header.notes:
        yield f"# {text(header.notes, 200)}"


def _size(memory: int) -> str:
    return f"{memory / _MIB:g} MiB" if memory >= _MIB else f"{memory / _KIB:g} KiB"


def event_line(index: int, event: Event) -> str:
    """One event: its index, its line in JSON Lines, time, vCPU and words; red if it failed."""
    time = "-" if event.ts is None else f"{event.ts / _NS_PER_MS:.3f}"
    vcpu = getattr(event, "vcpu", None)
    place = f"{index:6} {index + _FIRST_EVENT_LINE:6} {time:>15} {'-' if vcpu is None else vcpu:>5}"
    words = event_words(event) + ("  (inferred)" if event.inferred else "")
    return (
        f"{click.style(place, dim=True)}  {click.style(words, fg=_colour(event), dim=event.inferred or None)}"
    )


def _colour(event: Event) -> str | None:
    """Failures stand out, and so does what the VMM had to answer."""
    if has_failed(event):
        return "red"
    return "cyan" if isinstance(event, Hypercall) and event.handled == "userspace" else None
