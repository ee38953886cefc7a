"""`xenkvm merge`: several recordings of one VM become one trace."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from pytest_xenkvm.cli.cut import parse_time
from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import check_output, force_option, output_option, watched
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.traceops.merge import Input, NotMergeable, merge

_EPILOG: Final = """\b
Examples:
  xenkvm merge part1.xkt part2.xkt -o whole.xkt              parts of one recording
  xenkvm merge vcpu0.xkt vcpu1.xkt -o both.xkt               views of one VM
  xenkvm merge a.xkt b.xkt --offset 1.5s -o both.xkt         b began 1.5 s after a

An event that several inputs hold, at the same time and the same in every field, is written once. What is put
together must be about one VM on one host: scope, CPU vendor, kernel, KVM_MAX_VCPUS, irqchip and memory must
agree, unless unknown in one, and so must the KVM ids of the vCPUs that both have. An eventfd number must
stand for one eventfd. Every input must have times; an event without one belongs to the event before it.

Exit codes: 0 written, 2 the traces can't be merged (the reason is on stderr).
"""


@click.command("merge", epilog=_EPILOG)
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option(
    "--offset",
    "offsets",
    callback=lambda _ctx, _param, values: [parse_time(value) for value in values],
    multiple=True,
    metavar="TIME",
    help="How long after the first TRACE the others began, one --offset each: 1.5s, 20ms. Default: at once.",
)
@output_option()
@force_option
def merge_command(traces: tuple[str, ...], *, offsets: list[int], output: Path, force: bool) -> None:
    """Merge TRACEs (files, or @NAME), which saw the same VM, in the order of time."""
    if len(traces) < 2:  # noqa: PLR2004 - one is no merge
        raise UserError(f"{traces[0]}: is one trace; merging takes two or more")
    if offsets and len(offsets) != len(traces) - 1:
        raise UserError(
            f"--offset was given {len(offsets)} times, expected {len(traces) - 1}:"
            " once for each trace but the first"
        )
    check_output(output, traces, force=force)
    opened = [open_trace(trace) for trace in traces]
    inputs = [
        Input(name=trace, header=source.header, events=source.events(), offset=offset)
        for trace, source, offset in zip(traces, opened, [0, *(offsets or [0] * len(traces))], strict=False)
    ]
    try:
        merged = merge(inputs, f"Merged from {', '.join(source.name for source in opened)}")
        write_trace(output, merged.header, watched(merged.events, "events written"))
    except NotMergeable as error:
        raise UserError(str(error)) from error
    for key in merged.dropped_keys:
        click.echo(f"left out of the header: {text(key)}, in which the traces differ", err=True)
    again = f"; {merged.repeated:,} that were in more than one were written once" if merged.repeated else ""
    click.echo(f"wrote {text(str(output), 1000)}: {merged.written:,} events{again}", err=True)
